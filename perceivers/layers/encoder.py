"""The latent array and the layers that read inputs into it: the part that all Perceivers have in common.

Letters: B batch, N latents, D width of the latents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from einops import repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers._checks import a_bool, a_list, an_int
from perceivers.layers.block import BlockConfig, CrossAttentionBlock, LatentTransformer, apply_layer
from perceivers.ops.cross_attention import Shared
from perceivers.ops.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Settings of a `LatentEncoder`, checked once on construction.

    Attributes:
        kv_dim: Channels of an encoded input.
        num_latent_tokens: Number of latents, N.
        latent: Settings of the latent transformers.
        cross: Settings of the cross-attentions.
        layers_indice: For each layer, the index of the cross-attention it uses, or `None` for a layer without.
        latent_layers_indice: For each layer, the index of the stack of latent transformers it uses. Defaults to
            `layers_indice`.
        num_latent_transformers_in_layers: Depth of each stack.
        query_residual: Whether the cross-attentions are added to the latents, or replace them.
    """

    kv_dim: int
    num_latent_tokens: int
    latent: BlockConfig
    cross: BlockConfig
    layers_indice: Sequence[int | None]
    latent_layers_indice: Sequence[int] | None
    num_latent_transformers_in_layers: Sequence[int]
    query_residual: bool = True

    def __post_init__(self) -> None:
        an_int("ff_dim", self.latent.hidden_dim)
        cross = _check_indices("layers_indice", self.layers_indice, optional=True)
        if self.latent_layers_indice is None and None in cross:
            raise ValueError(
                f"latent_layers_indice=None cannot default to layers_indice={cross}, which contains None: give it"
            )
        latent = cross if self.latent_layers_indice is None else self.latent_layers_indice
        latent = _check_indices("latent_layers_indice", latent)
        if len(latent) != len(cross):
            raise ValueError(
                f"latent_layers_indice={latent} has {len(latent)} entries, layers_indice has {len(cross)}: give one per layer"
            )
        name = "num_latent_transformers_in_layers"
        depths = [an_int(name, n, 0) for n in a_list(name, self.num_latent_transformers_in_layers, "whole numbers")]
        if len(depths) != (unique := len(set(latent))):
            raise ValueError(f"{name}={depths} has {len(depths)} entries for {unique} unique stacks of layers: give one each")
        object.__setattr__(self, "num_latent_tokens", an_int("num_latent_tokens", self.num_latent_tokens))
        object.__setattr__(self, "layers_indice", tuple(cross))
        object.__setattr__(self, "latent_layers_indice", tuple(latent))
        object.__setattr__(self, name, tuple(depths))

    @property
    def layers(self) -> list[tuple[int | None, int]]:
        """For each layer, the indices of its cross-attention and of its stack of latent transformers."""
        assert self.latent_layers_indice is not None, "it is resolved on construction"
        return list(zip(self.layers_indice, self.latent_layers_indice, strict=True))

    @property
    def num_cross_attentions(self) -> int:
        """Number of unique cross-attentions."""
        return len({cross for cross, _ in self.layers if cross is not None})

    @property
    def arguments(self) -> dict[str, Any]:
        """The part that all models keep in their `config`, under the names of their arguments, ready for JSON."""
        return {
            "num_latent_tokens": self.num_latent_tokens,
            "cross_heads": self.cross.heads,
            "heads": self.latent.heads,
            "layers_indice": [cross for cross, _ in self.layers],
            "latent_layers_indice": [stack for _, stack in self.layers],
            "num_latent_transformers_in_layers": list(self.num_latent_transformers_in_layers),
            "dim": self.latent.dim,
            "ff_dim": self.latent.hidden_dim,
            "bias": self.latent.bias,
            "pre_norm": self.latent.pre_norm,
            "activation": self.latent.activation,
            "ff_dropout": self.latent.ff_dropout,
            "attention_dropout": self.latent.attention_dropout,
        }


