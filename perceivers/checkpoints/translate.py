"""From another project's weights to ours: every tensor of theirs is used, every one of ours filled, or nothing loaded."""

import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perceivers.checkpoints.native import CONFIG, WEIGHTS, fill
from perceivers.checkpoints.pickles import read_pickle

Weights = dict[str, Tensor]
# How files of torch.save start: since PyTorch 1.6, and before it, where a pickle of this number comes first.
ZIP, TORCH = b"PK\3\4", 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


def read_weights(path: str | Path) -> Weights:
    """Reads a file of named tensors, whatever its name: safetensors, what `torch.save` wrote, or a pickle of arrays.

    Nothing in it is run.

    Raises:
        ValueError: If it is missing, damaged, or holds anything but tensors under names.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    with path.open("rb") as file:
        start = file.read(32)
    if start[8:9] == b"{":  # behind the length of a header in JSON
        try:
            return load_file(path)
        except Exception as error:  # of many kinds, by what is damaged
            raise ValueError(f"{path} is a damaged safetensors file ({error}): copy or download it again") from error
    if start.startswith(ZIP) or TORCH in start:
        return _read_torch(path)
    if start.startswith(pickle.PROTO):
        return read_pickle(path)
    raise ValueError(
        f"{path} is damaged, or neither a safetensors file, nor one of torch.save, nor a pickle of arrays: copy or download"
        " it again"
    )


def _read_torch(path: Path) -> Weights:
    try:
        unpacked = _unpacked_size(path)
    except Exception as error:  # of many kinds, by what is damaged
        raise ValueError(f"{path} is a damaged file of torch.save ({error}): copy or download it again") from error
    if unpacked > (size := path.stat().st_size):  # PyTorch stores, it does not compress
        raise ValueError(f"{path} would unpack from {size:,} to {unpacked:,} bytes, it was made to fill memory: do not use it")
    try:
        with path.open("rb") as file:  # by its path, torch would go by its suffix
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or holds more than tensors, which is not read: {reason}") from error
    for key in ("state_dict", "model"):  # of training loops
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} is no file of tensors under names: save model.state_dict()")
    return dict(state)


def _unpacked_size(path: Path) -> int:
    if not zipfile.is_zipfile(path):  # the form before PyTorch 1.6
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


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
    with torch.device("meta"):
        model = make()
    state, used = {}, set()
    for copy, original in (copies or {}).items():
        if not torch.equal(theirs[copy], theirs[original]):
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
        order = next((order for start, order in (orders or {}).items() if name.startswith(start)), None)
        state[name] = value.contiguous() if order is None else value[..., list(order)]
    if unused := sorted(theirs.keys() - used):
        raise ValueError(f"{source}: {len(unused)} tensors have no place in {type(model).__name__}, such as {unused[:3]}")
    fill(model, state, source)
    return model.eval()


def write_folder(folder: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes `config.json` and `model.safetensors`, each beside the old one and then in its place."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        (Path(temporary) / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(dict(state), Path(temporary) / WEIGHTS, metadata={"format": "pt"})
        for name in (CONFIG, WEIGHTS):
            os.replace(Path(temporary) / name, folder / name)
