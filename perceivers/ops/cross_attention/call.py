"""What one call of the cross-attention is made of, and what an implementation of it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

    def keys_and_values(self, x_BMC: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises and projects encoded inputs to `[B, H, M, K]` and `[B, H, M, V]`."""
        x_BMC = (x_BMC if self.norm is None else self.norm(x_BMC)).to(self.w_k.dtype)
        heads = self.q_BHNK.shape[1]
        k_BHMK = F.linear(x_BMC, self.w_k, self.b_k).unflatten(-1, (heads, -1)).transpose(1, 2)
        v_BHMV = F.linear(x_BMC, self.w_v, self.b_v).unflatten(-1, (heads, -1)).transpose(1, 2)
        return k_BHMK, v_BHMV


@dataclass(frozen=True)
class Implementation:
    """One way to compute the operation.

    Attributes:
        run: Computes it.
        why_not: Says in words why it cannot do a call, or `None` where it can.
    """

    run: Callable[[Call], Tensor]
    why_not: Callable[[Call], str | None]
