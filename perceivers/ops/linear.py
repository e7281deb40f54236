"""Linear layers by oneDNN where PyTorch's own way is slow: in float32 on AMD processors with AVX-512.

PyTorch's builds for x86 multiply float32 matrices by Intel's MKL, which on AMD processors uses half the width of the
registers. oneDNN, which is part of the same builds, uses all of it: twice as many FLOPs per second, forward and backward
(benchmarks/LOG.md). The results differ by roundings. `onednn(False)` turns it off, and so does
`torch.backends.mkldnn.enabled = False`; `why_not()` returns why it is not used on this machine.

Letters: R rows, C input channels, D output channels.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from perceivers.ops.operator import operator

LEAST_PRODUCTS = 1 << 23  # R C D, below which a call takes longer than it saves
LEAST_WEIGHTS = 1 << 18  # C D, the same for compiled graphs, which may be for any number of rows
MANY_ROWS = 8  # times the narrower side of a weight: its gradient is a few long sums, which PyTorch computes faster


class _State:
    """Whether oneDNN is used.

    Attributes:
        probed: Whether this machine was examined. That happens when a layer is made or `linear` is first called.
        reason: Why oneDNN is not used on this machine, or `None`.
        selected: What `onednn` selects; `None` for what pays on this machine.
    """

    probed = False
    reason: str | None = None
    selected: bool | None = None


@contextmanager
def onednn(enabled: bool) -> Iterator[None]:
    """Select whether `linear` multiplies by oneDNN, within a `with` block and in all threads.

    Args:
        enabled: False for never; True also on processors on which it is not faster, if this build of PyTorch has it.

    Raises:
        RuntimeError: If `enabled` is True and PyTorch's oneDNN is missing or cannot be called.
    """
    if enabled and (reason := _why_unusable()) is not None:
        raise RuntimeError(f"onednn(True) is not possible: {reason}; use onednn(False)")
    before, _State.selected = _State.selected, enabled
    try:
        yield
    finally:
        _State.selected = before


def why_not() -> str | None:
    """Return why `linear` is left to PyTorch on this machine, or `None` if oneDNN is used; examined once."""
    if not _State.probed:
        _State.reason, _State.probed = _why_slower() or _why_unusable(), True
    return _State.reason


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Project `[..., C]` to `[..., D]` by a weight `[D, C]` and a bias `[D]`: `torch.nn.functional.linear`."""
    if not (x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu") or not _is_used():
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting() or weight.numel() < LEAST_WEIGHTS or torch.is_autocast_enabled("cpu"):
            return F.linear(x, weight, bias)
        return compiled_linear(x, weight, bias)
    if x.numel() * len(weight) < LEAST_PRODUCTS or x.numel() == x.shape[-1] or not _is_plain(x, weight) or _is_observed():
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        x_RC = x.flatten(0, -2)
        out_RD: Any = _Product.apply(_Gradients.apply(x_RC, weight, bias), x_RC, weight, bias)
        return out_RD.view(*x.shape[:-1], len(weight))  # outside: a view that a function returns cannot be changed in place
    return _product(x, weight, bias)


def _is_used() -> bool:
    if _State.selected is not None:
        return _State.selected
    if torch.compiler.is_compiling():  # the probe cannot be traced; layers run it when they are made
        return _State.probed and _State.reason is None
    return why_not() is None


def _why_slower() -> str | None:
    """Return why oneDNN is not faster than PyTorch's own way on this machine, or `None` if it is."""
    if not torch.backends.mkl.is_available():
        return "this build of PyTorch does not multiply by MKL"
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "this processor, or PyTorch on it, has no AVX-512"
    vendor = platform.processor()
    with suppress(OSError):
        vendor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[0]
    if "AuthenticAMD" not in vendor:
        return "MKL is fast on this processor: it is not one of AMD's"
    return None


def _why_unusable() -> str | None:
    """Return why oneDNN cannot be called, or `None` if it can: by trying it."""
    if not torch.backends.mkldnn.is_available():
        return "this build of PyTorch has no oneDNN"
    one = torch.eye(2, device="cpu")
    with suppress(AttributeError, TypeError, RuntimeError):  # private names of PyTorch, which a release may change
        _is_observed(guarded=False)
        return None if torch.equal(_product(one, one), one) else "oneDNN's products are wrong"
    return f"PyTorch {torch.__version__} calls oneDNN in another way"


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Return True if neither a tensor subclass nor a setting of PyTorch's asks for `aten::linear`."""
    usual = (Tensor, nn.Parameter)
    enabled = torch.backends.mkldnn.enabled and not torch.is_autocast_enabled("cpu")
    return type(x) in usual and type(weight) in usual and enabled


def _is_observed(*, guarded: bool = True) -> bool:
    """Return True if a functorch transform, function or dispatch mode or forward-mode AD needs to see `aten::linear`.

    The names are private to PyTorch. True if a release has others, unless `guarded` is False: then `AttributeError`.
    """
    try:
        return (
            torch._C._are_functorch_transforms_active()
            or torch._C._is_torch_function_mode_enabled()
            or torch._C._len_torch_dispatch_stack() > 0
            or forward_ad._current_level >= 0
        )
    except AttributeError:
        if not guarded:
            raise
        return True


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not (weight.is_contiguous() or weight.mT.is_contiguous()):
        weight = weight.contiguous()  # others are a thousand times slower
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def _gradients(linear: Callable[..., Tensor], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return gradients with respect to x, weight and bias, computed with `linear` so that they are differentiable too."""
    x, weight = ctx.saved_tensors
    x_needs, weight_needs, bias_needs = ctx.needs_input_grad
    grad_RD, x_RC = grad.flatten(0, -2), x.flatten(0, -2)
    transposed = linear if len(x_RC) <= MANY_ROWS * min(weight.shape) else F.linear
    return (
        linear(grad, weight.mT, None) if x_needs else None,
        transposed(grad_RD.mT, x_RC.mT, None) if weight_needs else None,
        grad_RD.sum(0) if bias_needs else None,
    )


class _Gradients(torch.autograd.Function):
    """Saves what the gradients need, and returns a zero that stands for the product in the graph.

    Saving is a step before the product, as in PyTorch's own operations: activation checkpointing, which recomputes what was
    not saved, stops at the last thing to be saved and so skips the product of the last linear layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_zeros(()).expand(len(x), len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(linear, ctx, *grads)


class _Product(torch.autograd.Function):
    """Computes the product and passes its gradient to `zero`, the result of `_Gradients`, which makes those of the others."""

    @staticmethod
    def forward(ctx: Any, zero: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *grads, None, None, None


def _fake(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(compiled_linear, ctx, grad)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


@operator(_fake, _backward, _setup)
def compiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same, opaque to the compiler, which cannot call oneDNN with weights that change."""
    return _product(x, weight, bias)
