"""PyTorch's own threads for the C kernel.

They spin for a while after each operation of PyTorch, so new threads would have to share their cores: separable attention
takes 4.1 ms on a team that is already there, and 8.4 ms on threads of its own. PyTorch offers no way to run C code on its
threads, but its Linux wheels use GNU's OpenMP, whose `GOMP_parallel` does. The environment variable `PERCEIVERS_OPENMP=0`
turns this off: then, and wherever the library is not found, the kernel starts its own threads. Results are the same bits.
"""

import ctypes
import os
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

LOADED_IN = os.getpid()


def team() -> int | None:
    """Return the address of GOMP_parallel, or `None` for threads of our own, such as in a forked child, which has no team."""
    return _address() if os.getpid() == LOADED_IN and os.environ.get("PERCEIVERS_OPENMP") != "0" else None


@cache
def _address() -> int | None:
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = library(lines)
    return None if found is None else ctypes.cast(ctypes.CDLL(found).GOMP_parallel, ctypes.c_void_p).value


def library(maps: Iterable[str]) -> str | None:
    """Return the path of PyTorch's GNU OpenMP library, given the lines of /proc/self/maps; `None` if it is not known."""
    paths = {line.split(maxsplit=5)[5] for line in maps if "libgomp" in line}
    if len(paths) > 1:  # other packages, such as scikit-learn, bring one of their own
        spec = find_spec("torch")
        folder = Path((spec and spec.origin) or "/").parent
        paths = {path for path in paths if Path(path).is_relative_to(folder) or Path(path).parent.name == "torch.libs"}
    return paths.pop() if len(paths) == 1 else None
