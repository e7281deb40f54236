"""Queries given by what they are made of, before their norm and projection.

Letters: B batch, H heads, M queries, N inputs, Q = H N, C channels of an encoded query, K width of queries and keys.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from perceivers.ops.cross_attention.projections import Norm
from perceivers.ops.linear import linear
from perceivers.ops.tokens import Tokens


@dataclass(frozen=True, eq=False)
class QueryProjection:
    """Norm and linear projection of encoded queries, with known weights.

    Attributes:
        norm: Normalisation of the encoded queries, or `None`.
        w_q: Projection to queries, `[H * K, C]`.
        b_q: Its bias, `[H * K]`, or `None`.
    """

    norm: Norm | None
    w_q: Tensor
    b_q: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.w_q.dtype

    def __call__(self, x_BMC: Tensor) -> Tensor:
        """Normalise and project encoded queries to `[B, M, H * K]`."""
        x_BMC = x_BMC.to(self.w_q.dtype)
        return linear(x_BMC if self.norm is None else self.norm(x_BMC), self.w_q, self.b_q)


@dataclass(frozen=True, eq=False)
class OpaqueQueryProjection:
    """Norm and projection of encoded queries by modules that have to be called, see `OpaqueProjections`.

    Attributes:
        function: Maps encoded queries `[B, M, C]` to `[B, M, H * K]`.
        reason: What cannot be seen through, for messages.
        dtype: The dtype of the parameters, which encoded queries are converted to.
    """

    function: Callable[[Tensor], Tensor]
    reason: str
    dtype: torch.dtype

    def __call__(self, x_BMC: Tensor) -> Tensor:
        """Call the modules."""
        return self.function(x_BMC.to(self.dtype))


@dataclass(frozen=True, eq=False)
class EncodedQueries:
    """Queries before their norm and projection, such as the positions of an image to be made.

    Attributes:
        tokens: What they are made of.
        projection: Their norm and projection.
        heads: H.
    """

    tokens: Tokens
    projection: QueryProjection | OpaqueQueryProjection
    heads: int

    def projected(self) -> Tensor:
        """Return the projected queries, `[B, H, M, K]`."""
        return self.projection(self.tokens.encoded()).unflatten(-1, (self.heads, -1)).transpose(1, 2)
