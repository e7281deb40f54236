"""What one call of the cross-attention is made of, and what an implementation of it is.

The implementations are evaluations of a few methods of a call: the encoded array, its keys and values, or projections that
have the norm folded in, for those that never make keys and values.

Letters: B batch, H heads, N queries, M inputs, C channels of an encoded input, K width of queries and keys, V of values.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.cross_attention.partial import Partial
from perceivers.ops.linear import linear
from perceivers.ops.tokens import Tokens


@dataclass(frozen=True, eq=False)  # compared by identity: tensors have no one truth value
class Norm:
    """Normalisation over the C channels of an encoded input.

    Attributes:
        weight: gamma, `[C]`.
        bias: beta, `[C]`, or `None`.
        eps: Added to the variance.
        centred: True for layer normalisation; False for RMS normalisation, which subtracts no mean.
    """

    weight: Tensor
    bias: Tensor | None = None
    eps: float = 1e-5
    centred: bool = True

    def plain(self, x_BMC: Tensor) -> Tensor:
        """x^: normalised, before weight and bias."""
        normalise = F.layer_norm if self.centred else F.rms_norm
        return normalise(x_BMC, x_BMC.shape[-1:], eps=self.eps)

    def __call__(self, x_BMC: Tensor) -> Tensor:
        """Normalises in the dtype of `x_BMC`, which may be wider than the parameters'."""
        weight, bias = (None if p is None else p.to(x_BMC.dtype) for p in (self.weight, self.bias))
        if self.centred:
            return F.layer_norm(x_BMC, x_BMC.shape[-1:], weight, bias, self.eps)
        x_BMC = F.rms_norm(x_BMC, x_BMC.shape[-1:], weight, self.eps)
        return x_BMC if bias is None else x_BMC + bias


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of `cross_attention`, which documents them."""

    q_BHNK: Tensor
    inputs: Sequence[Tokens]
    norm: Norm | None
    w_k: Tensor
    b_k: Tensor | None
    w_v: Tensor
    b_v: Tensor | None
    scale: float
    dropout_p: float = 0.0
    cache: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def heads(self) -> int:
        """H."""
        return self.q_BHNK.shape[1]

    @property
    def num_inputs(self) -> int:
        """M."""
        return sum(group.num_inputs for group in self.inputs)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns what an earlier call with the same inputs and weights made, or makes it."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def encoded(self) -> Tensor:
        """The encoded arrays of all groups, one behind another, `[B, M, C]`."""
        return torch.cat([group.encoded() for group in self.inputs], dim=1)

    def mask(self) -> Tensor | None:
        """The mask of all groups, `[B, M]`, or `None` where there is none."""
        if all(group.mask is None for group in self.inputs):
            return None
        return torch.cat([group.flat_mask() for group in self.inputs], dim=1)

    def keys_and_values(self, x_BMC: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises and projects encoded inputs to `[B, H, M, K]` and `[B, H, M, V]`."""
        x_BMC = (x_BMC if self.norm is None else self.norm(x_BMC)).to(self.w_k.dtype)
        k_BHMK = linear(x_BMC, self.w_k, self.b_k).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v_BHMV = linear(x_BMC, self.w_v, self.b_v).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return k_BHMK, v_BHMV

    def folded_projections(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Projections of x^ = (x - mean) / deviation, with the norm's weight, centring and the scale inside.

        Returns:
            `[H * K, C]`, `[H * V, C]` and `[H * V]`, such that scores are q . (w_k x^) up to a constant of the query, which
            cancels in the softmax (see `dropped_score`), and values are w_v x^ + b_v. Both w_k x^ and w_v x^ are the same
            for x - mean and x, so that the mean need not be subtracted from inputs.
        """
        b_v = self.b_v
        if self.norm is not None and self.norm.bias is not None:
            b_v = self.w_v @ self.norm.bias if b_v is None else torch.addmv(b_v, self.w_v, self.norm.bias)
        if self.b_k is not None:  # has no effect, and stays part of the graph with a gradient of zero, as in the definition
            nothing = 0 * self.b_k.sum()
            b_v = nothing.expand(len(self.w_v)) if b_v is None else b_v + nothing
        w_kv = torch.cat([self.scale * self.w_k, self.w_v])
        if self.norm is not None:
            w_kv = w_kv * self.norm.weight
            if self.norm.centred:
                w_kv = w_kv - w_kv.mean(-1, keepdim=True)
        w_k, w_v = w_kv.split([len(self.w_k), len(self.w_v)])
        return w_k, w_v, b_v

    def dropped_score(self) -> Tensor:
        """Scale q . (W_k beta + b_k), `[B, H, N]`: what scores from folded projections leave out."""
        k_HK = self.w_k.new_zeros(len(self.w_k))
        if self.norm is not None and self.norm.bias is not None:
            k_HK = k_HK + self.w_k @ self.norm.bias
        if self.b_k is not None:
            k_HK = k_HK + self.b_k
        return self.scale * (self.q_BHNK.to(k_HK.dtype) * k_HK.unflatten(0, (self.heads, 1, -1))).sum(-1)

    def with_bias(self, out_BHNV: Tensor, b_v: Tensor | None, s_BHN1: Tensor | None) -> Tensor:
        """Adds the folded bias to sum_m A_m (w_v x^_m), where s = sum_m A_m: 1, or 0 with nothing to attend to.

        `None` stands for ones.
        """
        if b_v is None:
            return out_BHNV
        b_H1V = b_v.unflatten(0, (self.heads, 1, -1))
        return out_BHNV + (b_H1V if s_BHN1 is None else b_H1V * s_BHN1)


@dataclass(frozen=True)
class Implementation:
    """One way to compute the operation.

    Attributes:
        run: Computes it.
        why_not: Says in words why it cannot do a call, or `None` where it can.
        partial: Computes it for some of the inputs, to be merged; `None` where it cannot.
    """

    run: Callable[[Call], Tensor]
    why_not: Callable[[Call], str | None]
    partial: Callable[[Call], Partial] | None = None
