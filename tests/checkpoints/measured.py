"""Limits of the work and the memory that a block may take, by counts that do not depend on the machine's speed."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Calls of functions, in Python and in C, that loading a file may take; and how far the peak of memory may rise.
CALLS, MEGABYTES = 6_000_000, 100
GIGABYTES = 2  # what may be reserved; who asks for more gets an error


def status(name: str) -> float:
    """Megabytes of memory of this process on Linux; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1000


@contextmanager
def measured(name: str) -> Iterator[None]:
    """Fails if more calls are made, or more memory is taken, than is allowed; keeps a file from ending these tests."""
    calls, (soft, hard) = 0, resource.getrlimit(resource.RLIMIT_AS)

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event.endswith("call")

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    else:
        before = status("VmRSS")
    if size := status("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (int(size * 1e6) + GIGABYTES * 2**30, hard))
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        peak = status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    assert calls < CALLS, f"{name}: {calls:,} calls"
    assert peak - before < MEGABYTES, f"{name}: {peak - before:.0f} MB"
