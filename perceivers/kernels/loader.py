"""Find and load the C kernel of `separable`, without PyTorch, which takes seconds to import."""

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


@cache
def library() -> ctypes.CDLL | str:
    """Return the kernel, or why there is none."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).parent / f"_separable{suffix}"
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                return f"{path.name} does not load: {error}"
    return "it was not built: there was no C compiler when perceivers was installed"


def instruction_set() -> str | None:
    """Return the instruction set that the kernel uses, or `None` if there is no kernel."""
    kernel = library()
    forced = os.environ.get("PERCEIVERS_INSTRUCTION_SET")
    if isinstance(kernel, str) or forced == "none":
        return None
    found = kernel.perceivers_instruction_sets()
    available = [name for bit, name in enumerate(INSTRUCTION_SETS) if found >> bit & 1]
    if forced is not None and forced not in available:
        raise ValueError(
            f"PERCEIVERS_INSTRUCTION_SET={forced!r} must be none or one of {', '.join(available)} on this machine"
        )
    return forced or available[-1]


def description() -> str:
    """Return what is used, and why, in words."""
    kernel, name = library(), instruction_set()
    if isinstance(kernel, str):
        return f"separable uses PyTorch: no C kernel, {kernel}"
    return f"separable uses its C kernel, {name}" if name else "separable uses PyTorch: PERCEIVERS_INSTRUCTION_SET=none"
