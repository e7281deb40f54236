"""The blocks that Perceivers are made of: attention and feed-forward, each with a residual connection and a norm.

With `pre_norm` (the published models) each of the two steps is x + f(norm(x)), so the residual stream is not normalised.
Without, it is norm(x + f(x)), and the inputs of a cross-attention are not normalised.

`CrossAttentionBlock` followed by any number of `LatentTransformer`s is one layer of a Perceiver, `PerceiverBlock`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from perceivers._checks import a_bool, a_number, a_probability, an_int, one_of
from perceivers.layers.attention import CrossAttention, SelfAttention, a_bias, resolve_channels, resolve_head_dim
from perceivers.layers.feed_forward import ACTIVATIONS, FeedForward
from perceivers.ops.cross_attention import Shared
from perceivers.ops.tokens import Tokens, check_array, check_mask


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Settings of a block, checked once on construction.

    Attributes:
        dim: Width of the latents.
        heads: Number of heads.
        head_dim: Width of a head. Defaults to `dim // heads`.
        qk_channels: Width of queries and keys over all heads. Defaults to `heads * head_dim`.
        v_channels: Width of values over all heads. Defaults to that of queries and keys.
        ff_dim: Hidden width of the feed-forward; 0 for no feed-forward. Defaults to `ff_dim_scale * dim`.
        ff_dim_scale: See `ff_dim`.
        bias: Whether the linear layers of the attention have a bias; "out" for the output projection alone.
        pre_norm: Whether norms come before the steps, and on the inputs, or after the residuals.
        activation: "gelu" (exact), "gelu_tanh", "geglu" or "relu".
        ff_dropout: Dropout probability of the feed-forward.
        attention_dropout: Dropout probability of the attention weights.
        prefix: Prefix of the argument names in error messages.
    """

    dim: int
    heads: int = 8
    head_dim: int | None = None
    qk_channels: int | None = None
    v_channels: int | None = None
    ff_dim: int | None = None
    ff_dim_scale: float = 4
    bias: bool | str = True
    pre_norm: bool = True
    activation: str = "gelu"
    ff_dropout: float = 0.0
    attention_dropout: float = 0.0
    prefix: str = ""

    def __post_init__(self) -> None:
        checked = {
            "dim": an_int("dim", self.dim),
            "heads": an_int(f"{self.prefix}heads", self.heads),
            "ff_dim": None if self.ff_dim is None else an_int(f"{self.prefix}ff_dim", self.ff_dim, 0),
            "bias": a_bias(self.bias),
            "pre_norm": a_bool("pre_norm", self.pre_norm),
            "activation": one_of("activation", self.activation, ACTIVATIONS),
            "ff_dropout": a_probability("ff_dropout", self.ff_dropout),
            "attention_dropout": a_probability("attention_dropout", self.attention_dropout),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _ = self.widths, self.hidden_dim  # they raise an error if the settings do not fit

    @property
    def widths(self) -> tuple[int, int]:
        """Widths over all heads of queries and keys, and of values."""
        given = self.qk_channels, self.v_channels
        return resolve_channels(self.dim, self.heads, *given, head_dim=self.head_dim, prefix=self.prefix)

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the feed-forward."""
        if self.ff_dim is not None:
            return self.ff_dim
        scale = f"{self.prefix}ff_dim_scale"
        width = a_number(scale, self.ff_dim_scale) * self.dim
        if width != int(width):
            raise ValueError(
                f"{scale}={self.ff_dim_scale!r} times dim={self.dim} must be a whole number: give {self.prefix}ff_dim instead"
            )
        return int(width)

    @property
    def attention(self) -> dict[str, Any]:
        """Arguments of the attention module."""
        qk_channels, v_channels = self.widths
        channels = {"qk_channels": qk_channels, "v_channels": v_channels}
        return {"dim": self.dim, "heads": self.heads, **channels, "bias": self.bias, "dropout": self.attention_dropout}

    @property
    def feed_forward(self) -> dict[str, Any]:
        """Arguments of `FeedForward`."""
        activation = {"activation": self.activation, "dropout": self.ff_dropout}
        return {"dim": self.dim, "hidden_dim": self.hidden_dim, **activation}


class CrossAttentionBlock(nn.Module):
    """Cross-attention from latents to encoded inputs, then feed-forward, each with norm and residual.

    Args:
        config: The settings. May be left out, or changed, by keyword arguments.
        kv_dim: Channels of an encoded input.
        query_residual: Whether the attention is added to the latents, or replaces them.
        **settings: Fields of `BlockConfig`; here `heads` defaults to 1.
    """

    def __init__(
        self, config: BlockConfig | None = None, *, kv_dim: int, query_residual: bool = True, **settings: Any
    ) -> None:
        super().__init__()
        config = BlockConfig(**{"heads": 1, **settings}) if config is None else replace(config, **settings)
        self.pre_norm = config.pre_norm
        self.query_residual = a_bool("query_residual", query_residual)
        self.attention = CrossAttention(kv_dim=kv_dim, norm_inputs=config.pre_norm, **config.attention)
        self.feed_forward = FeedForward(**config.feed_forward) if config.hidden_dim else None
        self.attention_norm = nn.LayerNorm(config.dim)
        self.feed_forward_norm = nn.LayerNorm(config.dim) if config.hidden_dim else None

    def forward(
        self,
        latents: Tensor | Tokens,
        inputs: Sequence[Tokens],
        shared: Shared | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Return new latents, `[B, N, dim]`.

        Args:
            latents: `[B, N, dim]`, or a token group in their place, see `CrossAttention`.
            inputs: Token groups, which share one softmax.
            shared: Passed to all calls with the same inputs, see `cross_attention`.
            query_mask: `[B, N]`, bool, True where a latent attends.
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
        """Return the attention weights `[B, H, N, M]`, or their logarithms."""
        latents = self.attention_norm(latents) if self.pre_norm else latents
        return self.attention.attention_maps(latents, inputs, log_scores=log_scores)


class LatentTransformer(nn.Module):
    """Self-attention among latents, then feed-forward, each with norm and residual.

    Args:
        config: The settings. May be left out, or changed, by keyword arguments.
        **settings: Fields of `BlockConfig`.
    """

    def __init__(self, config: BlockConfig | None = None, **settings: Any) -> None:
        super().__init__()
        config = BlockConfig(**settings) if config is None else replace(config, **settings)
        self.pre_norm = config.pre_norm
        self.attention = SelfAttention(**config.attention)
        self.feed_forward = FeedForward(**config.feed_forward)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.feed_forward_norm = nn.LayerNorm(config.dim)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents `[B, N, dim]` to `[B, N, dim]`."""
        latents = _step(latents, self.attention, self.attention_norm, self.pre_norm)
        return _step(latents, self.feed_forward, self.feed_forward_norm, self.pre_norm)


def _step(x: Tensor, f: Callable[[Tensor], Tensor], norm: nn.Module, pre_norm: bool, residual: bool = True) -> Tensor:
    y = f(norm(x) if pre_norm else x)
    y = x + y if residual else y
    return y if pre_norm else norm(y)


class PerceiverBlock(nn.Module):
    """One layer of a Perceiver: the latents attend to the inputs, then to themselves.

    Args:
        cross_attention: A `CrossAttentionBlock`, or `None` for a layer that does not read the inputs.
        latent_transformers: The `LatentTransformer`s that follow, any number.
    """

    def __init__(self, *, cross_attention: nn.Module | None, latent_transformers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.cross_attention = cross_attention
        self.latent_transformers = nn.Sequential(*latent_transformers)

    @classmethod
    def from_dims(
        cls,
        *,
        cross_kv_dim: int,
        dim: int,
        depth: int,
        cross_heads: int = 1,
        cross_head_dim: int | None = None,
        **settings: Any,
    ) -> "PerceiverBlock":
        """Build a layer from widths; the arguments mean what they mean in `Perceiver`.

        Args:
            cross_kv_dim: Channels of an input.
            dim: Width of the latents.
            depth: Number of latent transformers.
            cross_heads: Heads of the cross-attention.
            cross_head_dim: Width of a head of the cross-attention. Defaults to `head_dim`.
            **settings: Other fields of `BlockConfig`, such as `heads`, `head_dim` or `ff_dim`.
        """
        latent = BlockConfig(dim=dim, **settings)
        cross_heads = an_int("cross_heads", cross_heads)
        cross_head_dim = latent.head_dim if cross_head_dim is None else cross_head_dim
        cross_head_dim = resolve_head_dim("cross_head_dim", latent.dim, cross_heads, cross_head_dim, "cross_heads")
        cross = replace(latent, heads=cross_heads, head_dim=cross_head_dim)
        return cls(
            cross_attention=CrossAttentionBlock(cross, kv_dim=cross_kv_dim),
            latent_transformers=[LatentTransformer(latent) for _ in range(an_int("depth", depth, 0))],
        )

    def forward(self, latents: Tensor, inputs: Tensor | Sequence[Tokens], mask: Tensor | None = None) -> Tensor:
        """Return new latents, `[B, N, dim]`.

        Args:
            latents: `[B, N, dim]`.
            inputs: `[B, M, cross_kv_dim]`, or token groups.
            mask: `[B, M]`, bool, True where an input may be attended to; token groups carry their own masks.
        """
        if isinstance(inputs, Tensor):
            check_array("inputs", inputs, 3, "[B, M, cross_kv_dim]")
            check_mask(mask, inputs.shape[:2], "[B, M]")
            inputs = [Tokens.of(inputs, mask)]
        elif mask is not None:
            raise ValueError("mask is given together with token groups, which carry their own masks: put it into the Tokens")
        return apply_layer(self.cross_attention, self.latent_transformers, latents, inputs)


def apply_layer(
    cross_attention: nn.Module | None,
    latent_transformers: nn.Module,
    latents: Tensor,
    inputs: Sequence[Tokens],
    shared: Shared | None = None,
) -> Tensor:
    """Return the latents after one layer: the forward of `PerceiverBlock`, and of each layer of `LatentEncoder`."""
    if cross_attention is not None:
        latents = cross_attention(latents, inputs, shared)
    return latent_transformers(latents)
