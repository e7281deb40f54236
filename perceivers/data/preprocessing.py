"""`Preprocessing`: from what a file holds to what a model takes. Each kind of data is a subclass, in a file of its own.

The description of a preprocessing is a dict ready for JSON, `{"kind": class name, **arguments}`. It is saved beside the
weights as `preprocessing.json`, so that new files are read as the files the model was trained on. Everything here is
deterministic; random augmentation belongs to training.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from perceivers._checks import a_number, an_int, check_arguments, one_of
from perceivers.data.checks import check_names, check_numbers
from perceivers.data.figures import draw_series
from perceivers.ops.tokens import Tokens
from perceivers.pretrained import read_json

PRETRAINING = "pretraining"
TASKS = ("classification", "multi_label", "regression", PRETRAINING)
SAMPLED = 1000  # records that sizes and statistics are chosen from
Sample = tuple[Any, Tensor | None]  # x and its mask, without a batch axis


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of what a model reads; most are chosen for the data if they are not specified.

    Attributes:
        image_size: Side of images and frames, in pixels. Defaults to the most frequent size, at most 64.
        num_frames: Frames of a video.
        seconds: Length of an audio clip. Defaults to the longest of up to 1,000 clips, at most 10.
        max_length: Bytes of a text. Defaults to the longest of up to 1,000 texts, at most 1024.
    """

    image_size: int | None = None
    num_frames: int = 16
    seconds: float | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "num_frames", "max_length"):
            if getattr(self, name) is not None:
                an_int(name, getattr(self, name))
        if self.seconds is not None:
            a_number("seconds", self.seconds)


