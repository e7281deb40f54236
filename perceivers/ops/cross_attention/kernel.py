"""The C kernel of `separable` (kernels/separable.c), called with tensors, if it was built.

It is a shared library without Python headers, called by ctypes, which releases the interpreter lock. The environment variable
`PERCEIVERS_INSTRUCTION_SET` (avx512, avx2, baseline, or none for no kernel) forces a path, for tests.

Letters: B batch, Q queries, S rows of all tables and channels of content.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from perceivers.kernels import threads
from perceivers.kernels.loader import INSTRUCTION_SETS, description, instruction_set, library

MAX_AXES, MAX_CONTENT = 8, 16
CONTENT_TYPES = {torch.bfloat16: 1, torch.float16: 2}  # 0 is the type of all other arrays
FORWARD, BACKWARD, BACKWARD_INPUTS = range(3)


class _Call(ctypes.Structure):
    """The struct `Call` of separable.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "queries", "content_channels", "axes", "rows", "inputs")),
        ("lengths", ctypes.c_int64 * MAX_AXES),
        ("content_strides", ctypes.c_int64 * (2 + MAX_AXES)),
        ("content_type", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("p", "content", "rho", "mask", "lse", "offset", "grad")),
        *((name, ctypes.c_void_p) for name in ("out", "out_lse", "out_content", "out_rho")),
        ("threads", ctypes.c_int64),
        ("team", ctypes.c_void_p),
    ]


def why_not(content: Tensor, dtype: torch.dtype, index: Tensor | None) -> str | None:
    """Return why the kernel cannot take these inputs, or `None` if it can."""
    if content.device.type != "cpu" or dtype not in (torch.float32, torch.float64):
        return "the C kernel is for CPUs, float32 and float64"
    if index is not None:
        return "the C kernel reads full grids, not index lists"
    if content.shape[1] > MAX_CONTENT or not 2 <= content.ndim - 2 <= MAX_AXES:
        return f"the C kernel reads at most {MAX_CONTENT} channels of content and 2 to {MAX_AXES} axes"
    return None if instruction_set() else description()


@dataclass(frozen=True, eq=False)
class Operands:
    """The arguments of both forward and backward; `separable_attention` documents them."""

    p_BQS: Tensor
    content: Tensor
    rho: Tensor
    mask: Tensor | None
    lengths: Sequence[int]


def forward(operands: Operands) -> tuple[Tensor, Tensor]:
    """Compute `separable_attention`."""
    p_BQS = operands.p_BQS
    r_BQS, lse_BQ = p_BQS.new_empty(p_BQS.shape), p_BQS.new_empty(p_BQS.shape[:2])
    _run(FORWARD, operands, out=r_BQS, out_lse=lse_BQ)
    return r_BQS, lse_BQ


def backward(
    operands: Operands, lse_BQ: Tensor, offset_BQ: Tensor, grad_BQS: Tensor, inputs_too: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `separable_attention_backward`."""
    rho, saved = operands.rho, {"lse": lse_BQ, "offset": offset_BQ, "grad": grad_BQS}
    grad_p_BQS = operands.p_BQS.new_empty(operands.p_BQS.shape)
    _run(BACKWARD, operands, **saved, out=grad_p_BQS)
    grad_content, grad_rho = (rho.new_empty(x.shape if inputs_too else 0) for x in (operands.content, rho))
    if inputs_too:
        _run(BACKWARD_INPUTS, operands, **saved, out_content=grad_content, out_rho=grad_rho)
    return grad_p_BQS, grad_content, grad_rho


def _run(what: int, operands: Operands, **arrays: Tensor) -> None:
    kernel, name = library(), instruction_set()
    assert not isinstance(kernel, str)
    assert name is not None
    p_BQS, content = operands.p_BQS, operands.content
    tensors = {"p": p_BQS, "rho": operands.rho, "mask": operands.mask, **arrays}
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}
    call = _Call(
        samples=content.shape[0],
        queries=p_BQS.shape[1],
        content_channels=content.shape[1],
        axes=len(operands.lengths),
        rows=p_BQS.shape[2],
        inputs=prod(content.shape[2:]),
        lengths=tuple(operands.lengths),
        content_strides=content.stride(),
        content_type=CONTENT_TYPES.get(content.dtype, 0),
        content=content.data_ptr(),
        threads=torch.get_num_threads(),
        team=threads.team(),
        **{key: tensor.data_ptr() for key, tensor in contiguous.items()},
    )
    path = INSTRUCTION_SETS.index(name)
    if kernel.perceivers_separable(ctypes.byref(call), what, int(p_BQS.dtype == torch.float64), path):
        raise MemoryError("the C kernel of separable could not allocate memory for a row of inputs")
