"""Subjects in fresh processes, each with the interpreter of its own environment: the parent's side; `worker` is the other.

A process waits while another one works, so that calls of several can take turns. A call costs about 0.1 ms more than in
one process.
"""

import json
import os
import select
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import ROOT, interpreter


class Failed(Exception):
    """A subject could not do what it was asked: out of memory, or out of time."""


class Process:
    """One subject, built and waiting; a context manager that ends it.

    Args:
        subject: A file of `benchmarks.peers`, without its ending.
        case: What its `build` takes, written by `torch.save`.
        threads: Of PyTorch.
        budget: Bytes of memory it may hold in all, enforced by the kernel; `None` for no limit.
        seconds: How long building or one call may take.

    Attributes:
        facts: What it is: version of the peer, and MiB of memory held once it is built.

    Raises:
        LookupError: If it is not installed.
        Failed: If it cannot be built within the limits.
    """

    def __init__(
        self, subject: str, case: Path, *, threads: int | None = None, budget: int | None = None, seconds: float = 3600
    ) -> None:
        self.subject, self._seconds = subject, seconds
        threads = threads or torch.get_num_threads()
        command = [interpreter(subject), "-m", "benchmarks.worker", subject, case, str(threads), str(budget or 0)]
        self._child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.facts = self._reply()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def call(self, mode: str) -> dict[str, Any]:
        """Calls the subject once, "forward" or "step"; returns its time in ms and its peak of memory so far in MiB."""
        return self._ask(mode)

    def results(self) -> dict[str, torch.Tensor]:
        """The output of a step, and the gradient of the first leaf."""
        with tempfile.TemporaryDirectory() as folder:
            self._ask(f"{folder}/results.pt")
            return torch.load(f"{folder}/results.pt", weights_only=True)

    def _ask(self, words: str) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(f"{words}\n".encode())
        self._child.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], self._seconds)
        line = self._child.stdout.readline() if ready else b""
        reply = json.loads(line) if line else {"failed": "died" if ready else f"more than {self._seconds:.0f} s"}
        if "failed" in reply:
            self.__exit__()
            raise Failed(f"{self.subject}: {reply['failed']}")
        return reply
