"""Initialisation of `Linear`, and for which linear layers weight and bias are known."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from perceivers.layers.linear import Linear, known_affine, why_opaque


def test_initialisation():
    """Variance 1 / fan_in, truncated at two standard deviations of the distribution before truncation."""
    layer = Linear(256, 300)
    assert layer.weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert 1.9 / 16 / 0.8796 < layer.weight.abs().max().item() <= 2 / 16 / 0.8796 * (1 + 1e-4)
    assert (layer.bias == 0).all()


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_linear_layers():
    for layer in (Linear(3, 4), nn.Linear(3, 4, bias=False)):
        weight, bias = known_affine(layer)
        assert weight is layer.weight
        assert bias is layer.bias
        assert why_opaque("x", layer) is None


def test_parametrised():
    layer = Linear(3, 4)
    parametrize.register_parametrization(layer, "weight", Twice())
    assert torch.equal(known_affine(layer)[0], 2 * layer.parametrizations.weight.original)


@pytest.mark.parametrize(
    ("module", "reason"),
    [(nn.Identity(), "x is an Identity"), (Doubled(3, 4), "x is a Doubled"), (nn.Bilinear(3, 3, 3), "x is a Bilinear")],
)
def test_others(module, reason):
    assert known_affine(module) is None
    assert why_opaque("x", module) == reason


def test_backward_hooks():
    layer = Linear(3, 4)
    layer.register_full_backward_hook(lambda *_: None)
    assert known_affine(layer) is None


@pytest.mark.peer("peft")
def test_large_biases_cost_no_accuracy(peer):
    """The weight is the difference of two images; a bias a thousand times as large must not round it off."""
    layer = nn.Sequential(Linear(32, 24))
    with torch.no_grad():
        layer[0].bias.fill_(1000.0)
    config = peer.LoraConfig(r=3, target_modules=["0"], init_lora_weights=False)
    lora = peer.inject_adapter_in_model(config, layer)[0]
    weight, bias = known_affine(lora)
    wanted = lora.base_layer.weight + lora.get_delta_weight("default")
    assert (weight - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    assert torch.equal(bias, lora.base_layer.bias)
