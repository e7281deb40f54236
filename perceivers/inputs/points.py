"""Sets of points with continuous coordinates, and events at places of a grid (Perceiver, section 4.3).

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
    """Each point as one input: Fourier features of its coordinates, and what was measured there.

    The published model of ModelNet40 has `num_axes=3, num_bands=64, resolution=2240`: a highest frequency of 1120.

    Args:
        num_axes: Coordinates of a point.
        resolution: Sampling rate whose half is the highest frequency, one number or one an axis.
        num_values: Channels measured at each point, such as a colour; 0 for none.
        num_bands: Frequencies of the position features of each axis; 0 leaves the coordinate alone.
        frequency_base: Lowest frequency of bands spaced geometrically; `None` for linear spacing from 1, as published.

    Raises:
        ValueError: If an argument is out of range or does not fit the others; the message names it.
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
        """Makes one token group.

        Args:
            x: Coordinates, `[B, A, M]`, floating point, from -1 to 1; half precision has too few digits for high
                frequencies. With values, `Located(values, coordinates)`, values `[B, C, M]`. A list of samples without a
                batch axis may have different numbers of points.
            mask: `[B, M]`, bool, True where there is a point; for a list a list of masks.

        Raises:
            ValueError: If a shape, dtype or nesting does not fit.
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
    """Values at some places of a grid, any number at each: event cameras, units on a map, sparse volumes.

    An event at each place of a grid once is what `Pixels` of that grid is.

    Args:
        data_shape: Channels of an event and lengths of the grid's axes, `[C, *axes]`, 1 to 4 axes.
        num_bands: Frequencies of the position features of each axis; 0 leaves the coordinate alone.
        resolution: Sampling rate whose half is the highest frequency, one number or one an axis; `None` for the lengths.
        frequency_base: Lowest frequency of bands spaced geometrically; `None` for linear spacing from 1, as published.

    Raises:
        ValueError: If an argument is out of range or does not fit the others; the message names it.
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
        """Makes one token group.

        Args:
            x: `Located(values, coordinates)`: values `[B, C, M]`, floating point; coordinates `[B, A, M]`, integers from 0.
                A list of samples without a batch axis may have different numbers of events.
            mask: `[B, M]`, bool, True where there is an event; for a list a list of masks.

        Raises:
            ValueError: If a shape, dtype or nesting does not fit, or an event outside the mask lies outside the grid.
        """
        channels, *lengths = self.config["data_shape"]
        values, coordinates, mask = read_located(x, mask, bare=False)
        if not isinstance(coordinates, Tensor) or coordinates.ndim != 3 or coordinates.shape[1] != len(lengths):
            got = f"have shape {list(coordinates.shape)}" if isinstance(coordinates, Tensor) else "are no tensor"
            raise ValueError(f"coordinates {got}, but [B, {len(lengths)}, M] is needed, one row an axis")
        index = [
            check_ids(f"coordinates[:, {a}]", coordinates[:, a], "[B, M]", 2, n, f"data_shape[{a + 1}]", mask)
            for a, n in enumerate(lengths)
        ]
        check_values(values, channels, "data_shape[0]", coordinates)
        tables = self.features.tables(lengths, dtype=values.dtype, device=values.device)
        return [Tokens(values, Positions(tables, torch.stack(index, dim=-1)), mask)]


def read_located(x: Any, mask: Any, *, bare: bool) -> tuple[Any, Any, Any]:
    """Values, coordinates and mask, padded where x is a list of samples; `bare` where there are no values."""
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
    """Raises `ValueError` unless values `[B, C, M]` fit their coordinates, `[B, A, M]`."""
    check_array("values", values, 3, f"[B, {channels}, M]")
    wanted = (coordinates.shape[0], channels, coordinates.shape[2])
    if tuple(values.shape) != wanted:
        raise ValueError(f"values have shape {list(values.shape)}, but {list(wanted)} is needed: {name} says {channels}")
