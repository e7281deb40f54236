"""The data of a run: splits, preprocessing, and batches whose order is a function of the seed and of how many were trained.

Nothing that is random depends on workers, processes or on where a run was stopped: batch number b is the same wherever
counting started. So a resumed run needs to know only how many batches it has trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from perceivers.data.detect import Recognised, Split, recognise
from perceivers.data.preprocessing import (
    Arrays,
    Audio,
    Images,
    Points,
    Preprocessing,
    Table,
    Text,
    Videos,
    collate,
    decoded,
    read_sound,
)

FEW_NAMES = 100  # a column with more names, and a name for less than ten rows on average, is left out
LOOKED_AT = 1000  # records that sizes, means and deviations are taken from


class Examples(Dataset):
    """Preprocessed records with their targets: `(x, mask, target)`, without an axis of samples."""

    def __init__(self, split: Split, rows: np.ndarray, preprocessing: Preprocessing) -> None:
        self.split, self.rows, self.preprocessing = split, rows, preprocessing
        self.targets = None if split.targets is None else prepare_targets(split.targets[rows], preprocessing)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Any, Tensor | None, Tensor | None]:
        x, mask = self.preprocessing(self.split.records[int(self.rows[i])])
        return x, mask, None if self.targets is None else self.targets[i]


def prepare_targets(targets: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """Classes `[n]`, labels `[n, k]` or standardised numbers `[n, k]`."""
    if preprocessing.task == "classification":
        return torch.from_numpy(targets.astype(np.int64))
    values = torch.from_numpy(targets.astype(np.float32))
    if preprocessing.task == "multi_label":
        return values
    return (values - torch.tensor(preprocessing.target_mean)) / torch.tensor(preprocessing.target_std)


def batch_of(examples: Sequence[tuple[Any, Tensor | None, Tensor | None]]) -> tuple[Any, Tensor | None, Tensor | None]:
    """Makes a batch `(x, mask, targets)` of examples."""
    targets = [target for _, _, target in examples if target is not None]
    return *collate([(x, mask) for x, mask, _ in examples]), torch.stack(targets) if targets else None


class ShuffledBatches(Sampler[list[int]]):
    """Batches in an order that is a function of the seed, from batch number `consumed` to the end of its epoch.

    Each epoch is a new order; what does not fill a batch is left out of it.

    Args:
        size: Number of samples.
        batch_size: Samples of a batch over all processes.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes, each of which gets its share of every batch.

    Raises:
        ValueError: If processes cannot have equal shares.
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
    """A loader whose workers' errors are as those of the process itself."""

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except ValueError as error:  # of a worker, behind its whole traceback
            raise ValueError(str(error).strip().rpartition("\n")[2].removeprefix("ValueError: ")) from error


class ResumableLoader(Loader):
    """A loader that knows how many batches were taken from it, and goes on from there."""

    batch_sampler: ShuffledBatches

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.batch_sampler.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The number of batches that were taken."""
        return {"consumed": self.batch_sampler.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on after that number of batches."""
        self.batch_sampler.consumed = state["consumed"]


