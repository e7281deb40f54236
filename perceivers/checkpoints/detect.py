"""Weights of any format that is known, found out by what is in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from perceivers.checkpoints import processors
from perceivers.checkpoints.formats import deepmind, krasserm, perceiver_pytorch, resamplers, transformers
from perceivers.checkpoints.state_dict import Weights, read_weights
from perceivers.factory import MODELS
from perceivers.layers import Resampler
from perceivers.perceiver import Perceiver
from perceivers.perceiver_io import PerceiverIO
from perceivers.pretrained import CONFIG, WEIGHTS, read_json

# Files without a configuration, told by the names of their tensors: modules with `recognises(weights)` and `load`.
FORMATS = (perceiver_pytorch, krasserm, deepmind, resamplers)
# What this library's own format may hold.
CLASSES = {**MODELS, Resampler.__name__: Resampler}


def from_pretrained(
    source: str | Path, *, local_files_only: bool = False, **arguments: Any
) -> Perceiver | PerceiverIO | Resampler:
    """Loads a model of any known format, in evaluation mode; nothing in its files is run.

    - This library's: a folder, or the name of a repository on the hub, with `config.json` and `model.safetensors`.
    - transformers': the same with one of its seven Perceiver heads, `model.safetensors` or `pytorch_model.bin`.
    - perceiver-pytorch's `Perceiver`, `PerceiverIO` and `PerceiverLM`: a file that `torch.save(model.state_dict(), path)` or
      safetensors wrote. They do not tell `max_freq`, `cross_heads` and `latent_heads`: give what the model was made with.
    - perceiver-io's (krasserm) image classifier, masked language model, text classifier and optical flow: checkpoints of
      Lightning, folders or repositories of the hub, and files with a state_dict, which do not tell heads and repetitions.
    - DeepMind's Perceiver IO: one of its six files, or a pickle of Haiku's parameters of other sizes, which need arguments.
    - The resampler of a larger model, as a `Resampler`: of Idefics and Idefics2, a folder or name of transformers; of these,
      Flamingo and IP-Adapter Plus, a file with the resampler or the whole model. Files do not tell `heads`.

    What a file is, is told by what is in it, not by its name.

    Args:
        source: The folder, file, or name on the hub.
        local_files_only: Never download.
        **arguments: Of this library's format, those of `Perceiver.from_pretrained`; of other projects' files, those of `load`
            of the module of `perceivers.checkpoints` that is named after the project: `perceiver_pytorch`, `perceiver_io`,
            `deepmind`, `resamplers`.

    Raises:
        ValueError: If the format is not known, or a file is missing, damaged or does not fit; no half of a model is loaded.
        TypeError: If an argument is unknown.
    """
    return identified(source, local_files_only=local_files_only, **arguments)[0]


def identified(
    source: str | Path, *, local_files_only: bool = False, **arguments: Any
) -> tuple[Perceiver | PerceiverIO | Resampler, str]:
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
        if not isinstance(name, str) or name not in CLASSES:
            raise ValueError(f"{source}: model_class={name!r} is none of {sorted(CLASSES)}: update perceivers")
        return CLASSES[name].from_pretrained(source, local_files_only=local_files_only, **arguments), "perceivers"
    kind = str(config.get("model_type"))
    known = kind in ("perceiver", *resamplers.MODEL_TYPES) or krasserm.recognises_folder(config, str(source))
    if not known:
        raise ValueError(f"{source}: its {CONFIG} has no format_version, and model_type={kind!r} is not known")
    if arguments:
        raise TypeError(f"unknown arguments {sorted(arguments)}: the configuration, model_type={kind!r}, tells everything")
    model: Any
    if kind in resamplers.MODEL_TYPES:
        weights = _part(source, local_files_only, resamplers.is_part)
        return resamplers.load_part(config, weights, str(source)), f"transformers, the resampler of {kind}"  # pyright: ignore
    weights = read_weights(_file(source, local_files_only, WEIGHTS, "pytorch_model.bin"))
    if kind != "perceiver":
        model = krasserm.load_folder(config, weights, str(source))
        return model, f"perceiver-io, {kind}"
    model = transformers.load(config, weights, str(source))
    path = _optional(source, local_files_only, processors.PROCESSOR)
    model.preprocessing = processors.read(config, None if path is None else read_json(path), str(source))
    return model, f"transformers, {config['architectures'][0]}"


def _part(source: str | Path, local_files_only: bool, wanted: Callable[[str], bool]) -> Weights:
    """The tensors with such names, of one file or of those that an index names."""
    names = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    path = _file(source, local_files_only, *names)
    if path.suffix != ".json":
        return read_weights(path, wanted)
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) and Path(name).name == name for name in files.values()):
        raise ValueError(f"{path} is damaged: its weight_map does not name a file of the same folder for each tensor")
    weights: Weights = {}
    for name in sorted({name for tensor, name in files.items() if wanted(tensor)}):
        weights |= read_weights(_file(source, local_files_only, name), wanted)
    return weights


def _file(source: str | Path, local_files_only: bool, *names: str) -> Path:
    """The first of these files that there is, in a folder or on the hub."""
    if Path(source).is_dir():
        for name in names:
            if (Path(source) / name).is_file():
                return Path(source) / name
        raise ValueError(
            f"{source} has no {' and no '.join(names)}: give a folder that save_pretrained or perceivers fit wrote"
        )
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
