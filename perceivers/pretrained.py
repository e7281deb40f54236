"""The library's own format: a folder, or a repository on the hub, with `config.json` and `model.safetensors`.

`config.json` is flat: the header `format_version`, `model_class` and `model_name`, and the arguments of the model's
constructor. `preprocessing.json` is added if labels and preprocessing are known. Loading is strict and executes nothing from
the files: a missing, unexpected, damaged or misshapen entry is an error, and no partly loaded model is ever returned.
"""

import inspect
import json
import os
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

from perceivers._atomic import replacing_files
from perceivers._checks import check_arguments

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
    """A module with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Attributes:
        config: The arguments of the constructor.
        model_name: Name of the published configuration, or `None`.
        preprocessing: Description of the preprocessing and the class names, for
            `perceivers.data.preprocessing.Preprocessing.create`, or `None`. It is saved with the model.
    """

    config: dict[str, Any]
    model_name: str | None
    preprocessing: dict[str, Any] | None = None

    def example(self, batch_size: int = 1) -> Any:
        """Return zeros that the module takes as its first argument, or `None` if it was not made for a fixed size."""
        return None

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
        """Save the model to a folder, and optionally upload it to the hub.

        Files are written to a temporary folder and then moved, so that a failure leaves the previous files.

        Args:
            save_directory: The folder, made if missing.
            config: Must be `None`: the model has its own configuration.
            repo_id: Name on the hub. Defaults to the name of the folder.
            push_to_hub: Whether to upload the model as well.
            model_card_kwargs: Fields of the model card.
            **push_to_hub_kwargs: Arguments of `push_to_hub`.

        Returns:
            The address of the commit if the model was uploaded, else `None`.
        """
        if config is not None:
            raise ValueError(f"config={config!r} must be None: the model has its own configuration")
        save_directory = Path(save_directory)
        with replacing_files(save_directory) as folder:
            super().save_pretrained(folder, model_card_kwargs=model_card_kwargs)
            if (save_directory / "README.md").exists():  # it may have been edited
                (folder / "README.md").unlink()
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
        """Load a model that `save_pretrained` wrote, in evaluation mode and in the dtype of the file.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository on the hub.
            force_download: Whether to download files that are cached.
            token: Access token of the hub.
            cache_dir: Folder of cached downloads.
            local_files_only: Whether to refuse downloads.
            revision: Branch, tag or commit on the hub.
            map_location: The device to load to.
            **overrides: Constructor arguments that replace saved ones and fit the weights, such as dropout probabilities.

        Raises:
            ValueError: If a file is missing or damaged, has a newer format or another class, or does not fit.
            TypeError: If an override is not an argument of the constructor.
        """
        source = str(pretrained_model_name_or_path)
        if unknown := overrides.keys() - inspect.signature(cls).parameters.keys():
            raise TypeError(f"unexpected arguments {sorted(unknown)}: {cls.__name__} does not have them")

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
            raise ValueError(f"{source} is not a folder or repository with {CONFIG} and {WEIGHTS}: {error}") from error
        except SafetensorError as error:
            raise ValueError(f"{weights} is damaged or not a safetensors file ({error}): copy or download it again") from error
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
    """Return the name of the model and the arguments of its constructor."""
    config = read_json(path)
    if not config.keys() >= {"format_version", "model_class"}:
        raise ValueError(f"{path} is not a configuration of this library: format_version or model_class is missing")
    version, class_name, name = (config.pop(key, None) for key in HEADER)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(f"{path}: format_version={version!r} is newer than {FORMAT_VERSION}: update perceivers")
    if class_name != cls.__name__:
        raise ValueError(f"{path}: model_class={class_name!r}: load it with {class_name}, not {cls.__name__}")
    check_arguments(path, cls, config)
    return name, config


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        ValueError: If the file is damaged, larger than 4 MiB, or holds anything else.
        OSError: If the file is missing.
    """
    if (size := os.path.getsize(path)) > LARGEST_JSON:
        raise ValueError(f"{path} has {size:,} bytes, more than the {LARGEST_JSON:,} allowed: copy or download it again")
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, not valid JSON ({error}): copy or download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a configuration: it holds a {type(value).__name__}, not an object")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def without_storage(make: Callable[[], Module], tensors: int, source: str) -> Module:
    """Create a model on the meta device, to be filled with weights that exist already.

    Args:
        make: Creates the model as its configuration describes it.
        tensors: Number of tensors in its file. A configuration of many more parameters is refused before they are created.
        source: The file, for error messages.

    Raises:
        ValueError: If the model cannot be created.
    """
    left, thread = 4 * tensors + 64, threading.get_ident()

    def count(*_: Any) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise ValueError(f"the configuration is of a model with many more tensors than the {tensors} in the file")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            return make()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except Exception as error:  # any kind: a configuration from a file is not trusted
        raise ValueError(f"{source}: the configuration does not describe a model ({type(error).__name__}: {error})") from error
    finally:
        hook.remove()


def fill(model: nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    """Assign the tensors of a file to a model without storage, if they are exactly the ones it needs."""
    wanted = model.state_dict()
    problems = [f"{key} is missing" for key in sorted(wanted.keys() - state.keys())]
    problems += [f"{key} is unexpected" for key in sorted(state.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & state.keys()):
        if state[key].shape != wanted[key].shape:
            problems.append(f"{key} has shape {list(state[key].shape)}, not {list(wanted[key].shape)}")
        elif wanted[key].dtype.is_floating_point and not state[key].dtype.is_floating_point:
            problems.append(f"{key} is {state[key].dtype}, not floating point")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{path} does not fit its {CONFIG}: {shown}")
    model.load_state_dict(state, assign=True)
