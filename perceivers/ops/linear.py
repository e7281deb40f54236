"""Linear maps, by oneDNN where PyTorch's own way is slow: in float32 on AMD's processors with AVX-512.

PyTorch's builds for x86 multiply float32 matrices by Intel's MKL, which on AMD's processors uses half the width of the
registers. oneDNN, which is part of the same builds, uses all of it: twice as many FLOPs a second, forward and backward
(benchmarks/LOG.md). The results differ by roundings. `torch.backends.mkldnn.enabled = False` turns it off here as everywhere.

Letters: R rows, C channels in, D channels out.
"""

import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from perceivers.ops.operator import operator

LEAST_PRODUCTS = 1 << 23  # R C D, below which a call takes longer than it saves
LEAST_WEIGHTS = 1 << 18  # C D, the same for compiled graphs, which may be for any number of rows
MANY_ROWS = 8  # times the narrower side of a weight: its gradient is a few long sums, which PyTorch makes faster


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Maps `[..., C]` to `[..., D]` by a weight `[D, C]` and a bias `[D]`: `torch.nn.functional.linear`."""
    if WHY_NOT is not None or not (x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"):
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting() or weight.numel() < LEAST_WEIGHTS or torch.is_autocast_enabled("cpu"):
            return F.linear(x, weight, bias)
        return compiled_linear(x, weight, bias)
    if x.numel() * len(weight) < LEAST_PRODUCTS or x.numel() == x.shape[-1] or not _plain(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        x_RC = x.flatten(0, -2)
        out_RD: Any = _Linear.apply(x_RC, weight, bias)
        with torch.no_grad():
            out_RD.data = _product(x_RC, weight, bias)
        return out_RD.view(*x.shape[:-1], len(weight))  # outside, for a view that a function returns cannot change in place
    return _product(x, weight, bias)


def _why_not() -> str | None:
    """Says why linear maps are left to PyTorch on this machine, or `None` where oneDNN makes them."""
    if not torch.backends.mkldnn.is_available():
        return "this build of PyTorch has no oneDNN"
    if not torch.backends.mkl.is_available():
        return "this build of PyTorch does not multiply by MKL"
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "this processor, or PyTorch on it, has no AVX-512"
    vendor = platform.processor()
    with suppress(OSError):
        vendor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[0]
    if "AuthenticAMD" not in vendor:
        return "MKL uses this processor well: it is not AMD's"
    one = torch.eye(2, device="cpu")
    with suppress(AttributeError, TypeError, RuntimeError):  # PyTorch's private names, which a release may change
        _plain(one, one)
        return None if torch.equal(_product(one, one), one) else "oneDNN's products are wrong"
    return f"PyTorch {torch.__version__} calls oneDNN in another way"


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Whether nobody looks on or steps in, who would miss the usual operation."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_torch_function_mode_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not (weight.is_contiguous() or weight.mT.is_contiguous()):
        weight = weight.contiguous()  # others take a thousand times as long
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


WHY_NOT = _why_not()


def _gradients(linear: Callable[..., Tensor], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, weight and bias: linear maps again, so that they have gradients in their turn."""
    x, weight = ctx.saved_tensors
    x_needs, weight_needs, bias_needs = ctx.needs_input_grad
    grad_RD, x_RC = grad.flatten(0, -2), x.flatten(0, -2)
    transposed = linear if len(x_RC) <= MANY_ROWS * min(weight.shape) else F.linear
    return (
        linear(grad, weight.mT, None) if x_needs else None,
        transposed(grad_RD.mT, x_RC.mT, None) if weight_needs else None,
        grad_RD.sum(0) if bias_needs else None,
    )


class _Linear(torch.autograd.Function):
    """Keeps what the gradients need, and leaves the product to the caller.

    So it is kept before the product is made, as PyTorch's own operations do: activation checkpointing, which makes again what
    was not kept, stops at the last thing to be kept and spares the product of the last linear map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_empty_strided((len(x), len(weight)), (0, 0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(linear, ctx, *grads)


def _fake(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(compiled_linear, ctx, grad)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


@operator(_fake, _backward, _setup)
def compiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same, opaque for the compiler, which has no way of its own to call oneDNN with weights that change."""
    return _product(x, weight, bias)
