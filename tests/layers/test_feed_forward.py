"""`FeedForward` and `SwiGLU` written out."""

import math

import pytest
import torch

from accuracy import draw_parameters
from perceivers.layers.feed_forward import FeedForward, SwiGLU

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "geglu": lambda x: x[..., :10] * ACTIVATIONS["gelu"](x[..., 10:]),
    "relu": lambda x: x.clamp(min=0),
    "swiglu": lambda x: x[..., :10] * x[..., 10:] * torch.sigmoid(x[..., 10:]),
}


def build(activation, **settings):
    if activation == "swiglu":
        return SwiGLU(dim=12, hidden_dim=10, **settings)
    return FeedForward(dim=12, hidden_dim=10, activation=activation, **settings)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_written_out(activation):
    module, x = draw_parameters(build(activation).double()), torch.randn(2, 7, 12, dtype=torch.float64)
    bias = [0 if linear.bias is None else linear.bias for linear in (module.linear_in, module.linear_out)]
    assert (module.linear_in.bias is None) == (activation == "swiglu")
    hidden = ACTIVATIONS[activation](x @ module.linear_in.weight.T + bias[0])
    torch.testing.assert_close(module(x), hidden @ module.linear_out.weight.T + bias[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_drops_after_both_linear_layers(activation):
    module, hidden = draw_parameters(build(activation, dropout=0.5).train()), []
    module.linear_out.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    for dropped in (module(torch.randn(50, 12)), hidden[0]):
        assert 0.4 < (dropped == 0).float().mean() < 0.6
    x = torch.randn(5, 12)
    assert torch.equal(module.eval()(x), module(x))
