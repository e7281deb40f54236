"""Our model without its cross-attention blocks: the lower bound of its time."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from perceivers import Perceiver


def build(case: dict[str, Any]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return the latent transformers on the initial latents, and their parameters."""
    model = Perceiver(**case["config"])
    model.load_state_dict(case["weights"])
    stacks = nn.Sequential(*(stack for _, stack in model.encoder.layers()))
    return lambda: stacks(model.encoder.latents.unsqueeze(0)), [model.encoder.latents, *stacks.parameters()]
