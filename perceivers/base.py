"""What `Perceiver` and `PerceiverIO` have in common: inputs, encoder, and the methods that need nothing else.

`forward_features`, `forward_head`, `forward_intermediates`, `reset_classifier`, `num_classes`, `num_features`,
`no_weight_decay` and `set_grad_checkpointing` mean what they mean in timm.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from perceivers._checks import a_bool, a_list, an_int
from perceivers.inputs import InputModule
from perceivers.layers.attention import CrossAttention
from perceivers.layers.block import CrossAttentionBlock
from perceivers.layers.encoder import LatentEncoder
from perceivers.ops.tokens import Tokens, check_dtype
from perceivers.presets import PRETRAINED_CFGS
from perceivers.pretrained import Pretrained


class PerceiverBase(Pretrained, ABC):
    """A model that reads its inputs into latents.

    Attributes:
        inputs: The input module, which maps what the model is given to token groups.
        encoder: The latents and the layers that read token groups into them.
        decoder: The cross-attention from output queries to the latents, or `None`.
        attention_implementation: How cross-attention is computed, see `set_attention_implementation`.
        config: All arguments with their defaults resolved, ready for JSON.
        model_name: The name that was given to `create_model`, or `None`.
    """

    inputs: InputModule
    encoder: LatentEncoder
    decoder: CrossAttentionBlock | None
    attention_implementation: str

    def tokens(self, x: Any, mask: Any = None) -> list[Tokens]:
        """Return the token groups that the cross-attentions read. The arguments are those of `forward`."""
        if isinstance(x, Tensor) and x.is_floating_point():
            check_dtype("x", x, self.encoder.latents.dtype)
        return self.inputs(x, mask)

    def encode(self, x: Any, mask: Any = None) -> Tensor:
        """Return the latents of the inputs, `[B, num_latent_tokens, dim]`. The arguments are those of `forward`."""
        return self.encoder(self.tokens(x, mask))

    def forward_features(self, x: Any, mask: Any = None) -> Tensor:
        """Return the latents of the inputs, `[B, num_latent_tokens, dim]`: timm's name of `encode`."""
        return self.encode(x, mask)

    @abstractmethod
    def forward_head(self, latents: Tensor, pre_logits: bool = False) -> Any:
        """Return what `forward` returns, from the latents.

        Args:
            latents: `[B, num_latent_tokens, dim]`, from `forward_features`.
            pre_logits: Whether to return what the classifier would read instead.
        """

    @abstractmethod
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a newly initialised one.

        Args:
            num_classes: Number of classes; 0 for no classifier, so that the model returns features.
        """

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes; 0 if there is no classifier."""

    @property
    def num_features(self) -> int:
        """Width of the latents."""
        return self.encoder.config.latent.dim

    @property
    def pretrained_cfg(self) -> dict[str, Any] | None:
        """Preprocessing of the published model that `model_name` names, in timm's terms; `None` if it has none here.

        The keys are "input_size", "mean", "std", "interpolation" and "crop_pct".
        """
        return None if self.model_name is None else copy.deepcopy(PRETRAINED_CFGS.get(self.model_name))

    def forward_intermediates(
        self,
        x: Any,
        mask: Any = None,
        indices: int | Sequence[int] | None = None,
        *,
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the latents after the last layer, and those after some of the layers.

        Args:
            x: As in `forward`.
            mask: As in `forward`.
            indices: Indices of the layers; a number n for the last n layers. Defaults to all layers.
            intermediates_only: Whether to return only the second part. No layer after the last of `indices` is computed then.

        Returns:
            `[B, num_latent_tokens, dim]`, and a list of such tensors in the order of the layers.

        Raises:
            ValueError: If an index, a shape or dtype does not fit.
        """
        taken = _layer_indices(indices, len(self.encoder.config.layers))
        latents, intermediates = None, []
        for i, latents in enumerate(self.encoder.states(self.tokens(x, mask))):
            if i in taken:
                intermediates.append(latents)
            if intermediates_only and i == max(taken):
                break
        return intermediates if intermediates_only else (cast(Tensor, latents), intermediates)

    def attention_maps(
        self,
        x: Any,
        mask: Any = None,
        layer: int = -1,
        latents: Sequence[int] | None = None,
        log_scores: bool = False,
    ) -> list[Tensor]:
        """Return the attention weights from the latents to the inputs, one map per token group.

        Only the maps are made, never keys or the encoded array; choose few `latents` for very large arrays. No gradients are
        recorded. Dropout is active in training mode.

        Args:
            x: As in `forward`.
            mask: As in `forward`.
            layer: Index among the layers with a cross-attention, in the order they are applied; -1 is the last.
            latents: Indices of the latents. Defaults to all.
            log_scores: Whether to return logarithms: the scores that the paper's figures show, up to a constant per row.

        Returns:
            For each token group `[B, cross_heads, N, *axes]`. The maps of all groups together sum to 1 per latent, or are 0
            if the mask leaves nothing to attend to. A `Perceiver` has one group.
        """
        tokens = self.tokens(x, mask)
        maps = self.encoder.attention_maps(tokens, layer, latents, a_bool("log_scores", log_scores))
        pieces = maps.split([group.num_inputs for group in tokens], dim=-1)
        return [piece.unflatten(-1, group.content.shape[2:]) for piece, group in zip(pieces, tokens, strict=True)]

    @torch.no_grad()
    def explain(self, x: Any, mask: Any = None) -> str:
        """Return a table of what each implementation of cross-attention costs for these inputs, and which would be chosen.

        The arguments are those of `forward`.
        """
        return self.encoder.explain(self.tokens(x, mask))

    def example(self, batch_size: int = 1) -> Any:
        """Return zeros of the size that the input module was made for, or `None` if it was not made for a fixed size."""
        return self.inputs.example(batch_size) if isinstance(self.inputs, InputModule) else None

    def flops(self, x: Any = None, mask: Any = None) -> int:
        """Count floating-point operations of matrix products and convolutions, with dense cross-attention.

        Multiplications and additions are counted separately. They are counted on a copy without storage: nothing is computed,
        and the model stays as it is.

        Args:
            x: As in `forward`. Defaults to one sample of the size that the input module was made for.
            mask: As in `forward`.

        Raises:
            ValueError: If `x` is missing and the input module was not made for a fixed size.
        """
        # Tensors in the memo are not copied, so that the weights are never held twice.
        memo: dict[int, Any] = {}
        for tensor in chain(self.parameters(), self.buffers()):
            empty = torch.empty_like(tensor, device="meta")
            memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        model = copy.deepcopy(self, memo).eval()
        model.set_attention_implementation("reference")
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = model.example(1) if x is None else x
            if x is None:
                raise ValueError(f"x is missing: {type(self.inputs).__name__} was not made for a fixed size; give a sample")
            model(*tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (x, mask)))
        return counter.get_total_flops()

    def set_attention_implementation(self, name: str) -> None:
        """Choose how cross-attention is computed; parameters and results stay the same.

        Args:
            name: "auto", or one of `perceivers.ops.cross_attention.IMPLEMENTATIONS`: "reference", "dense", "absorbed" or
                "separable". Only "auto" chooses; a named one raises an error with the reason if it cannot compute a call.

        Raises:
            ValueError: If the name is unknown.
        """
        blocks = [*self.encoder.cross_attentions, *([] if self.decoder is None else [self.decoder])]
        for block in blocks:
            cast(CrossAttention, block.attention).set_attention_implementation(name)
        self.attention_implementation = name

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Choose whether a training step saves memory for time; results, gradients and checkpoints stay the same.

        Args:
            enabled: Whether each block of the encoder is recomputed in the backward pass, so that only the latents are
                stored. About 33% slower.

        Raises:
            ValueError: If `enabled` is not a bool.
        """
        self.encoder.set_grad_checkpointing(enabled)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay should leave alone.

        They are all except the weights of linear and convolutional layers: latents, learned queries, position tables,
        embeddings, norms and biases.
        """
        layers = (module for module in self.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d))
        decayed = {layer.weight for layer in layers}
        return {name for name, parameter in self.named_parameters() if parameter not in decayed}

    def parameter_depths(self) -> dict[str, int]:
        """Return the depth of each parameter by name, for layer-wise learning-rate decay.

        It is 0 for inputs and latents, i + 1 for layer i (the first one that uses the parameter), and one more than that of
        the last layer for decoder, norm and head.
        """
        layers = list(self.encoder.layers())
        depths = dict.fromkeys(self.parameters(), len(layers) + 1)
        for i, layer in reversed(list(enumerate(layers))):
            depths |= {parameter: i + 1 for module in layer if module is not None for parameter in module.parameters()}
        depths |= dict.fromkeys([self.encoder.latents, *self.inputs.parameters()], 0)
        return {name: depths[parameter] for name, parameter in self.named_parameters()}


def _layer_indices(indices: int | Sequence[int] | None, count: int) -> set[int]:
    """Return the indices of layers that `forward_intermediates` was asked for, none of them negative."""
    if indices is None:
        return set(range(count))
    if isinstance(indices, int):
        indices = range(-an_int("indices", indices), 0)
    rows = [an_int("indices", index, -count) for index in a_list("indices", indices, "indices of layers")]
    if not rows or max(rows) >= count:
        raise ValueError(f"indices={rows} must name at least one layer, each below {count}")
    return {row % count for row in rows}
