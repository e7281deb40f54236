"""Arrays of numbers of any shape: .npz and .npy files, and folders of .npy files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from perceivers._checks import a_bool
from perceivers.data.checks import check_lengths, check_numbers
from perceivers.data.figures import draw_image
from perceivers.data.files import ARRAYS, read_array
from perceivers.data.preprocessing import Preprocessing, Sample, Sizes, spread
from perceivers.data.tables import Table


@dataclass(frozen=True, kw_only=True)
class Arrays(Preprocessing):
    """Arrays of numbers, `[C, *axes]`, standardised per channel; vectors are read as series of one channel.

    Attributes:
        data_shape: Channels and axis lengths of what the model takes.
        mean: Mean of each channel, which is subtracted.
        std: Standard deviation of each channel, by which the difference is divided.
        channel_axis: Whether the raw arrays have an axis of channels.
        channels_last: Whether that axis is the last.
    """

    plural: ClassVar[str] = "arrays"
    containers: ClassVar[frozenset[str]] = frozenset(ARRAYS)
    mask_ratio: ClassVar[float | None] = 0.75
    data_shape: list[int]
    mean: list[float]
    std: list[float]
    channel_axis: bool = True
    channels_last: bool = False

    def check(self) -> None:  # noqa: D102
        check_lengths("data_shape", self.data_shape)
        check_numbers("mean", self.mean, self.data_shape[0])
        check_numbers("std", self.std, self.data_shape[0], positive=True)
        a_bool("channel_axis", self.channel_axis)
        a_bool("channels_last", self.channels_last)

    def __call__(self, record: Any) -> Sample:
        """Standardise one array."""
        x = torch.from_numpy(np.array(record, dtype=np.float32))
        if self.channel_axis:
            x = x.movedim(-1, 0) if self.channels_last else x
        else:
            x = x.unsqueeze(0)
        if list(x.shape) != self.data_shape:
            raise ValueError(f"an array has shape {list(x.shape)}, but {self.data_shape} is needed: crop or pad it")
        if not x.isfinite().all():
            raise ValueError("an array holds NaN or infinite values: remove or replace them")
        per_channel = [-1] + [1] * (x.ndim - 1)
        mean, std = (torch.tensor(values).reshape(per_channel) for values in (self.mean, self.std))
        return (x - mean) / std, None

    def example(self) -> Sample:  # noqa: D102
        return torch.zeros(self.data_shape), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Describe one input per element, with Fourier features of its position."""
        axes = self.data_shape[1:]
        bands = max(1, min(32, max(axes) // 2))
        resolution = [max(2, n) for n in axes]
        return {"kind": "Pixels", "data_shape": self.data_shape, "num_bands": bands, "resolution": resolution}

    @classmethod
    def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any) -> Self:
        """Choose which axis holds channels, by the shape, and their statistics."""
        x = np.stack(spread(records))
        shape = x.shape[1:]
        channel_axis = _has_channels(shape)
        last = channel_axis and shape[-1] <= 4 < shape[0]
        x = np.moveaxis(x, -1, 1) if last else x if channel_axis else x[:, None]
        axes = (0, *range(2, x.ndim))
        mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
        return cls(
            **common,
            data_shape=list(x.shape[1:]),
            mean=mean.tolist(),
            std=[value or 1.0 for value in std.tolist()],
            channel_axis=channel_axis,
            channels_last=last,
        )

    @classmethod
    def accepts(cls, name: str, x: np.ndarray) -> bool:
        """Return whether the records have several axes, or are vectors too long for rows of a table."""
        return name == "x" and not Table.accepts(name, x)

    @classmethod
    def read(cls, file: Path) -> Iterable[Any]:
        """Return the arrays of a file."""
        return read_array(file)

    def draw(self, panels: Sequence[Any], record: Any, x: Any, maps: Tensor) -> None:
        """Draw arrays of two axes as images, others as series."""
        if x.ndim == 3:
            draw_image(panels, x, maps)
        else:
            super().draw(panels, record, x, maps)


def _has_channels(shape: Sequence[int]) -> bool:
    """Return whether the first or the last axis holds channels: a short axis beside long ones."""
    if len(shape) == 1:
        return False
    if len(shape) == 2:
        return shape[0] <= 4 or 4 * shape[0] <= shape[1]
    return min(shape[0], shape[-1]) <= 4 or 4 * shape[0] <= shape[1]
