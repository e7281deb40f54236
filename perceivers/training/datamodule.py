"""The data of a run: splits, preprocessing, and batches whose order is a function of the seed and of how many were taken.

Nothing random depends on workers, on processes, or on when a run was stopped: batch number b is the same wherever counting
started. So a resumed run needs to know only how many batches it has trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from perceivers.data import Preprocessing, Sizes
from perceivers.data.detect import Detected, Split, detect

Example = tuple[Any, Tensor | None, Tensor | None]  # x, its mask and its target


class Examples(Dataset):
    """Preprocessed records with their targets: `(x, mask, target)`, without a batch axis."""

    def __init__(self, split: Split, rows: np.ndarray, preprocessing: Preprocessing) -> None:
        self.split, self.rows, self.preprocessing = split, rows, preprocessing
        self.targets = None if split.targets is None else prepare_targets(split.targets[rows], preprocessing)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        x, mask = self.preprocessing(self.split.records[int(self.rows[i])])
        return x, mask, None if self.targets is None else self.targets[i]

    def collate(self, examples: Sequence[Example]) -> Example:
        """Return the batch `(x, mask, targets)` of several examples."""
        targets = [target for _, _, target in examples if target is not None]
        x, mask = self.preprocessing.collate([(x, mask) for x, mask, _ in examples])
        return x, mask, torch.stack(targets) if targets else None


def prepare_targets(targets: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """Return classes `[n]`, labels `[n, k]` or standardised numbers `[n, k]`."""
    if preprocessing.task == "classification":
        return torch.from_numpy(targets.astype(np.int64))
    values = torch.from_numpy(targets.astype(np.float32))
    if preprocessing.task == "multi_label":
        return values
    return (values - torch.tensor(preprocessing.target_mean)) / torch.tensor(preprocessing.target_std)


class ShuffledBatches(Sampler[list[int]]):
    """Batches in an order that is a function of the seed, from batch number `consumed` to the end of its epoch.

    Each epoch has a new order; samples that do not fill a batch are left out of it.

    Args:
        size: Number of samples.
        batch_size: Samples per batch, over all processes.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes, each of which gets an equal share of every batch.

    Raises:
        ValueError: If the shares cannot be equal.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.seed, self.rank, self.world_size = size, seed, rank, world_size
        self.batch_size = min(batch_size, size // world_size * world_size)
        if self.batch_size < 1 or self.batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size} must be a multiple of the {world_size} processes, and there are {size} samples"
            )
        self.consumed = 0

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.consumed, len(self))
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed_of(self.seed, epoch))).tolist()
        for batch in range(first, len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size][self.rank :: self.world_size]


class Loader(DataLoader):
    """A loader whose workers raise the same errors as the process itself."""

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except ValueError as error:  # of a worker, whose message follows its traceback
            raise ValueError(str(error).strip().rpartition("\n")[2].removeprefix("ValueError: ")) from error


class ResumableLoader(Loader):
    """A loader that counts the batches taken from it, and resumes there."""

    batch_sampler: ShuffledBatches

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.batch_sampler.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches taken."""
        return {"consumed": self.batch_sampler.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume after that number of batches."""
        self.batch_sampler.consumed = state["consumed"]


