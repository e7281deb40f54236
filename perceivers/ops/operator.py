"""Custom operators, registered with PyTorch: opaque to its compiler and export, with formulas for gradients.

Like `torch.library.custom_op`, whose first call imports PyTorch's compiler (a second, 200 MB) even if nothing is compiled, and
which inspects the storage of every argument and result at each call.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("perceivers", "FRAGMENT")


def operator(
    fake: Callable[..., Any], backward: Callable[..., Any] | None = None, setup: Callable[..., None] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that registers a function of tensors as the operator `perceivers::` with its name.

    No result may be an argument, or a view of one.

    Args:
        fake: Maps fake tensors to fake results, see `torch.library.register_fake`.
        backward: A function of `(ctx, *grads)`, see `torch.library.register_autograd`; `None` if it has no gradients.
        setup: A function of `(ctx, inputs, output)` that saves what `backward` needs.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, _without_tracing(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"perceivers::{name}", fake, lib=_LIBRARY)
        torch.library.register_autograd(
            f"perceivers::{name}", backward or _no_gradients(name), setup_context=setup, lib=_LIBRARY
        )
        return getattr(torch.ops.perceivers, name).default

    return register


def _without_tracing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `torch.compiler.disable(function)`, but only once the compiler is imported, which `disable` would import."""

    def run(*arguments: Any) -> Any:
        nonlocal hidden
        if hidden is None and "torch._dynamo" in sys.modules:
            hidden = torch.compiler.disable(function)
        return (hidden or function)(*arguments)

    hidden: Callable[..., Any] | None = None
    return run


def _no_gradients(name: str) -> Callable[..., Any]:
    def backward(*_: Any) -> Any:
        raise RuntimeError(f"perceivers::{name} has no gradients: second derivatives are not implemented")

    return backward
