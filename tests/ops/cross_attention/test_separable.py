"""What the common tests do not reach: the operator by itself, large arrays, memory, the shapes it leaves alone."""

import math

import pytest
import torch

from accuracy import Case, assert_accurate, rms
from perceivers.ops.cross_attention import Norm, cross_attention, separable, tiles
from perceivers.ops.cross_attention.separable import separable_attention
from perceivers.ops.tokens import Positions, Tokens
from perceivers.position import FourierFeatures


def operands(lengths=(3, 4), index=False, masked=True):
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    axes = (7,) if index else lengths
    indices = torch.stack([torch.randint(n, (2, 7)) for n in lengths], -1) if index else None
    mask = torch.rand(2, *axes) > 0.3 if masked else None
    rho = (torch.rand(2, *axes, dtype=torch.float64) + 0.5).requires_grad_()
    return draw(2, 5, sum(lengths) + 3), draw(2, 3, *axes), rho, mask, indices, list(lengths)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_operator(index, masked):
    """Schema, fake tensors, autograd registration, and gradients of all three results."""
    arguments = operands(index=index, masked=masked)
    torch.library.opcheck(separable_attention, arguments)
    *tensors, mask, indices, lengths = arguments
    assert torch.autograd.gradcheck(lambda *x: separable_attention(*x, mask, indices, lengths), tensors)


def test_gradients_have_no_gradients():
    p, *rest = operands(index=False, masked=False)
    (grad,) = torch.autograd.grad(separable_attention(p, *rest)[0].square().sum(), p, create_graph=True)
    with pytest.raises(RuntimeError, match="separable_attention_backward has no gradients"):
        grad.sum().backward()


@pytest.mark.parametrize("case", [{}, {"content": 9}, {"content": 9, "grids": ((5, 3, 4),)}, {"content": 9, "indexed": True}])
def test_tiles_change_nothing(case, monkeypatch):
    """Nor do tiles of some rows of the first axis, which several queries share if there are many channels."""
    case = Case(**{"grids": ((7, 9),), "queries": 11, "masked": 0.3, **case})
    monkeypatch.setenv("PERCEIVERS_INSTRUCTION_SET", "none")
    whole = case.evaluate("separable", torch.float64)
    monkeypatch.setattr(tiles, "TILE", 130)
    monkeypatch.setattr(separable, "SHARING", 4)
    for name, value in case.evaluate("separable", torch.float64).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 255.0])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_content_of_any_size(scale, offset):
    """Bytes as content, and content far from zero: the variance is a sum of squares, so nothing cancels."""
    case = Case(grids=((16, 16),), queries=9)
    case.leaves["content_0"] = case.leaves["content_0"] * scale + offset
    truth, yardstick, ours = (
        case.call({n: x.to(dtype) for n, x in case.leaves.items()}, name)
        for name, dtype in (("reference", torch.float64), ("reference", torch.float32), ("separable", torch.float32))
    )
    allowed = max(4 * rms(yardstick.double() - truth), 1e-6 * truth.abs().max().item())
    assert rms(ours.double() - truth) <= allowed


def test_scores_of_ten_thousand():
    case = Case(grids=((16, 16),), queries=9, score=1e4)
    result = case.evaluate("separable", torch.float32)
    assert all(value.isfinite().all() for value in result.values())
    assert_accurate(Case(grids=((16, 16),), queries=9, score=100.0), "separable", torch.float32)


def test_accuracy_at_the_published_size():
    """224 x 224 images, 64 bands, 261 channels: the output against the definition in float64."""
    tables = FourierFeatures(num_bands=64, resolutions=(224, 224)).tables((224, 224), dtype=torch.float64, device="cpu")
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    q, content, w_k, w_v = draw(1, 1, 8, 261) * 3, draw(1, 3, 224, 224), draw(261, 261) / 16, draw(261, 261) / 16

    def out(dtype, implementation):
        tokens = Tokens(content.to(dtype), Positions([table.to(dtype) for table in tables]))
        norm = Norm(torch.ones(261, dtype=dtype), torch.zeros(261, dtype=dtype))
        arguments = (w_k.to(dtype), None, w_v.to(dtype), None)
        return cross_attention(q.to(dtype), [tokens], norm, *arguments, scale=261**-0.5, implementation=implementation)

    truth = out(torch.float64, "reference")
    torch.testing.assert_close(out(torch.float64, "separable"), truth, rtol=1e-10, atol=1e-12)
    ours, yardstick = (rms(out(torch.float32, name).double() - truth) for name in ("separable", "reference"))
    assert ours <= max(4 * yardstick, torch.finfo(torch.float32).eps * truth.abs().max().item())


def test_holds_neither_scores_nor_the_encoded_array():
    """At 256 x 256 with 64 latents the scores are 17 MB and the encoded array is 68 MB; tiles are 1 MB."""
    case = Case(grids=((256, 256),), batch=1, queries=64, table=128, content=3)
    leaves = {name: leaf.float().requires_grad_(name != "content_0") for name, leaf in case.leaves.items()}
    with torch.profiler.profile(profile_memory=True) as profile:
        case.call(leaves, "separable").sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events() if event.name.startswith("aten::"))
    assert 1e5 < largest < 8e6


@pytest.mark.parametrize("instruction_set", ["none", None])
def test_fully_masked_gives_minus_infinity(instruction_set, monkeypatch):
    if instruction_set:
        monkeypatch.setenv("PERCEIVERS_INSTRUCTION_SET", instruction_set)
    p, content, rho, mask, index, lengths = operands()
    mask[0] = False
    r, lse = separable_attention(p, content, rho, mask, index, lengths)
    assert (lse[0] == -math.inf).all()
    assert (r[0] == 0).all()
    assert r[1].abs().max() > 0.1
