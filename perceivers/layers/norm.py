"""Norms of tokens: layer norm, RMS norm, and either of them adapted to a condition.

Letters: B batch, N tokens, D width of a token, E width of the condition.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import one_of
from perceivers.layers.linear import Linear

NORMS = ("layer_norm", "rms_norm")


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` that computes in the dtype of its weights under autocast, as `nn.LayerNorm` does."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., dim]` to `[..., dim]`."""
        return super().forward(x.to(self.weight.dtype))


def make_norm(kind: str, dim: int, eps: float | None = None) -> nn.Module:
    """Returns a layer norm, or an RMS norm (Zhang & Sennrich 2019), with the epsilon usual for it where it is `None`."""
    if one_of("norm", kind, NORMS) == "rms_norm":
        return RMSNorm(dim, eps=1e-6 if eps is None else eps)
    return nn.LayerNorm(dim, eps=1e-5 if eps is None else eps)


class AdaptiveNorm(nn.Module):
    """norm(x) * (1 + scale) + shift, where scale and shift are a linear map of a condition; without one, norm(x).

    The map starts at zero, so that training starts from the plain norm (adaptive layer norm: Peebles & Xie 2023, section
    3.2; in a resampler: ELLA, Hu et al. 2024). Unlike there, the norm keeps its own weight and bias.

    Args:
        kind: "layer_norm" or "rms_norm".
        dim: Width of a token, D.
        eps: Added to the variance; `None` for what is usual.
        condition_dim: Width of the condition, E; `None` for a plain norm.
    """

    def __init__(self, *, kind: str, dim: int, eps: float | None = None, condition_dim: int | None = None) -> None:
        super().__init__()
        self.norm = make_norm(kind, dim, eps)
        self.to_scale_and_shift = None if condition_dim is None else Linear(condition_dim, 2 * dim)
        if self.to_scale_and_shift is not None:
            nn.init.zeros_(self.to_scale_and_shift.weight)

    def forward(self, x_BND: Tensor, condition_BE: Tensor | None = None) -> Tensor:
        """Maps `[B, N, D]`, and `[B, E]` where there is a condition, to `[B, N, D]`."""
        x_BND = self.norm(x_BND)
        if self.to_scale_and_shift is None:
            return x_BND
        assert condition_BE is not None, "the module that owns this one checks it"
        scale_B1D, shift_B1D = self.to_scale_and_shift(F.silu(condition_BE)).unsqueeze(1).chunk(2, dim=-1)
        return x_BND * (1 + scale_B1D) + shift_B1D
