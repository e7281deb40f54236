"""Our model with activation checkpointing, whose training step computes each layer twice and stores little."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.peers import ours


def build(case: dict[str, Any]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return the model on its input, and its parameters, latents first."""
    return ours.build({**case, "grad_checkpointing": True})
