"""Gradient checkpointing: the same gradients with less memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perceivers import Perceiver, PerceiverIO, inputs, outputs

SIZES = {
    "num_latent_tokens": 6,
    "dim": 16,
    "heads": 2,
    "layers_indice": [0, 1, 1],
    "num_latent_transformers_in_layers": [2, 2],
}


def perceiver(**settings):
    return Perceiver(data_shape=[2, 5, 4], num_bands=3, num_classes=3, **{**SIZES, **settings})


def perceiver_io(**settings):
    pixels = inputs.Pixels(data_shape=[2, 5, 4], num_bands=2)
    return PerceiverIO(inputs=pixels, outputs=outputs.LearnedQueries(dim=8, num_channels=3), **{**SIZES, **settings})


def gradients(model, x, mask=None):
    torch.manual_seed(1)  # of dropout
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x, mask)
    out.square().sum().backward()
    return [out, x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("make", [perceiver, perceiver_io])
@pytest.mark.parametrize(
    "settings", [{}, {"ff_dropout": 0.2, "attention_dropout": 0.1}, {"attention_implementation": "dense"}]
)
def test_the_same_gradients(make, settings):
    model = make(**settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, mask = torch.randn(3, 2, 5, 4), torch.rand(3, 5, 4) > 0.2
    mask = None if settings.get("attention_dropout") else mask
    wanted = gradients(model, x, mask)
    model.set_grad_checkpointing(True)
    found = gradients(model, x, mask)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    model.eval()
    with torch.no_grad():  # nothing is recomputed, as nothing is stored
        out = model(x, mask)
    torch.testing.assert_close(out, model(x, mask).detach())


def kept(model, x):
    """Bytes that the forward pass stores for the backward pass."""
    seen = {}

    def keep(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(x)
    out.sum().backward()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for place, size in seen.items() if place not in own)


def test_less_is_kept():
    model, x = perceiver_io(num_latent_tokens=64, num_latent_transformers_in_layers=[6, 6]), torch.randn(8, 2, 5, 4)
    whole = kept(model, x)
    model.set_grad_checkpointing(True)
    assert kept(model, x) < whole / 5


SCRIPT = """
import sys, torch
from pathlib import Path
from perceivers import Perceiver
model = Perceiver(data_shape=[1, 8, 8], num_bands=2, num_classes=2, num_latent_tokens=256, dim=128, heads=4,
                  layers_indice=[0], num_latent_transformers_in_layers=[16])
model.set_grad_checkpointing(sys.argv[1] == "on")
model(torch.randn(1, 1, 2, 2)).sum().backward()  # what is imported and allocated once
x = torch.randn(16, 1, 8, 8)
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])  # getrusage includes the parent
before = peak()
model(x).sum().backward()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux reports the peak memory of a process")
def test_the_process_needs_less_memory():
    off, on = (
        int(subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True).stdout)
        for how in ("off", "on")
    )
    assert on < off / 2


def test_wrong_use():
    with pytest.raises(ValueError, match="enabled='yes'"):
        perceiver().set_grad_checkpointing("yes")
