"""The latent array and the layers that read inputs into it: the part all Perceivers have in common.

Letters: B batch, N latents, D width of the latents.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from einops import repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers._checks import a_bool, a_list, an_int
from perceivers.layers.block import CrossAttentionBlock, LatentTransformer, block_settings
from perceivers.ops.cross_attention import Shared
from perceivers.ops.tokens import Tokens


class LatentEncoder(nn.Module):
    """Learned latents that attend to the inputs, then to themselves, layer after layer.

    Each unique module is registered once, however many layers use it. The arguments are those of `PerceiverIO`, which
    documents them; `kv_dim` is the number of channels of an encoded input. The widths of queries and keys and of values are
    those of all heads together, `cross_` those of the cross-attentions.

    Attributes:
        config: All arguments but `kv_dim` and these widths, every default resolved.
    """

    def __init__(
        self,
        *,
        kv_dim: int,
        num_latent_tokens: int,
        dim: int,
        cross_heads: int,
        heads: int,
        layers_indice: Sequence[int | None],
        latent_layers_indice: Sequence[int] | None,
        num_latent_transformers_in_layers: Sequence[int],
        pre_norm: bool,
        ff_dim: int | None,
        ff_dim_scale: float,
        ff_dropout: float,
        attention_dropout: float,
        qk_channels: int,
        v_channels: int,
        cross_qk_channels: int,
        cross_v_channels: int,
        bias: bool | str,
        activation: str,
        query_residual: bool = True,
    ) -> None:
        super().__init__()
        shared = block_settings(
            dim=dim,
            ff_dim=ff_dim,
            ff_dim_scale=ff_dim_scale,
            bias=bias,
            pre_norm=pre_norm,
            activation=activation,
            ff_dropout=ff_dropout,
            attention_dropout=attention_dropout,
        )
        layers_indice, latent_layers_indice, depths = _resolve_layers(
            layers_indice, latent_layers_indice, num_latent_transformers_in_layers
        )
        self.config: dict[str, Any] = {
            "num_latent_tokens": an_int("num_latent_tokens", num_latent_tokens),
            "cross_heads": (cross_heads := an_int("cross_heads", cross_heads)),
            "heads": (heads := an_int("heads", heads)),
            "layers_indice": layers_indice,
            "latent_layers_indice": latent_layers_indice,
            "num_latent_transformers_in_layers": depths,
            **shared,
        }
        self.grad_checkpointing = False
        self.latents = nn.Parameter(torch.empty(self.config["num_latent_tokens"], shared["dim"]))
        cross = {"kv_dim": kv_dim, "heads": cross_heads, "query_residual": query_residual, **shared}
        self.cross_attentions = nn.ModuleList(
            CrossAttentionBlock(qk_channels=cross_qk_channels, v_channels=cross_v_channels, **cross)
            for _ in _unique(layers_indice)
        )
        latent = {"heads": heads, "qk_channels": qk_channels, "v_channels": v_channels, **shared}
        self.latent_transformers = nn.ModuleList(
            nn.Sequential(*(LatentTransformer(**latent) for _ in range(depth))) for depth in depths
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new latents: normal with standard deviation 0.02, cut at -2 and 2 (Perceiver, appendix C)."""
        nn.init.trunc_normal_(self.latents, std=0.02)

    def layers(self) -> Iterator[tuple[CrossAttentionBlock | None, nn.Sequential]]:
        """The cross-attention and the latent transformers of each layer, in the order they are applied."""
        for cross, stack in zip(self.config["layers_indice"], self.config["latent_layers_indice"], strict=True):
            block = None if cross is None else cast(CrossAttentionBlock, self.cross_attentions[cross])
            yield block, cast(nn.Sequential, self.latent_transformers[stack])

    def forward(self, inputs: Sequence[Tokens]) -> Tensor:
        """Reads token groups, which share one softmax, into latents `[B, N, D]`."""
        latents_BND = self._initial(inputs)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return self._recomputed(latents_BND, inputs)
        shared = {cross: Shared() for cross in self.config["layers_indice"]}  # what layers that share weights make once
        for cross, (cross_attention, latent_transformers) in zip(self.config["layers_indice"], self.layers(), strict=True):
            if cross_attention is not None:
                latents_BND = cross_attention(latents_BND, inputs, shared[cross])
            latents_BND = latent_transformers(latents_BND)
        return latents_BND

    def _recomputed(self, latents_BND: Tensor, inputs: Sequence[Tokens]) -> Tensor:
        """Keeps the latents between blocks alone; nothing is shared between layers, as it would have to be kept."""
        for cross_attention, latent_transformers in self.layers():
            if cross_attention is not None:
                latents_BND = checkpoint(cross_attention, latents_BND, inputs, use_reentrant=False)
            for layer in latent_transformers:
                latents_BND = checkpoint(layer, latents_BND, use_reentrant=False)
        return latents_BND

    @torch.no_grad()
    def attention_maps(self, inputs: Sequence[Tokens], layer: int, latents: Sequence[int] | None, log_scores: bool) -> Tensor:
        """Returns attention weights `[B, H, N, M]`, or their logarithms; see `Perceiver.attention_maps`."""
        count = sum(cross is not None for cross in self.config["layers_indice"])
        rows = None if latents is None else _check_rows(latents, len(self.latents))
        if isinstance(layer, bool) or not isinstance(layer, int) or not -count <= layer < count:
            raise ValueError(f"layer={layer!r} must be a whole number from {-count} to {count - 1}: one of {count} that read")
        remaining = layer % count
        latents_BND = self._initial(inputs)
        for cross_attention, latent_transformers in self.layers():
            if cross_attention is not None:
                if remaining == 0:
                    chosen = latents_BND if rows is None else latents_BND[:, rows]
                    return cross_attention.attention_maps(chosen, inputs, log_scores=log_scores)
                remaining -= 1
                latents_BND = cross_attention(latents_BND, inputs)
            latents_BND = latent_transformers(latents_BND)
        raise AssertionError("a layer below the number of cross-attentions is always reached")

    def explain(self, inputs: Sequence[Tokens]) -> str:
        """Tells how the cross-attentions would be computed, and why; they all have the same sizes."""
        block = cast(CrossAttentionBlock, self.cross_attentions[0])
        block.attention.check(latents_BND := self._initial(inputs), inputs)
        return block.attention.explain(latents_BND, inputs)

    def set_attention_implementation(self, name: str) -> None:
        """Chooses how every cross-attention is computed."""
        for block in self.cross_attentions:
            cast(CrossAttentionBlock, block).attention.set_attention_implementation(name)

    def set_grad_checkpointing(self, enabled: bool) -> None:
        """Chooses whether what the backward pass needs is kept, or computed anew there."""
        self.grad_checkpointing = a_bool("enabled", enabled)

    def flops(self, num_inputs: int) -> int:
        """Multiplications and additions of the matrix products of one sample, with dense cross-attention."""
        num_latents, total = len(self.latents), 0
        for cross_attention, latent_transformers in self.layers():
            if cross_attention is not None:
                total += cross_attention.flops(num_latents, num_inputs)
            total += sum(cast(LatentTransformer, layer).flops(num_latents) for layer in latent_transformers)
        return total

    def _initial(self, inputs: Sequence[Tokens]) -> Tensor:
        return repeat(self.latents, "N D -> B N D", B=inputs[0].content.shape[0])


