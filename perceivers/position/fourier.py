"""Fourier features of positions (Perceiver, section 3.2 and appendix D).

Per axis, with coordinate x in [-1, 1]: x, sin(pi f_1 x) ... sin(pi f_K x), cos(pi f_1 x) ... cos(pi f_K x). The bands f
go up to resolution / 2, the Nyquist frequency of an axis sampled `resolution` times, spaced linearly from 1 (the published
models) or geometrically from a base (the first version of the paper, and this library's default).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class FourierFeatures:
    """Makes the tables of position features of a grid.

    Attributes:
        num_bands: K, the number of frequencies of each axis; 0 keeps the coordinate alone.
        resolutions: For each axis, the sampling rate whose half is the highest frequency.
        base: The lowest frequency of bands spaced geometrically; `None` for linear spacing from 1. One band is the lowest.
        frequencies: For each axis, its K bands, lowest first.

    Raises:
        ValueError: If half a resolution lies below the lowest frequency.
    """

    num_bands: int
    resolutions: tuple[float, ...]
    base: float | None = None
    frequencies: tuple[tuple[float, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
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

    @property
    def lowest(self) -> float:
        """The lowest frequency."""
        return 1 if self.base is None else self.base

    @property
    def num_channels(self) -> int:
        """Channels of all axes together: A (1 + 2 K)."""
        return len(self.resolutions) * (1 + 2 * self.num_bands)

    def tables(self, lengths: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Makes the table of each axis, `[n_a, 1 + 2 K]`.

        Coordinates span -1 to 1 whatever the length; the coordinate of an axis of length 1 is 0.

        Args:
            lengths: n_a of each axis.
            dtype: float64 gives float64 tables, anything else float32: half precision cannot resolve high bands. Angles
                are computed in float64 either way, so float32 tables are correctly rounded.
            device: Where the tables are needed.
        """
        return [
            self._table(axis, length, device).to(torch.float64 if dtype == torch.float64 else torch.float32)
            for axis, length in enumerate(lengths)
        ]

    def _table(self, axis: int, length: int, device: torch.device) -> Tensor:
        # 2 i - (n - 1) over n - 1: exactly symmetric, and no branch on the length, which may be symbolic in an export.
        steps = torch.arange(length, dtype=torch.float64, device=device)
        coordinates = (2 * steps - (length - 1)) / max(length - 1, 1)
        bands = torch.tensor(self.frequencies[axis], dtype=torch.float64, device=device)
        angles = math.pi * coordinates[:, None] * bands
        return torch.cat([coordinates[:, None], angles.sin(), angles.cos()], dim=-1)
