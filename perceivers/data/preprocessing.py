"""From what a file holds to what a model takes, one class a kind of data; and the description that travels with a model.

A description is a dict ready for JSON, `{"kind": name, **arguments}`; it is saved beside the weights as
`preprocessing.json`, so that new files are treated as those the model was trained on. Everything here is deterministic:
what is random in training happens later, in `augment`.
"""

import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from perceivers._atomic import replacing
from perceivers._checks import a_bool, a_list, a_number, an_int, one_of
from perceivers.inputs import ByteTokenizer
from perceivers.pretrained import read_json

TASKS = ("classification", "multi_label", "regression", "pretraining")
LARGEST = 2**28  # numbers in a sample
Sample = tuple[Any, Tensor | None]  # x and its mask, without an axis of samples


@dataclass(frozen=True, kw_only=True)
class Preprocessing(ABC):
    """Turns one raw record into `(x, mask)`, without an axis of samples.

    Attributes:
        labels: Names of classes, of labels, or of numbers to predict.
        task: "classification", "multi_label", "regression", or "pretraining", which has no labels.
        target_mean: For regression, what was subtracted from each number.
        target_std: For regression, what each number was divided by.
    """

    kinds: ClassVar[dict[str, type["Preprocessing"]]] = {}
    labels: list[str]
    task: str
    target_mean: list[float] = field(default_factory=list)
    target_std: list[float] = field(default_factory=list)

    def __init_subclass__(cls) -> None:
        Preprocessing.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        _names("labels", self.labels)
        one_of("task", self.task, TASKS)
        count = len(self.labels) if self.task == "regression" else 0
        _numbers("target_mean", self.target_mean, count)
        _numbers("target_std", self.target_std, count)
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """Raises `ValueError` unless the arguments of the kind are of their types and fit each other."""

    @abstractmethod
    def __call__(self, record: Any) -> Sample:
        """Returns `(x, mask)`, what the model takes without its first axis.

        Raises:
            ValueError: If the record cannot be read or does not fit; the message names it.
        """

    @abstractmethod
    def example(self) -> Sample:
        """Returns what a record becomes, filled with zeros."""

    @abstractmethod
    def inputs(self, dim: int) -> dict[str, Any]:
        """Describes an input module for these data, see `perceivers.inputs`; vectors of ids and columns have width `dim`."""

    def describe(self) -> dict[str, Any]:
        """Returns the description."""
        return {"kind": type(self).__name__, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Writes the description to a file."""
        with replacing(path) as file:
            file.write(json.dumps(self.describe(), indent=2).encode() + b"\n")

    @staticmethod
    def load(path: str | Path) -> "Preprocessing":
        """Makes what a file that `save` wrote describes.

        Raises:
            ValueError: If the file is missing or damaged.
        """
        try:
            return Preprocessing.create(read_json(path))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}): give a folder that perceivers fit wrote") from error

    @staticmethod
    def create(description: Mapping[str, Any]) -> "Preprocessing":
        """Makes what `describe` described.

        Raises:
            ValueError: If the kind or an argument is unknown or missing.
        """
        kind = Preprocessing.kinds.get(str(description.get("kind")))
        if kind is None:
            raise ValueError(f"preprocessing: kind={description.get('kind')!r} is none of {sorted(Preprocessing.kinds)}")
        arguments = {name: value for name, value in description.items() if name != "kind"}
        known = {f.name for f in fields(kind)}
        if unknown := arguments.keys() - known:
            raise ValueError(f"preprocessing: unknown keys {sorted(unknown)}, no arguments of {kind.__name__}")
        try:
            return kind(**arguments)
        except TypeError as error:
            raise ValueError(f"preprocessing: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Images(Preprocessing):
    """Picture files, resized so that they cover `size`, cut to it in the centre, and scaled to [-1, 1].

    Attributes:
        size: Height and width, in pixels.
        channels: 1 for grey, 3 for colour.
    """

    size: list[int]
    channels: int = 3

    def _check(self) -> None:
        _lengths("size", self.size, 2)
        if an_int("channels", self.channels) not in (1, 3):
            raise ValueError(f"channels={self.channels} must be 1 for grey or 3 for colour")

    def __call__(self, record: Any) -> Sample:
        """Reads a file: a path, its bytes, or a dict with either."""
        from PIL import Image, ImageOps

        image = read_picture(record, "L" if self.channels == 1 else "RGB")
        height, width = self.size
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(image, dtype=np.float32)) / 127.5 - 1
        return values.reshape(height, width, self.channels).movedim(-1, 0).contiguous(), None

    def example(self) -> Sample:
        """Zeros."""
        return torch.zeros(self.channels, *self.size), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Patches of 2 x 2 pixels, or larger ones that leave at most 32 x 32; every pixel where sizes are odd."""
        patch = 1 << max(1, math.ceil(math.log2(max(self.size) / 32)))
        while patch > 1 and any(n % patch for n in self.size):
            patch //= 2
        counts = [n // patch for n in self.size]
        bands = max(2, min(32, max(counts) // 2))
        return {
            "kind": "Patches",
            "data_shape": [self.channels, *self.size],
            "patch_size": [patch, patch],
            "num_bands": bands,
            "resolution": counts,
        }


def read_picture(record: Any, mode: str, *, upright: bool = False) -> Any:
    """Returns a picture of Pillow's.

    Args:
        record: A path, the bytes of a file, or a dict with either.
        mode: Pillow's name of the colours, such as "RGB".
        upright: Whether it is turned as the camera says that it was held.

    Raises:
        ValueError: If it cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    source, name = _source(record)
    try:
        with Image.open(source) as picture:
            picture.load()
            return (ImageOps.exif_transpose(picture) if upright else picture).convert(mode)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is damaged or no picture ({error}): remove or replace it") from error


@dataclass(frozen=True, kw_only=True)
class CenterCroppedImages(Preprocessing):
    """Picture files as transformers' PerceiverImageProcessor reads them, to the same numbers: cut, resized, standardised.

    Attributes:
        size: Height and width, in pixels.
        crop: The shorter side is taken for `crop` pixels, of which the `size` in the centre are kept; `None` for all.
        resample: Pillow's number of a filter; 3 is bicubic.
        scale: What the bytes are multiplied by.
        mean: For each channel, what is subtracted.
        std: For each channel, what the difference is divided by.
    """

    size: list[int]
    crop: list[int] | None
    resample: int
    scale: float
    mean: list[float]
    std: list[float]

    def _check(self) -> None:
        _lengths("size", self.size, 2)
        if self.crop is not None:
            _lengths("crop", self.crop, 2)
        if an_int("resample", self.resample, 0) > 5:
            raise ValueError(f"resample={self.resample} is none of Pillow's filters, 0 to 5")
        a_number("scale", self.scale)
        _numbers("mean", self.mean, 3)
        _numbers("std", self.std, 3, positive=True)

    def __call__(self, record: Any) -> Sample:
        """Reads a file: a path, its bytes, or a dict with either."""
        image = read_picture(record, "RGB", upright=True)
        if self.crop is not None:
            shorter = min(image.size)
            height, width = (int(n / whole * shorter) for n, whole in zip(self.size, self.crop, strict=True))
            if min(height, width) == 0:
                raise ValueError(f"{_source(record)[1]} is too small, {image.size[0]} x {image.size[1]} pixels: replace it")
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # black where it is larger than the picture
        image = image.resize(self.size[::-1], self.resample)
        values = (np.array(image).astype(np.float64) * self.scale).astype(np.float32)
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        return torch.from_numpy((values - mean) / std).movedim(-1, 0).contiguous(), None

    def example(self) -> Sample:
        """Zeros."""
        return torch.zeros(3, *self.size), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """As of `Images`."""
        return Images(labels=self.labels, task="pretraining", size=self.size).inputs(dim)


@dataclass(frozen=True, kw_only=True)
class Videos(Preprocessing):
    """Video files: frames evenly spaced over the clip, each resized and cut as a picture; a short clip repeats frames.

    Attributes:
        size: Height and width, in pixels.
        num_frames: Frames that the model sees.
    """

    size: list[int]
    num_frames: int

    def _check(self) -> None:
        _lengths("size", self.size, 2)
        an_int("num_frames", self.num_frames)

    def __call__(self, record: Any) -> Sample:
        """Reads a file: a path, its bytes, or a dict with either. Returns `[3, num_frames, height, width]` in [-1, 1]."""
        from PIL import Image, ImageOps

        height, width = self.size
        places: list[int] = []
        frames: list[Any] = []
        step, last, image = 1, 0, None  # frames between those that are kept: a long clip needs no more memory than a short one
        for last, image in enumerate(decoded(record)):
            if last % step == 0:
                places.append(last)
                frames.append(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
            if len(frames) > 4 * self.num_frames:
                places, frames, step = places[::2], frames[::2], 2 * step
        if image is not None and places[-1] != last:
            places.append(last)
            frames.append(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
        wanted = np.linspace(0, last, self.num_frames)
        nearest = np.abs(np.array(places) - wanted[:, None]).argmin(1)
        values = torch.from_numpy(np.stack([np.asarray(frames[i].convert("RGB")) for i in nearest])).float() / 127.5 - 1
        return values.movedim(-1, 0).contiguous(), None

    def example(self) -> Sample:
        """Zeros."""
        return torch.zeros(3, self.num_frames, *self.size), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Patches of 2 frames and of pixels that leave at most 16 x 16; every frame or pixel where sizes are odd."""
        patch = 1 << max(1, math.ceil(math.log2(max(self.size) / 16)))
        while patch > 1 and any(n % patch for n in self.size):
            patch //= 2
        patches = [2 - self.num_frames % 2, patch, patch]
        counts = [n // p for n, p in zip([self.num_frames, *self.size], patches, strict=True)]
        return {
            "kind": "Patches",
            "data_shape": [3, self.num_frames, *self.size],
            "patch_size": patches,
            "num_bands": max(2, min(32, max(counts) // 2)),
            "resolution": [max(2, n) for n in counts],
        }


def decoded(record: Any) -> Iterator[Any]:
    """Yields the frames of a video file as pictures of Pillow.

    Raises:
        ValueError: If it cannot be read, or has no frame.
    """
    try:
        import av
        import av.error
    except ImportError as error:
        raise ValueError("videos are decoded by the package av: pip install av") from error

    source, name = _source(record)
    empty = True
    try:
        with av.open(source, "r") as container:
            for frame in container.decode(video=0):  # pyright: ignore[reportAttributeAccessIssue]
                empty = False
                yield frame.to_image()
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{name} is damaged or no video ({error}): remove or replace it") from error
    if empty:
        raise ValueError(f"{name} has no frames: remove or replace it")


@dataclass(frozen=True, kw_only=True)
class Audio(Preprocessing):
    """Sound files, mixed to one channel and resampled; long ones are cut in the centre, short ones padded and masked.

    Attributes:
        num_samples: Length of what the model hears, in samples.
        sample_rate: Samples a second, in Hz.
    """

    num_samples: int
    sample_rate: int

    def _check(self) -> None:
        _lengths("num_samples", [self.num_samples], 1)
        an_int("sample_rate", self.sample_rate)

    def __call__(self, record: Any) -> Sample:
        """Reads a file: a path, its bytes, or a dict with either."""
        values, rate = read_sound(record)
        if rate != self.sample_rate:
            from scipy.signal import resample_poly

            ratio = Fraction(self.sample_rate, rate)
            values = resample_poly(values, ratio.numerator, ratio.denominator).astype(np.float32)
        start = max(0, (len(values) - self.num_samples) // 2)
        values = values[start : start + self.num_samples]
        x, mask = torch.zeros(1, self.num_samples), torch.zeros(self.num_samples, dtype=torch.bool)
        x[0, : len(values)], mask[: len(values)] = torch.from_numpy(values), True
        return x, mask

    def example(self) -> Sample:
        """Zeros."""
        return torch.zeros(1, self.num_samples), torch.ones(self.num_samples, dtype=torch.bool)

    def inputs(self, dim: int) -> dict[str, Any]:
        """A mel spectrogram: windows of 32 ms every 16 ms, 64 bands up to half the sample rate, each window one input."""
        hop = max(1, round(self.sample_rate * 0.016))
        mels = 64 if self.sample_rate >= 8000 else 32
        return {
            "kind": "LogMel",
            "num_samples": self.num_samples,
            "sample_rate": self.sample_rate,
            "num_mels": mels,
            "fft_length": 2 * hop,
            "hop_length": hop,
            "patch_size": [1, mels],
            "num_bands": 16,
        }


def read_sound(record: Any) -> tuple[np.ndarray, int]:
    """Returns the samples of a sound file, its channels averaged, and their rate in Hz.

    Raises:
        ValueError: If it cannot be read, is empty, or has values that are no numbers.
    """
    import soundfile

    source, name = _source(record)
    try:
        values, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{name} is damaged or no sound ({error}): remove or replace it") from error
    values = values.mean(axis=1)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{name} is empty or holds values that are no numbers: remove or replace it")
    return values, rate


@dataclass(frozen=True, kw_only=True)
class Arrays(Preprocessing):
    """Arrays of numbers, `[C, *axes]`, each channel standardised; or vectors, read as series of one channel.

    Attributes:
        data_shape: Channels and axis lengths of what the model takes.
        mean: For each channel, what is subtracted.
        std: For each channel, what the difference is divided by.
        channels_last: Whether the raw arrays are `[*axes, C]`.
        channel_axis: Whether the raw arrays have an axis of channels.
    """

    data_shape: list[int]
    mean: list[float]
    std: list[float]
    channel_axis: bool = True
    channels_last: bool = False

    def _check(self) -> None:
        _lengths("data_shape", self.data_shape)
        _numbers("mean", self.mean, self.data_shape[0])
        _numbers("std", self.std, self.data_shape[0], positive=True)
        a_bool("channel_axis", self.channel_axis)
        a_bool("channels_last", self.channels_last)

    def __call__(self, record: Any) -> Sample:
        """Takes one array."""
        x = torch.from_numpy(np.array(record, dtype=np.float32))
        if self.channel_axis:
            x = x.movedim(-1, 0) if self.channels_last else x
        else:
            x = x.unsqueeze(0)
        if list(x.shape) != self.data_shape:
            raise ValueError(f"an array has shape {list(x.shape)}, but {self.data_shape} is needed: cut or pad it")
        if not x.isfinite().all():
            raise ValueError("an array holds values that are no numbers (NaN or infinity): remove or replace them")
        per_channel = [-1] + [1] * (x.ndim - 1)
        mean, std = (torch.tensor(values).reshape(per_channel) for values in (self.mean, self.std))
        return (x - mean) / std, None

    def example(self) -> Sample:
        """Zeros."""
        return torch.zeros(self.data_shape), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Every element with Fourier features of its position."""
        axes = self.data_shape[1:]
        bands = max(1, min(32, max(axes) // 2))
        resolution = [max(2, n) for n in axes]
        return {"kind": "Pixels", "data_shape": self.data_shape, "num_bands": bands, "resolution": resolution}


@dataclass(frozen=True, kw_only=True)
class Points(Preprocessing):
    """Clouds of points, `[n, A]`: moved so that their middle is 0, and scaled so that the farthest lies at a distance of 1.

    Attributes:
        num_axes: Coordinates of a point, A.
    """

    num_axes: int

    def _check(self) -> None:
        an_int("num_axes", self.num_axes)

    def __call__(self, record: Any) -> Sample:
        """Takes one array. Returns `[A, n]`."""
        x = torch.from_numpy(np.array(record, dtype=np.float32))
        if x.ndim != 2 or x.shape[1] != self.num_axes or not len(x):
            raise ValueError(f"a cloud of points has shape {list(x.shape)}, but [n, {self.num_axes}] is needed")
        if not x.isfinite().all():
            raise ValueError("a cloud of points holds values that are no numbers (NaN or infinity): remove or replace them")
        x = x - (x.amin(0) + x.amax(0)) / 2
        return (x / x.norm(dim=1).max().clamp_min(1e-12)).mT.contiguous(), None

    def example(self) -> Sample:
        """One point."""
        return torch.zeros(self.num_axes, 1), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Fourier features of each point's coordinates."""
        return {"kind": "Points", "num_axes": self.num_axes, "resolution": 64, "num_bands": 16}


@dataclass(frozen=True, kw_only=True)
class Table(Preprocessing):
    """Rows of a table: numbers standardised, categories by their names, what is missing or unknown left out.

    Attributes:
        numeric: Columns of numbers.
        mean: For each, what is subtracted.
        std: For each, what the difference is divided by.
        categorical: Columns of categories, each with its names.
    """

    numeric: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    categorical: dict[str, list[str]] = field(default_factory=dict)

    def _check(self) -> None:
        _names("numeric", self.numeric)
        _numbers("mean", self.mean, len(self.numeric))
        _numbers("std", self.std, len(self.numeric), positive=True)
        if not isinstance(self.categorical, dict):
            raise ValueError(f"categorical={self.categorical!r} must be a dict of columns, each with its names")
        for column, names in self.categorical.items():
            _names(f"categorical[{column!r}]", names)

    def __call__(self, record: Mapping[str, Any]) -> Sample:
        """Takes one row, a dict of its columns."""
        if missing := [name for name in [*self.numeric, *self.categorical] if name not in record]:
            raise ValueError(f"a row has no columns {missing}, only {sorted(record)}: add them, empty where unknown")
        x = {}
        if self.numeric:
            numbers = [_number(name, record[name]) for name in self.numeric]
            x["numeric"] = (torch.tensor(numbers) - torch.tensor(self.mean)) / torch.tensor(self.std)
        if self.categorical:
            ids = [_index(names, record[name]) for name, names in self.categorical.items()]
            x["categorical"] = torch.tensor(ids, dtype=torch.int64)
        return x, None

    def example(self) -> Sample:
        """Zeros."""
        x = {}
        if self.numeric:
            x["numeric"] = torch.zeros(len(self.numeric))
        if self.categorical:
            x["categorical"] = torch.zeros(len(self.categorical), dtype=torch.int64)
        return x, None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Each column as one input."""
        categories = [max(1, len(names)) for names in self.categorical.values()]
        return {"kind": "Tabular", "num_numeric": len(self.numeric), "categories": categories, "dim": dim, "missing": "token"}


@dataclass(frozen=True, kw_only=True)
class Text(Preprocessing):
    """Text as UTF-8 bytes, cut at `max_length`, padded and masked.

    Attributes:
        max_length: Bytes that the model reads.
        cls_sep: Whether [CLS] is put in front and [SEP] behind, as transformers' tokenizer does.
    """

    max_length: int
    cls_sep: bool = False

    def _check(self) -> None:
        _lengths("max_length", [self.max_length], 1)
        a_bool("cls_sep", self.cls_sep)

    def __call__(self, record: Any) -> Sample:
        """Takes a string, or the path of a text file."""
        if isinstance(record, Path):
            try:
                record = record.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{record} is no UTF-8 text ({error}): remove or convert it") from error
        if not isinstance(record, str):
            raise ValueError(f"a text is a {type(record).__name__}, not a string: {record!r}")
        ids = ByteTokenizer(cls_sep=self.cls_sep).encode(record) or [ByteTokenizer.eos]
        if len(ids) > self.max_length:
            ids = [*ids[: self.max_length - 1], ids[-1 if self.cls_sep else self.max_length - 1]]
        x = torch.full((self.max_length,), ByteTokenizer.pad)
        x[: len(ids)] = torch.tensor(ids)
        return x, x != ByteTokenizer.pad

    def example(self) -> Sample:
        """Zeros."""
        x = torch.full((self.max_length,), ByteTokenizer.eos)
        return x, torch.ones_like(x, dtype=torch.bool)

    def inputs(self, dim: int) -> dict[str, Any]:
        """Bytes with learned positions."""
        return {"kind": "TokenIds", "vocab_size": ByteTokenizer.vocab_size, "max_length": self.max_length, "dim": dim}


def collate(samples: Sequence[Sample]) -> tuple[Any, Tensor | None]:
    """Makes a batch of samples."""
    first, mask = samples[0]
    xs = [x for x, _ in samples]
    batch = {name: torch.stack([x[name] for x in xs]) for name in first} if isinstance(first, dict) else torch.stack(xs)
    return batch, None if mask is None else torch.stack([one for _, one in samples if one is not None])


def _source(record: Any) -> tuple[Any, str]:
    """What a decoder reads, and a name for messages."""
    if isinstance(record, Mapping):  # as data sets keep undecoded media
        record, path = (record["path"], None) if record.get("bytes") is None else (record["bytes"], record.get("path"))
        if isinstance(record, bytes):
            return io.BytesIO(record), path or "a record"
    if isinstance(record, bytes):
        return io.BytesIO(record), "a record"
    return str(record), str(record)


def _names(name: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name}={value!r} must be a list of names")


def _numbers(name: str, value: Any, count: int, *, positive: bool = False) -> None:
    numbers = [one for one in a_list(name, value, "numbers") if isinstance(one, int | float) and math.isfinite(one)]
    if len(numbers) != len(value) or len(value) != count or (positive and min(numbers, default=1) <= 0):
        raise ValueError(f"{name}={value!r} must be {count} {'positive ' if positive else ''}numbers")


def _lengths(name: str, value: Any, count: int | None = None) -> None:
    """Of the axes of a sample, which must not be too large to be made."""
    lengths = [an_int(name, n) for n in a_list(name, value, "whole numbers")]
    if not lengths or len(lengths) != (count or len(lengths)) or math.prod(lengths) > LARGEST:
        raise ValueError(f"{name}={value!r} must be {count or 'some'} whole numbers, with a product of at most {LARGEST:,}")


def _number(name: str, value: Any) -> float:
    if value is None or value == "":
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} holds {value!r}, which is no number: correct it or leave it empty") from error
    if math.isinf(number):
        raise ValueError(f"column {name!r} holds {value!r}: correct it or leave it empty")
    return number


def _index(names: list[str], value: Any) -> int:
    """The place of a category among its names; -1 where it is missing or new."""
    return names.index(str(value)) if value is not None and str(value) in names else -1
