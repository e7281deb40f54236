"""Holds one subject in a fresh process and calls it when told to; started by `benchmarks.processes`, which is the other side.

    python -m benchmarks.worker SUBJECT CASE THREADS BUDGET

It runs in the environments of peers, so what it imports needs nothing but PyTorch and the peer.
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
    """Builds, says so, and obeys lines of standard input until it ends. Every answer is one line of JSON."""
    subject, case, threads, budget = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer

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
            words, start = line.strip(), time.perf_counter()
            if words in MODES:
                held.call(words)
            else:  # where to write results
                torch.save(held.results(), words)
            answer(ms=(time.perf_counter() - start) * 1e3, peak_mib=peak_mib())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        answer(failed="out of memory")


def peak_mib() -> float:
    """The most memory this process held so far, or since `forget_peak`, in MiB.

    Linux says so itself. Not `ru_maxrss`, which starts at what the parent held when it started this process; elsewhere
    there is nothing else.
    """
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def forget_peak() -> None:
    """Makes the peak what is held now. Linux only; elsewhere what building took stays in it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def version(subject: str) -> str:
    """Of the peer's package; empty for our own."""
    if subject not in PEERS:
        return ""
    names = importlib.metadata.packages_distributions()[PEERS[subject].module]
    return importlib.metadata.version(names[0])


if __name__ == "__main__":
    main()
