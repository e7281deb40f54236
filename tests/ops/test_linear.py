"""Linear layers by oneDNN: the same as PyTorch's to rounding, unless a transform or mode needs to see the operation."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
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
    monkeypatch.setattr(module._State, "probed", True)
    monkeypatch.setattr(module._State, "reason", None)
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


def test_nothing_is_filled_in_afterwards(products):
    """The result is the tensor that oneDNN made; what stands for it in the graph is one zero."""
    x, weight, bias = leaves([300], 256, 256)
    zero = module._Gradients.apply(x, weight, bias)
    assert (zero == 0).all()
    assert zero.shape == (300, 256)
    assert zero.untyped_storage().nbytes() == 4
    out = linear(x, weight, bias)
    assert out.untyped_storage().nbytes() == 4 * out.numel()


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


class Weights(TorchDispatchMode):
    """Notes the strides of the weights that oneDNN is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.strides: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.strides.append(args[1].stride())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("columns", [slice(3, 515), slice(None, None, 2)])
def test_strided_weights_are_copied(products, columns):
    """oneDNN takes 1.3 s instead of 2 ms for weights that are neither contiguous nor transposed."""
    x, weight = torch.randn(512, 512), torch.randn(512, 1024)[:, columns]
    with Weights() as weights:
        module._product(x, weight)
        module._product(x, torch.randn(512, 512).mT)
    assert weights.strides == [(512, 1), (1, 512)]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-3)
    assert len(products) == 3


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
        monkeypatch.setattr(module._State, "reason", "this processor is another one")
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", why != "off")
    if why == "mixed":
        with pytest.raises(RuntimeError):
            linear(x.double(), weight, bias)
    else:
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not products


@pytest.fixture
def unprobed(monkeypatch):
    monkeypatch.setattr(module._State, "probed", False)
    monkeypatch.setattr(module._State, "reason", None)


def amd(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(module.Path, "read_text", lambda *_, **__: "vendor_id : AuthenticAMD")


def test_why_not(monkeypatch, unprobed):
    def why_not():
        monkeypatch.setattr(module._State, "probed", False)
        return module.why_not()

    amd(monkeypatch)
    assert why_not() is None
    with monkeypatch.context() as renamed:
        renamed.delattr(torch._C, "_len_torch_dispatch_stack")
        assert why_not() == f"PyTorch {torch.__version__} calls oneDNN in another way"
    with monkeypatch.context() as renamed:
        renamed.setattr(module, "_product", lambda *_: (_ for _ in ()).throw(TypeError))
        assert why_not() == f"PyTorch {torch.__version__} calls oneDNN in another way"
    with monkeypatch.context() as wrong:
        wrong.setattr(module, "_product", lambda x, weight: x + weight)
        assert why_not() == "oneDNN's products are wrong"
    with monkeypatch.context() as missing:
        missing.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert why_not() == "this build of PyTorch has no oneDNN"
    monkeypatch.setattr(module.Path, "read_text", lambda *_, **__: "vendor_id : GenuineIntel")
    assert why_not() == "MKL is fast on this processor: it is not one of AMD's"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert "no AVX-512" in why_not()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert "MKL" in why_not()


def test_the_machine_is_examined_once_and_not_at_import(monkeypatch, unprobed):
    code = "import perceivers, perceivers.layers; from perceivers.ops import linear; print(linear._State.probed)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
    probes = []
    monkeypatch.setattr(module, "_why_slower", lambda: probes.append(1) or "this machine is slow")
    Linear(3, 4)  # so that a compiled graph, in which the probe cannot run, knows the answer
    assert module._State.probed
    assert module.why_not() == "this machine is slow"
    linear(torch.randn(512, 256), torch.randn(256, 256))
    assert probes == [1]


def test_private_names_that_a_release_changes_mean_pytorchs_own_way(monkeypatch, products):
    x, weight, bias = leaves([512], 256, 256)
    monkeypatch.delattr(torch._C, "_are_functorch_transforms_active")
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not products
    with pytest.raises(RuntimeError, match=r"onednn\(True\) is not possible: PyTorch .* calls oneDNN in another way"):
        module.onednn(True).__enter__()


@pytest.mark.parametrize("pays", [True, False])
def test_onednn_can_be_turned_off_and_on(monkeypatch, products, pays):
    monkeypatch.setattr(module._State, "reason", None if pays else "it is slow here")
    x, weight, bias = leaves([512], 256, 256)
    with module.onednn(False):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        assert not products
        with module.onednn(True):
            linear(x, weight, bias)
            assert products.count((512, 256)) == 1
    products.clear()
    linear(x, weight, bias)
    assert bool(products) == pays
    with pytest.raises(ZeroDivisionError), module.onednn(False):
        raise ZeroDivisionError
    assert module._State.selected is None


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
def test_transforms_and_modes_see_the_usual_operation(products):
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


def test_compiled_graphs_follow_the_context_manager(products):
    compiled = torch.compile(Linear(512, 512), fullgraph=True, backend="aot_eager")
    x = torch.randn(600, 512)
    with module.onednn(False):
        compiled(x)
        assert not products


def test_exported_programs_have_the_usual_operation(products):
    program = torch.export.export(Linear(512, 512), (torch.randn(600, 512),))
    assert "aten.linear.default" in {str(node.target) for node in program.graph.nodes}
    assert not products
