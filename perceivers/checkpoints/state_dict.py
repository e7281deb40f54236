"""Names and files of tensors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from perceivers._atomic import replacing_files
from perceivers.pretrained import WEIGHTS

Found = TypeVar("Found")


def by_start(table: Mapping[str, Found], name: str) -> tuple[str, Found] | None:
    """Return the longest start of a dotted name that a table has, and its entry; `None` if it has none."""
    while name and name not in table:
        name = name.rpartition(".")[0]
    return (name, table[name]) if name else None


def counterpart(table: Mapping[str, str], name: str) -> str | None:
    """Return their name for one of ours, by a table of what ours and theirs start with."""
    found = by_start(table, name)
    return None if found is None else found[1] + name[len(found[0]) :]


def in_their_order(name: str, tensor: Tensor, orders: Mapping[str, Sequence[int]]) -> Tensor:
    """Return a tensor of ours with its columns in their order; `orders` as in `perceivers.checkpoints.format.Names`."""
    order = by_start(orders, name)
    if order is None:
        return tensor
    return torch.empty_like(tensor).index_copy_(-1, torch.tensor(order[1], device=tensor.device), tensor)


def counterpart_class(model: Any, classes: Mapping[tuple[str, str], str], project: str) -> str:
    """Return the other project's class for the kinds of inputs and outputs of a model; raise `ValueError` if it has none."""
    inputs, outputs = (model.config.get(name, {}).get("kind") for name in ("inputs", "outputs"))
    if (inputs, outputs) not in classes:
        what = f"{type(model).__name__} with inputs {inputs} and outputs {outputs}"
        raise ValueError(f"{project} does not have a {what}, only {sorted(classes)}")
    return classes[inputs, outputs]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Yield what two configurations differ in, except dropout and image sizes, which no weight depends on."""
    for key, value in ours.items():
        other = theirs.get(key)
        if key in ("ff_dropout", "attention_dropout", "attention_implementation"):
            continue
        if key == "inputs" and value["kind"] in ("Pixels", "ConvStem"):
            value, other = ({**one, "data_shape": one["data_shape"][:1]} for one in (value, other or {"data_shape": []}))
        if value != other:
            yield f"{key}={value!r}, only {other!r}"


def write_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write a file of named tensors, as safetensors or `torch.save` do; it replaces the old one when it is complete.

    Raises:
        ValueError: If the suffix is neither `.safetensors` nor `.pt`.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"{path} must end with .safetensors or .pt, which specify how tensors are written")
    with replacing_files(path.parent) as folder:
        if path.suffix == ".safetensors":
            save_file(dict(state), folder / path.name, {"format": "pt"})
        else:
            torch.save(dict(state), folder / path.name)


def write_folder(folder: str | Path, files: Mapping[str, Mapping[str, Any]], state: Mapping[str, Tensor]) -> None:
    """Write files of JSON and `model.safetensors`; they replace the old ones when all are complete."""
    with replacing_files(folder) as temporary:
        for name, value in files.items():
            (temporary / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        save_file(dict(state), temporary / WEIGHTS, {"format": "pt"})
