"""Linear maps by oneDNN: the same numbers as PyTorch's to rounding, wherever nobody else looks on, and only there."""

import contextlib
import time
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from perceivers.layers.linear import Linear
from perceivers.ops import linear as module
from perceivers.ops.linear import compiled_linear, linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")

SHAPES = [([400], 261, 261), ([2, 260], 256, 130), ([3, 5, 40], 256, 300), ([9000], 64, 64), ([2], 3000, 3000)]


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the products that oneDNN makes, on any machine that has it."""
    seen, product = [], module._product
    monkeypatch.setattr(module, "WHY_NOT", None)
    monkeypatch.setattr(module, "_product", lambda x, *rest: (seen.append(tuple(x.shape)), product(x, *rest))[1])
    return seen


def leaves(rows, channels, width, dtype=torch.float32) -> list[torch.Tensor]:
    shapes = [*rows, channels], [width, channels], [width]
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def results(function, x, weight, bias):
    """The output, gradients, and a gradient of these."""
    out = function(x, weight, bias)
    inner = torch.autograd.grad(out.sin().sum(), (x, weight, bias), create_graph=True)
    outer = torch.autograd.grad(torch.cat([g.flatten() for g in inner]).square().sum(), (x, weight))
    return [out, *inner, *outer]


@pytest.mark.parametrize(("rows", "channels", "width"), SHAPES)
def test_numbers(products, rows, channels, width):
    x, weight, bias = leaves(rows, channels, width)
    ours, usual = results(linear, x, weight, bias), results(F.linear, x, weight, bias)
    truth = results(F.linear, *(leaf.detach().double().requires_grad_() for leaf in (x, weight, bias)))
    assert products[0] == (x.shape[:-1].numel(), channels)
    assert len(products) >= 3
    for mine, theirs, true in zip(ours, usual, truth, strict=True):
        floor = torch.finfo(torch.float32).eps * true.abs().max()
        assert (mine - true).abs().max() <= 4 * torch.maximum((theirs - true).abs().max(), floor)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_needed(products, needs):
    arguments = [leaf.requires_grad_(need) for leaf, need in zip(leaves([512], 256, 256), needs, strict=True)]
    linear(*arguments).sum().backward()
    assert [leaf.grad is not None for leaf in arguments] == list(needs)
    assert len(products) == (1 if needs[2] else 2)


def test_without_bias_and_without_gradients(products):
    x, weight, _ = leaves([512], 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)
    out = linear(x, weight)
    assert out.requires_grad
    out.sum().backward()
    assert weight.grad is not None
    assert len(products) == 4


def test_results_can_be_changed_in_place(products):
    x, weight, bias = leaves([2, 300], 256, 256)
    ours, usual = (f(x, weight, bias).add_(1).relu_() for f in (linear, F.linear))
    torch.testing.assert_close(ours, usual, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(*(torch.autograd.grad(y.square().sum(), (x, weight)) for y in (ours, usual)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-2)
    assert len(products) == 3


def test_activation_checkpointing_does_not_make_the_last_product_again(products):
    x, weight, bias = leaves([2, 300], 256, 256)
    two = lambda x: linear(linear(x, weight, bias).sin(), weight, bias)  # noqa: E731
    checkpoint(two, x, use_reentrant=False).sum().backward()
    assert len(products) == 7  # two, one of them again, and two gradients of each
    assert torch.equal(x.grad, torch.autograd.grad(two(x).sum(), x)[0])


def test_strided_arguments(products):
    x, weight, bias = (leaf.detach() for leaf in leaves([2, 300], 512, 512))
    for strided in (x[..., ::2], x.mT.contiguous().mT[..., :256], x.flip(-1)[..., :256], x[:, :1, :256].expand(2, 300, 256)):
        torch.testing.assert_close(
            linear(strided, weight[:, 256:], bias), F.linear(strided, weight[:, 256:], bias), rtol=1e-5, atol=1e-4
        )
    assert len(products) == 4


@pytest.mark.parametrize("columns", [slice(3, 515), slice(None, None, 2)])
def test_strided_weights_are_as_fast(products, columns):
    x, weight = torch.randn(512, 512), torch.randn(512, 1024)[:, columns]
    start = time.perf_counter()
    linear(x, weight)
    assert time.perf_counter() - start < 0.6  # 2 ms, against 1.3 s without a copy
    assert products


def test_many_rows_and_the_gradient_of_a_weight(products):
    rows = module.MANY_ROWS * 256
    linear(*leaves([rows], 256, 300)).sum().backward()
    assert products == [(rows, 256), (rows, 300), (300, rows)]
    products.clear()
    linear(*leaves([rows + 1], 256, 300)).sum().backward()
    assert products == [(rows + 1, 256), (rows + 1, 300)]


@pytest.mark.parametrize("why", ["off", "small", "one row", "none", "float64", "mixed", "another processor"])
def test_left_to_pytorch(why, products, monkeypatch):
    rows = {"small": [10], "one row": [1, 1], "none": [0]}.get(why, [512])
    x, weight, bias = leaves(rows, 8192 if why == "one row" else 256, 8192 if why == "one row" else 256)
    if why == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    if why == "another processor":
        monkeypatch.setattr(module, "WHY_NOT", "this processor is another one")
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", why != "off")
    if why == "mixed":
        with pytest.raises(RuntimeError):
            linear(x.double(), weight, bias)
    else:
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not products


def test_why_not(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(module.Path, "read_text", lambda *_, **__: "vendor_id : AuthenticAMD")
    assert module._why_not() is None
    with monkeypatch.context() as renamed:
        renamed.delattr(torch._C, "_len_torch_dispatch_stack")
        assert module._why_not() == f"PyTorch {torch.__version__} calls oneDNN in another way"
    monkeypatch.setattr(module, "_product", lambda *_: (_ for _ in ()).throw(TypeError))
    assert module._why_not() == f"PyTorch {torch.__version__} calls oneDNN in another way"
    monkeypatch.setattr(module, "_product", lambda x, weight: x + weight)
    assert module._why_not() == "oneDNN's products are wrong"
    monkeypatch.setattr(module.Path, "read_text", lambda *_, **__: "vendor_id : GenuineIntel")
    assert module._why_not() == "MKL uses this processor well: it is not AMD's"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert "no AVX-512" in module._why_not()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert "MKL" in module._why_not()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert module._why_not() == "this build of PyTorch has no oneDNN"


def test_autocast(products):
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*leaves([512], 256, 256)).dtype == torch.bfloat16
    assert not products


class Functions(TorchFunctionMode):
    """Notes which functions are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # of torch.func.jvp
