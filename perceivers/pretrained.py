"""The library's own format: a folder, or a repository on the hub, with `config.json` and `model.safetensors`.

`config.json` is flat: the arguments of the model's constructor beside the header `format_version`, `model_class` and
`model_name`. `preprocessing.json` is beside it where labels and preprocessing are known. Loading is strict and runs nothing
from the files: a missing, extra, damaged or misshapen entry is one error, and a model is returned whole or not at all.
"""

import inspect
import json
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import torch
from huggingface_hub import ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

FORMAT_VERSION = 1
PREPROCESSING = "preprocessing.json"
CONFIG, WEIGHTS = constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE
HEADER = ("format_version", "model_class", "model_name")
LARGEST_JSON = 2**22  # bytes; the configuration of a model with 20,000 labels has a million
Module = TypeVar("Module", bound=nn.Module)


class Pretrained(
    nn.Module,
    ModelHubMixin,
    library_name="perceivers",
    tags=["perceiver"],
    paper_url="https://arxiv.org/abs/2103.03206",
):
    """A module that saves and loads itself.

    Attributes:
        config: The arguments of the constructor.
        model_name: Name of the published configuration, or `None`.
        preprocessing: How files become what the model takes, and the names of its classes: a description for
            `perceivers.data.preprocessing.Preprocessing.create`, or `None`. It is saved with the model.
    """

    config: dict[str, Any]
    model_name: str | None
    preprocessing: dict[str, Any] | None = None

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
        if self.preprocessing is not None:
            text = json.dumps(self.preprocessing, indent=2) + "\n"
            (save_directory / PREPROCESSING).write_text(text, encoding="utf-8")

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
        if unknown := overrides.keys() - inspect.signature(cls).parameters.keys():
            raise TypeError(f"unknown arguments {sorted(unknown)}: {cls.__name__} has none of these names")

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
        model = without_storage(lambda: cls(**{**arguments, **overrides}), len(state), source)
        fill(model, state, weights)
        model.model_name = name
        try:
            path = path_of(PREPROCESSING)
            model.preprocessing = read_json(path) if os.path.exists(path) else None
        except EntryNotFoundError:
            pass  # the repository has none
        return model.eval()


def _read_config(cls: type, path: str) -> tuple[str | None, dict[str, Any]]:
    """Returns the model's name and the constructor's arguments."""
    config = read_json(path)
    if not config.keys() >= {"format_version", "model_class"}:
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


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a file that holds one object.

    Raises:
        ValueError: If it is damaged, larger than 4 MiB, or holds anything else.
        OSError: If it is missing.
    """
    if (size := os.path.getsize(path)) > LARGEST_JSON:
        raise ValueError(f"{path} has {size:,} bytes, more than the {LARGEST_JSON:,} that a configuration may have")
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is not JSON ({error}): copy or download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a configuration: it holds a {type(value).__name__}")
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def without_storage(make: Callable[[], Module], tensors: int, source: str) -> Module:
    """Makes a model on the meta device, for weights that are there already.

    Args:
        make: Makes it, as a file says.
        tensors: How many tensors its file has: it stops where it has many more parameters, whatever a file says.
        source: Where the file is, for messages.

    Raises:
        ValueError: If no model can be made.
    """
    left, thread = 4 * tensors + 64, threading.get_ident()

    def count(*_: Any) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise ValueError(f"the configuration is of a model with many more tensors than the {tensors} that there are")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            return make()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except Exception as error:  # of many kinds, by what is wrong
        raise ValueError(f"{source}: the configuration makes no model ({type(error).__name__}: {error})") from error
    finally:
        hook.remove()


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