def _resolve_layers(
    layers_indice: Sequence[int | None], latent_layers_indice: Sequence[int] | None, depths: Sequence[int]
) -> tuple[list[int | None], list[int], list[int]]:
    """Checks the three lists that say what each layer is made of."""
    cross = _check_indices("layers_indice", layers_indice, optional=True)
    if latent_layers_indice is None and None in cross:
        raise ValueError(f"latent_layers_indice=None is not enough for layers_indice={cross}, which holds a None: give it")
    latent = _check_indices("latent_layers_indice", cross if latent_layers_indice is None else latent_layers_indice)
    if len(latent) != len(cross):
        raise ValueError(
            f"latent_layers_indice={latent} has {len(latent)} entries, layers_indice has {len(cross)}: give one a layer"
        )
    name, unique = "num_latent_transformers_in_layers", len(_unique(latent))
    depths = [an_int(name, depth, 0) for depth in a_list(name, depths, "whole numbers")]
    if len(depths) != unique:
        raise ValueError(f"{name}={depths} has {len(depths)} entries for {unique} unique stacks of layers: give one for each")
    return cross, latent, depths


def _check_indices(name: str, indices: Sequence[int | None], optional: bool = False) -> list[Any]:
    checked = [
        None if index is None and optional else an_int(name, index, 0)
        for index in a_list(name, indices, "whole numbers, one a layer")
    ]
    unique = _unique(checked)
    if unique != set(range(len(unique))) or not unique:
        raise ValueError(f"{name}={checked} must use each of 0, 1, 2, ... up to its largest: no holes, at least one")
    return checked


def _unique(indices: Sequence[int | None]) -> set[int]:
    return {index for index in indices if index is not None}


def _check_rows(latents: Sequence[int], num_latents: int) -> list[int]:
    rows = [an_int("latents", row, -num_latents) for row in a_list("latents", latents, "indices of latents")]
    if not rows or max(rows) >= num_latents:
        raise ValueError(f"latents={rows} must name at least one latent, each below {num_latents}")
    return rows
