"""Videos: files that PyAV decodes, or a column of videos of a data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from perceivers._checks import an_int
from perceivers.data.checks import check_lengths
from perceivers.data.figures import draw_image
from perceivers.data.files import source_of
from perceivers.data.images import choose_size, patch_side
from perceivers.data.preprocessing import Preprocessing, Sample, Sizes, spread


@dataclass(frozen=True, kw_only=True)
class Videos(Preprocessing):
    """Video files: frames evenly spaced over the clip, each resized and cropped as an image; a short clip repeats frames.

    Attributes:
        size: Height and width, in pixels.
        num_frames: Frames that the model sees.
    """

    plural: ClassVar[str] = "videos"
    suffixes: ClassVar[frozenset[str]] = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
    feature: ClassVar[str | None] = "Video"
    augmentations: ClassVar[tuple[str, ...]] = ("light", "flip", "crop")
    mask_ratio: ClassVar[float | None] = 0.9  # as VideoMAE (Tong et al., 2022)
    size: list[int]
    num_frames: int

    def check(self) -> None:  # noqa: D102
        check_lengths("size", self.size, 2)
        an_int("num_frames", self.num_frames)

    def __call__(self, record: Any) -> Sample:
        """Read a file: a path, its bytes, or a dict with either. Return `[3, num_frames, height, width]` in [-1, 1]."""
        from PIL import Image, ImageOps

        height, width = self.size
        places: list[int] = []
        frames: list[Any] = []
        step, last, image = 1, 0, None  # every `step`-th frame is kept, to limit the memory for long clips
        for last, image in enumerate(decode(record)):
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

    def example(self) -> Sample:  # noqa: D102
        return torch.zeros(3, self.num_frames, *self.size), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Describe patches of 2 frames and of pixels that leave at most 16 x 16; single frames or pixels if sizes are odd."""
        side = patch_side(self.size, 16)
        patches = [2 - self.num_frames % 2, side, side]
        counts = [n // p for n, p in zip([self.num_frames, *self.size], patches, strict=True)]
        return {
            "kind": "Patches",
            "data_shape": [3, self.num_frames, *self.size],
            "patch_size": patches,
            "num_bands": max(2, min(32, max(counts) // 2)),
            "resolution": [max(2, n) for n in counts],
        }

    @classmethod
    def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any) -> Self:
        """Choose the most frequent size, at most 64 x 64."""
        seen = [next(decode(record)).size for record in spread(records)]
        return cls(**common, size=choose_size(seen, sizes.image_size), num_frames=sizes.num_frames)

    def draw(self, panels: Sequence[Any], record: Any, x: Any, maps: Tensor) -> None:
        """Draw the middle frame, and maps summed over all frames."""
        draw_image(panels, x[:, x.shape[1] // 2], maps.sum(1))


def decode(record: Any) -> Iterator[Any]:
    """Yield the frames of a video file as images of Pillow.

    Raises:
        ValueError: If it cannot be read, or has no frames.
    """
    try:
        import av
        import av.error
    except ImportError as error:
        raise ValueError("videos are decoded by the package av: pip install av") from error

    source, name = source_of(record)
    empty = True
    try:
        with av.open(source, "r") as container:
            for frame in container.decode(video=0):  # pyright: ignore[reportAttributeAccessIssue]
                empty = False
                yield frame.to_image()
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{name} is damaged or not a video ({error}): remove or replace it") from error
    if empty:
        raise ValueError(f"{name} has no frames: remove or replace it")
