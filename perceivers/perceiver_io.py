"""Perceiver IO: A General Architecture for Structured Inputs & Outputs (Jaegle et al., 2021, arXiv 2107.14795).

Any input is read into a small array of latents, as in `Perceiver`; then any output is read from the latents: each output
element is a query that attends to them. An input module defines what is read, an output module the queries and results.

DeepMind's code, transformers and the paper differ in places; each behaviour is a setting:

- GELU is exact, as in transformers; DeepMind's code uses the tanh approximation (`activation="gelu_tanh"`).
- A query is added to what it gathered if `decoder_query_residual` is set: for classification, except in DeepMind's model
  with learned positions (set in transformers); not for language, flow and multimodal autoencoding.
- `query_mask` selects the queries that attend. DeepMind's language model passes the mask of its inputs, transformers ignores
  it.
- A sample or query with nothing to attend to gathers zeros, as in DeepMind's code; in transformers it attends to everything.
- Selected queries of a grid have the positions they have in the whole grid; in DeepMind's code and in transformers they are
  shifted to -1 + 2 i / n (`Grid(sampled_positions="left_aligned")`).
- There may be several cross-attentions (`layers_indice`, as in `Perceiver`); the paper has one.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from perceivers._checks import a_bool, an_int
from perceivers._registry import describe
from perceivers.base import PerceiverBase
from perceivers.inputs import InputModule
from perceivers.layers.attention import resolve_channels
from perceivers.layers.block import BlockConfig, CrossAttentionBlock
from perceivers.layers.encoder import EncoderConfig, LatentEncoder
from perceivers.ops.cross_attention import Shared
from perceivers.ops.tokens import Tokens
from perceivers.outputs import Encoded, LearnedQueries, MeanPool, Output


class PerceiverIO(PerceiverBase):
    """Perceiver IO for any input and any output.

    ```python
    model = PerceiverIO(
        inputs=inputs.Pixels(data_shape=[3, 64, 64], num_bands=16),
        outputs=outputs.LearnedQueries(dim=256, num_channels=10),  # one learned query: a class
        num_latent_tokens=128,
        dim=256,
    )
    logits = model(images)  # [B, 3, 64, 64] -> [B, 10]
    ```

    Args:
        inputs: The input module, which has `num_channels` and maps what `forward` is given to token groups; or its
            description, `{"kind": name, **arguments}`, with the name of an `InputModule` class.
        outputs: The output module, an `Output`; or its description, with the name of an `Output` class.
        num_latent_tokens: Number of latents, N.
        dim: Width of the latents.
        heads: Heads of the latent transformers.
        cross_heads: Heads of the cross-attentions to the inputs.
        layers_indice: For each layer, the index of the cross-attention it uses; `None` in the list is a layer without.
        latent_layers_indice: For each layer, the index of the stack of latent transformers it uses. Defaults to
            `layers_indice`.
        num_latent_transformers_in_layers: Depth of each unique stack.
        qk_channels: Width of queries and keys of the latent transformers over all heads. Defaults to `dim`.
        v_channels: Width of their values. Defaults to `qk_channels`.
        cross_qk_channels: Width of queries and keys of the cross-attentions. Defaults to that of the latent transformers;
            in most published models it is `inputs.num_channels`.
        cross_v_channels: Width of their values. Defaults to `cross_qk_channels`, or, if that is not given either, to
            `v_channels`.
        query_residual: Whether the latents are added to what they gathered from the inputs.
        decoder_heads: Heads of the cross-attention from output queries to latents.
        decoder_qk_channels: Width of its queries and keys. Defaults to `dim`.
        decoder_v_channels: Width of its values. Defaults to `decoder_qk_channels`.
        decoder_query_residual: Whether an output query is added to what it gathered.
        decoder_ff_dim: Hidden width of its feed-forward; 0 for no feed-forward. Defaults to `decoder_ff_dim_scale` times the
            width of a query.
        decoder_ff_dim_scale: See `decoder_ff_dim`.
        pre_norm: See `Perceiver`, as for all that follow.
        ff_dim: Hidden width of the feed-forward. Defaults to `ff_dim_scale * dim`.
        ff_dim_scale: See `ff_dim`; 1 as published.
        ff_dropout: Dropout probability of the feed-forward.
        attention_dropout: Dropout probability of the attention weights.
        bias: Whether the linear layers of the attentions have a bias; "out" for the output projections alone.
        activation: "gelu" (exact), "gelu_tanh", "geglu" or "relu".
        attention_implementation: See `set_attention_implementation`. Not saved in checkpoints.

    Attributes:
        config: All arguments with their defaults resolved, modules as descriptions, ready for JSON.
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
            raise ValueError(f"outputs is a {type(outputs).__name__}, not a perceivers.outputs.Output: give an output module")
        latent = BlockConfig(
            dim=dim,
            heads=heads,
            qk_channels=qk_channels,
            v_channels=v_channels,
            ff_dim=ff_dim,
            ff_dim_scale=ff_dim_scale,
            bias=bias,
            pre_norm=pre_norm,
            activation=activation,
            ff_dropout=ff_dropout,
            attention_dropout=attention_dropout,
        )
        if cross_qk_channels is None:
            cross_qk_channels = latent.widths[0]
            cross_v_channels = latent.widths[1] if cross_v_channels is None else cross_v_channels
        cross_widths = {"qk_channels": cross_qk_channels, "v_channels": cross_v_channels}
        decoder_heads = an_int("decoder_heads", decoder_heads)
        decoder_qk_channels, decoder_v_channels = resolve_channels(
            latent.dim, decoder_heads, decoder_qk_channels, decoder_v_channels, prefix="decoder_"
        )

        outputs.check(inputs, latent.dim)
        self.inputs = inputs
        self.encoder = LatentEncoder(
            EncoderConfig(
                kv_dim=inputs.num_channels,
                num_latent_tokens=num_latent_tokens,
                latent=latent,
                cross=replace(latent, prefix="cross_", heads=cross_heads, **cross_widths),
                layers_indice=layers_indice,
                latent_layers_indice=latent_layers_indice,
                num_latent_transformers_in_layers=num_latent_transformers_in_layers,
                query_residual=query_residual,
            )
        )
        self.decoder = None
        if outputs.query_channels is not None:
            decoder = replace(
                latent,
                prefix="decoder_",
                dim=outputs.query_channels,
                heads=decoder_heads,
                qk_channels=decoder_qk_channels,
                v_channels=decoder_v_channels,
                ff_dim=decoder_ff_dim,
                ff_dim_scale=decoder_ff_dim_scale,
            )
            residual = a_bool("decoder_query_residual", decoder_query_residual)
            self.decoder = CrossAttentionBlock(decoder, kv_dim=latent.dim, query_residual=residual)
            decoder_ff_dim = decoder.hidden_dim
        self.outputs = outputs
        self.config: dict[str, Any] = {
            "inputs": describe(inputs),
            "outputs": describe(outputs),
            **self.encoder.config.arguments,
            "qk_channels": latent.widths[0],
            "v_channels": latent.widths[1],
            "cross_qk_channels": self.encoder.config.cross.widths[0],
            "cross_v_channels": self.encoder.config.cross.widths[1],
            "query_residual": query_residual,
            "decoder_heads": decoder_heads,
            "decoder_qk_channels": decoder_qk_channels,
            "decoder_v_channels": decoder_v_channels,
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
        """Return what the output module makes of the inputs.

        Args:
            x: What the input module takes.
            mask: Its mask, True where x may be attended to; masked values have no effect, not even NaN.
            indices: Indices of the output queries to decode, integers `[O]`, or `[B, O]` if samples differ; for several
                outputs, a dict with entries for some of them. Defaults to all. Decoding a sample of them in training saves
                memory.
            query_mask: Mask of all output queries, True where a query may attend, bool `[B, O]`, or a dict as above; the
                others gather zeros.
            queries: The output queries, for an output that has none of its own, such as `outputs.GivenQueries`; or a dict as
                above.
            chunk_size: Number of queries that are decoded at a time. Without gradients, memory beside the result is then
                constant. Defaults to all at once.
        """
        tokens = self.tokens(x, mask)
        chosen = {"indices": indices, "query_mask": query_mask, "queries": queries}
        return self.decode(self.encoder(tokens), tokens, **chosen, chunk_size=chunk_size)

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
        """Return what the output module makes of the latents, `[B, N, dim]`, from `encode`.

        Outputs whose queries are made of the inputs need `tokens`, from `model.tokens(x, mask)`. The other arguments are those
        of `forward`.
        """
        self.outputs.check_queries(queries)
        encoded = self._encoded(latents, tokens, queries)
        return self.outputs(encoded, indices=indices, query_mask=query_mask, chunk_size=chunk_size)

    def forward_head(self, latents: Tensor, pre_logits: bool = False) -> Any:
        """Return what `forward` returns, from the latents.

        An output whose queries are made of the inputs, such as `outputs.PerInput`, needs `decode`.

        Args:
            latents: `[B, num_latent_tokens, dim]`, from `forward_features`.
            pre_logits: Whether to return what the classifier reads instead: the decoded queries of `outputs.LearnedQueries`
                or the mean of `outputs.MeanPool`.

        Raises:
            ValueError: If `pre_logits` is set and the output is neither of these.
        """
        outputs = self.outputs
        if pre_logits:
            outputs = copy.copy(self._classifier())  # the parameters are shared
            outputs._modules = {**outputs._modules, "head": None}
        return outputs(self._encoded(latents))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head of the output module by a newly initialised one.

        Args:
            num_classes: Number of classes; 0 for no head, so that the model returns what the head would read.

        Raises:
            ValueError: If `num_classes` is negative or not a whole number, or the output is not `outputs.LearnedQueries` or
                `outputs.MeanPool`.
        """
        outputs, num_classes = self._classifier(), an_int("num_classes", num_classes, 0)
        fresh = type(outputs)(**{**outputs.config, "num_channels": num_classes or None})
        outputs.head = None if fresh.head is None else fresh.head.to(self.encoder.latents)
        outputs.config = fresh.config
        self.config["outputs"] = describe(outputs)

    def example(self, batch_size: int = 1) -> Any:
        """Return zeros of the size that the input module was made for.

        `None` if it was not made for a fixed size, or each call needs queries.
        """
        return None if self.outputs.takes_queries else super().example(batch_size)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if there is no head, or the output is not `outputs.LearnedQueries` or `outputs.MeanPool`."""
        is_classifier = isinstance(self.outputs, LearnedQueries | MeanPool)
        return self.outputs.config["num_channels"] or 0 if is_classifier else 0

    def _classifier(self) -> LearnedQueries | MeanPool:
        if not isinstance(self.outputs, LearnedQueries | MeanPool):
            raise ValueError(
                f"outputs is a {type(self.outputs).__name__}, not a classifier: build the model with outputs.LearnedQueries"
                " or outputs.MeanPool"
            )
        return self.outputs

    def _encoded(self, latents: Tensor, tokens: Sequence[Tokens] = (), queries: Any = None) -> Encoded:
        sources, shared = [Tokens.of(latents)], Shared()  # keys and values of the latents are computed once for all chunks

        def attend(queries: Tokens, attending: Tensor | None) -> Tensor:
            assert self.decoder is not None, "an output with queries has a decoder"
            return self.decoder(queries, sources, shared, attending)

        return Encoded(latents, attend, tokens, self.inputs, queries)
