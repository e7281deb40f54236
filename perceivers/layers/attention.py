"""The two attentions of a Perceiver: from latents to inputs, and among latents.

Letters:
    B  batch      N  latents (queries)    D  width of the latents               K  width of queries and keys, per head
    H  heads      M  inputs               C  channels of an encoded input       V  width of values, per head
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from perceivers._checks import a_bool, a_probability, an_int, one_of
from perceivers.layers.linear import Linear
from perceivers.layers.projections import key_value_projections, parameter_dtype, query_projection
from perceivers.ops.cross_attention import EncodedQueries, Shared, choices, cross_attention, explain
from perceivers.ops.cross_attention.maps import attention_maps
from perceivers.ops.self_attention import self_attention
from perceivers.ops.tokens import Tokens


def resolve_head_dim(name: str, dim: int, heads: int, head_dim: int | None, heads_name: str = "heads") -> int:
    """Return the width of a head: `head_dim` if it is given, else `dim // heads`, which must divide."""
    if head_dim is not None:
        return an_int(name, head_dim)
    if dim % heads:
        raise ValueError(f"{heads_name}={heads} does not divide dim={dim}: choose one that does, or give {name}")
    return dim // heads


def resolve_channels(
    dim: int, heads: int, qk_channels: int | None, v_channels: int | None, *, head_dim: int | None = None, prefix: str = ""
) -> tuple[int, int]:
    """Return the widths over all heads of queries and keys, and of values.

    `qk_channels` defaults to `heads * head_dim`, `v_channels` to `qk_channels`; `prefix` precedes the names in messages.
    """
    if qk_channels is None:
        remedy = f"{prefix}head_dim" if head_dim is not None else f"{prefix}qk_channels"
        qk_channels = heads * resolve_head_dim(remedy, dim, heads, head_dim, f"{prefix}heads")
    elif head_dim is not None:
        raise ValueError(
            f"{prefix}qk_channels={qk_channels} and {prefix}head_dim={head_dim} both set the width of a head: leave one out"
        )
    channels = {"qk_channels": qk_channels, "v_channels": qk_channels if v_channels is None else v_channels}
    for name, width in channels.items():
        if an_int(f"{prefix}{name}", width) % heads:
            raise ValueError(f"{prefix}heads={heads} does not divide {prefix}{name}={width}: choose numbers where it does")
    return int(channels["qk_channels"]), int(channels["v_channels"])


def a_bias(bias: Any) -> bool | str:
    """Return `bias` if it selects which linear layers of an attention have one: all, none, or "out", the last."""
    if not isinstance(bias, bool) and bias != "out":
        raise ValueError(f"bias={bias!r} must be True or False, or 'out' for the output projection alone")
    return bias


class CrossAttention(nn.Module):
    """Attention from latents to encoded inputs, without norm of the latents, residual or feed-forward.

    Args:
        dim: Width of the latents, D.
        kv_dim: Channels of an encoded input, C.
        heads: Number of heads.
        head_dim: Width of a head. Defaults to `dim // heads`.
        qk_channels: Width of queries and keys over all heads. Defaults to `heads * head_dim`.
        v_channels: Width of values over all heads. Defaults to that of queries and keys.
        bias: Whether the four linear layers have a bias; "out" for the output projection alone.
        dropout: Probability of dropping an attention weight in training.
        norm_inputs: Whether encoded inputs pass a layer norm first.
    """

    def __init__(
        self,
        *,
        dim: int,
        kv_dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        bias: bool | str = True,
        dropout: float = 0.0,
        norm_inputs: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.kv_dim, self.heads = an_int("dim", dim), an_int("kv_dim", kv_dim), an_int("heads", heads)
        widths = resolve_channels(dim, self.heads, qk_channels, v_channels, head_dim=head_dim)
        self.qk_channels, self.v_channels = widths
        self.dropout = a_probability("dropout", dropout)
        self.scale = (self.qk_channels // self.heads) ** -0.5
        self.attention_implementation = "auto"

        self.inputs_norm = nn.LayerNorm(kv_dim) if a_bool("norm_inputs", norm_inputs) else None
        self.to_q = Linear(dim, self.qk_channels, bias=a_bias(bias) is True)
        self.to_k = Linear(kv_dim, self.qk_channels, bias=bias is True)
        self.to_v = Linear(kv_dim, self.v_channels, bias=bias is True)
        self.to_out = Linear(self.v_channels, dim, bias=bias is not False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the query projection."""
        return parameter_dtype(self.to_q)

    def forward(
        self,
        latents_BND: Tensor | Tokens,
        inputs: Sequence[Tokens],
        shared: Shared | None = None,
        query_mask_BN: Tensor | None = None,
        query_norm: nn.Module | None = None,
    ) -> Tensor:
        """Attend from latents `[B, N, D]` to token groups that share one softmax; returns `[B, N, D]`.

        Instead of latents, queries may be a token group, such as the positions of an image to be made; it is encoded and
        passes `query_norm` only if that is cheapest. A sample with nothing to attend to gets zero before the output
        projection, and so does a query where the query mask is False. Calls with the same inputs pass the same `shared`, see
        `cross_attention`.
        """
        if isinstance(latents_BND, Tokens):
            queries = EncodedQueries(latents_BND, query_projection(query_norm, self.to_q), self.heads)
        else:
            queries = self._queries(latents_BND)
        out_BHNV = cross_attention(queries, inputs, **self._projections(), **self._settings(), shared=shared)
        if query_mask_BN is not None:
            out_BHNV = out_BHNV.masked_fill(~query_mask_BN[:, None, :, None], 0)
        return self.to_out(rearrange(out_BHNV, "B H N V -> B N (H V)"))

    def attention_maps(self, latents_BND: Tensor, inputs: Sequence[Tokens], *, log_scores: bool = False) -> Tensor:
        """Return the attention weights `[B, H, N, M]`, or their logarithms."""
        queries, projections = self._queries(latents_BND), self._projections()
        return attention_maps(queries, inputs, **projections, scale=self.scale, log_scores=log_scores)

    def explain(self, latents_BND: Tensor, inputs: Sequence[Tokens]) -> str:
        """Return how `forward` would compute the attention, and why."""
        return explain(self._queries(latents_BND), inputs, **self._projections(), **self._settings())

    def check(self, latents_BND: Tensor | Tokens, inputs: Sequence[Tokens]) -> None:
        """Raise `ValueError` if latents or inputs do not fit this module."""
        if isinstance(latents_BND, Tokens):
            shape = (latents_BND.content.shape[0], latents_BND.num_inputs, latents_BND.num_channels)
        else:
            shape = tuple(latents_BND.shape)
        if len(shape) != 3 or shape[-1] != self.dim:
            raise ValueError(f"latents have shape {list(shape)}, but [B, N, {self.dim}] is needed")
        if not inputs or any(group.num_inputs == 0 for group in inputs):
            raise ValueError("there are no inputs, or a group has none: give at least one, and mask it if it is not meant")
        for group in inputs:
            if group.num_channels != self.kv_dim:
                raise ValueError(f"inputs have {group.num_channels} channels, but kv_dim={self.kv_dim}")
            if group.content.shape[0] != shape[0]:
                raise ValueError(
                    f"inputs have a batch size of {group.content.shape[0]}, latents one of {shape[0]}: make them equal"
                )

    def set_attention_implementation(self, name: str) -> None:
        """Set how the attention is computed: a name of `perceivers.ops.cross_attention.IMPLEMENTATIONS` or "auto"."""
        self.attention_implementation = one_of("attention_implementation", name, choices())

    def _projections(self) -> dict[str, Any]:
        widths = (self.qk_channels, self.v_channels)
        return key_value_projections(self.inputs_norm, self.to_k, self.to_v, self.heads, widths)

    def _settings(self) -> dict[str, Any]:
        dropout_p = self.dropout if self.training else 0.0
        return {"scale": self.scale, "dropout_p": dropout_p, "implementation": self.attention_implementation}

    def _queries(self, latents_BND: Tensor) -> Tensor:
        return rearrange(self.to_q(latents_BND), "B N (H K) -> B H N K", H=self.heads)


