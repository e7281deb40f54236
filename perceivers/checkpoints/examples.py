"""Zeros of the size that a model was made for, and the operations for them."""

from typing import Any

import torch

from perceivers.factory import zeros


def example(model: Any, batch_size: int) -> Any:
    """Return zeros that a model takes as `x`, or `None` if it takes any number of inputs, or none of its own description."""
    config = model.config
    if "data_shape" in config:
        return zeros({"kind": "Pixels", **config}, batch_size)
    return zeros(config["inputs"], batch_size) if "inputs" in config and not model.outputs.takes_queries else None


def flops(model: Any, x: Any) -> int:
    """Return the operations for an example, of a model and an example on the meta device."""
    with torch.device("meta"):
        copy = type(model)(**model.config).eval()
    return copy.flops() if "data_shape" in model.config else copy.flops(x)
