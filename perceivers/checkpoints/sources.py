"""Weights of any format that is known, found out by what is in them."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from perceivers.checkpoints import perceiver_pytorch, processors, transformers
from perceivers.checkpoints.native import CONFIG, WEIGHTS, read_json
from perceivers.checkpoints.translate import read_weights
from perceivers.factory import MODELS
from perceivers.perceiver import Perceiver
from perceivers.perceiver_io import PerceiverIO

# Files without a configuration, told by the names of their tensors: modules with `recognises(weights)` and `load`.
FORMATS = (perceiver_pytorch,)


def from_pretrained(source: str | Path, *, local_files_only: bool = False, **arguments: Any) -> Perceiver | PerceiverIO:
    """Loads a model of any known format, in evaluation mode; nothing in its files is run.

    - This library's: a folder, or the name of a repository on the hub, with `config.json` and `model.safetensors`.
    - transformers': the same with one of its seven Perceiver heads, `model.safetensors` or `pytorch_model.bin`.
    - perceiver-pytorch's `Perceiver`: a file that `torch.save(model.state_dict(), path)` or safetensors wrote. Such files do
      not tell `max_freq`, `cross_heads` and `latent_heads`: give what the model was made with.

    Args:
        source: The folder, file, or name on the hub.
        local_files_only: Never download.
        **arguments: Of this library's format, those of `Perceiver.from_pretrained`; of perceiver-pytorch's, those of
            `perceivers.checkpoints.perceiver_pytorch.load`.

    Raises:
        ValueError: If the format is not known, or a file is missing, damaged or does not fit; no half of a model is loaded.
        TypeError: If an argument is unknown.
    """
    return identified(source, local_files_only=local_files_only, **arguments)[0]


def identified(source: str | Path, *, local_files_only: bool = False, **arguments: Any) -> tuple[Perceiver | PerceiverIO, str]:
    """As `from_pretrained`, which documents it; returns the model and the name of its format."""
    path = Path(source)
    if path.is_file():
        weights = read_weights(path)
        for form in FORMATS:
            if form.recognises(weights):
                name = form.__name__.rpartition(".")[2].replace("_", "-")
                return form.load(weights, str(path), **arguments), name  # pyright: ignore[reportReturnType]
        raise ValueError(f"{path} holds weights of no known format, such as {sorted(weights)[:3]}: see docs/checkpoints.md")
    config = read_json(_file(source, local_files_only, CONFIG))
    if "format_version" in config:
        name = config.get("model_class")
        if not isinstance(name, str) or name not in MODELS:
            raise ValueError(f"{source}: model_class={name!r} is none of {sorted(MODELS)}: update perceivers")
        return MODELS[name].from_pretrained(source, local_files_only=local_files_only, **arguments), "perceivers"
    if config.get("model_type") == "perceiver":
        if arguments:
            raise TypeError(f"unknown arguments {sorted(arguments)}: a transformers configuration tells everything")
        weights = read_weights(_file(source, local_files_only, WEIGHTS, "pytorch_model.bin"))
        model: Any = transformers.load(config, weights, str(source))
        path = _optional(source, local_files_only, processors.PROCESSOR)
        model.preprocessing = processors.read(config, None if path is None else read_json(path), str(source))
        return model, f"transformers, {config['architectures'][0]}"
    raise ValueError(f"{source}: its {CONFIG} has no format_version, and model_type={config.get('model_type')!r} is not known")


def _file(source: str | Path, local_files_only: bool, *names: str) -> Path:
    """The first of these files that there is, in a folder or on the hub."""
    if Path(source).is_dir():
        for name in names:
            if (Path(source) / name).is_file():
                return Path(source) / name
        raise ValueError(f"{source} has no {' and no '.join(names)}: give a folder that save_pretrained wrote")
    reason = None
    for name in names:
        try:
            return Path(hf_hub_download(str(source), name, local_files_only=local_files_only))
        except (EntryNotFoundError, HFValidationError, OSError) as error:
            reason = error
    raise ValueError(f"{source} is no file, no folder, and no repository with {' or '.join(names)}: {reason}")


def _optional(source: str | Path, local_files_only: bool, name: str) -> Path | None:
    """The file, if there is one."""
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).is_file() else None
    try:
        return Path(hf_hub_download(str(source), name, local_files_only=local_files_only))
    except EntryNotFoundError:
        return None
