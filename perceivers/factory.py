"""Models by name."""

import difflib
from fnmatch import fnmatch
from typing import Any

from perceivers.perceiver import Perceiver
from perceivers.presets import PRESETS


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that `create_model` takes, those that match a pattern such as `"*_tiny"`."""
    return sorted(name for name in PRESETS if fnmatch(name, pattern))


def create_model(name: str, **overrides: Any) -> Perceiver:
    """Creates a model with random weights by the name of its published configuration.

    Args:
        name: One of `list_models()`. It travels with the model, as `model_name`, into its `config.json`.
        **overrides: Constructor arguments that replace those of the configuration, such as `num_classes=10`.

    Raises:
        ValueError: If the name is unknown, or an override does not fit.
        TypeError: If an override is no argument of the constructor.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0)
        raise ValueError(f"name={name!r} is no model; the closest is {close[0]!r}, and list_models() gives all")
    model = Perceiver(**{**PRESETS[name], **overrides})
    model.model_name = name
    return model