def seed_of(*numbers: int) -> int:
    """One seed of several numbers, such as a run's seed, an epoch and a batch."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class PathData(LightningDataModule):
    """What lies at a path, see `perceivers.data.detect` for the rules.

    Args:
        path: A folder, a file, or `hub:NAME`.
        target: Column of a table that is to be predicted, or several, with commas between.
        task: "classification", "multi_label", "regression" or "pretraining"; `None` for the rules.
        batch_size: Samples of a step, over all processes; `None` for 64, or fewer where there are few samples.
        validation: Share of the training samples that is split off where no validation samples are given: a random one of
            each class.
        seed: Seed of the split and of the order.
        num_workers: Processes that read data, beside the one that trains.
        image_size: Side that pictures and frames are resized to, in pixels; `None` for their most frequent one, at most 64.
        num_frames: Frames of a video that the model sees.
        seconds: Length of sound that the model hears; `None` for that of the longest of a sample of files, at most 10.
        max_length: Bytes of text that the model reads; `None` for the longest of a sample, at most 1024.
        like: The same file of a pretrained model, whose sizes are taken; `None` to choose them.
        preprocessing: File with what was chosen for another run, `preprocessing.json`; `None` to choose.
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
        image_size: int | None = None,
        num_frames: int = 16,
        seconds: float | None = None,
        max_length: int | None = None,
        like: str | None = None,
        preprocessing: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 < validation < 1:
            raise ValueError(f"validation={validation!r} must be a share between 0 and 1")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be at least 1")
        self.found: Recognised = recognise(path, target=target, task=task)
        self.seed, self.num_workers = seed, num_workers
        self._loader: ResumableLoader | None = None
        self._consumed = 0
        self.rows = split_rows(self.found, validation, seed)
        for name, value in (("image_size", image_size), ("num_frames", num_frames), ("max_length", max_length)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds={seconds!r} must be above 0")
        sizes = {"image_size": image_size, "num_frames": num_frames, "seconds": seconds, "max_length": max_length}
        if preprocessing is not None:
            self.preprocessing = Preprocessing.load(preprocessing)
        else:
            given = None if like is None else Preprocessing.load(like)
            self.preprocessing = choose(self.found, self.rows["train"], like=given, **sizes)
        if self.preprocessing.labels != self.found.labels:
            raise ValueError(
                f"path={path!r} has {self.found.labels[:5]}, but {preprocessing} says {self.preprocessing.labels[:5]}: give"
                " the data that it was made for, or begin a new run"
            )
        self.batch_size = min(64, max(1, len(self.rows["train"]) // 8)) if batch_size is None else batch_size

    @property
    def description(self) -> dict[str, Any]:
        """The description of the preprocessing."""
        return self.preprocessing.describe()

    def examples(self, name: str) -> Examples:
        """The samples of a split; those to test are the validation samples where none are given."""
        name = name if name in self.rows else "validation"
        given = name if name in self.found.splits else "train"
        return Examples(self.found.splits[given], self.rows[name], self.preprocessing)

    def train_dataloader(self) -> ResumableLoader:
        """Batches in a resumable order, each process its share."""
        examples = self.examples("train")
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = ShuffledBatches(len(examples), self.batch_size, seed=self.seed, rank=rank, world_size=world)
        batches.consumed = self._consumed
        self._loader = ResumableLoader(examples, batch_sampler=batches, num_workers=self.num_workers, collate_fn=batch_of)
        return self._loader

    # Lightning restores a loader's own state only where the loader is made after the checkpoint was read; a schedule that
    # asks for the number of steps makes it before.
    def state_dict(self) -> dict[str, int]:
        """How many batches were trained."""
        return {"consumed": self._consumed} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on after that number of batches."""
        self._consumed = state_dict["consumed"]
        if self._loader is not None:
            self._loader.load_state_dict(state_dict)

    def val_dataloader(self) -> DataLoader:
        """The validation samples in their order, the share of this process."""
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader:
        """The test samples in their order."""
        return self._in_order("test")

    def _in_order(self, name: str) -> DataLoader:
        examples = self.examples(name)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        rows = range(rank, len(examples), world)
        batches = [list(rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size)]
        return Loader(examples, batch_sampler=batches, num_workers=self.num_workers, collate_fn=batch_of)  # pyright: ignore


def split_rows(found: Recognised, validation: float, seed: int) -> dict[str, np.ndarray]:
    """The rows of each split; where no validation samples are given, a share of the training rows, of each class.

    Raises:
        ValueError: If there are too few samples to split.
    """
    rows = {name: np.arange(len(split.records)) for name, split in found.splits.items()}
    if "validation" in rows:
        return rows
    order = np.random.default_rng(seed).permutation(rows["train"])
    if len(order) < 2:
        raise ValueError("PATH: there is one sample, but one is needed to train and one to validate: add some")
    targets = found.splits["train"].targets
    groups = [order]
    if found.task == "classification" and targets is not None:
        groups = [order[targets[order] == label] for label in np.unique(targets)]
    chosen = np.concatenate([group[: round(len(group) * validation)] for group in groups])
    chosen = chosen if len(chosen) else order[:1]
    rows["train"], rows["validation"] = np.setdiff1d(rows["train"], chosen), np.sort(chosen)
    return rows


def choose(
    found: Recognised,
    rows: np.ndarray,
    *,
    image_size: int | None,
    num_frames: int,
    seconds: float | None,
    max_length: int | None,
    like: Preprocessing | None = None,
) -> Preprocessing:
    """Chooses the preprocessing for samples to train on, from at most 1,000 of them evenly spread; or as another, `like`.

    Raises:
        ValueError: If records cannot be read, or `like` is of another kind.
    """
    split = found.splits["train"]
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).astype(np.int64)]
    common: dict[str, Any] = {"labels": found.labels, "task": found.task}
    if found.task == "regression":
        values = split.targets[rows].astype(np.float64)  # pyright: ignore[reportOptionalSubscript] the task has targets
        if not np.isfinite(values).all():
            raise ValueError(f"target {found.labels}: values that are no numbers: remove these rows")
        common |= {"target_mean": values.mean(0).tolist(), "target_std": [std or 1.0 for std in values.std(0).tolist()]}
    if like is not None:
        if type(like).__name__ != found.kind:
            raise ValueError(f"PATH has {found.kind.lower()}, but the pretrained model reads {type(like).__name__.lower()}")
        return replace(like, **common)
    records = (split.records[int(row)] for row in some)
    match found.kind:
        case "Images":
            return _choose_pictures([_opened(record) for record in records], image_size, common)
        case "Audio":
            sounds = [read_sound(record) for record in records]
            rate = int(np.median([rate for _, rate in sounds]))
            longest = max(len(values) / own for values, own in sounds)
            samples = round((min(longest, 10.0) if seconds is None else seconds) * rate)
            return Audio(**common, sample_rate=rate, num_samples=max(samples, 2))
        case "Videos":
            seen = [next(decoded(record)).size for record in records]
            return Videos(**common, size=_side(seen, image_size), num_frames=num_frames)
        case "Text":
            texts = [
                record.read_text("utf-8", "replace") if hasattr(record, "read_text") else str(record) for record in records
            ]
            longest = max(len(text.encode()) for text in texts)
            return Text(**common, max_length=max(1, min(longest, 1024)) if max_length is None else max_length)
        case "Points":
            return Points(**common, num_axes=int(next(records).shape[1]))
        case "Table":
            return _choose_table(split.records, rows, common)
        case _:
            return _choose_arrays(np.stack(list(records)), common)


def _opened(record: Any) -> tuple[tuple[int, int], str]:
    """Size and mode of a picture, without decoding it."""
    from PIL import Image, UnidentifiedImageError

    from perceivers.data.preprocessing import _source

    source, name = _source(record)
    try:
        with Image.open(source) as picture:
            return picture.size, picture.mode
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{name} is damaged or no picture ({error}): remove or replace it") from error


def _choose_pictures(seen: list[tuple[tuple[int, int], str]], size: int | None, common: dict[str, Any]) -> Images:
    grey = all(mode in ("1", "L", "I", "I;16", "F") for _, mode in seen)
    return Images(**common, size=_side([own for own, _ in seen], size), channels=1 if grey else 3)


def _side(sizes: list[tuple[int, int]], size: int | None) -> list[int]:
    """Height and width: as given, or those that are most frequent among `sizes` (width, height), at most 64."""
    width, height = max(set(sizes), key=lambda one: (sizes.count(one), one))
    if size is not None:
        return [size, size]
    return [64, 64] if max(width, height) > 64 else [height, width]


def _choose_table(records: Sequence[Any], rows: np.ndarray, common: dict[str, Any]) -> Table:
    table = [records[int(row)] for row in rows]
    numeric, categorical, means, stds = [], {}, [], []
    for column in table[0]:
        values = [row[column] for row in table if row[column] is not None and row[column] != ""]
        if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            known = np.array(values, dtype=np.float64)
            known = known[np.isfinite(known)]
            if len(known) and known.std() > 0:  # a column that never changes says nothing
                numeric.append(column)
                means.append(float(known.mean()))
                stds.append(float(known.std()))
        elif values:
            names = sorted({str(value) for value in values})
            if 1 < len(names) <= max(FEW_NAMES, len(table) // 10):  # else names of rows, or no difference
                categorical[column] = names
    if not numeric and not categorical:
        raise ValueError(f"PATH: none of the columns {list(table[0])} differs between rows, or all are free text: add columns")
    return Table(**common, numeric=numeric, mean=means, std=stds, categorical=categorical)


def _choose_arrays(x: np.ndarray, common: dict[str, Any]) -> Arrays:
    shape = x.shape[1:]
    channel_axis = _has_channels(shape)
    last = channel_axis and shape[-1] <= 4 < shape[0]
    x = np.moveaxis(x, -1, 1) if last else x if channel_axis else x[:, None]
    axes = (0, *range(2, x.ndim))
    mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
    return Arrays(
        **common,
        data_shape=list(x.shape[1:]),
        mean=mean.tolist(),
        std=[value or 1.0 for value in std.tolist()],
        channel_axis=channel_axis,
        channels_last=last,
    )


def _has_channels(shape: Sequence[int]) -> bool:
    """Whether an axis, the first or the last, is of channels: a short one beside long ones."""
    if len(shape) == 1:
        return False
    if len(shape) == 2:
        return shape[0] <= 4 or 4 * shape[0] <= shape[1]
    return min(shape[0], shape[-1]) <= 4 or 4 * shape[0] <= shape[1]
