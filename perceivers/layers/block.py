"""Attention and feed-forward with their residuals and norms: the two blocks that Perceivers are made of.

With `pre_norm` (the published models) each of the two steps is x + f(norm(x)): the residual carries the un-normalised
stream. Without, it is norm(x + f(x)), and the inputs of a cross-attention are not normalised.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from perceivers._checks import a_bool, a_number, a_probability, an_int, one_of
from perceivers.layers.attention import CrossAttention, SelfAttention, a_bias
from perceivers.layers.feed_forward import ACTIVATIONS, FeedForward
from perceivers.ops.cross_attention import Shared
from perceivers.ops.tokens import Tokens


class CrossAttentionBlock(nn.Module):
    """Cross-attention from latents to encoded inputs, then feed-forward, each with norm and residual.

    Args:
        dim: Width of the latents.
        kv_dim: Channels of an encoded input.
        ff_dim: Hidden width of the feed-forward; 0 for none.
        heads: Number of heads.
        head_dim: Width of a head; `None` for `dim // heads`.
        qk_channels: Width of queries and keys over all heads, where it is not `heads * head_dim`.
        v_channels: Width of values over all heads; `None` for that of queries and keys.
        bias: Whether the linear maps of the attention have a bias; "out" for the last of them alone.
        pre_norm: Whether norms come before the steps, and on the inputs, or after the residuals.
        activation: See `FeedForward`.
        ff_dropout: Dropout of the feed-forward.
        attention_dropout: Dropout of the attention weights.
        query_residual: Whether the attention is added to the latents, or takes their place.
    """

    def __init__(
        self,
        *,
        dim: int,
        kv_dim: int,
        ff_dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        bias: bool | str = True,
        pre_norm: bool = True,
        activation: str = "gelu",
        ff_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        query_residual: bool = True,
    ) -> None:
        super().__init__()
        self.pre_norm = a_bool("pre_norm", pre_norm)
        self.query_residual = a_bool("query_residual", query_residual)
        self.attention = CrossAttention(
            dim=dim,
            kv_dim=kv_dim,
            heads=heads,
            head_dim=head_dim,
            qk_channels=qk_channels,
            v_channels=v_channels,
            bias=bias,
            dropout=attention_dropout,
            norm_inputs=pre_norm,
        )
        settings = {"dim": dim, "hidden_dim": ff_dim, "activation": activation, "dropout": ff_dropout}
        self.feed_forward = None if ff_dim == 0 else FeedForward(**settings)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = None if ff_dim == 0 else nn.LayerNorm(dim)

    def forward(
        self,
        latents: Tensor | Tokens,
        inputs: Sequence[Tokens],
        shared: Shared | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Maps latents `[B, N, dim]` and token groups to `[B, N, dim]`; `ValueError` where they do not fit.

        What takes the place of the latents may be a token group, see `CrossAttention`.
        `shared` is passed to all calls with the same inputs, see `cross_attention`; `query_mask`, `[B, N]`, says which
        latents attend.
        """
        self.attention.check(latents, inputs)
        if isinstance(latents, Tokens) and self.pre_norm:
            attended = self.attention(latents, inputs, shared, query_mask, self.attention_norm)
            x = latents.encoded().to(attended.dtype) + attended if self.query_residual else attended
        else:
            x = latents.encoded().to(self.attention.dtype) if isinstance(latents, Tokens) else latents
            attend = lambda x: self.attention(x, inputs, shared, query_mask)  # noqa: E731
            x = _step(x, attend, self.attention_norm, self.pre_norm, self.query_residual)
        if self.feed_forward is None or self.feed_forward_norm is None:
            return x
        return _step(x, self.feed_forward, self.feed_forward_norm, self.pre_norm)

    def attention_maps(self, latents: Tensor, inputs: Sequence[Tokens], *, log_scores: bool = False) -> Tensor:
        """Returns the attention weights `[B, H, N, M]`, or their logarithms."""
        latents = self.attention_norm(latents) if self.pre_norm else latents
        return self.attention.attention_maps(latents, inputs, log_scores=log_scores)

    def flops(self, num_latents: int, num_inputs: int) -> int:
        """Multiplications and additions of the matrix products of the dense algorithm, for one sample."""
        forward = 0 if self.feed_forward is None else self.feed_forward.flops(num_latents)
        return self.attention.flops(num_latents, num_inputs) + forward


