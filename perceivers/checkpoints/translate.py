"""From another project's weights to ours: every tensor of theirs is used, every one of ours filled, or nothing loaded."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perceivers.checkpoints import torch_files
from perceivers.checkpoints.native import WEIGHTS, fill, without_storage

Weights = dict[str, Tensor]
Found = TypeVar("Found")


def read_weights(path: str | Path) -> Weights:
    """Reads a file of named tensors, safetensors or what `torch.save` wrote; nothing in it is run.

    Raises:
        ValueError: If it is missing, damaged, or holds anything but tensors under names.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch_files.read(path)
    except Exception as error:  # of many kinds, by what is damaged
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is damaged, or holds more than tensors, which is not read ({reason})") from error
    if empty := sorted(name for name, tensor in state.items() if not tensor.numel()):
        raise ValueError(f"{path}: {len(empty)} tensors hold nothing, such as {empty[:3]}: no model has such")
    return state


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
