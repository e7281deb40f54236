"""perceiver-pytorch's `Perceiver`, up to the logits, with its own Fourier features.

Its queries, keys and values have no biases (ours are zero in a comparison), its feed-forwards are GEGLU, and a norm precedes
the head. If it shares layers, it shares all but the first, including the latent transformers.
"""

from collections.abc import Callable
from typing import Any

import torch
from perceiver_pytorch import Perceiver
from torch import Tensor

from benchmarks.peers.weights import renamed, reordered, sines_cosines_coordinate

ATTENTION = {"norm": "attention_norm", "norm_context": "attention.inputs_norm", "fn.to_out": "attention.to_out"}
FEED_FORWARD = {
    "norm": "feed_forward_norm",
    "fn.net.0": "feed_forward.linear_in",
    "fn.net.2": "feed_forward.linear_out",
}


def build(case: dict[str, Any]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return the model on its input, and its parameters, latents first."""
    ours = case["config"]
    channels, *axes = ours["data_shape"]
    layers, depth = ours["layers_indice"], ours["num_latent_transformers_in_layers"][0]
    model = Perceiver(
        num_freq_bands=ours["num_bands"],
        depth=len(layers),
        max_freq=ours["resolution"][0],
        input_channels=channels,
        input_axis=len(axes),
        num_latents=ours["num_latent_tokens"],
        latent_dim=ours["dim"],
        cross_heads=ours["cross_heads"],
        latent_heads=ours["heads"],
        cross_dim_head=ours["cross_head_dim"],
        latent_dim_head=ours["head_dim"],
        num_classes=ours["num_classes"],
        weight_tie_layers=len(set(layers)) < len(layers),
        self_per_cross_attn=depth,
    )
    weights = reordered(case["weights"], sines_cosines_coordinate(channels, len(axes), ours["num_bands"]))
    theirs = {"latents": weights["encoder.latents"]}
    for i, u in enumerate(layers):
        theirs |= attention(weights, f"layers.{i}.cross_attn.", f"encoder.cross_attentions.{u}.")
        theirs |= renamed(weights, f"layers.{i}.cross_ff.", f"encoder.cross_attentions.{u}.", FEED_FORWARD)
        for j in range(depth):
            theirs |= attention(weights, f"layers.{i}.self_attns.{j}.0.", f"encoder.latent_transformers.{u}.{j}.")
            theirs |= renamed(weights, f"layers.{i}.self_attns.{j}.1.", f"encoder.latent_transformers.{u}.{j}.", FEED_FORWARD)
    theirs |= renamed(weights, "", "", {"to_logits.1": "norm", "to_logits.2": "head"})
    model.load_state_dict(theirs)
    x = case["x"].movedim(1, -1).contiguous()
    return lambda: model(x), list(model.parameters())


def attention(weights: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Return the entries of one attention; keys and values are one linear layer."""
    to_q, to_k, to_v = (weights[f"{ours}attention.{name}.weight"] for name in ("to_q", "to_k", "to_v"))
    projections = {f"{theirs}fn.to_q.weight": to_q, f"{theirs}fn.to_kv.weight": torch.cat([to_k, to_v])}
    return projections | renamed(weights, theirs, ours, ATTENTION)
