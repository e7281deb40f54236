"""Models by name."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch.utils._pytree import tree_map

from perceivers._checks import a_list
from perceivers.perceiver import Perceiver
from perceivers.perceiver_io import PerceiverIO
from perceivers.presets import PRESETS

MODELS = {model.__name__: model for model in (Perceiver, PerceiverIO)}


def list_models(pattern: str | Sequence[str] = "*") -> list[str]:
    """Return the names that `create_model` accepts, in alphabetical order.

    Args:
        pattern: A pattern such as `"*io*"`, or several: names that match any of them are returned.
    """
    patterns = [pattern] if isinstance(pattern, str) else a_list("pattern", pattern, "patterns, such as '*_tiny'")
    return sorted(name for name in PRESETS if any(fnmatch(name, one) for one in patterns))


def create_model(name: str, *, pretrained: bool = False, **overrides: Any) -> Perceiver | PerceiverIO:
    """Create a model with random weights by the name of its published configuration.

    Args:
        name: One of `list_models()`. It is kept as `model_name` and saved in `config.json`.
        pretrained: Must be False: no weights are published under these names. `perceivers.from_pretrained` loads weights.
        **overrides: `num_classes`, as in `reset_classifier` (0 or `None` for no classifier), and constructor arguments that
            replace those of the configuration, such as `outputs=LearnedQueries(dim=1024, num_channels=10)`.

    Raises:
        ValueError: If the name is unknown, or an override does not fit.
        TypeError: If an override is not an argument of the constructor.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0)
        raise ValueError(f"name={name!r} is not a model; the closest is {close[0]!r}, and list_models() returns all")
    if pretrained is not False:
        raise ValueError(
            f"pretrained={pretrained!r} must be False: no weights are published for {name}; load your own with"
            " perceivers.from_pretrained"
        )
    arguments = {**PRESETS[name], **overrides}
    model_class, resets = MODELS[arguments.pop("model_class")], "num_classes" in overrides
    if resets:
        del arguments["num_classes"]
    model = model_class(**arguments)
    if resets:
        model.reset_classifier(overrides["num_classes"] or 0)
    model.model_name = name
    return model


def example_inputs(name: str, batch_size: int = 1) -> Any:
    """Return zeros of the published size, what `create_model(name)` takes as `x`.

    Args:
        name: One of `list_models()`.
        batch_size: Number of samples.
    """
    with torch.device("meta"):  # without storage, and without drawing random numbers
        example = create_model(name).inputs.example(batch_size)
    return tree_map(lambda leaf: torch.zeros_like(leaf, device=torch.get_default_device()), example)
