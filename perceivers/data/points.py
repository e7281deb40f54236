"""Point clouds: .npz files with `points`, and folders with `points.npy`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from perceivers._checks import an_int
from perceivers.data.files import ARRAYS, read_array
from perceivers.data.preprocessing import Preprocessing, Sample, Sizes


@dataclass(frozen=True, kw_only=True)
class PointClouds(Preprocessing):
    """Point clouds `[n, A]`: moved so that their middle is 0, and scaled so that the farthest point has distance 1.

    Attributes:
        num_axes: Coordinates of a point, A.
    """

    plural: ClassVar[str] = "point clouds"
    containers: ClassVar[frozenset[str]] = frozenset(ARRAYS)
    num_axes: int

    def check(self) -> None:  # noqa: D102
        an_int("num_axes", self.num_axes)

    def __call__(self, record: Any) -> Sample:
        """Normalise one array. Return `[A, n]`."""
        x = torch.from_numpy(np.array(record, dtype=np.float32))
        if x.ndim != 2 or x.shape[1] != self.num_axes or not len(x):
            raise ValueError(f"a point cloud has shape {list(x.shape)}, but [n, {self.num_axes}] is needed")
        if not x.isfinite().all():
            raise ValueError("a point cloud holds NaN or infinite values: remove or replace them")
        x = x - (x.amin(0) + x.amax(0)) / 2
        return (x / x.norm(dim=1).max().clamp_min(1e-12)).mT.contiguous(), None

    def example(self) -> Sample:
        """Return one point."""
        return torch.zeros(self.num_axes, 1), None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Describe Fourier features of each point's coordinates."""
        return {"kind": "Points", "num_axes": self.num_axes, "resolution": 64, "num_bands": 16}

    @classmethod
    def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any) -> Self:
        """Take the number of coordinates from the first cloud."""
        return cls(**common, num_axes=int(records[0].shape[1]))

    @classmethod
    def accepts(cls, name: str, x: np.ndarray) -> bool:
        """Return whether the array is named points.

        Raises:
            ValueError: If it is, but its shape is not [n, m, 2 or 3].
        """
        if name == "points" and (x.ndim != 3 or x.shape[2] not in (2, 3)):
            raise ValueError(f"points have shape {list(x.shape)}, but [n, m, 2 or 3] is needed")
        return name == "points"

    @classmethod
    def read(cls, file: Path) -> Iterable[Any]:
        """Return the clouds of a file."""
        return read_array(file)

    def draw(self, panels: Sequence[Any], record: Any, x: Any, maps: Tensor) -> None:
        """Draw the points from their broadest side, and on the other panels coloured by maps."""
        across, up = x[sorted((x.amax(1) - x.amin(1)).topk(2).indices.tolist())].numpy()
        panels[0].scatter(across, up, s=2, c="grey")
        for panel, one in zip(panels[1:], maps, strict=True):
            panel.scatter(across, up, s=4, c=one.numpy(), cmap="magma")
        for panel in panels:
            panel.set_aspect("equal")
            panel.axis("off")
