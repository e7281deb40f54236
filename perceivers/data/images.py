"""Images: files that Pillow reads, or a column of images of a data set."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from perceivers._checks import a_number, an_int
from perceivers.data.checks import check_lengths, check_numbers
from perceivers.data.figures import draw_image
from perceivers.data.files import source_of
from perceivers.data.preprocessing import Preprocessing, Sample, Sizes, spread

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True, kw_only=True)
class Images(Preprocessing):
    """Image files, resized so that they cover `size`, cropped to it around the centre, and scaled to [-1, 1].

    Attributes:
        size: Height and width, in pixels.
        channels: 1 for greyscale, 3 for colour.
    """

    plural: ClassVar[str] = "images"
    suffixes: ClassVar[frozenset[str]] = SUFFIXES
    feature: ClassVar[str | None] = "Image"
    augmentations: ClassVar[tuple[str, ...]] = ("light", "flip", "crop", "randaugment")
    mask_ratio: ClassVar[float | None] = 0.75  # as masked autoencoders (He et al., 2021)
    size: list[int]
    channels: int = 3

    def check(self) -> None:  # noqa: D102
        check_lengths("size", self.size, 2)
        if an_int("channels", self.channels) not in (1, 3):
            raise ValueError(f"channels={self.channels} must be 1 for greyscale or 3 for colour")

    def __call__(self, record: Any) -> Sample:
        """Read a file: a path, its bytes, or a dict with either."""
        from PIL import Image, ImageOps

        image = read_image(record, "L" if self.channels == 1 else "RGB")
        height, width = self.size
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(image, dtype=np.float32)) / 127.5 - 1
        return values.reshape(height, width, self.channels).movedim(-1, 0).contiguous(), None

    def example(self) -> Sample:  # noqa: D102
        return torch.zeros(self.channels, *self.size), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Describe patches of 2 x 2 pixels, or larger ones that leave at most 32 x 32; single pixels if a side is odd."""
        return image_inputs(self.channels, self.size)

    @classmethod
    def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any) -> Self:
        """Choose the most frequent size, at most 64 x 64, and greyscale if all images are."""
        seen, modes = [], set()
        for record in spread(records):
            with open_image(record) as image:
                seen.append(image.size)
                modes.add(image.mode)
        grey = modes <= {"1", "L", "I", "I;16", "F"}
        return cls(**common, size=choose_size(seen, sizes.image_size), channels=1 if grey else 3)

    def draw(self, panels: Sequence[Any], record: Any, x: Any, maps: Tensor) -> None:  # noqa: D102
        draw_image(panels, x, maps)


@dataclass(frozen=True, kw_only=True)
class CenterCroppedImages(Preprocessing):
    """Image files as the PerceiverImageProcessor of transformers reads them, to the same bits: cropped, resized, standardised.

    Attributes:
        size: Height and width, in pixels.
        crop: Of the shorter side, scaled to `crop` pixels, the central `size` pixels are kept; `None` keeps the whole image.
        resample: Pillow's number of a filter; 3 is bicubic.
        scale: Factor that bytes are multiplied by.
        mean: Mean of each channel, which is subtracted.
        std: Standard deviation of each channel, by which the difference is divided.
    """

    plural: ClassVar[str] = "images"
    suffixes: ClassVar[frozenset[str]] = SUFFIXES
    size: list[int]
    crop: list[int] | None
    resample: int
    scale: float
    mean: list[float]
    std: list[float]

    def check(self) -> None:  # noqa: D102
        check_lengths("size", self.size, 2)
        if self.crop is not None:
            check_lengths("crop", self.crop, 2)
        if an_int("resample", self.resample, 0) > 5:
            raise ValueError(f"resample={self.resample} must be one of Pillow's filters, 0 to 5")
        a_number("scale", self.scale)
        check_numbers("mean", self.mean, 3)
        check_numbers("std", self.std, 3, positive=True)

    def __call__(self, record: Any) -> Sample:
        """Read a file: a path, its bytes, or a dict with either."""
        image = read_image(record, "RGB", upright=True)
        if self.crop is not None:
            shorter = min(image.size)
            height, width = (int(n / whole * shorter) for n, whole in zip(self.size, self.crop, strict=True))
            if min(height, width) == 0:
                name = source_of(record)[1]
                raise ValueError(f"{name} is too small, {image.size[0]} x {image.size[1]} pixels: replace it")
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # black outside the image
        image = image.resize(self.size[::-1], self.resample)
        values = (np.array(image).astype(np.float64) * self.scale).astype(np.float32)
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        return torch.from_numpy((values - mean) / std).movedim(-1, 0).contiguous(), None

    def example(self) -> Sample:  # noqa: D102
        return torch.zeros(3, *self.size), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Describe the same patches as `Images`."""
        return image_inputs(3, self.size)

    @classmethod
    def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any) -> Self:
        """Choose what a processor of transformers does by default, at the size that `Images` chooses."""
        size = Images.choose(records, sizes, **common).size
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        return cls(**common, size=size, crop=None, resample=3, scale=1 / 255, mean=mean, std=std)

    def draw(self, panels: Sequence[Any], record: Any, x: Any, maps: Tensor) -> None:  # noqa: D102
        draw_image(panels, x, maps)


def read_image(record: Any, mode: str, *, upright: bool = False) -> Any:
    """Read an image with Pillow.

    Args:
        record: A path, the bytes of a file, or a dict with either.
        mode: Pillow's name of the colours, such as "RGB".
        upright: Whether to rotate the image by its EXIF orientation.
    """
    from PIL import ImageOps

    with open_image(record) as image:
        image.load()
        return (ImageOps.exif_transpose(image) if upright else image).convert(mode)


@contextmanager
def open_image(record: Any) -> Iterator[Any]:
    """Open an image with Pillow, without decoding it.

    Raises:
        ValueError: If it cannot be read, here or within the block.
    """
    from PIL import Image, UnidentifiedImageError

    source, name = source_of(record)
    try:
        with Image.open(source) as image:
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is damaged or not an image ({error}): remove or replace it") from error


def choose_size(sizes: list[tuple[int, int]], image_size: int | None) -> list[int]:
    """Return height and width: as specified, or the most frequent of `sizes` (width, height), at most 64."""
    width, height = max(set(sizes), key=lambda one: (sizes.count(one), one))
    if image_size is not None:
        return [image_size, image_size]
    return [64, 64] if max(width, height) > 64 else [height, width]


def patch_side(size: list[int], most: int) -> int:
    """Return the side of square patches: a power of 2, at least 2, that leaves at most `most` per axis; 1 if none fits."""
    side = 1 << max(1, math.ceil(math.log2(max(size) / most)))
    while side > 1 and any(n % side for n in size):
        side //= 2
    return side


def image_inputs(channels: int, size: list[int]) -> dict[str, Any]:
    """Return the description of an input module of patches with Fourier features."""
    side = patch_side(size, 32)
    counts = [n // side for n in size]
    return {
        "kind": "Patches",
        "data_shape": [channels, *size],
        "patch_size": [side, side],
        "num_bands": max(2, min(32, max(counts) // 2)),
        "resolution": counts,
    }
