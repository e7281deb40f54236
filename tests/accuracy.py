"""The accuracy rule: truth is the reference in float64, the yardstick the reference's own error in the tested dtype.

An implementation passes if its error, on the output and on every gradient, is at most 4 times (root mean square) and 8
times (largest) the error of the reference run in that dtype, with a floor of eps * max|truth|. If the truth is
identically zero, as the gradient of the key bias is, the floor is eps times the largest gradient of the call.

`IMPLEMENTATIONS` here are the names of those that take projected queries, as layers pass them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.ops.cross_attention import IMPLEMENTATIONS as TABLE
from perceivers.ops.cross_attention import Call, Norm, cross_attention
from perceivers.ops.tokens import Positions, Tokens

FLOAT32 = ("table", "embedding", "constant")  # leaves that half precision leaves alone


@dataclass
class Case:
    """One call of the cross-attention in float64, with everything random and everything differentiable."""

    grids: Sequence[Sequence[int]] = ((7, 9),)
    batch: int = 2
    heads: int = 1
    queries: int = 5
    content: int = 3
    table: int = 7
    k: int = 16
    v: int = 16
    norm: bool = True
    bias: bool = True
    masked: float = 0.0
    nothing: bool = False
    indexed: bool = False
    score: float = 1.0
    centred: bool = True
    embedded: int | None = None  # channels of a linear projection of the content
    starts: Sequence[int] | None = None  # of the tables
    constant: bool = False
    per_sample: bool = False  # tables that differ between samples
    leaves: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
        axes = len(self.grids[0])
        width = self.embedded or self.content
        starts = self.starts or [width + a * self.table for a in range(axes)]
        channels = max([width, *(start + self.table for start in starts)]) + 2 * self.constant
        # Large enough that queries attend to different inputs and every gradient is well above rounding.
        self.leaves = {
            "q": draw(self.batch, self.heads, self.queries, self.k) * self.score,
            "w_k": draw(self.heads * self.k, channels) / channels**0.5,
            "w_v": draw(self.heads * self.v, channels) / channels**0.5,
        }
        if self.norm:
            self.leaves |= {"gamma": 1 + 0.3 * draw(channels), "beta": draw(channels)}
        if self.bias:
            self.leaves |= {"b_k": draw(self.heads * self.k), "b_v": draw(self.heads * self.v)}
        if self.embedded:
            self.leaves["embedding"] = draw(self.embedded, self.content)
        if self.constant:
            self.leaves["constant"] = draw(channels)
        self.masks: list[Tensor | None] = []
        self.indices: list[Tensor | None] = []
        for g, grid in enumerate(self.grids):
            for a, length in enumerate(grid):
                self.leaves[f"table_{g}{a}"] = draw(*([self.batch] * self.per_sample), length, self.table)
            shape: Sequence[int] = grid
            self.indices.append(None)
            if self.indexed:
                shape = [11]
                self.indices[-1] = torch.stack([torch.randint(n, (self.batch, 11)) for n in grid], dim=-1)
            self.leaves[f"content_{g}"] = draw(self.batch, self.content, *shape)
            mask = torch.rand(self.batch, *shape) >= self.masked if self.masked or self.nothing else None
            if self.nothing and mask is not None:
                mask[0] = False
            self.masks.append(mask)
        self.cotangent = draw(self.batch, self.heads, self.queries, self.v)

    def arguments(self, leaves: dict[str, Tensor], **kwargs) -> dict[str, Any]:
        """Return leaves of any dtype as arguments of `cross_attention`."""
        groups = []
        for g, grid in enumerate(self.grids):
            tables = [leaves[f"table_{g}{a}"] for a in range(len(grid))]
            positions = Positions(tables, self.indices[g], self.starts)
            affine = (leaves.get("embedding"), leaves.get("constant"))
            groups.append(Tokens(leaves[f"content_{g}"], positions, self.masks[g], *affine))
        norm = Norm(leaves["gamma"], leaves["beta"], centred=self.centred) if self.norm else None
        weights = {name: leaves.get(name) for name in ("w_k", "b_k", "w_v", "b_v")}
        return {"q_BHNK": leaves["q"], "inputs": groups, "norm": norm, **weights, "scale": self.k**-0.5, **kwargs}

    def make(self, leaves: dict[str, Tensor], **kwargs) -> Call:
        """Return leaves of any dtype as a call."""
        arguments = self.arguments(leaves, **kwargs)
        return Call.of(arguments.pop("q_BHNK"), **arguments)

    def call(self, leaves: dict[str, Tensor], implementation: str, **kwargs) -> Tensor:
        """Run the operation."""
        return cross_attention(**self.arguments(leaves, **kwargs), implementation=implementation)

    def refused(self, implementation: str, **kwargs) -> bool:
        """Return True if an implementation cannot compute this call; it must then say so when it is named."""
        reason = TABLE[implementation].refusal(self.make(self.leaves, **kwargs))
        if reason is None:
            return False
        with pytest.raises(ValueError, match=re.escape(reason)):
            self.call(self.leaves, implementation, **kwargs)
        return True

    def evaluate(self, implementation: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the output and the gradient of every leaf, computed in `dtype`; positions stay at least float32."""
        at_least_float32 = torch.float64 if dtype == torch.float64 else torch.float32
        leaves = {
            name: leaf.to(at_least_float32 if name.startswith(FLOAT32) else dtype).requires_grad_()
            for name, leaf in self.leaves.items()
        }
        out = self.call(leaves, implementation)
        grads = torch.autograd.grad(out, list(leaves.values()), self.cotangent.to(out.dtype))
        return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


IMPLEMENTATIONS = [name for name in TABLE if not Case().refused(name)]


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.square().mean().sqrt().item()


def assert_accurate(case: Case, implementation: str, dtype: torch.dtype) -> None:
    """Apply the rule to the output and to every gradient."""
    truth = case.evaluate("reference", torch.float64)
    yardstick = case.evaluate("reference", dtype)
    result = case.evaluate(implementation, dtype)
    eps = torch.finfo(dtype).eps
    largest_gradient = max(value.abs().max().item() for name, value in truth.items() if name != "out")
    for name, true in truth.items():
        scale = true.abs().max().item()
        if name == "b_k" or (case.nothing and case.batch == 1):  # cancels in the softmax; rounding remains
            assert scale < 1e-10 * largest_gradient, name
            scale = largest_gradient
        else:
            assert scale >= 0.1, f"{name}: a gradient this small ({scale:.2g}) tests nothing"
        error, allowed = result[name].double() - true, yardstick[name].double() - true
        assert result[name].dtype == yardstick[name].dtype
        assert rms(error) <= max(4 * rms(allowed), eps * scale), f"{name}: rms {rms(error):.2g}, {rms(allowed):.2g}"
        most, allowed_most = error.abs().max().item(), allowed.abs().max().item()
        assert most <= max(8 * allowed_most, eps * scale), f"{name}: max {most:.2g}, {allowed_most:.2g}"


def draw_parameters(module: torch.nn.Module, scale: Callable[[Tensor], float] | None = None) -> torch.nn.Module:
    """Draw every parameter at random, also those initialised to zero or one: a zero head makes every law hold."""
    with torch.no_grad():
        for parameter in module.parameters():
            fan = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.normal_(std=scale(parameter) if scale else fan**-0.5)
    return module


def assert_varies(out: Tensor) -> None:
    """Fail if the samples of a batch give the same: such a result would make every law hold."""
    assert (out[0] - out[1]).abs().max() > 1e-3 * out.abs().max()
