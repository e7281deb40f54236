"""`LatentEncoder`: which modules a layer uses, what layers share, the latents after each, and its configuration."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from accuracy import assert_varies, draw_parameters
from perceivers import Perceiver
from perceivers.layers.block import BlockConfig
from perceivers.layers.encoder import EncoderConfig, LatentEncoder
from perceivers.ops.tokens import Tokens

SMALL = {
    "data_shape": [3, 6, 5],
    "num_latent_tokens": 7,
    "dim": 12,
    "heads": 3,
    "layers_indice": [0, 1, None, 1],
    "latent_layers_indice": [0, 0, 1, 0],
    "num_latent_transformers_in_layers": [2, 1],
    "num_bands": 4,
}
BLOCK = BlockConfig(dim=12, heads=3, ff_dim=16)
CONFIG = EncoderConfig(
    kv_dim=9,
    num_latent_tokens=7,
    latent=BLOCK,
    cross=replace(BLOCK, heads=1, prefix="cross_"),
    layers_indice=[0, 1, None, 1],
    latent_layers_indice=[0, 0, 1, 0],
    num_latent_transformers_in_layers=[2, 1],
)


def build(**changes) -> Perceiver:
    return draw_parameters(Perceiver(**{**SMALL, **changes}).double().eval())  # pyright: ignore


def array(*shape) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_layers_share_as_the_lists_say():
    model = build()
    layers = model.layers
    crosses, stacks = model.encoder.cross_attentions, model.encoder.latent_transformers
    assert [layer.cross_attention for layer in layers] == [crosses[0], crosses[1], None, crosses[1]]
    assert [list(layer.latent_transformers) for layer in layers] == [list(stacks[i]) for i in (0, 0, 1, 0)]
    assert len(crosses) == 2
    assert [len(stack) for stack in stacks] == [2, 1]


def test_layers_are_what_the_model_applies():
    model = build()
    x, mask = array(2, 3, 6, 5), torch.rand(2, 6, 5) > 0.4
    latents = model.encoder.latents.expand(2, -1, -1)
    for layer in model.layers:
        latents = layer(latents, model.tokens(x, mask))
    torch.testing.assert_close(latents, model.encode(x, mask))


def test_initialisation_is_that_of_the_paper():
    torch.manual_seed(1)
    model = Perceiver(data_shape=[3, 32, 32], num_latent_tokens=256, dim=256, num_classes=10)
    latents = model.encoder.latents
    assert latents.std().item() == pytest.approx(0.02, rel=0.02)
    for block in model.encoder.cross_attentions:
        for linear in (block.attention.to_q, block.attention.to_k, block.feed_forward.linear_in):
            std = linear.in_features**-0.5
            assert linear.weight.std().item() == pytest.approx(std, rel=0.02)
            assert linear.weight.abs().max().item() <= 2 * std / 0.8796 * (1 + 1e-6)
            assert linear.weight.abs().max().item() > 1.9 * std / 0.8796
            assert (linear.bias == 0).all()
    assert (model.head.weight == 0).all()
    assert (model.head.bias == 0).all()


def test_layers_of_the_same_weights_share_what_depends_on_the_inputs_alone():
    """Keys and values of layers 1 and 3 are made once; a layer by itself makes its own."""
    model, x = build(attention_implementation="dense"), array(2, 3, 6, 5)
    with FlopCounterMode(display=False) as together:
        whole = model.encode(x)
    alone = model.encoder.latents.expand(2, -1, -1)
    with FlopCounterMode(display=False) as apart:
        for layer in model.layers:
            alone = layer(alone, model.tokens(x))
    torch.testing.assert_close(alone, whole)
    batch, num_inputs, kv_dim, widths = 2, 6 * 5, model.inputs.num_channels, 12 + 12
    assert apart.get_total_flops() - together.get_total_flops() == 2 * batch * num_inputs * kv_dim * widths


@pytest.mark.parametrize("recompute", [False, True])
def test_states_are_the_latents_after_each_layer(recompute):
    model, x = build(), array(2, 3, 6, 5)
    model.set_grad_checkpointing(recompute)
    latents, states = model.encoder.latents.expand(2, -1, -1), list(model.encoder.states(model.tokens(x)))
    assert len(states) == len(model.layers) == 4
    for layer, state in zip(model.layers, states, strict=True):
        latents = layer(latents, model.tokens(x))
        assert_varies(state)
        torch.testing.assert_close(state, latents)
    assert torch.equal(states[-1], model.encode(x))


def test_only_the_layers_before_a_map_are_applied():
    model, applied = build(), []
    for i, stack in enumerate(model.encoder.latent_transformers):
        stack.register_forward_hook(lambda *_, i=i: applied.append(i))
    for layer, wanted in ((0, []), (1, [0]), (2, [0, 0, 1])):
        applied.clear()
        model.attention_maps(array(2, 3, 6, 5), layer=layer)
        assert applied == wanted


def test_a_replaced_module_is_used():
    model, x = build(), array(2, 3, 6, 5)
    before = model.encode(x)
    model.encoder.latent_transformers[1] = torch.nn.Sequential()
    after = model.encode(x)
    assert (after - before).abs().max() > 1e-3
    assert list(model.layers[2].latent_transformers) == []


def test_configuration():
    assert CONFIG.layers == [(0, 0), (1, 0), (None, 1), (1, 0)]
    assert CONFIG.num_cross_attentions == 2
    again = replace(CONFIG, latent_layers_indice=None, layers_indice=[0, 1])
    assert again.layers == [(0, 0), (1, 1)]
    assert CONFIG.arguments == {
        "num_latent_tokens": 7,
        "cross_heads": 1,
        "heads": 3,
        "layers_indice": [0, 1, None, 1],
        "latent_layers_indice": [0, 0, 1, 0],
        "num_latent_transformers_in_layers": [2, 1],
        "dim": 12,
        "ff_dim": 16,
        "bias": True,
        "pre_norm": True,
        "activation": "gelu",
        "ff_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    latents = LatentEncoder(CONFIG)([Tokens.of(torch.randn(2, 11, 9))])
    assert latents.shape == (2, 7, 12)
