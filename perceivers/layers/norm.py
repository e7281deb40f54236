"""Norms of tokens: layer norm, RMS norm, and either of them adapted to a condition.

Letters: B batch, N tokens, D width of a token, E width of the condition.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import one_of
from perceivers.layers.linear import Linear, a_kind, why_touched
from perceivers.ops.cross_attention import Norm

NORMS = ("layer_norm", "rms_norm")


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` that computes in the dtype of its weights under autocast, as `nn.LayerNorm` does."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., dim]`."""
        return super().forward(x.to(self.weight.dtype))


def make_norm(kind: str, dim: int, eps: float | None = None) -> nn.Module:
    """Return a layer norm or an RMS norm (Zhang & Sennrich 2019), by default with the usual epsilon (1e-5 or 1e-6)."""
    if one_of("norm", kind, NORMS) == "rms_norm":
        return RMSNorm(dim, eps=1e-6 if eps is None else eps)
    return nn.LayerNorm(dim, eps=1e-5 if eps is None else eps)


def known_norm(name: str, norm: nn.Module | None) -> Norm | str | None:
    """Return the parameters of a norm over the last axis, `None` for no norm, or why they are not known.

    Known are layer and RMS norms with weights and without hooks; all other modules have to be called.
    """
    if norm is None:
        return None
    if (reason := why_touched(name, norm)) is not None:
        return reason
    forward, weight = type(norm).forward, norm.weight if isinstance(norm, nn.LayerNorm | nn.RMSNorm) else None
    if weight is not None and weight.ndim == 1:
        if isinstance(norm, nn.LayerNorm) and forward is nn.LayerNorm.forward:
            return Norm(weight, norm.bias, norm.eps)
        if isinstance(norm, nn.RMSNorm) and forward in (nn.RMSNorm.forward, RMSNorm.forward):
            eps = torch.finfo(weight.dtype).eps if norm.eps is None else norm.eps
            return Norm(weight, None, eps, centred=False)
    return f"{name} is {a_kind(norm)}"


class AdaptiveNorm(nn.Module):
    """norm(x) * (1 + scale) + shift, where scale and shift are a linear projection of a condition; without one, norm(x).

    The projection starts at zero, so training starts from the plain norm (adaptive layer norm: Peebles & Xie 2023, section
    3.2; in a resampler: ELLA, Hu et al. 2024). Unlike there, the norm keeps its own weight and bias.

    Args:
        kind: "layer_norm" or "rms_norm".
        dim: Width of a token, D.
        eps: Added to the variance. Defaults to the usual value for the kind.
        condition_dim: Width of the condition, E; `None` for a plain norm.
    """

    def __init__(self, *, kind: str, dim: int, eps: float | None = None, condition_dim: int | None = None) -> None:
        super().__init__()
        self.norm = make_norm(kind, dim, eps)
        self.to_scale_and_shift = None if condition_dim is None else Linear(condition_dim, 2 * dim)
        if self.to_scale_and_shift is not None:
            nn.init.zeros_(self.to_scale_and_shift.weight)

    def forward(self, x_BND: Tensor, condition_BE: Tensor | None = None) -> Tensor:
        """Normalise `[B, N, D]`, with a condition `[B, E]` if the module has one."""
        x_BND = self.norm(x_BND)
        if self.to_scale_and_shift is None:
            return x_BND
        assert condition_BE is not None, "the module that owns this one checks it"
        scale_B1D, shift_B1D = self.to_scale_and_shift(F.silu(condition_BE)).unsqueeze(1).chunk(2, dim=-1)
        return x_BND * (1 + scale_B1D) + shift_B1D
