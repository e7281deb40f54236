"""The library's own format: a folder, or a repository on the hub, with `config.json` and `model.safetensors`.

`config.json` is flat: the arguments of the model's constructor beside the header `format_version`, `model_class` and
`model_name`. Loading is strict and runs nothing from the files: a missing, extra, damaged or misshapen entry is one error,
and a model is returned whole or not at all.
"""

import inspect
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

FORMAT_VERSION = 1
CONFIG, WEIGHTS = constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE
HEADER = ("format_version", "model_class", "model_name")


class Pretrained(
    nn.Module,
    ModelHubMixin,
    library_name="perceivers",
    tags=["perceiver"],
    paper_url="https://arxiv.org/abs/2103.03206",
):
    """A module that saves and loads itself; it has `config`, its constructor's arguments, and `model_name`."""

    config: dict[str, Any]
    model_name: str | None

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        *,
        config: None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Saves the model to a folder, and to the hub where asked.

        Files are written apart and then moved into place, so that a failure leaves what was there before.

        Args:
            save_directory: The folder, made if missing.
            config: Must be `None`: the configuration is the model's own.
            repo_id: Name on the hub; `None` for the folder's name.
            push_to_hub: Whether to upload the model as well.
            model_card_kwargs: Fields of the model card.
            **push_to_hub_kwargs: Arguments of `push_to_hub`.

        Returns:
            The address of the commit where the model was uploaded, else `None`.
        """
        if config is not None:
            raise ValueError(f"config={config!r} must be None: the configuration is the model's own")
        save_directory = Path(save_directory)
        save_directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=save_directory) as folder:
            super().save_pretrained(folder, model_card_kwargs=model_card_kwargs)
            for file in sorted(Path(folder).iterdir()):
                if file.name != "README.md" or not (save_directory / file.name).exists():
                    os.replace(file, save_directory / file.name)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or save_directory.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        header = dict(zip(HEADER, (FORMAT_VERSION, type(self).__name__, self.model_name), strict=True))
        (save_directory / CONFIG).write_text(json.dumps({**header, **self.config}, indent=2) + "\n", encoding="utf-8")
        state = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, save_directory / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str | torch.device = "cpu",
        **overrides: Any,
    ) -> Self:
        """Loads a model that `save_pretrained` wrote, in evaluation mode and in the dtype of the file.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository on the hub.
            force_download: Download even what is cached.
            token: Access token of the hub.
            cache_dir: Where downloads are kept.
            local_files_only: Never download.
            revision: Branch, tag or commit on the hub.
            map_location: The device to load to.
            **overrides: Constructor arguments that replace saved ones and fit the weights, such as dropout rates.

        Raises:
            ValueError: If a file is missing or damaged, is of a newer format or another class, or does not fit.
            TypeError: If an override is no argument of the constructor.
        """
        source = str(pretrained_model_name_or_path)

        def path_of(name: str) -> str:
            if os.path.isdir(source):
                return os.path.join(source, name)
            return hf_hub_download(
                source,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                token=token,
                local_files_only=local_files_only,
            )

        weights = WEIGHTS
        try:
            name, arguments = _read_config(cls, path_of(CONFIG))
            weights = path_of(WEIGHTS)
            state = load_file(weights, device=str(map_location))
        except (FileNotFoundError, NotADirectoryError, EntryNotFoundError, HFValidationError) as error:
            raise ValueError(f"{source} is no folder or repository with {CONFIG} and {WEIGHTS}: {error}") from error
        except SafetensorError as error:
            raise ValueError(f"{weights} is damaged or no safetensors file ({error}): copy or download it again") from error
        with torch.device("meta"):
            model = cls(**{**arguments, **overrides})
        fill(model, state, weights)
        model.model_name = name
        return model.eval()


def _read_config(cls: type, path: str) -> tuple[str | None, dict[str, Any]]:
    """Returns the model's name and the constructor's arguments."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is not JSON ({error}): copy or download it again") from error
    if not isinstance(config, dict) or not config.keys() >= {"format_version", "model_class"}:
        raise ValueError(f"{path} is not a configuration of this library: it has no format_version and model_class")
    version, class_name, name = (config.pop(key, None) for key in HEADER)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(f"{path}: format_version={version!r} is newer than {FORMAT_VERSION}: update perceivers")
    if class_name != cls.__name__:
        raise ValueError(f"{path}: model_class={class_name!r}: load it with {class_name}, not {cls.__name__}")
    parameters = inspect.signature(cls).parameters
    if unknown := config.keys() - parameters.keys():
        raise ValueError(f"{path}: unknown keys {sorted(unknown)}, no arguments of {cls.__name__}: update perceivers")
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in config:
            raise ValueError(f"{path}: {parameter.name} is missing: copy or download it again")
    return name, config


def fill(model: nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    """Gives a model without storage the tensors of a file, if they are exactly the ones it needs."""
    wanted = model.state_dict()
    problems = [f"{key} is missing" for key in sorted(wanted.keys() - state.keys())]
    problems += [f"{key} is unknown" for key in sorted(state.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & state.keys()):
        if state[key].shape != wanted[key].shape:
            problems.append(f"{key} has shape {list(state[key].shape)}, not {list(wanted[key].shape)}")
        elif wanted[key].dtype.is_floating_point and not state[key].dtype.is_floating_point:
            problems.append(f"{key} is {state[key].dtype}, not floating point")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{path} does not fit its {CONFIG}: {shown}")
    model.load_state_dict(state, assign=True)
