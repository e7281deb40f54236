"""The encoder of perceiver-io by krasserm, the only peer that can share weights as the published ImageNet model does.

Its own image adapter is in a module with training code that needs Lightning; the adapter here is made of the same parts. The
library is not installed in this project's environment, hence the comments for the type checker.
"""

from collections.abc import Callable
from typing import Any

import torch
from perceiver.model.core.adapter import InputAdapter  # pyright: ignore[reportMissingImports]
from perceiver.model.core.modules import PerceiverEncoder  # pyright: ignore[reportMissingImports]
from perceiver.model.core.position import FourierPositionEncoding  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.peers.weights import coordinates_sines_cosines, renamed, reordered

ATTENTION = {
    "0.module.q_norm": "attention_norm",
    "0.module.kv_norm": "attention.inputs_norm",
    "0.module.norm": "attention_norm",
    "0.module.attention.q_proj": "attention.to_q",
    "0.module.attention.k_proj": "attention.to_k",
    "0.module.attention.v_proj": "attention.to_v",
    "0.module.attention.o_proj": "attention.to_out",
    "1.module.0": "feed_forward_norm",
    "1.module.1": "feed_forward.linear_in",
    "1.module.3": "feed_forward.linear_out",
}
CROSS = {name: ours for name, ours in ATTENTION.items() if name != "0.module.norm"}
SELF = {name: ours for name, ours in ATTENTION.items() if name not in ("0.module.q_norm", "0.module.kv_norm")}


class Pixels(InputAdapter):
    """Images `[B, H, W, C]` concatenated with Fourier features, which are computed once."""

    def __init__(self, channels: int, axes: list[int], bands: int) -> None:
        positions = FourierPositionEncoding(tuple(axes), bands)
        super().__init__(channels + positions.num_position_encoding_channels())
        self.positions = positions

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, M, C]`."""
        return torch.cat([x.flatten(1, -2), self.positions(len(x))], dim=-1)


def build(case: dict[str, Any]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return the encoder on its input, and its parameters, latents first."""
    ours = case["config"]
    channels, *axes = ours["data_shape"]
    (depth,) = ours["num_latent_transformers_in_layers"]
    adapter = Pixels(channels, axes, ours["num_bands"])
    model = PerceiverEncoder(
        adapter,
        num_latents=ours["num_latent_tokens"],
        num_latent_channels=ours["dim"],
        num_cross_attention_heads=ours["cross_heads"],
        num_cross_attention_qk_channels=ours["cross_heads"] * ours["cross_head_dim"],
        num_cross_attention_layers=sum(layer is not None for layer in ours["layers_indice"]),
        first_cross_attention_layer_shared=False,
        cross_attention_widening_factor=ours["ff_dim"] // ours["dim"],
        num_self_attention_heads=ours["heads"],
        num_self_attention_layers_per_block=depth,
        num_self_attention_blocks=len(ours["layers_indice"]),
        first_self_attention_block_shared=True,
        self_attention_widening_factor=ours["ff_dim"] // ours["dim"],
    )
    weights = reordered(case["weights"], coordinates_sines_cosines(channels, len(axes), ours["num_bands"]))
    theirs = {"latent_provider._query": weights["encoder.latents"]}
    theirs |= {name: buffer for name, buffer in model.state_dict().items() if name.startswith("input_adapter.")}
    for u, name in enumerate(("cross_attn_1", "cross_attn_n")):
        theirs |= renamed(weights, f"{name}.", f"encoder.cross_attentions.{u}.", CROSS)
    for j in range(depth):
        theirs |= renamed(weights, f"self_attn_1.{j}.", f"encoder.latent_transformers.0.{j}.", SELF)
    model.load_state_dict(theirs)
    x = case["x"].movedim(1, -1).contiguous()
    return lambda: model(x), list(model.parameters())
