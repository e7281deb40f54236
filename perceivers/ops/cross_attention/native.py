"""Calls the C kernel of `separable` (separable.c), where it was built.

It is an optional extension without headers of Python: a shared library beside this file, called by ctypes, which releases the
interpreter lock. `PERCEIVERS_INSTRUCTION_SET` (avx512, avx2, baseline, or none for no kernel) forces a path, for tests.

Letters: B batch, Q queries, U channels of content, L rows of all tables.
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from math import prod
from pathlib import Path

import torch
from torch import Tensor

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
MAX_AXES, MAX_CONTENT = 8, 16


class _Call(ctypes.Structure):
    """`Call` of separable.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "queries", "content_channels", "axes", "total_length", "inputs")),
        ("lengths", ctypes.c_int64 * MAX_AXES),
        ("content_strides", ctypes.c_int64 * (2 + MAX_AXES)),
        *((name, ctypes.c_void_p) for name in ("q", "t", "content", "rho", "mask", "lse", "offset", "grad_u", "grad_r")),
        *((name, ctypes.c_void_p) for name in ("out_u", "out_t", "out_lse")),
        ("threads", ctypes.c_int64),
    ]


@cache
def _library() -> ctypes.CDLL | str:
    """The kernel, or why there is none."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_separable{suffix}")
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                return f"{path.name} does not load: {error}"
    return "it was not built: there was no C compiler when perceivers was installed"


def instruction_set() -> str | None:
    """The path the kernel takes, or `None` where there is no kernel."""
    library = _library()
    forced = os.environ.get("PERCEIVERS_INSTRUCTION_SET")
    if isinstance(library, str) or forced == "none":
        return None
    found = library.perceivers_instruction_sets()
    available = [name for bit, name in enumerate(INSTRUCTION_SETS) if found >> bit & 1]
    if forced is not None and forced not in available:
        raise ValueError(
            f"PERCEIVERS_INSTRUCTION_SET={forced!r} must be none or one of {', '.join(available)} on this machine"
        )
    return forced or available[-1]


def description() -> str:
    """What is used, and why, in words."""
    library, name = _library(), instruction_set()
    if isinstance(library, str):
        return f"separable uses PyTorch: no C kernel, {library}"
    return f"separable uses its C kernel, {name}" if name else "separable uses PyTorch: PERCEIVERS_INSTRUCTION_SET=none"


def why_not(content: Tensor, dtype: torch.dtype, index: Tensor | None) -> str | None:
    """Says why the kernel cannot take these inputs, or `None` where it can."""
    if content.device.type != "cpu" or dtype not in (torch.float32, torch.float64):
        return "the C kernel is for CPUs, float32 and float64"
    if index is not None:
        return "the C kernel reads full grids, not index lists"
    if content.shape[1] > MAX_CONTENT or content.ndim - 2 > MAX_AXES:
        return f"the C kernel reads at most {MAX_CONTENT} channels of content and {MAX_AXES} axes"
    return None if instruction_set() else description()


def forward(
    q_BQU: Tensor, t_BQL: Tensor, content: Tensor, rho: Tensor, mask: Tensor | None, lengths: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `separable_attention`."""
    u_BQU, r_BQL, lse_BQ = (torch.empty(t.shape, dtype=t.dtype) for t in (q_BQU, t_BQL, t_BQL[..., 0]))
    _run(False, q_BQU, t_BQL, content, rho, mask, lengths, out_u=u_BQU, out_t=r_BQL, out_lse=lse_BQ)
    return u_BQU, r_BQL, lse_BQ


def backward(
    q_BQU: Tensor,
    t_BQL: Tensor,
    content: Tensor,
    rho: Tensor,
    mask: Tensor | None,
    lengths: Sequence[int],
    lse_BQ: Tensor,
    offset_BQ: Tensor,
    grad_u_BQU: Tensor,
    grad_r_BQL: Tensor,
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of queries and tables."""
    grad_q_BQU, grad_t_BQL = torch.empty(q_BQU.shape, dtype=q_BQU.dtype), torch.empty(t_BQL.shape, dtype=t_BQL.dtype)
    saved = {"lse": lse_BQ, "offset": offset_BQ, "grad_u": grad_u_BQU, "grad_r": grad_r_BQL}
    _run(True, q_BQU, t_BQL, content, rho, mask, lengths, **saved, out_u=grad_q_BQU, out_t=grad_t_BQL)
    return grad_q_BQU, grad_t_BQL


def _run(
    is_backward: bool,
    q_BQU: Tensor,
    t_BQL: Tensor,
    content: Tensor,
    rho: Tensor,
    mask: Tensor | None,
    lengths: Sequence[int],
    **arrays: Tensor,
) -> None:
    library, name = _library(), instruction_set()
    assert not isinstance(library, str)
    assert name is not None
    tensors = {"q": q_BQU, "t": t_BQL, "rho": rho, "mask": mask, **arrays}
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}
    call = _Call(
        samples=content.shape[0],
        queries=q_BQU.shape[1],
        content_channels=content.shape[1],
        axes=len(lengths),
        total_length=t_BQL.shape[2],
        inputs=prod(content.shape[2:]),
        lengths=tuple(lengths),
        content_strides=content.stride(),
        content=content.data_ptr(),
        threads=torch.get_num_threads(),
        **{key: tensor.data_ptr() for key, tensor in contiguous.items()},
    )
    path = INSTRUCTION_SETS.index(name)
    if library.perceivers_separable(ctypes.byref(call), int(is_backward), int(q_BQU.dtype == torch.float64), path):
        raise MemoryError("the C kernel of separable found no memory for a row of inputs")
