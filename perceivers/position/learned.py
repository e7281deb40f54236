"""Learned position embeddings (Perceiver IO, appendix D: ImageNet models without knowledge of the grid)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import an_int, one_of


class LearnedPositions(nn.Module):
    """A learned embedding per grid position, without any knowledge of which positions are neighbours.

    The embeddings do not factor over axes, so on large grids attention costs more than with Fourier features.

    Args:
        axes: Lengths of the grid's axes; `[n]` for sequences.
        num_channels: Width of an embedding.
        resample: "none", or "cubic" to interpolate the embeddings for grids of other lengths (bicubic for two axes, linear for
            one or three).
    """

    def __init__(self, *, axes: Sequence[int], num_channels: int, resample: str = "none") -> None:
        super().__init__()
        self.axes = [an_int("axes", n) for n in axes]
        self.resample = one_of("resample", resample, ("none", "cubic"))
        if resample != "none" and len(self.axes) > 3:
            raise ValueError(f"resample={resample!r} takes 1 to 3 axes, not {len(self.axes)}: use resample='none'")
        self.embeddings = nn.Parameter(torch.empty(prod(self.axes), an_int("num_channels", num_channels)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise the embeddings from a normal distribution (std 0.02) truncated to [-0.04, 0.04].

        Source: DeepMind's released code.
        """
        nn.init.trunc_normal_(self.embeddings, std=0.02, a=-0.04, b=0.04)

    def forward(self, axes: Sequence[int]) -> Tensor:
        """Return the embeddings of a grid with the lengths `axes`, `[n_1 * ... * n_A, num_channels]`, in row-major order.

        Raises:
            ValueError: If the lengths differ from the learned ones and `resample` is "none".
        """
        if list(axes) == self.axes:
            return self.embeddings
        if self.resample == "none" or len(axes) != len(self.axes):
            raise ValueError(
                f"learned positions have axes={self.axes}, but the inputs have axes {list(axes)}: resize the inputs, or"
                " construct with resample='cubic'"
            )
        grid = self.embeddings.T.reshape(1, -1, *self.axes)
        mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(self.axes)]
        return F.interpolate(grid, size=list(axes), mode=mode, align_corners=False).flatten(2).squeeze(0).T
