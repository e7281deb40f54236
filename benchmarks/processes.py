"""Subjects in fresh processes, each with the interpreter of its own environment; `worker` is the child's side.

A process waits while another one works, so that calls of several subjects can take turns. A call takes about 0.1 ms longer
than in the same process.
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
    """A subject ran out of memory or time."""


class Process:
    """A subject in a process, built and waiting for calls. As a context manager, it ends the process.

    Args:
        subject: Name of a file of `benchmarks.peers`.
        case: File with the case that its `build` takes, written by `torch.save`.
        threads: Number of PyTorch threads. Defaults to that of this process.
        budget: Bytes of memory that the process may hold, enforced by the operating system; `None` for no limit.
        seconds: Time limit for building and for each call.

    Attributes:
        facts: Version of the peer, and memory held after building in MiB.

    Raises:
        LookupError: If the subject is not installed.
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
        """Call the subject once, "forward" or "step"; return its time in ms and its peak memory so far in MiB."""
        return self._ask(mode)

    def results(self) -> dict[str, torch.Tensor]:
        """Return the output of a step and the gradient of the first leaf."""
        with tempfile.TemporaryDirectory() as folder:
            self._ask(f"{folder}/results.pt")
            return torch.load(f"{folder}/results.pt", weights_only=True)

    def _ask(self, request: str) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(f"{request}\n".encode())
        self._child.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], self._seconds)
        line = self._child.stdout.readline() if ready else b""
        reply = json.loads(line) if line else {"failed": "ended unexpectedly" if ready else f"more than {self._seconds:.0f} s"}
        if "failed" in reply:
            self.__exit__()
            raise Failed(f"{self.subject}: {reply['failed']}")
        return reply
