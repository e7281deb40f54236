"""What this library is compared with: where each peer is installed, and how it computes what we compute.

Each file here but this one and `__main__` is named after a subject and has one function, `build(case)`, which returns a
function of no argument and the tensors whose gradients a training step needs. A subject runs in a process of its own
(`benchmarks.processes`), with the interpreter of its own environment, because peers pin versions that exclude each other:

    python -m benchmarks.peers [NAME ...]    makes .venv-peers/NAME, those that are missing
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
MADE = "made"  # an environment without this file is not complete


@dataclass(frozen=True)
class Peer:
    """How a peer is installed.

    Attributes:
        module: What it is imported as.
        installs: The arguments of `pip install`, one call each.
    """

    module: str
    installs: tuple[str, ...]


PEERS = {
    "transformers": Peer("transformers", ("transformers>=5.0",)),
    "perceiver_pytorch": Peer("perceiver_pytorch", ("perceiver-pytorch>=0.11",)),
    # It says that it needs Python below 3.11, and pins training frameworks that its models do not import.
    "perceiver_io": Peer(
        "perceiver",
        (
            "einops setuptools wheel",
            "--no-deps --ignore-requires-python perceiver-io==0.11.0",
            "--no-deps --no-build-isolation fairscale==0.4.13",
        ),
    ),
    # Compiles formulas when they are first called: needs a C++ compiler.
    "keops": Peer("pykeops", ("pykeops==2.3",)),
}


def interpreter(subject: str) -> Path:
    """The Python that runs a subject: of the peer's environment, else this one where it has the peer.

    Raises:
        LookupError: If the peer is installed in neither; the message says what to do.
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