class LatentTransformer(nn.Module):
    """Self-attention among latents, then feed-forward, each with norm and residual.

    Args:
        dim: Width of the latents.
        ff_dim: Hidden width of the feed-forward.
        heads: Number of heads.
        head_dim: Width of a head; `None` for `dim // heads`.
        qk_channels: Width of queries and keys over all heads, where it is not `heads * head_dim`.
        v_channels: Width of values over all heads; `None` for that of queries and keys.
        bias: Whether the linear maps of the attention have a bias; "out" for the last of them alone.
        pre_norm: Whether norms come before the steps or after the residuals.
        activation: See `FeedForward`.
        ff_dropout: Dropout of the feed-forward.
        attention_dropout: Dropout of the attention weights.
    """

    def __init__(
        self,
        *,
        dim: int,
        ff_dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        bias: bool | str = True,
        pre_norm: bool = True,
        activation: str = "gelu",
        ff_dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = a_bool("pre_norm", pre_norm)
        self.attention = SelfAttention(
            dim=dim,
            heads=heads,
            head_dim=head_dim,
            qk_channels=qk_channels,
            v_channels=v_channels,
            bias=bias,
            dropout=attention_dropout,
        )
        self.feed_forward = FeedForward(dim=dim, hidden_dim=ff_dim, activation=activation, dropout=ff_dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps latents `[B, N, dim]` to `[B, N, dim]`."""
        latents = _step(latents, self.attention, self.attention_norm, self.pre_norm)
        return _step(latents, self.feed_forward, self.feed_forward_norm, self.pre_norm)

    def flops(self, num_latents: int) -> int:
        """Multiplications and additions of the matrix products, for one sample."""
        return self.attention.flops(num_latents) + self.feed_forward.flops(num_latents)


def _step(x: Tensor, f: Callable[[Tensor], Tensor], norm: nn.Module, pre_norm: bool, residual: bool = True) -> Tensor:
    y = f(norm(x) if pre_norm else x)
    y = x + y if residual else y
    return y if pre_norm else norm(y)


def block_settings(
    *,
    dim: int,
    ff_dim: int | None,
    ff_dim_scale: float,
    bias: bool | str,
    pre_norm: bool,
    activation: str,
    ff_dropout: float,
    attention_dropout: float,
    prefix: str = "",
    minimum: int = 1,
) -> dict[str, Any]:
    """Checks what the blocks of a model have in common and returns it as their arguments, `ff_dim` resolved.

    `prefix` stands before the names of the feed-forward's widths in messages; `minimum` is the least `ff_dim`.
    """
    dim = an_int("dim", dim)
    if ff_dim is None:
        width = a_number(f"{prefix}ff_dim_scale", ff_dim_scale) * dim
        if width != int(width):
            raise ValueError(
                f"{prefix}ff_dim_scale={ff_dim_scale!r} times dim={dim} must be a whole number: give {prefix}ff_dim instead"
            )
        ff_dim = int(width)
    return {
        "dim": dim,
        "ff_dim": an_int(f"{prefix}ff_dim", ff_dim, minimum),
        "bias": a_bias(bias),
        "pre_norm": a_bool("pre_norm", pre_norm),
        "activation": one_of("activation", activation, ACTIVATIONS),
        "ff_dropout": a_probability("ff_dropout", ff_dropout),
        "attention_dropout": a_probability("attention_dropout", attention_dropout),
    }
