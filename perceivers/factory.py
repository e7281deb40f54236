"""Models by name."""

import difflib
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import torch

from perceivers.perceiver import Perceiver
from perceivers.perceiver_io import PerceiverIO
from perceivers.presets import PRESETS

MODELS = {model.__name__: model for model in (Perceiver, PerceiverIO)}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that `create_model` takes, those that match a pattern such as `"*_tiny"`."""
    return sorted(name for name in PRESETS if fnmatch(name, pattern))


def create_model(name: str, **overrides: Any) -> Perceiver | PerceiverIO:
    """Creates a model with random weights by the name of its published configuration.

    Args:
        name: One of `list_models()`. It travels with the model, as `model_name`, into its `config.json`.
        **overrides: Constructor arguments that replace those of the configuration, such as `num_classes=10`, or of
            `PerceiverIO` `outputs=LearnedQueries(dim=1024, num_channels=10)`.

    Raises:
        ValueError: If the name is unknown, or an override does not fit.
        TypeError: If an override is no argument of the constructor.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0)
        raise ValueError(f"name={name!r} is no model; the closest is {close[0]!r}, and list_models() gives all")
    arguments = {**PRESETS[name], **overrides}
    model = MODELS[arguments.pop("model_class")](**arguments)
    model.model_name = name
    return model


def example_inputs(name: str, batch_size: int = 1) -> Any:
    """Returns zeros of the published size, what `create_model(name)` takes as `x`.

    Args:
        name: One of `list_models()`.
        batch_size: Number of samples.
    """
    return zeros(PRESETS[name].get("inputs", {"kind": "Pixels", **PRESETS[name]}), batch_size)


def zeros(description: Mapping[str, Any], batch_size: int, dtype: torch.dtype = torch.float32) -> Any:
    """Returns zeros of the size that an input module was made for; `None` where it takes any number of inputs."""
    match description["kind"]:
        case "Multimodal":
            parts = {name: zeros(part, batch_size, dtype) for name, part in description["modalities"].items()}
            return None if any(part is None for part in parts.values()) else parts
        case "TokenIds":
            return torch.zeros(batch_size, description["max_length"], dtype=torch.int64)
        case "FramePairs":
            channels, *axes = description["data_shape"]
            shape = [channels, 2, *axes]
        case "Waveform" | "LogMel":
            shape = [description.get("audio_channels", 1), description["num_samples"]]
        case "Labels":
            shape = [description["num_classes"]]
        case "Tabular":
            numbers = {"numeric": torch.zeros(batch_size, description["num_numeric"], dtype=dtype)}
            ids = {"categorical": torch.zeros(batch_size, len(description["categories"]), dtype=torch.int64)}
            return {name: x for name, x in {**numbers, **ids}.items() if x.shape[1]}
        case "Points" | "Events" | "TimeSeries" | "Features":
            return None
        case _:
            shape = description["data_shape"]
    return torch.zeros(batch_size, *shape, dtype=dtype)
