"""Limits of the work and the memory that a block may take, by counts that do not depend on the machine's speed."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Calls of functions, in Python and in C, that loading a file may take; how far the peak of memory may rise; and what may be
# reserved before there is an error, which keeps a file from ending these tests.
CALLS, MEGABYTES, GIGABYTES = 6_000_000, 100, 2
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def megabytes(name: str) -> float:
    """Memory of this process by its name in `STATUS`; elsewhere the peak since the process began."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return next(float(line.split()[1]) / 1000 for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))


@contextmanager
def measured(name: str) -> Iterator[None]:
    """Fails if more calls are made, or more memory is taken, than is allowed."""
    calls, (soft, hard) = 0, resource.getrlimit(resource.RLIMIT_AS)

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event.endswith("call")

    if STATUS.exists():
        with suppress(OSError):
            PEAK.write_text("5")  # the peak begins anew
        resource.setrlimit(resource.RLIMIT_AS, (int(megabytes("VmSize") * 1e6) + GIGABYTES * 2**30, hard))
    before = megabytes("VmHWM")
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        peak = megabytes("VmHWM")
    assert calls < CALLS, f"{name}: {calls:,} calls"
    assert peak - before < MEGABYTES, f"{name}: {peak - before:.0f} MB"
