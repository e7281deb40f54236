"""Learned position features (Perceiver IO, appendix D: ImageNet models without knowledge of the grid)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import an_int, one_of


class LearnedPositions(nn.Module):
    """A learned vector for each index of a grid: nothing tells the model which indices are neighbours.

    They do not factor over axes, so on a grid of many inputs attention to them costs more than to Fourier features.

    Args:
        axes: Lengths of the grid's axes; `[n]` for sequences.
        num_channels: Width of a vector.
        resample: Whether grids of other lengths get vectors interpolated between the learned ones, "none" or "cubic"
            ("cubic" is bicubic for two axes and linear for one or three).

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(self, *, axes: Sequence[int], num_channels: int, resample: str = "none") -> None:
        super().__init__()
        self.axes = [an_int("axes", n) for n in axes]
        self.resample = one_of("resample", resample, ("none", "cubic"))
        if resample != "none" and len(self.axes) > 3:
            raise ValueError(f"resample={resample!r} takes 1 to 3 axes, not {len(self.axes)}: use 'none'")
        self.embeddings = nn.Parameter(torch.empty(prod(self.axes), an_int("num_channels", num_channels)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new vectors: normal with standard deviation 0.02, cut at two of them, as in DeepMind's released code."""
        nn.init.trunc_normal_(self.embeddings, std=0.02, a=-0.04, b=0.04)

    def forward(self, axes: Sequence[int]) -> Tensor:
        """Returns the vectors of a grid, `[n_1 * ... * n_A, num_channels]`, in row-major order.

        Raises:
            ValueError: If the grid has other lengths than the learned one and may not be resampled.
        """
        if list(axes) == self.axes:
            return self.embeddings
        if self.resample == "none" or len(axes) != len(self.axes):
            raise ValueError(
                f"a grid of {list(axes)} inputs has no positions, learned ones are for {self.axes}: resize the input,"
                " or construct with resample='cubic'"
            )
        grid = self.embeddings.T.reshape(1, -1, *self.axes)
        mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(self.axes)]
        return F.interpolate(grid, size=list(axes), mode=mode, align_corners=False).flatten(2).squeeze(0).T
