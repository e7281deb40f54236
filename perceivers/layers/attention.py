"""The two attentions of a Perceiver: from latents to inputs, and among latents.

Letters:
    B  batch      N  latents (queries)    D  width of the latents               K  width of queries and keys, a head
    H  heads      M  inputs               C  channels of an encoded input       V  width of values, a head
"""

from collections.abc import Hashable, Sequence
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from perceivers._checks import a_bool, a_probability, an_int, one_of
from perceivers.layers.linear import Linear
from perceivers.ops.cross_attention import CHOICES, EncodedQueries, Norm, cross_attention, explain
from perceivers.ops.cross_attention.maps import attention_maps
from perceivers.ops.self_attention import self_attention
from perceivers.ops.tokens import Tokens


def resolve_head_dim(name: str, dim: int, heads: int, head_dim: int | None, heads_name: str = "heads") -> int:
    """Returns the width of a head: `head_dim` where it is given, else `dim // heads`, which must divide."""
    if head_dim is not None:
        return an_int(name, head_dim)
    if dim % heads:
        raise ValueError(f"{heads_name}={heads} does not divide dim={dim}: choose one that does, or give {name}")
    return dim // heads


def resolve_channels(
    dim: int, heads: int, qk_channels: int | None, v_channels: int | None, *, head_dim: int | None = None, prefix: str = ""
) -> tuple[int, int]:
    """Returns the widths over all heads of queries and keys, and of values.

    They are `heads * head_dim` and the same again where `None`; `prefix` stands before the names in messages.
    """
    if qk_channels is None:
        remedy = f"{prefix}head_dim" if head_dim is not None else f"{prefix}qk_channels"
        qk_channels = heads * resolve_head_dim(remedy, dim, heads, head_dim, f"{prefix}heads")
    elif head_dim is not None:
        raise ValueError(
            f"{prefix}qk_channels={qk_channels} and {prefix}head_dim={head_dim} both say how wide a head is: leave one out"
        )
    channels = {"qk_channels": qk_channels, "v_channels": qk_channels if v_channels is None else v_channels}
    for name, width in channels.items():
        if an_int(f"{prefix}{name}", width) % heads:
            raise ValueError(f"{prefix}heads={heads} does not divide {prefix}{name}={width}: choose numbers where it does")
    return int(channels["qk_channels"]), int(channels["v_channels"])


def a_bias(bias: Any) -> bool | str:
    """Returns `bias` if it says which of the linear maps of an attention have one: all, none, or "out", the last."""
    if not isinstance(bias, bool) and bias != "out":
        raise ValueError(f"bias={bias!r} must be True or False, or 'out' for the last map alone")
    return bias


