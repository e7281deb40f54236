"""The C kernel of `separable`, on every instruction set of this machine; it must be built if PERCEIVERS_REQUIRE names it.

The common tests ask for all gradients; here, only parameters have gradients, which is what training asks for.
"""

import ctypes
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from accuracy import Case, assert_accurate
from perceivers.kernels import threads as team
from perceivers.ops.cross_attention import kernel, separable
from perceivers.ops.cross_attention.separable import separable_attention

REQUIRED = "kernel" in os.environ.get("PERCEIVERS_REQUIRE", "")
FOUND = kernel.instruction_set()
SETS = kernel.INSTRUCTION_SETS[: 1 + kernel.INSTRUCTION_SETS.index(FOUND)] if FOUND else ()

CASES = {
    "grid_7x9": {},
    "video_3x5x7_heads_3": {"grids": ((3, 5, 7),), "heads": 3},
    "volume_2x3x2x5": {"grids": ((2, 3, 2, 5),)},
    "two_groups": {"grids": ((7, 9), (3, 4))},
    "masked": {"masked": 0.4},
    "nothing_to_attend": {"masked": 0.4, "nothing": True},
    "one_query": {"queries": 1},
    "one_row": {"grids": ((1, 65),)},
    "columns_of_one": {"grids": ((65, 1),)},
    "content_1": {"content": 1},
    "content_5": {"content": 5, "grids": ((6, 33),)},
    "sharp_scores": {"score": 6.0},
    "very_sharp_scores": {"score": 100.0},
    "many_rows": {"grids": ((300, 17),), "queries": 9},
    "no_norm_no_bias": {"norm": False, "bias": False},
    "rows_of_70_vectors": {"grids": ((3, 1117),)},
}


def test_kernel_is_there():
    if FOUND is None:
        assert not REQUIRED, kernel.description()
        pytest.skip(kernel.description())
    assert kernel.description() == f"separable uses its C kernel, {FOUND}"


