"""A small Perceiver IO around an output module, and its decoder and Fourier features written out."""

import torch
from torch.nn import functional as F

from accuracy import draw_parameters
from perceivers import PerceiverIO
from perceivers.layers import CrossAttentionBlock

SMALL = {"num_latent_tokens": 5, "dim": 12, "heads": 2, "num_latent_transformers_in_layers": [1]}


PIXELS = {"kind": "Pixels", "data_shape": [2, 4, 6], "num_bands": 2}


draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731


def build(output, source=PIXELS, **changes) -> PerceiverIO:
    model = PerceiverIO(inputs=source, outputs=output, **{**SMALL, **changes})
    return draw_parameters(model.double().eval())  # pyright: ignore


def decode(model: PerceiverIO, queries, latents):
    """Return the decoded queries, computed with PyTorch's attention."""
    block: CrossAttentionBlock = model.decoder
    a = block.attention
    q, x = a.to_q(block.attention_norm(queries)), a.inputs_norm(latents)
    heads = lambda y: y.unflatten(-1, (a.heads, -1)).transpose(1, 2)  # noqa: E731
    gathered = F.scaled_dot_product_attention(heads(q), heads(a.to_k(x)), heads(a.to_v(x)), scale=a.scale)
    gathered = a.to_out(gathered.transpose(1, 2).flatten(2))
    y = queries + gathered if block.query_residual else gathered
    return y + block.feed_forward(block.feed_forward_norm(y))


def coordinates(n):
    return torch.linspace(-1, 1, n, dtype=torch.float64)


def features(positions, resolution, bands=2):
    """Return coordinate, sines and cosines as in the paper, with frequencies from 1 to resolution / 2."""
    angles = torch.pi * positions[..., None] * torch.linspace(1, resolution / 2, bands, dtype=torch.float64)
    return torch.cat([positions[..., None], angles.sin(), angles.cos()], dim=-1)
