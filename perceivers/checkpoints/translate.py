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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from perceivers.checkpoints.native import CONFIG, WEIGHTS, fill
from perceivers.checkpoints.pickles import read_pickle

Weights = dict[str, Tensor]
# How files of torch.save start: since PyTorch 1.6, and before it, where a pickle of this number comes first.
ZIP, TORCH = b"PK\3\4", 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


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
    if start[8:9] == b"{":  # behind the length of a header in JSON
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if wanted is None or wanted(name)}
        except Exception as error:  # of many kinds, by what is damaged
            raise ValueError(f"{path} is a damaged safetensors file ({error}): copy or download it again") from error
    if start.startswith(ZIP) or TORCH in start:
        return _read_torch(path, wanted)
    if start.startswith(pickle.PROTO):
        return read_pickle(path)
    raise ValueError(
        f"{path} is damaged, or neither a safetensors file, nor one of torch.save, nor a pickle of arrays: copy or download"
        " it again"
    )


def _read_torch(path: Path, wanted: Callable[[str], bool] | None) -> Weights:
    try:
        unpacked = _unpacked_size(path)
    except Exception as error:  # of many kinds, by what is damaged
        raise ValueError(f"{path} is a damaged file of torch.save ({error}): copy or download it again") from error
    if unpacked > (size := path.stat().st_size):  # PyTorch stores, it does not compress
        raise ValueError(f"{path} would unpack from {size:,} to {unpacked:,} bytes, it was made to fill memory: do not use it")
    try:
        mapped = wanted is not None and zipfile.is_zipfile(path)
        state = _load(path, mmap=mapped)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or holds more than tensors, which is not read: {reason}") from error
    for key in ("state_dict", "model_state_dict", "model", "image_proj"):  # of training loops, of IP-Adapter
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} is no file of tensors under names: save model.state_dict()")
    return dict(state) if wanted is None else {name: tensor.clone() for name, tensor in state.items() if wanted(name)}


def read_hyper_parameters(path: str | Path) -> dict[str, Any]:
    """Reads the settings that Lightning stored beside the weights, of a file that `read_weights` can read.

    Returns:
        What JSON can hold of them, `None` in place of the rest; nothing where there are none.

    Raises:
        ValueError: If they contain themselves, or nearly.
    """
    state = _load(Path(path), mmap=True) if zipfile.is_zipfile(path) else None
    stored = state.get("hyper_parameters") if isinstance(state, Mapping) else None
    try:
        plain = json.loads(json.dumps(stored, default=lambda x: vars(x) if isinstance(x, Record) else None, skipkeys=True))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its hyper_parameters are damaged ({error}): copy or download it again") from error
    return plain if isinstance(plain, dict) else {}


class Record:
    """An object of a class of perceiver-io, such as a configuration: what it held. The class itself is never looked for."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


def _load(path: Path, *, mmap: bool = False) -> Any:
    """`torch.load` that runs nothing from the file."""
    records: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    if zipfile.is_zipfile(path):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        records = [(Record, name) for name in names if name.startswith("perceiver.")]
    with torch.serialization.safe_globals(records), path.open("rb") as file:
        # By its path, torch would go by its suffix; but only by its path it maps it.
        return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)


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
        order = _order(name, orders or {})
        state[name] = value.contiguous() if order is None else value[..., list(order)]
    if unused := sorted(theirs.keys() - used):
        raise ValueError(f"{source}: {len(unused)} tensors have no place in {type(model).__name__}, such as {unused[:3]}")
    fill(model, state, source)
    return model.eval()


def counterpart(table: Mapping[str, str], name: str) -> str | None:
    """Their name for one of ours, by a table of what ours and theirs start with."""
    start = next((start for start in table if name == start or name.startswith(start + ".")), None)
    return None if start is None else table[start] + name[len(start) :]


def in_their_order(name: str, tensor: Tensor, orders: Mapping[str, Sequence[int]]) -> Tensor:
    """A tensor of ours with its columns where they have them; `orders` as in `translated`."""
    order = _order(name, orders)
    if order is None:
        return tensor
    return torch.empty_like(tensor).index_copy_(-1, torch.tensor(order, device=tensor.device), tensor)


def _order(name: str, orders: Mapping[str, Sequence[int]]) -> Sequence[int] | None:
    return next((order for start, order in orders.items() if name.startswith(start)), None)


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


def write_folder(folder: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes `config.json` and `model.safetensors`, each beside the old one and then in its place."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        (Path(temporary) / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(dict(state), Path(temporary) / WEIGHTS, metadata={"format": "pt"})
        for name in (CONFIG, WEIGHTS):
            os.replace(Path(temporary) / name, folder / name)
