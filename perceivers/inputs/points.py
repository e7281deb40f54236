"""Point clouds with continuous coordinates, and sparse events on a grid (Perceiver, section 4.3).

Letters: B batch, C channels of values, M points or events, A axes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perceivers._checks import an_int, one_each
from perceivers.inputs.base import InputModule, Located, a_shape
from perceivers.inputs.ragged import pad_ragged
from perceivers.ops.tokens import Positions, Tokens, check_array, check_ids, check_mask
from perceivers.position import FourierFeatures


class Points(InputModule):
    """One input per point: Fourier features of its coordinates, and optionally values measured there.

    The published ModelNet40 model has `num_axes=3, num_bands=64, resolution=2240`, so a highest frequency of 1120.

    Args:
        num_axes: Number of coordinates of a point.
        resolution: Sampling rate, a scalar or one value per axis; the highest frequency is half of it.
        num_values: Channels measured at each point, such as 3 for colours; 0 for none.
        num_bands: Number of frequency bands per axis; 0 keeps only the coordinates.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1, as published.
    """

    def __init__(
        self,
        *,
        num_axes: int = 3,
        resolution: float | Sequence[float],
        num_values: int = 0,
        num_bands: int = 64,
        frequency_base: float | None = None,
    ) -> None:
        super().__init__()
        rates = one_each("resolution", resolution, an_int("num_axes", num_axes))
        self.features = FourierFeatures.of(num_bands, rates, frequency_base, [1] * num_axes)
        self.num_channels = an_int("num_values", num_values, 0) + self.features.num_channels
        self.config: dict[str, Any] = {"num_axes": num_axes, "num_values": num_values, **self.features.config}

    def forward(self, x: Tensor | Located | Sequence[Any], mask: Any = None) -> list[Tokens]:
        """Return one token group.

        Args:
            x: Coordinates, `[B, A, M]`, floating point, from -1 to 1; half precision is too coarse for high frequencies. With
                values, `Located(values, coordinates)` with values `[B, C, M]`. Samples with different numbers of points are
                given as a list of samples without a batch axis.
            mask: `[B, M]`, bool, True where there is a point; for a list of samples, a list of masks.
        """
        count = self.config["num_values"]
        values, coordinates, mask = read_located(x, mask, bare=count == 0)
        axes = self.config["num_axes"]
        check_array("coordinates", coordinates, 3, f"[B, {axes}, M]")
        if coordinates.shape[1] != axes:
            raise ValueError(f"coordinates have shape {list(coordinates.shape)}, but num_axes={axes} (axis 1)")
        check_mask(mask, (coordinates.shape[0], coordinates.shape[2]), "[B, M]")
        if mask is not None:
            coordinates = coordinates.masked_fill(~mask.unsqueeze(1), 0)
        dtype = coordinates.dtype
        table = torch.cat(self.features.tables_at(list(coordinates.unbind(1)), dtype=dtype), dim=-1)  # [B, M, C]
        if count == 0:
            return [Tokens(table.mT, mask=mask)]
        check_values(values, count, "num_values", coordinates)
        return [Tokens(values, Positions([table]), mask)]


class Events(InputModule):
    """One input per event, a vector of values at a grid position: event cameras, units on a map, sparse volumes.

    Positions may have any number of events. One event at every position gives the same inputs as `Pixels`.

    Args:
        data_shape: Channels of an event and axis lengths of the grid, `[C, *axes]`, 1 to 4 axes.
        num_bands: Number of frequency bands per axis; 0 keeps only the coordinates.
        resolution: Sampling rate, a scalar or one value per axis; the highest frequency is half of it. Defaults to the axis
            lengths.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1, as published.
    """

    def __init__(
        self,
        *,
        data_shape: Sequence[int],
        num_bands: int = 64,
        resolution: float | Sequence[float] | None = None,
        frequency_base: float | None = None,
    ) -> None:
        super().__init__()
        shape = a_shape(data_shape)
        self.features = FourierFeatures.of(num_bands, resolution, frequency_base, shape[1:])
        self.num_channels = shape[0] + self.features.num_channels
        self.config: dict[str, Any] = {"data_shape": shape, **self.features.config}

    def forward(self, x: Located | Sequence[Located], mask: Any = None) -> list[Tokens]:
        """Return one token group.

        Args:
            x: `Located(values, coordinates)`: values `[B, C, M]`, floating point; coordinates `[B, A, M]`, integers from 0.
                Samples with different numbers of events are given as a list of samples without a batch axis.
            mask: `[B, M]`, bool, True where there is an event; for a list of samples, a list of masks.

        Raises:
            ValueError: If a shape, dtype or nesting does not fit, or an unmasked event lies outside the grid.
        """
        channels, *lengths = self.config["data_shape"]
        values, coordinates, mask = read_located(x, mask, bare=False)
        if not isinstance(coordinates, Tensor) or coordinates.ndim != 3 or coordinates.shape[1] != len(lengths):
            got = f"have shape {list(coordinates.shape)}" if isinstance(coordinates, Tensor) else "are not a tensor"
            raise ValueError(f"coordinates {got}, but [B, {len(lengths)}, M] is needed: one row per axis")
        index = [
            check_ids(f"coordinates[:, {a}]", coordinates[:, a], "[B, M]", 2, n, f"data_shape[{a + 1}]", mask)
            for a, n in enumerate(lengths)
        ]
        check_values(values, channels, "data_shape[0]", coordinates)
        tables = self.features.tables(lengths, dtype=values.dtype, device=values.device)
        return [Tokens(values, Positions(tables, torch.stack(index, dim=-1)), mask)]


def read_located(x: Any, mask: Any, *, bare: bool) -> tuple[Any, Any, Any]:
    """Return values, coordinates and mask, padded if `x` is a list of samples; `bare` if there are no values."""
    what = "coordinates" if bare else "Located(values, coordinates)"
    if isinstance(x, list | tuple) and not isinstance(x, Located):
        for i, sample in enumerate(x):
            if isinstance(sample, Located) == bare:
                raise ValueError(f"x[{i}] is a {type(sample).__name__}, but {what} is needed")
        coordinates, padded, _ = pad_ragged([sample if bare else sample.coordinates for sample in x], mask)
        return None if bare else pad_ragged([sample.values for sample in x])[0], coordinates, padded
    if isinstance(x, Located) == bare:
        raise ValueError(f"x is a {type(x).__name__}, but {what} is needed")
    return (None, x, mask) if bare else (*x, mask)


def check_values(values: Any, channels: int, name: str, coordinates: Tensor) -> None:
    """Raise `ValueError` unless values `[B, C, M]` fit their coordinates, `[B, A, M]`."""
    check_array("values", values, 3, f"[B, {channels}, M]")
    wanted = (coordinates.shape[0], channels, coordinates.shape[2])
    if tuple(values.shape) != wanted:
        raise ValueError(f"values have shape {list(values.shape)}, but {list(wanted)} is needed: {name}={channels}")
