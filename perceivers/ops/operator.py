"""Operators of our own, registered with PyTorch: whole for its compiler and export, with formulas for gradients.

As `torch.library.custom_op`, whose first call imports PyTorch's compiler (a second, 200 MB) also where nobody compiles, and
which looks at the storage of every argument and result at each call.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("perceivers", "FRAGMENT")


def operator(
    fake: Callable[..., Any], backward: Callable[..., Any] | None = None, setup: Callable[..., None] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function of tensors the operator `perceivers::` with its name; no result may be an argument, or a view of one.

    Args:
        fake: What it returns, without numbers, given the same arguments without numbers.
        backward: Of `(ctx, *grads)`, see `torch.library.register_autograd`; `None` where its gradients have no gradients.
        setup: Of `(ctx, inputs, output)`, which saves what `backward` needs.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, _out_of_sight(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"perceivers::{name}", fake, lib=_LIBRARY)
        torch.library.register_autograd(
            f"perceivers::{name}", backward or _no_gradients(name), setup_context=setup, lib=_LIBRARY
        )
        return getattr(torch.ops.perceivers, name).default

    return register


def _out_of_sight(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `torch.compiler.disable`, which imports the compiler, but only once somebody else has."""

    def run(*arguments: Any) -> Any:
        nonlocal hidden
        if hidden is None and "torch._dynamo" in sys.modules:
            hidden = torch.compiler.disable(function)
        return (hidden or function)(*arguments)

    hidden: Callable[..., Any] | None = None
    return run


def _no_gradients(name: str) -> Callable[..., Any]:
    def backward(*_: Any) -> Any:
        raise RuntimeError(f"perceivers::{name} has no gradients: those of gradients are not written out")

    return backward
