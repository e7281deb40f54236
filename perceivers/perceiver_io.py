"""Perceiver IO: A General Architecture for Structured Inputs & Outputs (Jaegle et al., 2021, arXiv 2107.14795).

Any input is read into a small array of latents, as in `Perceiver`; then any output is read from them: each output element
is a query that attends to the latents. An input module says what is read, an output module what is asked.

Where DeepMind's code, transformers and the paper differ, each behaviour is a setting:

- GELU is exact, as in transformers; DeepMind's code uses the tanh approximation (`activation="gelu_tanh"`).
- Whether a query is added to what it gathered: `decoder_query_residual`. On for classification, except DeepMind's model
  with learned positions (on in transformers); off for language, flow and multimodal autoencoding.
- Which queries attend: `query_mask`. DeepMind's language model passes the mask of its inputs, transformers ignores it.
- A sample or query with nothing to attend to gathers zeros, as in DeepMind's code; transformers attends to everything.
- Chosen queries of a grid lie where the whole grid has them; in DeepMind's code and in transformers they are shifted to
  -1 + 2 i / n (`Grid(sampled_positions="left_aligned")`).
- Several cross-attentions, which the paper does not have: `layers_indice`, as in `Perceiver`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perceivers._checks import a_bool, an_int
from perceivers._registry import describe
from perceivers.inputs import InputModule
from perceivers.layers.attention import resolve_channels
from perceivers.layers.block import CrossAttentionBlock, block_settings
from perceivers.layers.encoder import LatentEncoder
from perceivers.ops.cross_attention import Shared
from perceivers.ops.tokens import Tokens
from perceivers.outputs import Encoded, Output
from perceivers.pretrained import Pretrained


class PerceiverIO(Pretrained):
    """Perceiver IO for any input and any output.

    ```python
    model = PerceiverIO(
        inputs=inputs.Pixels(data_shape=[3, 64, 64], num_bands=16),
        outputs=outputs.LearnedQueries(dim=256, num_channels=10),  # one learned query: a class
        num_latent_tokens=128,
        dim=256,
    )
    logits = model(pictures)  # [B, 3, 64, 64] -> [B, 10]
    ```

    Args:
        inputs: The input module: it has `num_channels` and maps what `forward` is given to token groups. Or its
            description, `{"kind": name, **arguments}`, with the name of a class of `perceivers.inputs`.
        outputs: The output module, an `Output`; or its description, with the name of a class of `perceivers.outputs`.
        num_latent_tokens: Number of latents, N.
        dim: Width of the latents.
        heads: Heads of the latent transformers.
        cross_heads: Heads of the cross-attentions to the inputs.
        layers_indice: For each layer, which of the unique cross-attentions it uses; `None` in the list is a layer without.
        latent_layers_indice: For each layer, which of the unique stacks of latent transformers it uses; `None` for the
            same as `layers_indice`.
        num_latent_transformers_in_layers: Depth of each unique stack.
        qk_channels: Width of queries and keys of the latent transformers, over all heads; `None` for `dim`.
        v_channels: Width of their values; `None` for `qk_channels`.
        cross_qk_channels: The same of the cross-attentions; `None` for that of the latent transformers. In most published
            models it is `inputs.num_channels`.
        cross_v_channels: The same; `None` for `cross_qk_channels`, or, where that is `None` too, for `v_channels`.
        query_residual: Whether the latents are added to what they gathered from the inputs.
        decoder_heads: Heads of the cross-attention from output queries to latents.
        decoder_qk_channels: Width of its queries and keys; `None` for `dim`.
        decoder_v_channels: Width of its values; `None` for `decoder_qk_channels`.
        decoder_query_residual: Whether an output query is added to what it gathered.
        decoder_ff_dim: Hidden width of its feed-forward, 0 for none; `None` for `decoder_ff_dim_scale` times the width of
            a query.
        decoder_ff_dim_scale: See `decoder_ff_dim`.
        pre_norm: See `Perceiver`, and so for all that follow.
        ff_dim: Hidden width of the feed-forward; `None` for `ff_dim_scale * dim`.
        ff_dim_scale: See `ff_dim`; 1 as published.
        ff_dropout: Dropout of the feed-forward.
        attention_dropout: Dropout of the attention weights.
        bias: Whether the linear maps of the attentions have a bias; "out" for the last of each alone.
        activation: "gelu" (exact), "gelu_tanh", "geglu" or "relu".
        attention_implementation: See `set_attention_implementation`. In no checkpoint.

    Attributes:
        config: All arguments, every default resolved, parts as descriptions, ready for JSON.

    Raises:
        ValueError: If an argument is out of range or does not fit the others; the message names it.
    """

    def __init__(
        self,
        *,
        inputs: nn.Module | Mapping[str, Any],
        outputs: Output | Mapping[str, Any],
        num_latent_tokens: int = 512,
        dim: int = 1024,
        heads: int = 8,
        cross_heads: int = 1,
        layers_indice: Sequence[int | None] = (0,),
        latent_layers_indice: Sequence[int] | None = None,
        num_latent_transformers_in_layers: Sequence[int] = (6,),
        qk_channels: int | None = None,
        v_channels: int | None = None,
        cross_qk_channels: int | None = None,
        cross_v_channels: int | None = None,
        query_residual: bool = True,
        decoder_heads: int = 1,
        decoder_qk_channels: int | None = None,
        decoder_v_channels: int | None = None,
        decoder_query_residual: bool = True,
        decoder_ff_dim: int | None = None,
        decoder_ff_dim_scale: float = 1,
        pre_norm: bool = True,
        ff_dim: int | None = None,
        ff_dim_scale: float = 1,
        ff_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        bias: bool | str = True,
        activation: str = "gelu",
        attention_implementation: str = "auto",
    ) -> None:
        super().__init__()
        inputs, outputs = InputModule.create(inputs), Output.create(outputs)
        if not isinstance(getattr(inputs, "num_channels", None), int):
            raise ValueError(f"inputs is a {type(inputs).__name__} without num_channels: give an input module")
        if not isinstance(outputs, Output):
            raise ValueError(f"outputs is a {type(outputs).__name__}, no perceivers.outputs.Output: give an output module")
        dim, heads, cross_heads = an_int("dim", dim), an_int("heads", heads), an_int("cross_heads", cross_heads)
        widths = resolve_channels(dim, heads, qk_channels, v_channels)
        if cross_qk_channels is None:
            cross_v_channels = widths[1] if cross_v_channels is None else cross_v_channels
            cross_qk_channels = widths[0]
        cross_widths = resolve_channels(dim, cross_heads, cross_qk_channels, cross_v_channels, prefix="cross_")
        decoder_heads = an_int("decoder_heads", decoder_heads)
        decoder_widths = resolve_channels(dim, decoder_heads, decoder_qk_channels, decoder_v_channels, prefix="decoder_")

        outputs.check(inputs, dim)
        self.inputs = inputs
        self.encoder = LatentEncoder(
            kv_dim=cast(int, inputs.num_channels),
            num_latent_tokens=num_latent_tokens,
            dim=dim,
            cross_heads=cross_heads,
            heads=heads,
            layers_indice=layers_indice,
            latent_layers_indice=latent_layers_indice,
            num_latent_transformers_in_layers=num_latent_transformers_in_layers,
            pre_norm=pre_norm,
            ff_dim=ff_dim,
            ff_dim_scale=ff_dim_scale,
            ff_dropout=ff_dropout,
            attention_dropout=attention_dropout,
            qk_channels=widths[0],
            v_channels=widths[1],
            cross_qk_channels=cross_widths[0],
            cross_v_channels=cross_widths[1],
            bias=bias,
            activation=activation,
            query_residual=query_residual,
        )
        self.decoder = None
        if outputs.query_channels is not None:
            settings = block_settings(
                dim=outputs.query_channels,
                ff_dim=decoder_ff_dim,
                ff_dim_scale=decoder_ff_dim_scale,
                bias=bias,
                pre_norm=pre_norm,
                activation=activation,
                ff_dropout=ff_dropout,
                attention_dropout=attention_dropout,
                prefix="decoder_",
                minimum=0,
            )
            decoder_ff_dim = settings["ff_dim"]
            self.decoder = CrossAttentionBlock(
                kv_dim=dim,
                heads=decoder_heads,
                qk_channels=decoder_widths[0],
                v_channels=decoder_widths[1],
                query_residual=a_bool("decoder_query_residual", decoder_query_residual),
                **settings,
            )
        self.outputs = outputs
        self.config: dict[str, Any] = {
            "inputs": describe(inputs),
            "outputs": describe(outputs),
            **self.encoder.config,
            "qk_channels": widths[0],
            "v_channels": widths[1],
            "cross_qk_channels": cross_widths[0],
            "cross_v_channels": cross_widths[1],
            "query_residual": query_residual,
            "decoder_heads": decoder_heads,
            "decoder_qk_channels": decoder_widths[0],
            "decoder_v_channels": decoder_widths[1],
            "decoder_query_residual": decoder_query_residual,
            "decoder_ff_dim": decoder_ff_dim,
        }
        self.model_name: str | None = None
        self.set_attention_implementation(attention_implementation)

    def forward(
        self,
        x: Any,
        mask: Any = None,
        *,
        indices: Any = None,
        query_mask: Any = None,
        queries: Any = None,
        chunk_size: int | None = None,
    ) -> Any:
        """Maps inputs to outputs.

        Args:
            x: What the input module takes.
            mask: Its mask, True where x may be attended to. What lies under False, even NaN, has no effect.
            indices: Which of the output queries to decode, integers `[O]`, or `[B, O]` where samples differ; `None` for
                all. For several outputs, a dict with entries for some of them. Chosen in training, it saves memory.
            query_mask: Which of all output queries may attend, bool `[B, O]`, or a dict as above; the others gather
                zeros. `None` for all.
            queries: The output queries themselves, for an output that has none of its own, such as
                `outputs.GivenQueries`; or a dict as above.
            chunk_size: How many queries are decoded at a time, so that memory beside the result stays constant without
                gradients; `None` for all at once.

        Returns:
            What the output module makes.

        Raises:
            ValueError: If a shape, dtype or index does not fit.
        """
        tokens = self.inputs(x, mask)
        chosen = {"indices": indices, "query_mask": query_mask, "queries": queries}
        return self.decode(self.encoder(tokens), tokens, **chosen, chunk_size=chunk_size)

    def encode(self, x: Any, mask: Any = None) -> Tensor:
        """Maps inputs, as in `forward`, to latents `[B, num_latent_tokens, dim]`."""
        return self.encoder(self.inputs(x, mask))

    def decode(
        self,
        latents: Tensor,
        tokens: Sequence[Tokens] = (),
        *,
        indices: Any = None,
        query_mask: Any = None,
        queries: Any = None,
        chunk_size: int | None = None,
    ) -> Any:
        """Reads an output from latents.

        Args:
            latents: `[B, N, dim]`, from `encode`.
            tokens: The token groups, `model.inputs(x, mask)`, for outputs whose queries are made of the inputs.
            indices: As in `forward`.
            query_mask: As in `forward`.
            queries: As in `forward`.
            chunk_size: As in `forward`.
        """
        sources, shared = [Tokens.of(latents)], Shared()  # keys and values of the latents are made once, for all chunks

        def attend(queries: Tokens, attending: Tensor | None) -> Tensor:
            assert self.decoder is not None, "an output with queries has a decoder"
            return self.decoder(queries, sources, shared, attending)

        self.outputs.check_queries(queries)
        encoded = Encoded(latents, attend, tokens, self.inputs, queries)
        return self.outputs(encoded, indices=indices, query_mask=query_mask, chunk_size=chunk_size)

    def attention_maps(
        self,
        x: Any,
        mask: Any = None,
        layer: int = -1,
        latents: Sequence[int] | None = None,
        log_scores: bool = False,
    ) -> list[Tensor]:
        """Shows where the latents look: for each token group a map `[B, cross_heads, N, *axes]`.

        The maps of all groups together sum to 1. The arguments are those of `Perceiver.attention_maps`.
        """
        tokens = self.inputs(x, mask)
        maps = self.encoder.attention_maps(tokens, layer, latents, a_bool("log_scores", log_scores))
        pieces = maps.split([group.num_inputs for group in tokens], dim=-1)
        return [piece.unflatten(-1, group.content.shape[2:]) for piece, group in zip(pieces, tokens, strict=True)]

    @torch.no_grad()
    def explain(self, x: Any, mask: Any = None) -> str:
        """Tells how cross-attention to these inputs would be computed, and why; see `Perceiver.explain`."""
        return self.encoder.explain(self.inputs(x, mask))

    def set_attention_implementation(self, name: str) -> None:
        """Chooses how cross-attention to the inputs and from the output queries is computed; see `Perceiver`."""
        self.encoder.set_attention_implementation(name)
        self.attention_implementation = name
        if self.decoder is not None:
            self.decoder.attention.set_attention_implementation(name)

    def set_grad_checkpointing(self, enabled: bool) -> None:
        """Chooses whether a training step saves memory for time; see `Perceiver`. The decoder is one block, kept as it is."""
        self.encoder.set_grad_checkpointing(enabled)

    def flops(self, x: Any, mask: Any = None) -> int:
        """Multiplications and additions of matrix products and convolutions for these inputs, with dense cross-attention.

        They are counted while the model runs slowly: have it and the inputs on the meta device, where nothing is computed.
        """
        chosen = self.attention_implementation
        try:
            self.set_attention_implementation("reference")
            with FlopCounterMode(display=False) as counter:
                self(x, mask)
        finally:
            self.set_attention_implementation(chosen)
        return counter.get_total_flops()
