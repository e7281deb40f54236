"""Each configuration is pinned to its parameters, the layers it applies, and its FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceivers import create_model, list_models
from perceivers.layers import CrossAttentionBlock, LatentTransformer

# name: (parameters, cross-attentions applied, latent layers applied, GFLOPs)
PINNED = {
    "perceiver_imagenet_fourier": (44_912_254, 8, 48, 706.3),
    "perceiver_imagenet_fourier_1cross": (42_135_859, 1, 48, 404.0),
    "perceiver_imagenet_fourier_unshared": (326_241_856, 8, 48, 706.3),
    "perceiver_imagenet_fourier_small": (1_826_684, 4, 12, 2.4),
    "perceiver_imagenet_fourier_tiny": (83_678, 2, 4, 0.0),
}


def test_all_are_pinned():
    assert list_models() == sorted(PINNED)
    assert list_models("*_tiny") == ["perceiver_imagenet_fourier_tiny"]


@pytest.mark.parametrize("name", PINNED)
def test_pinned(name):
    parameters, crosses, latents, gigaflops = PINNED[name]
    with torch.device("meta"):
        model = create_model(name, attention_implementation="reference")
        x = torch.empty(1, *model.config["data_shape"])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    applied = {CrossAttentionBlock: 0, LatentTransformer: 0}
    for module in model.modules():
        if type(module) in applied:
            module.register_forward_hook(lambda m, *_: applied.__setitem__(type(m), applied[type(m)] + 1))
    with FlopCounterMode(display=False) as counter:
        assert model(x).shape == (1, model.config["num_classes"])
    assert list(applied.values()) == [crosses, latents]
    assert round(model.flops() / 1e9, 1) == gigaflops
    assert model.flops() == counter.get_total_flops()
    assert model.model_name == name


def test_flops_at_other_sizes():
    with torch.device("meta"):
        model = create_model("perceiver_imagenet_fourier_tiny", attention_implementation="reference")
        x = torch.empty(1, 3, 17, 40)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert model.flops([17, 40]) == counter.get_total_flops()


def test_overrides():
    model = create_model("perceiver_imagenet_fourier_tiny", num_classes=3, data_shape=[1, 16])
    assert model(torch.randn(2, 1, 16)).shape == (2, 3)
    assert model.config["num_classes"] == 3


def test_siblings_learn():
    """One step of the small siblings lowers the loss of its batch."""
    for name in list_models("*_tiny") + list_models("*_small"):
        model = create_model(name)
        x, y = torch.randn(4, *model.config["data_shape"]), torch.arange(4)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(3):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[2] < losses[1] < losses[0]


def test_unknown_names():
    with pytest.raises(ValueError, match=r"name='perceiver_imagenet_fourrier' .* closest is 'perceiver_imagenet_fourier'"):
        create_model("perceiver_imagenet_fourrier")
    with pytest.raises(TypeError, match="num_clases"):
        create_model("perceiver_imagenet_fourier_tiny", num_clases=3)