@pytest.fixture(params=SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setenv("PERCEIVERS_INSTRUCTION_SET", request.param)
    assert kernel.instruction_set() == request.param
    calls = []
    original = kernel._run
    monkeypatch.setattr(kernel, "_run", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    yield request.param
    assert calls, "the kernel was not called"


class ParametersOnly(Case):
    """A case whose content and tables are given: only queries, norm and projections have gradients."""

    def evaluate(self, implementation, dtype):
        floats = torch.float64 if dtype == torch.float64 else torch.float32
        leaves = {name: leaf.to(floats if name.startswith("table") else dtype) for name, leaf in self.leaves.items()}
        wanted = {name: leaf.requires_grad_() for name, leaf in leaves.items() if name[:5] not in ("conte", "table")}
        out = self.call(leaves, implementation)
        grads = torch.autograd.grad(out, list(wanted.values()), self.cotangent.to(out.dtype))
        return {"out": out.detach(), **dict(zip(wanted, grads, strict=True))}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accuracy(instruction_set, case):
    assert_accurate(ParametersOnly(**case), "separable", torch.float32)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float64_equals_reference(instruction_set, case):
    case = ParametersOnly(**case)
    ours, truth = case.evaluate("separable", torch.float64), case.evaluate("reference", torch.float64)
    for name, true in truth.items():
        torch.testing.assert_close(ours[name], true, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def operands(dtype=torch.float32, queries=37, grid=(21, 35), samples=3):
    draw = lambda *shape: torch.randn(*shape, dtype=dtype)  # noqa: E731
    mask = torch.rand(samples, *grid) > 0.2
    rho = torch.rand(samples, *grid, dtype=dtype) + 0.5
    return (draw(samples, queries, sum(grid) + 3), draw(samples, 3, *grid), rho, mask, None, list(grid))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_any_threads_and_batch(instruction_set, dtype):
    arguments = operands(dtype)
    whole = separable_attention(*arguments)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 200):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(separable_attention(*arguments), whole, strict=True))
    finally:
        torch.set_num_threads(threads)
    for b in range(3):
        one = [x[b : b + 1] if isinstance(x, torch.Tensor) else x for x in arguments]
        assert all(torch.equal(a[0], w[b]) for a, w in zip(separable_attention(*one), whole, strict=True))


def test_a_team_gives_the_same_bits_as_threads(instruction_set, monkeypatch):
    """PyTorch's own threads, if they can be had, or new ones."""
    arguments = operands()
    with_team = separable_attention(*arguments)
    monkeypatch.setattr(team, "team", lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(separable_attention(*arguments), with_team, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("floats", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_reads_half_precision(instruction_set, dtype, floats):
    """Every finite number of the type, infinities and NaN apart: what content.to(floats) gives."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype)
    numbers = torch.where(numbers.abs() < 1e3, numbers, torch.ones_like(numbers))
    content, grid = numbers.view(1, 2, 128, 256), (128, 256)
    p, rho = torch.randn(1, 5, sum(grid) + 2, dtype=floats) * 0.01, torch.ones(1, *grid, dtype=floats)
    halves, wanted = (separable_attention(p, c, rho, None, None, list(grid)) for c in (content, content.to(floats)))
    assert all(torch.equal(a, b) for a, b in zip(halves, wanted, strict=True))
    special = torch.full((1, 1, 4, 4), torch.inf, dtype=dtype)
    lse = separable_attention(p[..., :9].contiguous(), special, rho[:, :4, :4].contiguous(), None, None, [4, 4])[1]
    assert not lse.isfinite().any()


def powers(x, name):
    y = torch.empty_like(x)
    path = kernel.INSTRUCTION_SETS.index(name)
    kernel.library().perceivers_power(*(ctypes.c_void_p(t.data_ptr()) for t in (x, y)), ctypes.c_int64(len(x)), path)
    return y


def assert_powers_of_two(x, name):
    """Two units in the last place; zero below the normal numbers, where the vector types differ; no NaN but from NaN."""
    y, wanted = powers(x, name), torch.exp2(x.double())
    assert torch.equal(y.isnan(), x.isnan())
    normal = (x >= -126) & (x < 127)
    error = (y.double() - wanted)[normal].abs() / wanted[normal]
    assert error.numel() == 0 or error.max() <= 2 * 2.0**-23
    assert (y[x < -150] == 0).all()
    assert (y[(x < -126) & ~x.isnan()] <= 2.0**-126).all()


@pytest.mark.parametrize("name", SETS)
def test_exponential(name):
    assert_powers_of_two(
        torch.cat([torch.linspace(-200, 127, 1 << 18), torch.tensor([-torch.inf, torch.nan, 0.0, -0.0])]), name
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_exponential_of_every_float(name):
    """All 2^32 bit patterns up to 127: scores above the running maximum by more are never raised to a power."""
    for start in range(-(2**31), 2**31, 2**24):
        x = torch.arange(start, start + 2**24, dtype=torch.int64).to(torch.int32).view(torch.float32)
        assert_powers_of_two(x[~(x >= 127)], name)


def test_strided_and_overlapping_content(instruction_set):
    p, content, *rest = operands()
    wanted = separable_attention(p, content, *rest)
    channels_last = content.to(memory_format=torch.channels_last)
    flipped = content.transpose(2, 3).contiguous().transpose(2, 3)
    for view in (channels_last, flipped):
        assert not view.is_contiguous()
        assert all(torch.equal(a, b) for a, b in zip(separable_attention(p, view, *rest), wanted, strict=True))
    same = content[:1, :1].expand(3, 3, -1, -1)
    wanted = separable_attention(p, same.contiguous(), *rest)
    assert all(torch.equal(a, b) for a, b in zip(separable_attention(p, same, *rest), wanted, strict=True))


def test_infinite_and_nan_content_shows(instruction_set):
    """Without a mask nothing is hidden: a NaN in the content is a NaN in the result."""
    p, content, rho, _, *rest = operands()
    content[0, 0, 3, 4] = torch.nan
    r, lse = separable_attention(p, content, rho, None, *rest)
    assert r[0, :, -3:].isnan().any()
    assert lse[0].isnan().all()
    assert r[1:].isfinite().all()


def test_calls_from_several_threads(instruction_set):
    arguments = operands()
    wanted = separable_attention(*arguments)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: separable_attention(*arguments), range(20)):
            assert all(torch.equal(a, b) for a, b in zip(result, wanted, strict=True))


def test_calls_after_fork(instruction_set):
    """A child has none of the team's threads, and starts its own."""
    arguments = operands()
    wanted = separable_attention(*arguments)
    if hasattr(os, "fork") and threading.active_count() == 1:
        child = os.fork()
        if child == 0:
            same_call = kernel.Operands(*arguments[:4], arguments[5])
            same = all(torch.equal(a, b) for a, b in zip(kernel.forward(same_call), wanted, strict=True))
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_sums_over_many_inputs_keep_their_accuracy(instruction_set):
    """3840 x 2160 inputs, all alike, so that roundings add up: one float32 accumulator would be off by 1e-3."""
    grid, queries = (2160, 3840), 2
    content = torch.full((1, 1, *grid), 0.1)
    p = torch.zeros(1, queries, sum(grid) + 1)
    r, lse = separable_attention(p, content, torch.ones(1, *grid), None, None, list(grid))
    wanted = torch.cat([torch.full((n,), 1 / n) for n in grid] + [torch.full((1,), 0.1)])
    torch.testing.assert_close(r, wanted.expand_as(r), rtol=1e-6, atol=0)
    torch.testing.assert_close(lse.exp(), torch.full_like(lse, 2160 * 3840), rtol=1e-5, atol=0)


def test_environment_variable(monkeypatch):
    if FOUND is None:
        pytest.skip(kernel.description())
    monkeypatch.setenv("PERCEIVERS_INSTRUCTION_SET", "none")
    assert kernel.instruction_set() is None
    assert "PERCEIVERS_INSTRUCTION_SET=none" in kernel.description()
    monkeypatch.setenv("PERCEIVERS_INSTRUCTION_SET", "sse9")
    with pytest.raises(ValueError, match="PERCEIVERS_INSTRUCTION_SET='sse9' must be none or one of baseline"):
        kernel.instruction_set()


def test_without_the_kernel(monkeypatch):
    """The PyTorch path gives the same and says why it is used."""
    monkeypatch.setenv("PERCEIVERS_INSTRUCTION_SET", "none")
    assert_accurate(ParametersOnly(grids=((9, 17),)), "separable", torch.float32)
    content = torch.zeros(1, 17, 2, 2)
    assert "PERCEIVERS_INSTRUCTION_SET=none" in kernel.why_not(content[:, :3], torch.float32, None)
    assert "at most 16 channels" in kernel.why_not(content, torch.float32, None)
    assert "float32 and float64" in kernel.why_not(content, torch.bfloat16, None)
    assert "not index lists" in kernel.why_not(content, torch.float32, content)
    assert "2 to 8 axes" in kernel.why_not(content[:, :3, 0], torch.float32, None)
    assert separable.kernel is kernel
