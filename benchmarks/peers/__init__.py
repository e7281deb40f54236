"""The other libraries ("peers") that this one is compared with: how each is installed, and how it computes the same.

Each file here except this one and `__main__` is named after a subject and has a function `build(case)`, which returns a
function without arguments and the tensors whose gradients a training step computes. A subject runs in its own process
(`benchmarks.processes`) and environment, because peers pin conflicting versions:

    python -m benchmarks.peers [NAME ...]    creates .venv-peers/NAME if it is missing
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
MADE = "made"  # an environment without this file is incomplete


@dataclass(frozen=True)
class Peer:
    """How a peer is installed.

    Attributes:
        module: Name of its top-level module.
        installs: Arguments of `pip install`, one call each.
    """

    module: str
    installs: tuple[str, ...]


PEERS = {
    "transformers": Peer("transformers", ("transformers>=5.0",)),
    "perceiver_pytorch": Peer("perceiver_pytorch", ("perceiver-pytorch>=0.11",)),
    # perceiver-io by krasserm requires Python below 3.11, and pins training frameworks that its models do not import.
    "krasserm": Peer(
        "perceiver",
        (
            "einops setuptools wheel",
            "--no-deps --ignore-requires-python perceiver-io==0.11.0",
            "--no-deps --no-build-isolation fairscale==0.4.13",
        ),
    ),
    # Compiles formulas at their first call, which needs a C++ compiler.
    "keops": Peer("pykeops", ("pykeops==2.3",)),
}


def interpreter(subject: str) -> Path:
    """Return the Python that runs a subject: that of the peer's environment, or this one if it has the peer.

    Raises:
        LookupError: If the peer is installed in neither; the message gives the command that installs it.
    """
    peer = PEERS.get(subject)
    if peer is None:
        return Path(sys.executable)
    environment = ENVIRONMENTS / subject
    if (environment / MADE).exists():
        return environment / "bin" / "python"
    if importlib.util.find_spec(peer.module):
        return Path(sys.executable)
    raise LookupError(f"{subject} is not installed: python -m benchmarks.peers {subject}")
