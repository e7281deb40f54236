"""Fourier features of positions (Perceiver, section 3.2 and appendix D).

For each axis with coordinate x in [-1, 1]: x, sin(pi f_1 x) ... sin(pi f_K x), cos(pi f_1 x) ... cos(pi f_K x). The
frequency bands f go up to resolution / 2, the Nyquist frequency of an axis with `resolution` samples. They are spaced linearly
from 1 (the published models) or geometrically from a base (the first version of the paper; the default of `Perceiver`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import a_number, an_int, one_each

MOST_BANDS = 2**16  # published models have up to 192; a checkpoint that asks for more would exhaust memory


@dataclass(frozen=True)
class FourierFeatures:
    """Fourier features of the positions on a grid, or of given coordinates.

    Attributes:
        num_bands: K, the number of frequency bands per axis; 0 keeps only the coordinate.
        resolutions: Sampling rate of each axis; the highest frequency is half of it.
        base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1. A single band has the lowest
            frequency.
        frequencies: The K frequencies of each axis, in ascending order.

    Raises:
        ValueError: If half a resolution is less than the lowest frequency, or there are more than 65,536 bands.
    """

    num_bands: int
    resolutions: tuple[float, ...]
    base: float | None = None
    frequencies: tuple[tuple[float, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.num_bands > MOST_BANDS:
            raise ValueError(f"num_bands={self.num_bands} must be at most {MOST_BANDS:,}")
        for axis, resolution in enumerate(self.resolutions):
            if self.num_bands > 0 and resolution / 2 < self.lowest:
                raise ValueError(
                    f"resolution={resolution} of axis {axis} gives a highest frequency of {resolution / 2}, below the lowest"
                    f" of {self.lowest} (frequency_base={self.base}): give a resolution of at least {2 * self.lowest},"
                    " a smaller frequency_base, or num_bands=0"
                )
        space = np.linspace if self.base is None else np.geomspace
        bands = tuple(tuple(space(self.lowest, r / 2, self.num_bands).tolist()) for r in self.resolutions)
        object.__setattr__(self, "frequencies", bands)

    @classmethod
    def of(
        cls, num_bands: int, resolution: float | Sequence[float] | None, frequency_base: float | None, axes: Sequence[int]
    ) -> "FourierFeatures":
        """Return the features for the arguments of a model or input module, after checking them.

        Args:
            num_bands: K.
            resolution: Sampling rate, a scalar or one value per axis; the highest frequency is half of it. Defaults to `axes`.
            frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1.
            axes: Length of each axis.
        """
        rates = list(axes) if resolution is None else one_each("resolution", resolution, len(axes))
        return cls(
            num_bands=an_int("num_bands", num_bands, 0),
            resolutions=tuple(a_number("resolution", number) for number in rates),
            base=None if frequency_base is None else a_number("frequency_base", frequency_base),
        )

    @property
    def lowest(self) -> float:
        """The lowest frequency."""
        return 1 if self.base is None else self.base

    @property
    def num_channels(self) -> int:
        """Number of channels over all axes, A (1 + 2 K)."""
        return len(self.resolutions) * (1 + 2 * self.num_bands)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of `of` with defaults resolved, JSON-serialisable."""
        return {"num_bands": self.num_bands, "resolution": list(self.resolutions), "frequency_base": self.base}

    def tables(self, lengths: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Return one table `[n_a, 1 + 2 K]` per axis.

        Coordinates span -1 to 1 for any length; an axis of length 1 has coordinate 0.

        Args:
            lengths: n_a of each axis.
            dtype: float64 gives float64 tables, any other dtype float32, because half precision cannot resolve high
                frequencies. Angles are always computed in float64, so float32 tables are correctly rounded.
            device: Device of the tables.
        """
        return self.tables_at([grid_coordinates(length, device=device) for length in lengths], dtype=dtype)

    def tables_at(self, coordinates: Sequence[Tensor], *, dtype: torch.dtype) -> list[Tensor]:
        """Return one table per axis for given coordinates.

        Args:
            coordinates: `[n_a]`, or `[B, n_a]` if samples differ, for each axis. The frequencies are meant for the range -1 to
                1; half precision is too coarse for high ones.
            dtype: As in `tables`.

        Returns:
            `[n_a, 1 + 2 K]` or `[B, n_a, 1 + 2 K]` for each axis.
        """
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return [self.at(axis, x).to(dtype) for axis, x in enumerate(coordinates)]

    def at(self, axis: int, coordinates: Tensor) -> Tensor:
        """Return the features of coordinates `[...]` along one axis, `[..., 1 + 2 K]`, float64."""
        x = coordinates.double().unsqueeze(-1)
        angles = math.pi * x * torch.tensor(self.frequencies[axis], dtype=torch.float64, device=x.device)
        return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


def by_kinds(tables: Sequence[Tensor]) -> list[Tensor]:
    """Return tables in the feature order of DeepMind's code: coordinates of all axes, then all sines, then all cosines.

    Args:
        tables: `[..., n_a, 1 + 2 K]` for each axis.

    Returns:
        `[..., n_a, A (1 + 2 K)]` for each axis, zero in the channels of other axes: these tables are added, not concatenated.
    """
    axes, bands = len(tables), tables[0].shape[-1] // 2
    spread = []
    for a, table in enumerate(tables):
        kinds = table.split([1, bands, bands], dim=-1)
        spread.append(
            torch.cat([F.pad(kind, (a * kind.shape[-1], (axes - 1 - a) * kind.shape[-1])) for kind in kinds], dim=-1)
        )
    return spread


def coordinates_of(index: Tensor, length: int) -> Tensor:
    """Return the coordinates from -1 to 1, float64, of elements of an axis given by their index; 0 if the length is 1."""
    # (2 i - (n - 1)) / (n - 1) is exactly symmetric and does not branch on the length, which may be symbolic in an export.
    return (2 * index.double() - (length - 1)) / max(length - 1, 1)


def grid_coordinates(length: int | Tensor, longest: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """Return equally spaced coordinates from -1 to 1 along an axis, float64; 0 if the length is 1.

    Args:
        length: Number of coordinates, or an integer tensor `[B]` if samples differ.
        longest: Number of coordinates to return; those after the first `length` continue beyond 1. Defaults to `length`.
        device: Device of the result, if `length` is an int.

    Returns:
        `[longest]`, or `[B, longest]`.
    """
    if isinstance(length, Tensor):
        length = length.unsqueeze(-1)
        steps = torch.arange(int(length.max()) if longest is None else longest, dtype=torch.float64, device=length.device)
        return (2 * steps - (length - 1)) / (length - 1).clamp_min(1)
    return coordinates_of(torch.arange(length if longest is None else longest, device=device), length)


def crop_coordinates(start: Tensor, stop: Tensor, whole: int, length: int) -> Tensor:
    """Return the coordinates, along one axis, that crops have in the whole array.

    The elements of a crop keep the coordinates they have in the whole array. A resized crop gets `length` equally spaced
    coordinates from that of its first element to that of its last.

    Args:
        start: Index of the first element of each crop in the whole array, `[B]`.
        stop: Index after the last element, `[B]`.
        whole: Length of the axis of the whole array.
        length: Number of coordinates of each crop.

    Returns:
        `[B, length]`, float64, where -1 is the first element of the whole array and 1 the last.

    Raises:
        ValueError: If a crop is empty or outside the array.
    """
    if not bool(((start >= 0) & (start < stop) & (stop <= whole)).all()):
        raise ValueError(
            f"start={start.tolist()}, stop={stop.tolist()} must satisfy 0 <= start < stop <= whole={whole} for every crop"
        )
    first, last = coordinates_of(start, whole), coordinates_of(stop - 1, whole)
    middle, half = (last + first) / 2, (last - first) / 2
    return middle.unsqueeze(-1) + half.unsqueeze(-1) * grid_coordinates(length, device=start.device)
