"""transformers' `PerceiverModel` without a decoder: from images to latents, with its own preprocessor.

It has one cross-attention and one stack of latent layers, which is applied several times.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PerceiverConfig, PerceiverModel
from transformers.models.perceiver.modeling_perceiver import PerceiverImagePreprocessor

from benchmarks.peers.weights import coordinates_sines_cosines, renamed, reordered

LAYER = {
    "attention.self.layernorm1": "attention_norm",
    "attention.self.layernorm2": "attention.inputs_norm",
    "attention.self.query": "attention.to_q",
    "attention.self.key": "attention.to_k",
    "attention.self.value": "attention.to_v",
    "attention.output.dense": "attention.to_out",
    "layernorm": "feed_forward_norm",
    "mlp.dense1": "feed_forward.linear_in",
    "mlp.dense2": "feed_forward.linear_out",
}


def build(case: dict[str, Any]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return the model on its input, and its parameters, latents first."""
    ours = case["config"]
    channels, *axes = ours["data_shape"]
    (depth,) = ours["num_latent_transformers_in_layers"]
    config = PerceiverConfig(
        num_latents=ours["num_latent_tokens"],
        d_latents=ours["dim"],
        num_blocks=len(ours["layers_indice"]),
        num_self_attends_per_block=depth,
        num_self_attention_heads=ours["heads"],
        num_cross_attention_heads=ours["cross_heads"],
        self_attention_widening_factor=ours["ff_dim"] // ours["dim"],
        cross_attention_widening_factor=ours["ff_dim"] // ours["dim"],
        attention_probs_dropout_prob=0.0,
    )
    positions = {"num_bands": ours["num_bands"], "max_resolution": axes, "concat_pos": True, "sine_only": False}
    preprocessor = PerceiverImagePreprocessor(
        config, prep_type="pixels", spatial_downsample=1, fourier_position_encoding_kwargs=positions
    )
    model = PerceiverModel(config, input_preprocessor=preprocessor)
    weights = reordered(case["weights"], coordinates_sines_cosines(channels, len(axes), ours["num_bands"]))
    theirs = {"embeddings.latents": weights["encoder.latents"]}
    theirs |= renamed(weights, "encoder.cross_attention.", "encoder.cross_attentions.0.", LAYER)
    for j in range(depth):
        theirs |= renamed(weights, f"encoder.self_attends.{j}.", f"encoder.latent_transformers.0.{j}.", LAYER)
    model.load_state_dict(theirs)
    x = case["x"]
    return lambda: model(x).last_hidden_state, list(model.parameters())