class LatentEncoder(nn.Module):
    """Learned latents that attend to the inputs, then to themselves, layer after layer.

    Each unique module is registered once, however many layers use it.

    Args:
        config: The settings.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        self.latents = nn.Parameter(torch.empty(config.num_latent_tokens, config.latent.dim))
        self.cross_attentions = nn.ModuleList(
            CrossAttentionBlock(config.cross, kv_dim=config.kv_dim, query_residual=config.query_residual)
            for _ in range(config.num_cross_attentions)
        )
        self.latent_transformers = nn.ModuleList(
            nn.Sequential(*(LatentTransformer(config.latent) for _ in range(depth)))
            for depth in config.num_latent_transformers_in_layers
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the latents from a normal distribution (std 0.02) truncated to [-2, 2] (Perceiver, appendix C)."""
        nn.init.trunc_normal_(self.latents, std=0.02)

    def layers(self) -> Iterator[tuple[CrossAttentionBlock | None, nn.Sequential]]:
        """Yield the cross-attention and the latent transformers of each layer, in the order they are applied."""
        for cross, stack in self.config.layers:
            block = None if cross is None else cast(CrossAttentionBlock, self.cross_attentions[cross])
            yield block, cast(nn.Sequential, self.latent_transformers[stack])

    def forward(self, inputs: Sequence[Tokens]) -> Tensor:
        """Read token groups, which share one softmax, into latents `[B, N, D]`."""
        for latents_BND in self.states(inputs):  # noqa: B007 the last one is returned
            pass
        return latents_BND  # pyright: ignore[reportPossiblyUnboundVariable] there is at least one layer

    def states(self, inputs: Sequence[Tokens]) -> Iterator[Tensor]:
        """Yield the latents `[B, N, D]` after each layer."""
        latents_BND = self._initial(inputs)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return self._recomputed(latents_BND, inputs)
        return self._applied(latents_BND, inputs)

    def _applied(self, latents_BND: Tensor, inputs: Sequence[Tokens]) -> Iterator[Tensor]:
        shared = {cross: Shared() for cross in self.config.layers_indice}  # computed once for layers that share weights
        for cross, (cross_attention, latent_transformers) in zip(self.config.layers_indice, self.layers(), strict=True):
            latents_BND = apply_layer(cross_attention, latent_transformers, latents_BND, inputs, shared[cross])
            yield latents_BND

    def _recomputed(self, latents_BND: Tensor, inputs: Sequence[Tokens]) -> Iterator[Tensor]:
        """Store only the latents between blocks. Layers share nothing, because what they share would have to be stored."""
        for cross_attention, latent_transformers in self.layers():
            if cross_attention is not None:
                latents_BND = checkpoint(cross_attention, latents_BND, inputs, use_reentrant=False)
            for layer in latent_transformers:
                latents_BND = checkpoint(layer, latents_BND, use_reentrant=False)
            yield latents_BND

    @torch.no_grad()
    def attention_maps(self, inputs: Sequence[Tokens], layer: int, latents: Sequence[int] | None, log_scores: bool) -> Tensor:
        """Return attention weights `[B, H, N, M]`, or their logarithms; see `PerceiverBase.attention_maps`."""
        reading = [i for i, (cross, _) in enumerate(self.config.layers) if cross is not None]
        rows = None if latents is None else _check_rows(latents, len(self.latents))
        if isinstance(layer, bool) or not isinstance(layer, int) or not -len(reading) <= layer < len(reading):
            raise ValueError(
                f"layer={layer!r} must be a whole number from {-len(reading)} to {len(reading) - 1}:"
                f" {len(reading)} layers have a cross-attention"
            )
        index, latents_BND = reading[layer], self._initial(inputs)
        for latents_BND in islice(self.states(inputs), index):  # noqa: B007 the last one is used
            pass
        block = cast(CrossAttentionBlock, list(self.layers())[index][0])
        return block.attention_maps(latents_BND if rows is None else latents_BND[:, rows], inputs, log_scores=log_scores)

    def explain(self, inputs: Sequence[Tokens]) -> str:
        """Explain how the cross-attentions would be computed, and why; they all have the same sizes."""
        block = cast(CrossAttentionBlock, self.cross_attentions[0])
        block.attention.check(latents_BND := self._initial(inputs), inputs)
        return block.attention.explain(latents_BND, inputs)

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Choose whether activations are stored for the backward pass or recomputed there."""
        self.grad_checkpointing = a_bool("enabled", enabled)

    def _initial(self, inputs: Sequence[Tokens]) -> Tensor:
        return repeat(self.latents, "N D -> B N D", B=inputs[0].content.shape[0])


def _check_indices(name: str, indices: Sequence[int | None], optional: bool = False) -> list[Any]:
    checked = [
        None if index is None and optional else an_int(name, index, 0)
        for index in a_list(name, indices, "whole numbers, one per layer")
    ]
    unique = {index for index in checked if index is not None}
    if unique != set(range(len(unique))) or not unique:
        raise ValueError(f"{name}={checked} must use each of 0, 1, 2, ... up to its largest: no gaps, at least one")
    return checked


def _check_rows(latents: Sequence[int], num_latents: int) -> list[int]:
    rows = [an_int("latents", row, -num_latents) for row in a_list("latents", latents, "indices of latents")]
    if not rows or max(rows) >= num_latents:
        raise ValueError(f"latents={rows} must name at least one latent, each below {num_latents}")
    return rows