@dataclass(frozen=True, kw_only=True)
class Preprocessing(ABC):
    """Turns one raw record into `(x, mask)`, without a batch axis.

    Class attributes say which data a kind reads and how it is trained on; the methods that are not abstract have defaults for
    samples that are one array of numbers.

    Attributes:
        kinds: All kinds of data, by class name. A subclass is added when it is defined.
        plural: Name for messages, such as "images".
        suffixes: Suffixes of files that hold one record each.
        containers: Suffixes of files that hold many records, see `read`.
        feature: Name of the class of `datasets` whose columns hold such records, such as "Image".
        column: Name of a column of a table that holds such records, such as "text".
        augmentations: Names of the random changes of `perceivers.training.augment` that apply.
        mask_ratio: Share of the inputs that pretraining hides by default; `None` if it is not supported.
        labels: Names of classes, of labels, or of numbers to predict.
        task: "classification", "multi_label", "regression", or "pretraining", which has no labels.
        target_mean: For regression, the mean of each target, which was subtracted.
        target_std: For regression, the standard deviation of each target, by which it was divided.
    """

    kinds: ClassVar[dict[str, type["Preprocessing"]]] = {}
    plural: ClassVar[str]
    suffixes: ClassVar[frozenset[str]] = frozenset()
    containers: ClassVar[frozenset[str]] = frozenset()
    feature: ClassVar[str | None] = None
    column: ClassVar[str | None] = None
    augmentations: ClassVar[tuple[str, ...]] = ()
    mask_ratio: ClassVar[float | None] = None
    labels: list[str]
    task: str
    target_mean: list[float] = field(default_factory=list)
    target_std: list[float] = field(default_factory=list)

    def __init_subclass__(cls) -> None:
        Preprocessing.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        check_names("labels", self.labels)
        one_of("task", self.task, TASKS)
        count = len(self.labels) if self.task == "regression" else 0
        check_numbers("target_mean", self.target_mean, count)
        check_numbers("target_std", self.target_std, count)
        self.check()

    # What a kind must define.

    @abstractmethod
    def check(self) -> None:
        """Raise `ValueError` unless the arguments of the kind have their types and fit each other."""

    @abstractmethod
    def __call__(self, record: Any) -> Sample:
        """Return `(x, mask)`, what the model takes without the batch axis.

        Raises:
            ValueError: If the record cannot be read or does not fit; the message names it.
        """

    @abstractmethod
    def example(self) -> Sample:
        """Return what a record becomes, filled with zeros."""

    @abstractmethod
    def inputs(self, dim: int) -> dict[str, Any]:
        """Return the description of an input module for these data, see `perceivers.inputs`.

        Args:
            dim: Width of learned embeddings, if the module has any.
        """

    @classmethod
    @abstractmethod
    def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any) -> Self:
        """Choose sizes and statistics for records to train on.

        Args:
            records: The raw records; `spread` takes some of them.
            sizes: Sizes that the user specified.
            **common: The arguments that all kinds have: labels, task, and statistics of targets.

        Raises:
            ValueError: If a record cannot be read.
        """

    # Detection and reading.

    @classmethod
    def accepts(cls, name: str, x: np.ndarray) -> bool:
        """Return whether an array of records is of this kind.

        Args:
            name: Its name in the file, "x" or "points".
            x: The array, `[n, ...]`.

        Raises:
            ValueError: If it is, but has a wrong shape.
        """
        return False

    @classmethod
    def from_array(cls, x: np.ndarray) -> Sequence[Any]:
        """Return the records of an array that the kind accepts."""
        return x  # pyright: ignore[reportReturnType] an array of arrays is a sequence of them

    @classmethod
    def read(cls, file: Path) -> Iterable[Any]:
        """Return the records of a file with one of the suffixes in `containers`.

        Raises:
            ValueError: If it cannot be read.
        """
        raise ValueError(f"{file} is not a file of many {cls.plural}")

    @classmethod
    def pieces(cls, file: Path) -> Sequence[Any] | None:
        """Return the records that one file is cut into for pretraining, or `None` if the kind does not cut files."""
        return None

    # Batches, pretraining and figures.

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """Return the batch of several samples."""
        masks = [mask for _, mask in samples if mask is not None]
        return default_collate([x for x, _ in samples]), torch.stack(masks) if masks else None

    def target_channels(self, channels: int) -> int:
        """Return how many numbers are predicted per hidden input.

        Args:
            channels: Channels of the content of an input.
        """
        return channels

    def known(self, x: Any, tokens: Tokens) -> Tensor:
        """Return which inputs of a batch are known, so that they can be hidden and predicted, `[B, M]`.

        Args:
            x: The batch.
            tokens: What the input module makes of it.
        """
        if tokens.mask is None:
            return tokens.content.new_ones(len(tokens.content), tokens.num_inputs, dtype=torch.bool)
        return tokens.mask.flatten(1)

    def reconstruction_loss(self, predicted: Tensor, x: Any, tokens: Tokens, known: Tensor, rows: Tensor) -> Tensor:
        """Return the loss of each predicted input, `[B, O]`.

        The default is the squared error of the content, normalised per sample.

        Args:
            predicted: The model's outputs, `[B, O, target_channels]`.
            x: The batch.
            tokens: What the input module makes of it.
            known: See `known`.
            rows: Which inputs were predicted, `[B, O]`.
        """
        content = tokens.content.flatten(2).detach()  # [B, U, M]
        seen = known.unsqueeze(1).expand_as(content)
        count = seen.sum((1, 2), keepdim=True)
        content = content.masked_fill(~seen, 0)
        mean = content.sum((1, 2), keepdim=True) / count
        variance = (content - mean).square().masked_fill(~seen, 0).sum((1, 2), keepdim=True) / count
        wanted = ((content - mean) / (variance + 1e-6).sqrt()).mT
        wanted = wanted.gather(1, rows.unsqueeze(-1).expand(-1, -1, wanted.shape[-1]))
        return (predicted - wanted).square().mean(-1)

    def draw(self, panels: Sequence[Any], record: Any, x: Any, maps: Tensor) -> None:
        """Draw a sample on the first panel of matplotlib, and one map on each of the others.

        Args:
            panels: The panels.
            record: The raw record.
            x: The sample.
            maps: Attention per input, `[k, *axes]`.
        """
        draw_series(panels, x.reshape(-1, x.shape[-1])[0], maps, label="position")

    # Descriptions.

    def describe(self) -> dict[str, Any]:
        """Return the description."""
        return {"kind": type(self).__name__, **asdict(self)}

    @staticmethod
    def load(path: str | Path) -> "Preprocessing":
        """Make the preprocessing that a `preprocessing.json` describes.

        Raises:
            ValueError: If the file is missing or damaged.
        """
        try:
            return Preprocessing.create(read_json(path))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}): give a folder that perceivers fit wrote") from error

    @staticmethod
    def create(description: Mapping[str, Any]) -> "Preprocessing":
        """Make the preprocessing of a description.

        Raises:
            ValueError: If the kind or an argument is unknown or missing.
        """
        kind = Preprocessing.kinds.get(str(description.get("kind")))
        if kind is None:
            raise ValueError(f"preprocessing: kind={description.get('kind')!r} must be one of {sorted(Preprocessing.kinds)}")
        arguments = {name: value for name, value in description.items() if name != "kind"}
        check_arguments("preprocessing", kind, arguments)
        return kind(**arguments)


def spread(records: Sequence[Any], count: int = SAMPLED) -> list[Any]:
    """Return at most `count` of the records, evenly spaced."""
    places = np.linspace(0, len(records) - 1, min(len(records), count)).astype(np.int64)
    return [records[int(place)] for place in places]
