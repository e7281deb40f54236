"""The output of the first Perceiver: the mean of the latents, and a linear map."""

from typing import Any

from torch import Tensor, nn

from perceivers._checks import a_bool, an_int
from perceivers.layers.linear import Linear
from perceivers.outputs.base import Encoded, Output, refuse_indices


class MeanPool(Output):
    """The mean of the latents, without queries and without a decoder (Perceiver, section 3.1).

    Args:
        dim: Width of the latents.
        num_channels: Size of the result; `None` for the mean itself.
        final_norm: Whether the mean passes a layer norm.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(self, *, dim: int, num_channels: int | None = None, final_norm: bool = False) -> None:
        super().__init__()
        self.query_channels = self.decoded_channels = None
        self.config = {
            "dim": (dim := an_int("dim", dim)),
            "num_channels": None if num_channels is None else an_int("num_channels", num_channels),
            "final_norm": a_bool("final_norm", final_norm),
        }
        self.norm = nn.LayerNorm(dim) if final_norm else None
        self.head = None if num_channels is None else Linear(dim, num_channels)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def check(self, inputs: nn.Module, dim: int) -> None:
        """Compares the width of the latents."""
        if dim != self.config["dim"]:
            raise ValueError(f"MeanPool has dim={self.config['dim']}, but the latents have dim={dim}: make them equal")

    def forward(
        self, encoded: Encoded, *, indices: Any = None, query_mask: Any = None, chunk_size: int | None = None
    ) -> Tensor:
        """Returns `[B, num_channels]`, or `[B, D]`."""
        refuse_indices(indices, "the mean of the latents is one result")
        if query_mask is not None:
            raise ValueError("query_mask must be None: the mean of the latents has no queries")
        pooled = encoded.latents.mean(dim=1)
        pooled = pooled if self.norm is None else self.norm(pooled)
        return pooled if self.head is None else self.head(pooled)
