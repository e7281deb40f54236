"""Our model with all cross-attention blocks left out: what remains when reading the input costs nothing."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from perceivers import Perceiver


def build(case: dict[str, Any]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Returns the latent transformers on the initial latents, and their parameters."""
    model = Perceiver(**case["config"])
    model.load_state_dict(case["weights"])
    stacks = nn.Sequential(*(stack for _, stack in model.encoder.layers()))
    return lambda: stacks(model.encoder.latents.unsqueeze(0)), [model.encoder.latents, *stacks.parameters()]
