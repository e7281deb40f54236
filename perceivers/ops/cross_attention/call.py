"""What one call of the cross-attention is made of, and what calls share.

The implementations are evaluations of a few methods of a call: the encoded array, its keys and values, or projections that
have the norm folded in, for those that never make keys and values.

Letters: B batch, H heads, N queries, M inputs, C channels of an encoded input, K width of queries and keys, V of values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from perceivers.ops.cross_attention.factored import Factored
from perceivers.ops.cross_attention.projections import Norm, OpaqueProjections, Projections
from perceivers.ops.cross_attention.queries import EncodedQueries
from perceivers.ops.tokens import Tokens


@dataclass(frozen=True, eq=False)
class FoldedKeys:
    """Keys multiplied by a query projection.

    Attributes:
        w_q: The projection.
        k_BQC: Keys with the projection and the norm's weight and centring folded in, `[B, H * N, C]`.
        c_BQ: The constant that a key adds to all its scores, `[B, H * N]`.
    """

    w_q: Tensor
    k_BQC: Tensor
    c_BQ: Tensor


@dataclass(eq=False)
class Shared:
    """What calls with the same inputs, norm and projections share, such as layers that share weights.

    Nothing in it depends on the queries. It starts empty; the methods of `Call` fill it when a value is first needed.

    Attributes:
        keys_and_values: Keys `[B, H, M, K]` and values `[B, H, M, V]`.
        normalised: Normalised encoded inputs before the norm's weight and bias, `[B, M, C]`.
        folded: Projections with norm and scale folded in, see `Projections.folded`.
        factored: The factors of each group, by its number.
        folded_keys: The keys multiplied by one query projection, for encoded queries.
    """

    keys_and_values: tuple[Tensor, Tensor] | None = None
    normalised: Tensor | None = None
    folded: tuple[Tensor, Tensor, Tensor | None] | None = None
    factored: dict[int, Factored] = field(default_factory=dict)
    folded_keys: FoldedKeys | None = None


@dataclass(eq=False)
class Call:
    """One call of `cross_attention`.

    Attributes:
        queries: Projected queries, `[B, H, N, K]`, or encoded ones.
        inputs: Token groups that share one softmax.
        projection: Norm and projections of the encoded inputs.
        scale: Factor of the scores.
        dropout_p: Probability of dropping an attention weight.
        shared: What this call shares with others.
        projected: The projected queries; `None` while only encoded queries are known.
    """

    queries: Tensor | EncodedQueries
    inputs: Sequence[Tokens]
    projection: Projections | OpaqueProjections
    scale: float
    dropout_p: float = 0.0
    shared: Shared = field(default_factory=Shared)
    projected: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.projected = None if isinstance(self.queries, EncodedQueries) else self.queries

    @classmethod
    def of(
        cls,
        q_BHNK: Tensor | EncodedQueries,
        inputs: Sequence[Tokens],
        norm: Norm | None,
        w_k: Tensor | None,
        b_k: Tensor | None,
        w_v: Tensor | None,
        b_v: Tensor | None,
        *,
        scale: float,
        dropout_p: float = 0.0,
        shared: Shared | None = None,
        project: OpaqueProjections | None = None,
    ) -> "Call":
        """Make a call of the arguments of `cross_attention`, which documents them."""
        if project is not None:
            projection = project
            if any(argument is not None for argument in (norm, w_k, b_k, w_v, b_v)):
                raise ValueError("project is given together with norm, weights or biases: give either")
        elif w_k is None or w_v is None:
            raise ValueError("w_k or w_v is None and so is project: give both weights, or project")
        else:
            projection = Projections(norm, w_k, b_k, w_v, b_v)
        return cls(q_BHNK, inputs, projection, scale, dropout_p, Shared() if shared is None else shared)

    @property
    def heads(self) -> int:
        """H."""
        return self.queries.heads if isinstance(self.queries, EncodedQueries) else self.queries.shape[1]

    @property
    def num_queries(self) -> int:
        """N."""
        return self.queries.tokens.num_inputs if isinstance(self.queries, EncodedQueries) else self.queries.shape[2]

    @property
    def num_inputs(self) -> int:
        """M."""
        return sum(group.num_inputs for group in self.inputs)

    @property
    def num_channels(self) -> int:
        """C."""
        return self.inputs[0].num_channels if isinstance(self.projection, OpaqueProjections) else self.projection.w_k.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of the queries."""
        queries = self.queries
        return queries.tokens.content.device if isinstance(queries, EncodedQueries) else queries.device

    @property
    def q_BHNK(self) -> Tensor:
        """The projected queries. Encoded queries are projected when this is first read, and once."""
        if self.projected is None:
            assert isinstance(self.queries, EncodedQueries)
            self.projected = self.queries.projected()
        return self.projected

    @property
    def weights(self) -> Projections:
        """The known projections; for implementations that refuse opaque ones, see `why_opaque`."""
        assert isinstance(self.projection, Projections), "why_not refuses opaque projections"
        return self.projection

    @property
    def norm(self) -> Norm | None:
        """The known norm of the encoded inputs."""
        return self.weights.norm

    def why_opaque(self) -> str | None:
        """Return why weights of keys and values are not known, or `None` if they are."""
        return self.projection.reason if isinstance(self.projection, OpaqueProjections) else None

    def why_dropped(self) -> str | None:
        """Return why weights that no longer sum to 1 are refused, or `None` if none are dropped."""
        return f"it cannot drop attention weights, and dropout_p={self.dropout_p}" if self.dropout_p > 0 else None

    def encoded(self) -> Tensor:
        """Return the encoded arrays of all groups, concatenated, `[B, M, C]`."""
        return torch.cat([group.encoded() for group in self.inputs], dim=1)

    def mask(self) -> Tensor | None:
        """Return the mask of all groups, `[B, M]`, or `None` if no group has one."""
        if all(group.mask is None for group in self.inputs):
            return None
        return torch.cat([group.flat_mask() for group in self.inputs], dim=1)

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of all inputs, `[B, H, M, K]` and `[B, H, M, V]`; made once per `shared`."""
        if self.shared.keys_and_values is None:
            self.shared.keys_and_values = self.projection.keys_and_values(self.encoded(), self.heads)
        return self.shared.keys_and_values

    def normalised(self) -> Tensor:
        """Return the normalised inputs, before the norm's weight and bias, `[B, M, C]`; made once per `shared`."""
        if self.shared.normalised is None:
            x_BMC = self.encoded()
            self.shared.normalised = x_BMC if self.norm is None else self.norm.plain(x_BMC)
        return self.shared.normalised

    def folded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return `Projections.folded`; made once per `shared`."""
        if self.shared.folded is None:
            self.shared.folded = self.weights.folded(self.scale)
        return self.shared.folded

    def factored(self, g: int, dtype: torch.dtype) -> Factored:
        """Return the factors of the g-th group; made once per `shared`."""
        if g not in self.shared.factored:
            self.shared.factored[g] = Factored.of(self.inputs[g], self.norm, dtype)
        return self.shared.factored[g]

    def dropped_score(self) -> Tensor:
        """Return scale q . (W_k beta + b_k), `[B, H, N]`: what scores from folded projections leave out."""
        weights = self.weights
        k_HK = weights.w_k.new_zeros(len(weights.w_k))
        if weights.norm is not None and weights.norm.bias is not None:
            k_HK = k_HK + weights.w_k @ weights.norm.bias
        if weights.b_k is not None:
            k_HK = k_HK + weights.b_k
        return self.scale * (self.q_BHNK.to(k_HK.dtype) * k_HK.unflatten(0, (self.heads, 1, -1))).sum(-1)

    def with_bias(self, out_BHNV: Tensor, b_v: Tensor | None, s_BHN1: Tensor | None) -> Tensor:
        """Add the folded bias to sum_m A_m (w_v x^_m), times s = sum_m A_m: 1, or 0 if nothing may be attended to.

        `None` for `s_BHN1` stands for ones.
        """
        if b_v is None:
            return out_BHNV
        b_H1V = b_v.unflatten(0, (self.heads, 1, -1))
        return out_BHNV + (b_H1V if s_BHN1 is None else b_H1V * s_BHN1)
