"""Models of any known format, detected by what is in their files."""

from pathlib import Path
from typing import Any

from perceivers.checkpoints.formats import FORMATS
from perceivers.checkpoints.source import Source
from perceivers.factory import MODELS
from perceivers.layers import Resampler
from perceivers.perceiver import Perceiver
from perceivers.perceiver_io import PerceiverIO
from perceivers.pretrained import CONFIG

# What this library's own format may hold.
CLASSES = {**MODELS, Resampler.__name__: Resampler}


def from_pretrained(
    source: str | Path, *, local_files_only: bool = False, **arguments: Any
) -> Perceiver | PerceiverIO | Resampler:
    """Load a model of any known format, in evaluation mode; nothing in its files is run.

    - This library's: a folder, or the name of a repository on the hub, with `config.json` and `model.safetensors`.
    - transformers': the same with one of its seven Perceiver heads, `model.safetensors` or `pytorch_model.bin`.
    - perceiver-pytorch's `Perceiver`, `PerceiverIO` and `PerceiverLM`: a file that `torch.save(model.state_dict(), path)` or
      safetensors wrote. It does not specify `max_freq`, `cross_heads` and `latent_heads`: give what the model was made with.
    - perceiver-io's (krasserm) image classifier, masked language model, text classifier and optical flow: checkpoints of
      Lightning, folders or repositories of the hub, and files with a state_dict, which need numbers of heads and repetitions.
    - DeepMind's Perceiver IO: one of its six files, or a pickle of Haiku's parameters of other sizes, which need arguments.
    - The resampler of a larger model, as a `Resampler`: for Idefics and Idefics2, a folder or name of transformers; for these,
      Flamingo and IP-Adapter Plus, a file with the resampler or the whole model. Files do not specify `heads`.

    The format is detected by what is in a file, not by its name.

    Args:
        source: The folder, file, or name on the hub.
        local_files_only: Never download.
        **arguments: For this library's format, those of `Perceiver.from_pretrained`; for other projects' files, those of
            `configure` in the module of `perceivers.checkpoints.formats` named after the project: `perceiver_pytorch`,
            `krasserm`, `deepmind`, `resamplers`.

    Raises:
        ValueError: If the format is not known, or a file is missing, damaged or does not fit; a model is loaded as a whole or
            not at all.
        TypeError: If an argument is unknown.
    """
    return identified(source, local_files_only=local_files_only, **arguments)[0]


def identified(
    source: str | Path, *, local_files_only: bool = False, **arguments: Any
) -> tuple[Perceiver | PerceiverIO | Resampler, str]:
    """Return the model that `from_pretrained` documents, and the name of its format."""
    opened = Source(source, local_files_only=local_files_only)
    if "format_version" in opened.config:
        name = opened.config.get("model_class")
        if not isinstance(name, str) or name not in CLASSES:
            raise ValueError(f"{source}: model_class={name!r} must be one of {sorted(CLASSES)}: update perceivers")
        return CLASSES[name].from_pretrained(source, local_files_only=local_files_only, **arguments), "perceivers"
    for form in FORMATS:
        if form.recognises(opened):
            return form.load(opened, **arguments)
    if opened.is_file:
        names = sorted(opened.names)[:3]
        raise ValueError(f"{source} holds weights of an unknown format, such as {names}: see docs/checkpoints.md")
    kind = str(opened.config.get("model_type"))
    raise ValueError(f"{source}: its {CONFIG} has no format_version, and model_type={kind!r} is not known")
