"""The whole model, logits and gradients, against perceiver-pytorch's `Perceiver` with the same random weights.

It is the only other implementation of the original model with repeated cross-attention and a head. What it does otherwise
(geglu, a norm before the head, no bias of q, k and v, its weight sharing) are settings of ours; its position features come
in another order.
"""

import pytest
import torch

from accuracy import assert_varies, draw_parameters
from perceivers import Perceiver

pytestmark = pytest.mark.peer("perceiver_pytorch")
BANDS, RESOLUTION = 5, 10.0


def columns(channels: int, axes: int) -> list[int]:
    """For each of our columns of an encoded input, theirs: they put sin, cos, x of each axis, we x, sin, cos."""
    order, width = list(range(channels)), 2 * BANDS + 1
    for a in range(axes):
        start = channels + a * width
        order += [start + width - 1, *range(start, start + width - 1)]
    return order


@torch.no_grad()
def copy_weights(theirs, ours: Perceiver, order: list[int]) -> None:
    """Gives ours the weights of theirs; biases that they lack become zero."""

    def attention(source, target, order):
        k, v = source.fn.to_kv.weight.chunk(2)
        target.to_q.weight.copy_(source.fn.to_q.weight)
        target.to_k.weight.copy_(k[:, order])
        target.to_v.weight.copy_(v[:, order])
        for linear in (target.to_q, target.to_k, target.to_v):
            linear.bias.zero_()
        target.to_out.load_state_dict(source.fn.to_out.state_dict())

    def feed_forward(source, target):
        target.feed_forward_norm.load_state_dict(source.norm.state_dict())
        target.feed_forward.linear_in.load_state_dict(source.fn.net[0].state_dict())
        target.feed_forward.linear_out.load_state_dict(source.fn.net[2].state_dict())

    ours.encoder.latents.copy_(theirs.latents)
    for layer, (cross, stack) in zip(theirs.layers, ours.encoder.layers(), strict=True):
        attention(layer.cross_attn, cross.attention, order)
        cross.attention_norm.load_state_dict(layer.cross_attn.norm.state_dict())
        cross.attention.inputs_norm.weight.copy_(layer.cross_attn.norm_context.weight[order])
        cross.attention.inputs_norm.bias.copy_(layer.cross_attn.norm_context.bias[order])
        feed_forward(layer.cross_ff, cross)
        for (self_attention, self_ff), transformer in zip(layer.self_attns, stack, strict=True):
            attention(self_attention, transformer.attention, slice(None))
            transformer.attention_norm.load_state_dict(self_attention.norm.state_dict())
            feed_forward(self_ff, transformer)
    ours.norm.load_state_dict(theirs.to_logits[1].state_dict())
    ours.head.load_state_dict(theirs.to_logits[2].state_dict())


@pytest.mark.parametrize("axes", [(17,), (6, 9), (3, 4, 5)], ids=str)
@pytest.mark.parametrize(("tied", "layers"), [(False, [0, 1, 2]), (True, [0, 1, 1])])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_and_gradients(peer, axes, tied, layers, masked):
    theirs = peer.Perceiver(
        num_freq_bands=BANDS,
        depth=3,
        max_freq=RESOLUTION,
        input_channels=2,
        input_axis=len(axes),
        num_latents=7,
        latent_dim=12,
        cross_heads=2,
        latent_heads=3,
        cross_dim_head=5,
        latent_dim_head=4,
        num_classes=6,
        weight_tie_layers=tied,
        self_per_cross_attn=2,
    ).double()
    draw_parameters(theirs)
    ours = Perceiver(
        data_shape=[2, *axes],
        num_latent_tokens=7,
        dim=12,
        cross_heads=2,
        heads=3,
        cross_head_dim=5,
        head_dim=4,
        layers_indice=layers,
        num_latent_transformers_in_layers=[2] * len(set(layers)),
        num_bands=BANDS,
        resolution=RESOLUTION,
        frequency_base=None,
        num_classes=6,
        final_norm=True,
        activation="geglu",
    ).double()
    copy_weights(theirs, ours, columns(2, len(axes)))
    x = torch.randn(3, 2, *axes, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, *axes) > 0.4 if masked else None
    our_logits, their_logits = ours(x, mask), theirs(x.movedim(1, -1), mask=mask)
    assert_varies(their_logits)
    torch.testing.assert_close(our_logits, their_logits, rtol=1e-10, atol=1e-10)

    cotangent = torch.randn_like(their_logits)
    pairs = [
        (ours.encoder.latents, theirs.latents),
        (ours.encoder.cross_attentions[-1].attention.to_out.weight, theirs.layers[-1].cross_attn.fn.to_out.weight),
        (ours.encoder.cross_attentions[0].attention.to_q.weight, theirs.layers[0].cross_attn.fn.to_q.weight),
        (ours.head.weight, theirs.to_logits[2].weight),
        (x, x),
    ]
    our_grads = torch.autograd.grad(our_logits, [ours for ours, _ in pairs], cotangent)
    their_grads = torch.autograd.grad(their_logits, [theirs for _, theirs in pairs], cotangent)
    for our_grad, their_grad in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-8, atol=1e-10)