class SelfAttention(nn.Module):
    """Attention among latents, without norm, residual or feed-forward.

    Args:
        dim: Width of the latents, D.
        heads: Number of heads.
        head_dim: Width of a head. Defaults to `dim // heads`.
        qk_channels: Width of queries and keys over all heads. Defaults to `heads * head_dim`.
        v_channels: Width of values over all heads. Defaults to that of queries and keys.
        bias: Whether the four linear layers have a bias; "out" for the output projection alone.
        dropout: Probability of dropping an attention weight in training.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        bias: bool | str = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.heads = an_int("dim", dim), an_int("heads", heads)
        widths = resolve_channels(dim, self.heads, qk_channels, v_channels, head_dim=head_dim)
        self.qk_channels, self.v_channels = widths
        self.dropout = a_probability("dropout", dropout)
        self.scale = (self.qk_channels // self.heads) ** -0.5

        self.to_q = Linear(dim, self.qk_channels, bias=a_bias(bias) is True)
        self.to_k = Linear(dim, self.qk_channels, bias=bias is True)
        self.to_v = Linear(dim, self.v_channels, bias=bias is True)
        self.to_out = Linear(self.v_channels, dim, bias=bias is not False)

    def forward(self, latents_BND: Tensor) -> Tensor:
        """Attend among latents `[B, N, D]`; returns `[B, N, D]`."""
        q_BHNK, k_BHNK, v_BHNV = (
            rearrange(to(latents_BND), "B N (H K) -> B H N K", H=self.heads) for to in (self.to_q, self.to_k, self.to_v)
        )
        dropout_p = self.dropout if self.training else 0.0
        out_BHNV = self_attention(q_BHNK, k_BHNK, v_BHNV, scale=self.scale, dropout_p=dropout_p)
        return self.to_out(rearrange(out_BHNV, "B H N V -> B N (H V)"))
