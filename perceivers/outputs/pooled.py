"""The output of the original Perceiver: the mean of the latents and a linear head."""

from typing import Any

from torch import Tensor, nn

from perceivers._checks import a_bool, an_int
from perceivers.layers.linear import Linear
from perceivers.outputs.base import Encoded, Output, refuse_indices


class MeanPool(Output):
    """The mean of the latents, without queries and without a decoder (Perceiver, section 3.1).

    Args:
        dim: Width of the latents.
        num_channels: Channels of the result; `None` returns the mean itself.
        final_norm: Whether to apply a layer norm to the mean.
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
        """Raise `ValueError` unless the latents have width `dim`."""
        if dim != self.config["dim"]:
            raise ValueError(f"MeanPool has dim={self.config['dim']}, but the latents have dim={dim}: make them equal")

    def forward(
        self, encoded: Encoded, *, indices: Any = None, query_mask: Any = None, chunk_size: int | None = None
    ) -> Tensor:
        """Return `[B, num_channels]`, or `[B, D]` without a head."""
        refuse_indices(indices, "MeanPool has one result and no queries")
        if query_mask is not None:
            raise ValueError("query_mask must be None: MeanPool has no queries")
        pooled = encoded.latents.mean(dim=1)
        pooled = pooled if self.norm is None else self.norm(pooled)
        return pooled if self.head is None else self.head(pooled)