def test_transforms_and_onlookers_see_the_usual_operation(products):
    x, weight, bias = (leaf.detach() for leaf in leaves([2, 512], 256, 256))
    assert torch.vmap(linear, (0, None, None))(x, weight, bias).shape == (2, 512, 256)
    tangent = torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (x,))[1]
    torch.testing.assert_close(tangent, F.linear(x, weight), rtol=1e-5, atol=1e-4)
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * 1024 * 256 * 256
    with Functions() as functions:
        linear(x, weight, bias)
    assert F.linear in functions.seen
    with torch.autograd.forward_ad.dual_level():
        linear(x, weight, bias)
    assert not products


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_bitwise_the_same_for_any_thread_count_and_batch(products):
    x, weight, bias = leaves([3, 512], 261, 261)
    outs = []
    for count in (1, 2, 3):
        with threads(count):
            out = linear(x, weight, bias)
            outs.append([out, *torch.autograd.grad(out.sin().sum(), (x, weight, bias))])
    for other in outs[1:]:
        assert all(map(torch.equal, outs[0], other))
    assert torch.equal(linear(x[1:2], weight, bias), outs[0][0][1:2])
    assert len(products) == 10


def test_operator(products):
    for x, weight, bias in (leaves([20], 30, 40), leaves([2, 3, 4], 5, 6)):
        torch.library.opcheck(compiled_linear, (x, weight, bias))
        torch.library.opcheck(compiled_linear, (x, weight.detach(), None))


def test_compiled_graphs_use_it(products):
    if torch.compile(lambda x: x + torch.compiler.is_exporting(), backend="eager")(torch.zeros(())):
        pytest.skip("this PyTorch (2.11 does) says that it exports whenever it compiles: compiled graphs keep its own way")
    model = torch.nn.Sequential(Linear(512, 512), torch.nn.GELU(), Linear(512, 512))
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for rows in (600, 700):
        x = torch.randn(rows, 512)
        ours = torch.autograd.grad(compiled(x).sin().sum(), list(model.parameters()))
        assert (rows, 512) in products
        products.clear()
        for mine, theirs in zip(ours, torch.autograd.grad(model(x).sin().sum(), list(model.parameters())), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        products.clear()


def test_exported_programs_have_the_usual_operation(products):
    program = torch.export.export(Linear(512, 512), (torch.randn(600, 512),))
    assert "aten.linear.default" in {str(node.target) for node in program.graph.nodes}
    assert not products
