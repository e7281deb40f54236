"""Our model: logits if it has a head, else latents."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from perceivers import Perceiver


def build(case: dict[str, Any]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return the model on its input, and its parameters, latents first."""
    model = Perceiver(**case["config"], attention_implementation=case.get("implementation", "auto"))
    model.load_state_dict(case["weights"])
    model.set_grad_checkpointing(case.get("grad_checkpointing", False))
    run = model.encode if model.head is None else model
    x = case["x"]
    return lambda: run(x), list(model.parameters())