def seed_of(*numbers: int) -> int:
    """Return one seed for several numbers, such as a run's seed, an epoch and a batch."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class PathData(LightningDataModule):
    """The data at a path, see `perceivers.data.detect` for the rules.

    Args:
        path: A folder, a file, or `hub:NAME`.
        target: Column of a table to predict, or several, separated by commas.
        task: "classification", "multi_label", "regression" or "pretraining". Defaults to the rules.
        batch_size: Samples per step, over all processes. Defaults to 64, or fewer if there are few samples.
        validation: Share of the training samples, of each class, that is split off at random if no validation samples are
            given.
        seed: Seed of the split and of the order.
        num_workers: Processes that read data, beside the one that trains.
        like: The `preprocessing.json` of a pretrained model, to take its sizes and statistics. Defaults to choosing them.
        preprocessing: A whole preprocessing, as its description or as the path of its `preprocessing.json`. Defaults to
            choosing one.
        **sizes: Sizes of what the model reads, see `perceivers.data.Sizes`.
    """

    def __init__(
        self,
        path: str,
        *,
        target: str | None = None,
        task: str | None = None,
        batch_size: int | None = None,
        validation: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        like: str | None = None,
        preprocessing: dict[str, Any] | str | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__()
        if not 0 < validation < 1:
            raise ValueError(f"validation={validation!r} must be a share between 0 and 1")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be at least 1")
        wanted = Sizes(**sizes)
        self.found: Detected = detect(path, target=target, task=task)
        self.seed, self.num_workers = seed, num_workers
        self._loader: ResumableLoader | None = None
        self._consumed = 0
        self.rows = split_rows(self.found, validation, seed)
        if preprocessing is None:
            other = None if like is None else Preprocessing.load(like)
            self.preprocessing = choose_preprocessing(self.found, self.rows["train"], wanted, other)
        elif isinstance(preprocessing, str):
            self.preprocessing = Preprocessing.load(preprocessing)
        else:
            self.preprocessing = Preprocessing.create(preprocessing)
        if self.preprocessing.labels != self.found.labels:
            raise ValueError(
                f"path={path!r} has the labels {self.found.labels[:5]}, but the preprocessing {self.preprocessing.labels[:5]}:"
                " give the data that it was made for, or start a new run"
            )
        self.batch_size = min(64, max(1, len(self.rows["train"]) // 8)) if batch_size is None else batch_size

    def examples(self, name: str) -> Examples:
        """Return the samples of a split; the validation samples if there are no test samples."""
        name = name if name in self.rows else "validation"
        given = name if name in self.found.splits else "train"
        return Examples(self.found.splits[given], self.rows[name], self.preprocessing)

    def train_dataloader(self) -> ResumableLoader:
        """Return batches in a resumable order, this process's share of each."""
        examples = self.examples("train")
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = ShuffledBatches(len(examples), self.batch_size, seed=self.seed, rank=rank, world_size=world)
        batches.consumed = self._consumed
        self._loader = ResumableLoader(
            examples, batch_sampler=batches, num_workers=self.num_workers, collate_fn=examples.collate
        )
        return self._loader

    # Lightning restores a loader's own state only if the loader is made after the checkpoint was read; a schedule that needs
    # the number of steps makes it before.
    def state_dict(self) -> dict[str, int]:
        """Return the number of batches trained on."""
        return {"consumed": self._consumed} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume after that number of batches."""
        self._consumed = state_dict["consumed"]
        if self._loader is not None:
            self._loader.load_state_dict(state_dict)

    def val_dataloader(self) -> DataLoader:
        """Return the validation samples in their order, the share of this process."""
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader:
        """Return the test samples in their order, the share of this process."""
        return self._in_order("test")

    def _in_order(self, name: str) -> DataLoader:
        examples = self.examples(name)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        rows = range(rank, len(examples), world)
        batches = [list(rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size)]
        return Loader(examples, batch_sampler=batches, num_workers=self.num_workers, collate_fn=examples.collate)  # pyright: ignore


def split_rows(found: Detected, validation: float, seed: int) -> dict[str, np.ndarray]:
    """Return the rows of each split; without validation samples, a share of the training rows of each class is split off.

    Raises:
        ValueError: If there are too few samples to split.
    """
    rows = {name: np.arange(len(split.records)) for name, split in found.splits.items()}
    if "validation" in rows:
        return rows
    order = np.random.default_rng(seed).permutation(rows["train"])
    if len(order) < 2:
        raise ValueError("PATH: there is one sample, but two are needed, to train and to validate: add some")
    targets = found.splits["train"].targets
    groups = [order]
    if found.task == "classification" and targets is not None:
        groups = [order[targets[order] == label] for label in np.unique(targets)]
    chosen = np.concatenate([group[: round(len(group) * validation)] for group in groups])
    chosen = chosen if len(chosen) else order[:1]
    rows["train"], rows["validation"] = np.setdiff1d(rows["train"], chosen), np.sort(chosen)
    return rows


def choose_preprocessing(found: Detected, rows: np.ndarray, sizes: Sizes, like: Preprocessing | None = None) -> Preprocessing:
    """Choose the preprocessing for training samples; or take the sizes and statistics of another, `like`.

    Raises:
        ValueError: If records cannot be read, or `like` is of another kind.
    """
    split = found.splits["train"]
    common: dict[str, Any] = {"labels": found.labels, "task": found.task}
    if found.task == "regression":
        values = split.targets[rows].astype(np.float64)  # pyright: ignore[reportOptionalSubscript] the task has targets
        if not np.isfinite(values).all():
            raise ValueError(f"target {found.labels} holds NaN or infinite values: remove these rows")
        common |= {"target_mean": values.mean(0).tolist(), "target_std": [std or 1.0 for std in values.std(0).tolist()]}
    if like is None:
        return found.kind.choose(Subset(split.records, rows), sizes, **common)  # pyright: ignore[reportArgumentType]
    if type(like) is not found.kind:
        raise ValueError(f"PATH holds {found.kind.plural}, but the pretrained model reads {like.plural}")
    return replace(like, **common)