class CrossAttention(nn.Module):
    """Attention from latents to encoded inputs, without norm of the latents, residual or feed-forward.

    Args:
        dim: Width of the latents, D.
        kv_dim: Channels of an encoded input, C.
        heads: Number of heads.
        head_dim: Width of a head; `None` for `dim // heads`.
        qk_channels: Width of queries and keys over all heads, where it is not `heads * head_dim`.
        v_channels: Width of values over all heads; `None` for that of queries and keys.
        bias: Whether the four linear maps have a bias; "out" for the last of them alone.
        dropout: Probability of dropping an attention weight in training.
        norm_inputs: Whether encoded inputs pass a layer norm first.

    Raises:
        ValueError: If an argument is out of range; the message names it.
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
        dim, kv_dim, self.heads = an_int("dim", dim), an_int("kv_dim", kv_dim), an_int("heads", heads)
        qk_channels, v_channels = resolve_channels(dim, self.heads, qk_channels, v_channels, head_dim=head_dim)
        self.dropout = a_probability("dropout", dropout)
        self.scale = (qk_channels // self.heads) ** -0.5
        self.attention_implementation = "auto"

        self.inputs_norm = nn.LayerNorm(kv_dim) if a_bool("norm_inputs", norm_inputs) else None
        self.to_q = Linear(dim, qk_channels, bias=a_bias(bias) is True)
        self.to_k = Linear(kv_dim, qk_channels, bias=bias is True)
        self.to_v = Linear(kv_dim, v_channels, bias=bias is True)
        self.to_out = Linear(v_channels, dim, bias=bias is not False)

    def forward(
        self,
        latents_BND: Tensor | Tokens,
        inputs: Sequence[Tokens],
        cache: dict[Hashable, Any] | None = None,
        query_mask_BN: Tensor | None = None,
        query_norm: nn.LayerNorm | None = None,
    ) -> Tensor:
        """Maps latents `[B, N, D]` and token groups that share one softmax to `[B, N, D]`.

        What takes the place of the latents may be a token group, such as the positions of a picture to be made; it is
        encoded, and passes `query_norm`, only where that is cheapest.
        A sample with nothing to attend to gets zero before the output projection, and so does a query where the query mask
        is False. `cache` is a dict that calls with the same inputs share, see `cross_attention`.
        """
        if isinstance(latents_BND, Tokens):
            queries = EncodedQueries(latents_BND, _norm(query_norm), self.to_q.weight, self.to_q.bias, self.heads)
        else:
            queries = self._queries(latents_BND)
        out_BHNV = cross_attention(queries, *self._operands(inputs), **self._settings(), cache=cache)
        if query_mask_BN is not None:
            out_BHNV = out_BHNV.masked_fill(~query_mask_BN[:, None, :, None], 0)
        return self.to_out(rearrange(out_BHNV, "B H N V -> B N (H V)"))

    def attention_maps(self, latents_BND: Tensor, inputs: Sequence[Tokens], *, log_scores: bool = False) -> Tensor:
        """Returns the attention weights `[B, H, N, M]`, or their logarithms."""
        return attention_maps(
            self._queries(latents_BND),
            inputs,
            _norm(self.inputs_norm),
            self.to_k.weight,
            scale=self.scale,
            log_scores=log_scores,
        )

    def explain(self, latents_BND: Tensor, inputs: Sequence[Tokens]) -> str:
        """Tells how `forward` would compute the attention, and why."""
        return explain(self._queries(latents_BND), *self._operands(inputs), **self._settings())

    def check(self, latents_BND: Tensor | Tokens, inputs: Sequence[Tokens]) -> None:
        """Raises `ValueError` where latents or inputs do not fit this module."""
        dim, kv_dim = self.to_q.in_features, self.to_k.in_features
        if isinstance(latents_BND, Tokens):
            shape = (latents_BND.content.shape[0], latents_BND.num_inputs, latents_BND.num_channels)
        else:
            shape = tuple(latents_BND.shape)
        if len(shape) != 3 or shape[-1] != dim:
            raise ValueError(f"latents have shape {list(shape)}, but [B, N, {dim}] is needed")
        if not inputs or any(group.num_inputs == 0 for group in inputs):
            raise ValueError("no inputs, or a group of none: give at least one, and mask it where it is not meant")
        for group in inputs:
            if group.num_channels != kv_dim:
                raise ValueError(f"inputs have {group.num_channels} channels, but kv_dim={kv_dim}")
            if group.content.shape[0] != shape[0]:
                raise ValueError(
                    f"inputs have a batch of {group.content.shape[0]}, latents one of {shape[0]}: make them equal"
                )

    def set_attention_implementation(self, name: str) -> None:
        """Chooses how the attention is computed: a name of `perceivers.ops.cross_attention.IMPLEMENTATIONS` or "auto"."""
        self.attention_implementation = one_of("attention_implementation", name, CHOICES)

    def flops(self, num_latents: int, num_inputs: int) -> int:
        """Multiplications and additions of the matrix products of the dense algorithm, for one sample."""
        latent_maps = self.to_q.weight.numel() + self.to_out.weight.numel()
        input_maps = self.to_k.weight.numel() + self.to_v.weight.numel()
        pairs = self.to_k.out_features + self.to_v.out_features
        return 2 * (num_latents * latent_maps + num_inputs * input_maps + num_latents * num_inputs * pairs)

    def _operands(self, inputs: Sequence[Tokens]) -> tuple[Any, ...]:
        keys, values = self.to_k, self.to_v
        return inputs, _norm(self.inputs_norm), keys.weight, keys.bias, values.weight, values.bias

    def _settings(self) -> dict[str, Any]:
        dropout_p = self.dropout if self.training else 0.0
        return {"scale": self.scale, "dropout_p": dropout_p, "implementation": self.attention_implementation}

    def _queries(self, latents_BND: Tensor) -> Tensor:
        return rearrange(self.to_q(latents_BND), "B N (H K) -> B H N K", H=self.heads)


def _norm(norm: nn.LayerNorm | None) -> Norm | None:
    return None if norm is None else Norm(norm.weight, norm.bias, norm.eps)


class SelfAttention(nn.Module):
    """Attention among latents, without norm, residual or feed-forward.

    Args:
        dim: Width of the latents, D.
        heads: Number of heads.
        head_dim: Width of a head; `None` for `dim // heads`.
        qk_channels: Width of queries and keys over all heads, where it is not `heads * head_dim`.
        v_channels: Width of values over all heads; `None` for that of queries and keys.
        bias: Whether the four linear maps have a bias; "out" for the last of them alone.
        dropout: Probability of dropping an attention weight in training.

    Raises:
        ValueError: If an argument is out of range; the message names it.
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
        dim, self.heads = an_int("dim", dim), an_int("heads", heads)
        qk_channels, v_channels = resolve_channels(dim, self.heads, qk_channels, v_channels, head_dim=head_dim)
        self.dropout = a_probability("dropout", dropout)
        self.scale = (qk_channels // self.heads) ** -0.5

        self.to_q = Linear(dim, qk_channels, bias=a_bias(bias) is True)
        self.to_k = Linear(dim, qk_channels, bias=bias is True)
        self.to_v = Linear(dim, v_channels, bias=bias is True)
        self.to_out = Linear(v_channels, dim, bias=bias is not False)

    def forward(self, latents_BND: Tensor) -> Tensor:
        """Maps latents `[B, N, D]` to `[B, N, D]`."""
        q_BHNK, k_BHNK, v_BHNV = (
            rearrange(to(latents_BND), "B N (H K) -> B H N K", H=self.heads) for to in (self.to_q, self.to_k, self.to_v)
        )
        dropout_p = self.dropout if self.training else 0.0
        out_BHNV = self_attention(q_BHNK, k_BHNK, v_BHNV, scale=self.scale, dropout_p=dropout_p)
        return self.to_out(rearrange(out_BHNV, "B H N V -> B N (H V)"))

    def flops(self, num_latents: int) -> int:
        """Multiplications and additions of the matrix products, for one sample."""
        maps = sum(linear.weight.numel() for linear in (self.to_q, self.to_k, self.to_v, self.to_out))
        return 2 * (num_latents * maps + num_latents**2 * (self.to_k.out_features + self.to_v.out_features))
