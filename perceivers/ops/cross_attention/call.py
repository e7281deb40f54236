"""What one call of the cross-attention is made of, and what an implementation of it is.

The implementations are evaluations of a few methods of a call: the encoded array, keys and values, queries folded with the
key projection, and results unfolded with the value projection.

Letters: B batch, H heads, N queries, M inputs, C channels of an encoded input, K width of queries and keys, V of values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.tokens import Tokens


@dataclass(frozen=True, eq=False)  # compared by identity: tensors have no one truth value
class Norm:
    """Layer normalisation over the C channels of an encoded input: weight (gamma) and bias (beta) `[C]`, eps."""

    weight: Tensor
    bias: Tensor
    eps: float = 1e-5

    def __call__(self, x_BMC: Tensor) -> Tensor:
        """Normalises in the dtype of `x_BMC`, which may be wider than the parameters'."""
        return F.layer_norm(x_BMC, x_BMC.shape[-1:], self.weight.to(x_BMC.dtype), self.bias.to(x_BMC.dtype), self.eps)


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

    @property
    def heads(self) -> int:
        """H."""
        return self.q_BHNK.shape[1]

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
        k_BHMK = F.linear(x_BMC, self.w_k, self.b_k).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v_BHMV = F.linear(x_BMC, self.w_v, self.b_v).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return k_BHMK, v_BHMV

    def folded_queries(self) -> Tensor:
        """q~ = gamma * (scale W_k^T q), `[B, H, N, C]`: scores are its products with the normalised inputs, up to a constant.

        The constant, scale q . (W_k beta + b_k), is the same for all inputs of a query and cancels in the softmax.
        """
        w_HKC = self.w_k.unflatten(0, (self.heads, -1))
        q_BHNC = self.scale * self.q_BHNK.to(w_HKC.dtype) @ w_HKC
        return q_BHNC if self.norm is None else q_BHNC * self.norm.weight

    def unfolded_values(self, z_BHNC: Tensor, s_BHN1: Tensor | float) -> Tensor:
        """The result W_v (gamma * z + beta s) + b_v s, `[B, H, N, V]`, for z = sum_m A_m x^_m and s = sum_m A_m.

        The bias of the keys has no effect; it stays part of the graph, with a gradient of zero, as in the definition.
        """
        if self.norm is not None:
            z_BHNC = self.norm.weight * z_BHNC + self.norm.bias * s_BHN1
        w_HVC = self.w_v.unflatten(0, (self.heads, -1))
        out_BHNV = z_BHNC.to(w_HVC.dtype) @ w_HVC.mT
        if self.b_v is not None:
            out_BHNV = out_BHNV + self.b_v.unflatten(0, (self.heads, 1, -1)) * s_BHN1
        return out_BHNV if self.b_k is None else out_BHNV + 0 * self.b_k.sum()


@dataclass(frozen=True)
class Implementation:
    """One way to compute the operation.

    Attributes:
        run: Computes it.
        why_not: Says in words why it cannot do a call, or `None` where it can.
    """

    run: Callable[[Call], Tensor]
    why_not: Callable[[Call], str | None]
