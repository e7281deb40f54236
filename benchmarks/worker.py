"""The child process of `benchmarks.processes`: builds one subject and calls it on request.

    python -m benchmarks.worker SUBJECT CASE THREADS BUDGET

It runs in the environments of other libraries, so its imports need nothing but PyTorch and that library.
"""

import gc
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import MODES, Subject
from benchmarks.peers import PEERS


def main() -> None:
    """Build the subject, then serve one request per line of standard input; every answer is one line of JSON."""
    subject, case, threads, budget = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library may print, but not among the answers

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    torch.set_num_threads(int(threads))
    module = importlib.import_module(f"benchmarks.peers.{subject}")
    if int(budget):
        resource.setrlimit(resource.RLIMIT_DATA, (int(budget), int(budget)))
    try:
        held = Subject(*module.build(torch.load(case, weights_only=True)))
        gc.collect()
        forget_peak()
        answer(version=version(subject), held_mib=peak_mib())
        for line in sys.stdin:
            request, start = line.strip(), time.perf_counter()
            if request in MODES:
                held.call(request)
            else:  # a path to write the results to
                torch.save(held.results(), request)
            answer(ms=(time.perf_counter() - start) * 1e3, peak_mib=peak_mib())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        answer(failed="out of memory")


def peak_mib() -> float:
    """Return the peak memory of this process so far, or since `forget_peak`, in MiB.

    Linux reports it in /proc. Elsewhere it is `ru_maxrss`, which includes the parent's memory when it started the process.
    """
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def forget_peak() -> None:
    """Reset the peak to the memory held now. Linux only; elsewhere the peak includes building."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def version(subject: str) -> str:
    """Return the version of the peer's package; empty for our own."""
    if subject not in PEERS:
        return ""
    names = importlib.metadata.packages_distributions()[PEERS[subject].module]
    return importlib.metadata.version(names[0])


if __name__ == "__main__":
    main()
