"""From another project's weights to ours: every tensor of theirs is used, every one of ours filled, or nothing loaded."""

import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from perceivers.checkpoints.readers import torch_files
from perceivers.checkpoints.readers.pickles import read_pickle
from perceivers.checkpoints.readers.torch_files import Record
from perceivers.pretrained import WEIGHTS, fill, without_storage

Weights = dict[str, Tensor]
Found = TypeVar("Found")
# How files of torch.save start: since PyTorch 1.6, and before it, where a pickle of this number comes first.
ZIP, TORCH = b"PK\3\4", torch_files.MAGIC.to_bytes(10, "little")


def read_weights(path: str | Path, wanted: Callable[[str], bool] | None = None) -> Weights:
    """Reads a file of named tensors, whatever its name: safetensors, what `torch.save` wrote, or a pickle of arrays.

    Nothing in it is run.

    Args:
        path: The file.
        wanted: Whether a name is to be read, of a file too large for memory; `None` for all.

    Raises:
        ValueError: If it is missing, damaged, or holds anything but tensors under names.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    with path.open("rb") as file:
        start = file.read(32)
    try:
        if start[8:9] == b"{":  # behind the length of a header in JSON
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys() if wanted is None or wanted(name)}
        elif start.startswith(ZIP) or TORCH in start:
            state = torch_files.read(path, wanted)
        elif start.startswith(pickle.PROTO):
            state = read_pickle(path)
        else:
            raise ValueError("it is neither a safetensors file, nor one of torch.save, nor a pickle of arrays")
    except Exception as error:  # of many kinds, by what is damaged
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is damaged, or holds more than tensors, which is not read ({reason})") from error
    if empty := sorted(name for name, tensor in state.items() if not tensor.numel()):
        raise ValueError(f"{path}: {len(empty)} tensors hold nothing, such as {empty[:3]}: no model has such")
    return state


def read_hyper_parameters(path: str | Path) -> dict[str, Any]:
    """Reads the settings that Lightning stored beside the weights, of a file that `read_weights` can read.

    Returns:
        What JSON can hold of them, `None` in place of the rest; nothing where there are none.

    Raises:
        ValueError: If they contain themselves, or nearly.
    """
    state = torch_files.contents(Path(path)) if zipfile.is_zipfile(path) else None
    stored = state.get("hyper_parameters") if isinstance(state, Mapping) else None

    def plain(x: Any) -> Any:
        return {name: value for name, value in vars(x).items() if name != "arguments"} if isinstance(x, Record) else None

    try:
        settings = json.loads(json.dumps(stored, default=plain, skipkeys=True))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its hyper_parameters are damaged ({error}): copy or download it again") from error
    return settings if isinstance(settings, dict) else {}


def by_start(table: Mapping[str, Found], name: str) -> tuple[str, Found] | None:
    """The longest of the starts of a dotted name that a table has, and what the table says; `None` where it has none."""
    while name and name not in table:
        name = name.rpartition(".")[0]
    return (name, table[name]) if name else None


def translated(
    theirs: Mapping[str, Tensor],
    make: Callable[[], nn.Module],
    names: Callable[[str], str | None],
    *,
    orders: Mapping[str, Sequence[int]] | None = None,
    copies: Mapping[str, str] | None = None,
    source: str,
) -> nn.Module:
    """Makes a model with another project's weights.

    Args:
        theirs: Their tensors.
        make: Makes our model.
        names: For a name of ours theirs; `None` where they have no such tensor.
        orders: For what a name of ours starts with, their column for each of ours: a permutation of the last axis.
        copies: For names of theirs that are stored more than once, the name they are a copy of.
        source: Where the tensors come from, for messages.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If a tensor of theirs is left over, one of ours has no counterpart, or a shape or copy does not fit; the
            message names it.
    """
    model = without_storage(make, len(theirs), source)
    state, used = {}, set()
    for copy, original in (copies or {}).items():
        if original not in theirs or not torch.equal(theirs[copy], theirs[original]):
            raise ValueError(f"{source}: {copy} and {original} are one tensor stored twice, but differ: the file is damaged")
        used.add(copy)
    for name, tensor in model.state_dict().items():
        their_name = names(name)
        if their_name is None or their_name not in theirs:
            raise ValueError(f"{source}: {their_name or name} is missing, which {type(model).__name__} needs as {name}")
        used.add(their_name)
        value = theirs[their_name]
        if value.shape != tensor.shape:  # convolutions of size 1 and rows of one are stored with more axes
            if [n for n in value.shape if n != 1] != [n for n in tensor.shape if n != 1]:
                raise ValueError(f"{source}: {their_name} has shape {list(value.shape)}, not {list(tensor.shape)}")
            value = value.reshape(tensor.shape)
        order = by_start(orders or {}, name)
        state[name] = value.contiguous() if order is None else value[..., list(order[1])]
    if unused := sorted(theirs.keys() - used):
        raise ValueError(f"{source}: {len(unused)} tensors have no place in {type(model).__name__}, such as {unused[:3]}")
    fill(model, state, source)
    return model.eval()


def counterpart(table: Mapping[str, str], name: str) -> str | None:
    """Their name for one of ours, by a table of what ours and theirs start with."""
    found = by_start(table, name)
    return None if found is None else found[1] + name[len(found[0]) :]


def in_their_order(name: str, tensor: Tensor, orders: Mapping[str, Sequence[int]]) -> Tensor:
    """A tensor of ours with its columns where they have them; `orders` as in `translated`."""
    order = by_start(orders, name)
    if order is None:
        return tensor
    return torch.empty_like(tensor).index_copy_(-1, torch.tensor(order[1], device=tensor.device), tensor)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What two configurations differ in, dropout and the sizes of pictures apart, which no weight depends on."""
    found = []
    for key, value in ours.items():
        other = theirs.get(key)
        if key in ("ff_dropout", "attention_dropout", "attention_implementation"):
            continue
        if key == "inputs" and value["kind"] in ("Pixels", "ConvStem"):
            value, other = ({**one, "data_shape": one["data_shape"][:1]} for one in (value, other or {"data_shape": []}))
        if value != other:
            found.append(f"{key}={value!r}, only {other!r}")
    return found


def write_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Writes a file of named tensors, safetensors or what `torch.save` writes, beside the old one and then in its place.

    Raises:
        ValueError: If the suffix is neither `.safetensors` nor `.pt`.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"{path} must end with .safetensors or .pt, which say how tensors are written")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=path.parent) as temporary:
        written = Path(temporary) / path.name
        if path.suffix == ".safetensors":
            save_file(dict(state), written, metadata={"format": "pt"})
        else:
            torch.save(dict(state), written)
        os.replace(written, path)


def write_folder(folder: str | Path, files: Mapping[str, Mapping[str, Any]], state: Mapping[str, Tensor]) -> None:
    """Writes files of JSON and `model.safetensors`, each beside the old one and then in its place."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        for name, value in files.items():
            (Path(temporary) / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        save_file(dict(state), Path(temporary) / WEIGHTS, metadata={"format": "pt"})
        for name in (*files, WEIGHTS):
            os.replace(Path(temporary) / name, folder / name)
