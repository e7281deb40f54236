"""What all input modules share: the registry, examples, and layers that are called rather than read."""

import math

import pytest
import torch
from inputs.cases import CASES, B, attention, multimodal
from torch import nn

from accuracy import IMPLEMENTATIONS, assert_varies, draw_parameters
from perceivers.inputs import (
    Events,
    Features,
    InputModule,
    Labels,
    LearnedPixels,
    Multimodal,
    Patches,
    Pixels,
    Points,
    TimeSeries,
)

each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_implementation = pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "auto"])
ANY_NUMBER = (Events, Features, Points, TimeSeries)  # modules without a size of their own


def encode(module, *data):
    return torch.cat([group.encoded() for group in module(*data)], dim=1)


def attend(module, implementation, *data):
    """Return the result of a cross-attention with random weights to the module's inputs."""
    return attention(module, implementation)(torch.randn(B, 3, 8, dtype=module.dtype), module(*data))


def test_kinds_by_name():
    module = InputModule.create({"kind": "Labels", "num_classes": 3})
    assert isinstance(module, Labels)
    assert InputModule.create(module) is module
    assert_varies(module(torch.tensor([0, 1]))[0].encoded())


@each
def test_example(case):
    module = draw_parameters(case.module()).eval()
    x, data = module.example(B), case.data()
    if isinstance(module, ANY_NUMBER):
        assert x is None
        return
    encoded = encode(module, x)
    assert encoded.shape[::2] == (B, module.num_channels)
    if isinstance(data, dict):
        assert {name: (part.shape, part.dtype) for name, part in x.items()} == {
            name: (part.shape, part.dtype) for name, part in data.items()
        }
    elif data.is_floating_point():  # the data of these cases have the size that the module was made for
        assert x.shape == data.shape
    assert all((part == 0).all() for part in (x.values() if isinstance(x, dict) else [x]))
    assert len(encode(module, module.example())) == 1


def test_examples_written_out():
    """Modules whose data are not of the size they were made for, and several modalities."""
    ids, labels = CASES["ids"].module().example(3), Labels(num_classes=5).example(3)
    assert (ids.shape, ids.dtype) == ((3, 9), torch.int64)
    assert (labels.shape, labels.dtype) == ((3, 5), torch.float32)
    example = multimodal().example(3)
    assert {name: part.shape for name, part in example.items()} == {
        "audio": (3, 1, 24),
        "image": (3, 3, 6, 8),
        "label": (3, 5),
    }
    assert encode(multimodal(), example).shape[0] == 3
    assert Multimodal(modalities={"label": Labels(num_classes=5), "other": Features(dim=3)}).example() is None


def test_example_has_the_dtype_and_device_of_the_parameters():
    module = LearnedPixels(data_shape=[3, 4, 5], embed_dim=6)
    assert module.to(torch.bfloat16).example().dtype == torch.bfloat16
    assert module.to("meta").example().device.type == "meta"
    torch.set_default_dtype(torch.float64)
    try:
        assert Pixels(data_shape=[3, 4, 5]).example().dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


LAYERS = [
    (name, path)
    for name, case in CASES.items()
    for path, layer in case.module().named_modules()
    if path and next(layer.parameters(recurse=False), None) is not None
]


def test_layers_are_found():
    """Every layer with parameters: linear, convolution, norm, embeddings, positions."""
    assert {path for _, path in LAYERS} == {
        "linear",
        "patches.linear",
        "position_linear",
        "positions",
        "embeddings",
        "conv",
        "norm",
    }


@every_implementation
@pytest.mark.parametrize(("name", "path"), LAYERS, ids=["-".join(pair) for pair in LAYERS])
def test_forward_hooks_are_honoured(name, path, implementation):
    """A hook that doubles the output of a layer has the effect of doubling its parameters."""
    module, x, mask = draw_parameters(CASES[name].module().double()).eval(), CASES[name].data(), CASES[name].mask()
    x = x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
    if isinstance(x, dict):
        x = {**x, "numeric": x["numeric"].double()}
    plain, layer = encode(module, x), module.get_submodule(path)
    handle = layer.register_forward_hook(lambda layer, args, out: 2 * out)
    hooked, encoded = attend(module, implementation, x, mask), encode(module, x)
    handle.remove()
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    torch.testing.assert_close(hooked, attend(module, "reference", x, mask), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(encoded, encode(module, x), rtol=1e-9, atol=1e-10)
    assert (encoded - plain).abs().max() > 1e-3


@every_implementation
def test_replaced_layers_are_honoured(implementation):
    """An MLP in place of the linear projection of patches, which no weight describes."""
    module = draw_parameters(Patches(data_shape=[2, 4, 6], patch_size=2, embed_dim=5, num_bands=2).double())
    module.linear = draw_parameters(nn.Sequential(nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 5)).double())
    x = torch.randn(B, 2, 4, 6, dtype=torch.float64)
    without = encode(Patches(data_shape=[2, 4, 6], patch_size=2, num_bands=2), x)
    wanted = torch.cat([module.linear(without[..., :8]), without[..., 8:]], dim=-1)
    torch.testing.assert_close(encode(module, x), wanted)
    out = attend(module, implementation, x)
    torch.testing.assert_close(out, attend(module, "reference", x), rtol=1e-9, atol=1e-10)
    out.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_hooked_layers_see_no_masked_values():
    """NaN under a mask would reach the gradient of a layer that is called on it."""
    module = draw_parameters(LearnedPixels(data_shape=[3, 4, 5], embed_dim=6).double())
    module.linear.register_forward_hook(lambda layer, args, out: 2 * out)
    x, mask = torch.randn(B, 3, 4, 5, dtype=torch.float64), torch.rand(B, 4, 5) > 0.4
    out = attend(module, "reference", x.masked_fill(~mask.unsqueeze(1), math.nan), mask)
    torch.testing.assert_close(out, attend(module, "reference", x, mask))
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.peer("peft")
@every_implementation
def test_lora_of_patches(peer, implementation):
    """The adapter contributes, merged or not, and gradients reach it."""
    module = draw_parameters(Patches(data_shape=[2, 4, 6], patch_size=2, embed_dim=5, num_bands=2))
    x = torch.randn(B, 2, 4, 6)
    base = attend(module, "reference", x)
    module = peer.inject_adapter_in_model(peer.LoraConfig(r=3, target_modules=["linear"], init_lora_weights=False), module)
    without = encode(Patches(data_shape=[2, 4, 6], patch_size=2, num_bands=2), x)
    wanted = torch.cat([module.linear(without[..., :8]), without[..., 8:]], dim=-1)
    torch.testing.assert_close(encode(module, x), wanted)
    out = attend(module, implementation, x)
    torch.testing.assert_close(out, attend(module, "reference", x), rtol=1e-4, atol=1e-5)
    assert (out - base).abs().max() > 1e-3
    out.square().sum().backward()
    adapters = {name: parameter.grad for name, parameter in module.named_parameters() if "lora_" in name}
    assert len(adapters) == 2
    assert all(grad is not None and grad.abs().max() > 0 for grad in adapters.values())
    module.linear.merge()
    torch.testing.assert_close(attend(module, implementation, x), out, rtol=1e-4, atol=1e-5)
