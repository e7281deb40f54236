"""The encoder against transformers' `PerceiverModel` with the same random weights.

It has one cross-attention, and a stack of latent layers applied several times: `layers_indice=[0, None, None]`.
Their position tables are built in float32, so the comparison is in float32.
"""

import pytest
import torch

from accuracy import assert_varies, draw_parameters
from perceivers import Perceiver

pytestmark = pytest.mark.peer("transformers")
BANDS, SIZE, CHANNELS = 4, (9, 12), 3


def columns() -> list[int]:
    """For each of our columns of an encoded input, theirs: all coordinates, all sines, all cosines, axis after axis."""
    order = list(range(CHANNELS))
    for a in range(2):
        sines = CHANNELS + 2 + a * BANDS
        order += [CHANNELS + a, *range(sines, sines + BANDS), *range(sines + 2 * BANDS, sines + 3 * BANDS)]
    return order


@torch.no_grad()
def copy_layer(theirs, ours, order) -> None:
    attention, inner = ours.attention, theirs.attention.self
    ours.attention_norm.load_state_dict(inner.layernorm1.state_dict())
    attention.to_q.load_state_dict(inner.query.state_dict())
    for source, target in ((inner.key, attention.to_k), (inner.value, attention.to_v)):
        target.weight.copy_(source.weight[:, order])
        target.bias.copy_(source.bias)
    attention.to_out.load_state_dict(theirs.attention.output.dense.state_dict())
    ours.feed_forward_norm.load_state_dict(theirs.layernorm.state_dict())
    ours.feed_forward.linear_in.load_state_dict(theirs.mlp.dense1.state_dict())
    ours.feed_forward.linear_out.load_state_dict(theirs.mlp.dense2.state_dict())


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("widening", [1, 2])
def test_latents_and_maps(peer, activation, widening):
    from transformers.models.perceiver.modeling_perceiver import PerceiverImagePreprocessor

    config = peer.PerceiverConfig(
        num_latents=6,
        d_latents=16,
        num_blocks=3,
        num_self_attends_per_block=2,
        num_self_attention_heads=4,
        num_cross_attention_heads=1,
        self_attention_widening_factor=widening,
        cross_attention_widening_factor=widening,
        hidden_act={"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[activation],
        attn_implementation="eager",
    )
    positions = {"num_bands": BANDS, "max_resolution": SIZE, "concat_pos": True, "sine_only": False}
    preprocessor = PerceiverImagePreprocessor(
        config, prep_type="pixels", spatial_downsample=1, fourier_position_encoding_kwargs=positions
    )
    theirs = draw_parameters(peer.PerceiverModel(config, input_preprocessor=preprocessor).eval())
    ours = Perceiver(
        data_shape=[CHANNELS, *SIZE],
        num_latent_tokens=6,
        dim=16,
        cross_heads=1,
        cross_head_dim=CHANNELS + 2 * (1 + 2 * BANDS),
        heads=4,
        layers_indice=[0, None, None],
        latent_layers_indice=[0, 0, 0],
        num_latent_transformers_in_layers=[2],
        num_bands=BANDS,
        frequency_base=None,
        ff_dim_scale=widening,
        activation=activation,
    ).eval()
    with torch.no_grad():
        order, cross = columns(), ours.encoder.cross_attentions[0]
        ours.encoder.latents.copy_(theirs.embeddings.latents)
        copy_layer(theirs.encoder.cross_attention, cross, order)
        inner = theirs.encoder.cross_attention.attention.self
        cross.attention.inputs_norm.weight.copy_(inner.layernorm2.weight[order])
        cross.attention.inputs_norm.bias.copy_(inner.layernorm2.bias[order])
        for source, target in zip(theirs.encoder.self_attends, ours.encoder.latent_transformers[0], strict=True):
            copy_layer(source, target, slice(None))
        x = torch.randn(2, CHANNELS, *SIZE)
        output = theirs(x, output_attentions=True)
        assert_varies(output.last_hidden_state)
        torch.testing.assert_close(ours.encode(x), output.last_hidden_state, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.attention_maps(x)[0].flatten(-2), output.cross_attentions[0], rtol=1e-5, atol=1e-6)
