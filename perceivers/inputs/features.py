"""Precomputed features: the tokens of another encoder, or arrays that already contain position features."""

from typing import Any

from torch import Tensor

from perceivers._checks import an_int
from perceivers.inputs.base import InputModule
from perceivers.ops.tokens import Tokens, check_array, check_mask


class Features(InputModule):
    """One input per feature vector, unchanged; without parameters or positions.

    Args:
        dim: Width of a feature vector, which is `num_channels`.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.num_channels = an_int("dim", dim)
        self.config: dict[str, Any] = {"dim": dim}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tokens]:
        """Return one token group.

        Args:
            x: `[B, M, dim]`, floating point, channels last, as text and image encoders return them.
            mask: `[B, M]`, bool, True where x may be attended to.
        """
        check_array("x", x, 3, f"[B, M, {self.num_channels}]")
        if x.shape[2] != self.num_channels:
            raise ValueError(f"x has shape {list(x.shape)}, {x.shape[2]} channels, but dim={self.num_channels} (axis 2)")
        check_mask(mask, x.shape[:2], "[B, M]")
        return [Tokens.of(x, mask)]
