"""The norm and the projections to keys and values that stand between encoded inputs and their scores.

Letters: B batch, H heads, M inputs, C channels of an encoded input, K width of queries and keys, V of values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.linear import linear


@dataclass(frozen=True, eq=False)  # compared by identity: comparing tensors gives tensors
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
        """Return x^: normalised, before weight and bias."""
        normalise = F.layer_norm if self.centred else F.rms_norm
        return normalise(x_BMC, x_BMC.shape[-1:], eps=self.eps)

    def __call__(self, x_BMC: Tensor) -> Tensor:
        """Normalise in the dtype of `x_BMC`, which may be wider than that of the parameters."""
        weight, bias = (None if p is None else p.to(x_BMC.dtype) for p in (self.weight, self.bias))
        if self.centred:
            return F.layer_norm(x_BMC, x_BMC.shape[-1:], weight, bias, self.eps)
        x_BMC = F.rms_norm(x_BMC, x_BMC.shape[-1:], weight, self.eps)
        return x_BMC if bias is None else x_BMC + bias


@dataclass(frozen=True, eq=False)
class Projections:
    """Norm and linear projections with known weights.

    Attributes:
        norm: Normalisation of the encoded inputs, or `None`.
        w_k: Projection to keys, `[H * K, C]`.
        b_k: Its bias, `[H * K]`, or `None`.
        w_v: Projection to values, `[H * V, C]`.
        b_v: Its bias, `[H * V]`, or `None`.
    """

    norm: Norm | None
    w_k: Tensor
    b_k: Tensor | None
    w_v: Tensor
    b_v: Tensor | None

    @property
    def k_channels(self) -> int:
        """H * K."""
        return len(self.w_k)

    @property
    def v_channels(self) -> int:
        """H * V."""
        return len(self.w_v)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.w_k.dtype

    def keys_and_values(self, x_BMC: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Normalise and project encoded inputs to `[B, H, M, K]` and `[B, H, M, V]`."""
        x_BMC = (x_BMC if self.norm is None else self.norm(x_BMC)).to(self.w_k.dtype)
        return (
            linear(x_BMC, self.w_k, self.b_k).unflatten(-1, (heads, -1)).transpose(1, 2),
            linear(x_BMC, self.w_v, self.b_v).unflatten(-1, (heads, -1)).transpose(1, 2),
        )

    def folded(self, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Fold the norm's weight, its centring and the scale into the projections.

        Returns:
            Projections of x^ = (x - mean) / standard deviation, `[H * K, C]`, `[H * V, C]` and `[H * V]`, such that scores are
            q . (w_k x^) up to a constant per query, which cancels in the softmax (see `Call.dropped_score`), and values are
            w_v x^ + b_v. Both w_k x^ and w_v x^ are the same for x - mean and x, so the mean need not be subtracted from
            the inputs.
        """
        b_v = self.b_v
        if self.norm is not None and self.norm.bias is not None:
            b_v = self.w_v @ self.norm.bias if b_v is None else torch.addmv(b_v, self.w_v, self.norm.bias)
        if self.b_k is not None:  # has no effect, but stays in the graph with a gradient of zero, as in the definition
            nothing = 0 * self.b_k.sum()
            b_v = nothing.expand(len(self.w_v)) if b_v is None else b_v + nothing
        w_kv = torch.cat([scale * self.w_k, self.w_v])
        if self.norm is not None:
            w_kv = w_kv * self.norm.weight
            if self.norm.centred:
                w_kv = w_kv - w_kv.mean(-1, keepdim=True)
        w_k, w_v = w_kv.split([len(self.w_k), len(self.w_v)])
        return w_k, w_v, b_v


@dataclass(frozen=True, eq=False)
class OpaqueProjections:
    """Norm and projections by modules that have to be called: their weights are not known to the operation.

    Examples are a linear layer with forward hooks or an adapter with dropout. Implementations that make keys and values call
    them; those that fold the projections into queries and results refuse, with `reason`.

    Attributes:
        function: Maps encoded inputs `[B, M, C]`, before the norm, to keys `[B, H, M, K]` and values `[B, H, M, V]`.
        reason: What cannot be seen through, for messages, such as "to_k is a MyLinear".
        k_channels: H * K.
        v_channels: H * V.
        dtype: The dtype of the parameters, which encoded inputs are converted to.
    """

    function: Callable[[Tensor], tuple[Tensor, Tensor]]
    reason: str
    k_channels: int
    v_channels: int
    dtype: torch.dtype

    def keys_and_values(self, x_BMC: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Call the modules."""
        return self.function(x_BMC)
