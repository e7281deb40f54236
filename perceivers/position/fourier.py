"""Fourier features of positions (Perceiver, section 3.2 and appendix D).

Per axis, with coordinate x in [-1, 1]: x, sin(pi f_1 x) ... sin(pi f_K x), cos(pi f_1 x) ... cos(pi f_K x). The bands f
go up to resolution / 2, the Nyquist frequency of an axis sampled `resolution` times, spaced linearly from 1 (the published
models) or geometrically from a base (the first version of the paper, and this library's default).
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

MOST_BANDS = 2**16  # published models have up to 192; a file that says more was made to fill memory


@dataclass(frozen=True)
class FourierFeatures:
    """Makes the tables of position features of a grid, or of coordinates that are given.

    Attributes:
        num_bands: K, the number of frequencies of each axis; 0 keeps the coordinate alone.
        resolutions: For each axis, the sampling rate whose half is the highest frequency.
        base: The lowest frequency of bands spaced geometrically; `None` for linear spacing from 1. One band is the lowest.
        frequencies: For each axis, its K bands, lowest first.

    Raises:
        ValueError: If half a resolution lies below the lowest frequency, or there are more than 65,536 bands.
    """

    num_bands: int
    resolutions: tuple[float, ...]
    base: float | None = None
    frequencies: tuple[tuple[float, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.num_bands > MOST_BANDS:
            raise ValueError(f"num_bands={self.num_bands} is more than {MOST_BANDS:,}: give fewer")
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
        """Checks arguments as models and inputs name them.

        Args:
            num_bands: K.
            resolution: Sampling rate whose half is the highest frequency, one number or one an axis; `None` for `axes`.
            frequency_base: Lowest frequency of bands spaced geometrically; `None` for linear spacing from 1.
            axes: Length of each axis.

        Raises:
            ValueError: If an argument is out of range or does not fit the others.
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
        """Channels of all axes together: A (1 + 2 K)."""
        return len(self.resolutions) * (1 + 2 * self.num_bands)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of `of`, ready for JSON."""
        return {"num_bands": self.num_bands, "resolution": list(self.resolutions), "frequency_base": self.base}

    def tables(self, lengths: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Makes the table of each axis, `[n_a, 1 + 2 K]`.

        Coordinates span -1 to 1 whatever the length; the coordinate of an axis of length 1 is 0.

        Args:
            lengths: n_a of each axis.
            dtype: float64 gives float64 tables, anything else float32: half precision cannot resolve high bands. Angles
                are computed in float64 either way, so float32 tables are correctly rounded.
            device: Where the tables are needed.
        """
        return self.tables_at([grid_coordinates(length, device=device) for length in lengths], dtype=dtype)

    def tables_at(self, coordinates: Sequence[Tensor], *, dtype: torch.dtype) -> list[Tensor]:
        """Makes the table of each axis for coordinates that are given.

        Args:
            coordinates: For each axis `[n_a]`, or `[B, n_a]` where samples differ. -1 to 1 is the range that bands are
                meant for; half precision has too few digits for them.
            dtype: As in `tables`.

        Returns:
            For each axis `[n_a, 1 + 2 K]` or `[B, n_a, 1 + 2 K]`.
        """
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return [self.at(axis, x).to(dtype) for axis, x in enumerate(coordinates)]

    def at(self, axis: int, coordinates: Tensor) -> Tensor:
        """The features of coordinates `[...]` on one axis, `[..., 1 + 2 K]`, float64."""
        x = coordinates.double().unsqueeze(-1)
        angles = math.pi * x * torch.tensor(self.frequencies[axis], dtype=torch.float64, device=x.device)
        return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


def by_kinds(tables: Sequence[Tensor]) -> list[Tensor]:
    """Orders features as DeepMind's code does: coordinates of all axes, then all sines, then all cosines.

    Args:
        tables: For each axis `[..., n_a, 1 + 2 K]`.

    Returns:
        For each axis `[..., n_a, A (1 + 2 K)]`, zero where other axes have their features: they are added, not concatenated.
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
    """The coordinates from -1 to 1 of elements of an axis, by their index, float64; that of an axis of length 1 is 0."""
    # 2 i - (n - 1) over n - 1: exactly symmetric, and no branch on the length, which may be symbolic in an export.
    return (2 * index.double() - (length - 1)) / max(length - 1, 1)


def grid_coordinates(length: int | Tensor, longest: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """Coordinates from -1 to 1 along an axis, float64; the coordinate of an axis of length 1 is 0.

    Args:
        length: The number of coordinates, or, where samples differ, an integer tensor `[B]` of theirs.
        longest: Number of coordinates to make; those beyond `length` continue behind 1. `None` for `length`.
        device: Where the result is needed.

    Returns:
        `[longest]`, or `[B, longest]`.
    """
    if isinstance(length, Tensor):
        length = length.unsqueeze(-1)
        steps = torch.arange(int(length.max()) if longest is None else longest, dtype=torch.float64, device=length.device)
        return (2 * steps - (length - 1)) / (length - 1).clamp_min(1)
    return coordinates_of(torch.arange(length if longest is None else longest, device=device), length)


def crop_coordinates(start: Tensor, stop: Tensor, whole: int, length: int) -> Tensor:
    """Coordinates of crops that keep those of the whole array, for one axis.

    A crop that is not resized has the coordinates that its elements have in the whole; one that is resized, `length`
    coordinates in equal steps from its first element to its last.

    Args:
        start: Index of the first element of each crop, `[B]`, in elements of the whole.
        stop: Index behind the last, `[B]`.
        whole: Length of the whole axis, in elements.
        length: Number of coordinates of each crop.

    Returns:
        `[B, length]`, float64, from -1 for the first element of the whole to 1 for the last.

    Raises:
        ValueError: If a crop is empty or reaches outside.
    """
    if not bool(((start >= 0) & (start < stop) & (stop <= whole)).all()):
        raise ValueError(
            f"start={start.tolist()}, stop={stop.tolist()} must satisfy 0 <= start < stop <= whole={whole} for every crop"
        )
    first, last = coordinates_of(start, whole), coordinates_of(stop - 1, whole)
    middle, half = (last + first) / 2, (last - first) / 2
    return middle.unsqueeze(-1) + half.unsqueeze(-1) * grid_coordinates(length, device=start.device)
