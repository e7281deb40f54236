"""Norms written out, adapted to a condition, and which norms have known parameters."""

import pytest
import torch
from torch import nn

from accuracy import draw_parameters
from perceivers.layers.norm import AdaptiveNorm, RMSNorm, known_norm, make_norm


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("eps", [None, 0.5])
def test_adaptive_norm_written_out(kind, eps):
    """norm(x) (1 + scale) + shift, with scale and shift from the SiLU of the condition; without a condition, norm(x)."""
    norm = draw_parameters(AdaptiveNorm(kind=kind, dim=6, eps=eps, condition_dim=4).double())
    x, condition = torch.randn(2, 5, 6).double() / 100, torch.randn(2, 4).double()  # small, so that the epsilon matters
    centred = x - x.mean(-1, keepdim=True) if kind == "layer_norm" else x
    eps = eps or (1e-5 if kind == "layer_norm" else 1e-6)
    wanted = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * norm.norm.weight
    wanted = wanted + norm.norm.bias if kind == "layer_norm" else wanted
    to = norm.to_scale_and_shift
    scale, shift = ((condition * condition.sigmoid()) @ to.weight.T + to.bias).chunk(2, -1)
    torch.testing.assert_close(norm(x, condition), wanted * (1 + scale[:, None]) + shift[:, None])
    plain = AdaptiveNorm(kind=kind, dim=6, eps=norm.norm.eps).double()
    plain.norm.load_state_dict(norm.norm.state_dict())
    torch.testing.assert_close(plain(x), wanted)


def test_rms_norm_computes_in_the_dtype_of_its_weights():
    norm, x = RMSNorm(6), torch.randn(2, 6)
    assert norm(x.bfloat16()).dtype == torch.float32
    assert norm.bfloat16()(x).dtype == torch.bfloat16


def test_unknown_kind():
    with pytest.raises(ValueError, match="norm='batch_norm' must be one of 'layer_norm', 'rms_norm'"):
        make_norm("batch_norm", 6)


def test_known_norms():
    assert known_norm("x", None) is None
    norm = nn.LayerNorm(3, eps=0.5)
    known = known_norm("x", norm)
    assert (known.weight, known.bias, known.eps, known.centred) == (norm.weight, norm.bias, 0.5, True)
    known = known_norm("x", nn.RMSNorm(3))
    assert (known.bias, known.eps, known.centred) == (None, torch.finfo(torch.float32).eps, False)
    assert known_norm("x", nn.LayerNorm(3, elementwise_affine=False)) == "x is a LayerNorm"
    assert known_norm("x", nn.LayerNorm((3, 4))) == "x is a LayerNorm"
    assert known_norm("x", nn.BatchNorm1d(3)) == "x is a BatchNorm1d"
