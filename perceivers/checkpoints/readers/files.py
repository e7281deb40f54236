"""Files of named tensors, whatever their name: safetensors, both forms of `torch.save`, and pickles of arrays.

`torch.load(weights_only=True)` runs no command, but a file of a hundred bytes makes it fill the memory. Here a pickle only
states where each tensor lies (`perceivers.checkpoints.readers.pickles`); tensors are made later, from what the file stores.
"""

import math
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from perceivers.checkpoints.readers.pickles import LONGEST_NAME, Array, Machine, Record, RefusedError, Storage, View, shown

Wanted = Callable[[str], bool]
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what the form before PyTorch 1.6 begins with
# How files of torch.save start: since PyTorch 1.6, and before it, with a pickle of this number.
ZIP, LEGACY = b"PK\3\4", MAGIC.to_bytes(10, "little")
LARGEST_PICKLE = 2**25  # bytes; one of 10,000 tensors has 2 million
# What tensors lie under in files of training loops and of IP-Adapter.
PARTS = ("state_dict", "model_state_dict", "model", "image_proj")
# A published file of Haiku has 500 arrays, in dicts three deep.
MOST_ARRAYS, DEEPEST = 10_000, 8


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        weights: Its tensors by name.
        settings: What Lightning stored beside them as `hyper_parameters`, as it was read; `None` if there is nothing.
    """

    weights: dict[str, Tensor]
    settings: Any = None


def read(path: str | Path, wanted: Wanted | None = None) -> Contents:
    """Return what a file holds; nothing in it is run.

    Args:
        path: The file.
        wanted: True for the names of tensors to read. Defaults to all; the others of a file too large for memory are skipped.

    Raises:
        ValueError: If the file is missing, damaged, or holds anything but tensors under names.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: the file does not exist")
    try:
        with path.open("rb") as file:
            contents = _read(path, file, wanted or (lambda name: True))
    except Exception as error:  # of many kinds, by what is damaged
        kind = "" if isinstance(error, RefusedError) else f"{type(error).__name__}: "
        reason = f"{kind}{error}".partition("\n")[0][:500]
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which is not read ({reason}): copy or download it again"
        ) from error
    if empty := sorted(name for name, tensor in contents.weights.items() if not tensor.numel()):
        raise ValueError(f"{path}: {len(empty)} tensors are empty, such as {empty[:3]}: no model has such tensors")
    return contents


def plain(settings: Any) -> dict[str, Any]:
    """Return stored settings as JSON could hold them, with objects as dicts and `None` for the rest.

    Raises:
        ValueError: If they contain themselves, or are made to fill memory.
    """
    left = 100_000

    def walk(value: Any, depth: int = 0) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > 100:
            raise ValueError("hyper_parameters are damaged, they contain themselves: copy or download the file again")
        if isinstance(value, Record):
            value = value.attributes
        if isinstance(value, dict):
            return {str(key): walk(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [walk(inner, depth + 1) for inner in value]
        return value if isinstance(value, str | int | float | None) else None

    found = walk(settings)
    return found if isinstance(found, dict) else {}


def _read(path: Path, file: BinaryIO, wanted: Wanted) -> Contents:
    """Choose a reader by how the file starts."""
    start = file.read(32)
    file.seek(0)
    if start[8:9] == b"{":  # follows the length of a header in JSON
        with safe_open(path, framework="pt") as tensors:
            return Contents({name: tensors.get_tensor(name) for name in tensors.keys() if wanted(name)})
    if start.startswith(ZIP):
        with zipfile.ZipFile(file) as archive:
            return _zip(archive, os.fstat(file.fileno()).st_size, wanted)
    if LEGACY in start:
        return _legacy(file, os.fstat(file.fileno()).st_size, wanted)
    if start.startswith(pickle.PROTO):
        return Contents(_arrays(file, os.fstat(file.fileno()).st_size, wanted))
    raise RefusedError("it is neither a safetensors file, nor one of torch.save, nor a pickle of arrays")


def _zip(archive: zipfile.ZipFile, size: int, wanted: Wanted) -> Contents:
    entries = {entry.filename: entry for entry in archive.infolist()}
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > size:  # PyTorch stores, it does not compress
        raise RefusedError(f"it would unpack from {size:,} to {unpacked:,} bytes, it was made to fill memory")
    (top,) = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if f"{top}byteorder" in entries and archive.read(f"{top}byteorder") != sys.byteorder.encode():
        raise RefusedError(f"its numbers are not in the byte order of this machine, {sys.byteorder}")
    if (length := entries[f"{top}data.pkl"].file_size) > LARGEST_PICKLE:
        raise RefusedError(f"its list of tensors is larger than {LARGEST_PICKLE:,} bytes")
    with archive.open(f"{top}data.pkl") as file:
        state = Machine(file, length).run()  # pyright: ignore[reportArgumentType]

    def stored(storage: Storage) -> bytes:
        entry = entries[f"{top}data/{storage.key}"]
        if entry.file_size != storage.length * storage.dtype.itemsize:
            raise RefusedError(f"storage {storage.key!r} has {entry.file_size:,} bytes, not {storage.length:,} numbers")
        return archive.read(entry)

    settings = state.get("hyper_parameters") if isinstance(state, dict) else None
    return Contents(_tensors(_views(state, wanted), stored), settings)


def _legacy(file: BinaryIO, size: int, wanted: Wanted) -> Contents:
    machine = Machine(file, size)
    if (machine.run(), machine.run()) != (MAGIC, PROTOCOL):
        raise RefusedError("it does not begin as files of torch.save do")
    if machine.run().get("little_endian") is not (sys.byteorder == "little"):
        raise RefusedError(f"its numbers are not in the byte order of this machine, {sys.byteorder}")
    state = machine.run()
    views, places = _views(state, wanted), {}
    for key in machine.run():
        storage = machine.storages.pop(key)
        count, start = int.from_bytes(file.read(8), "little"), file.tell()
        length = count * storage.dtype.itemsize
        if count != storage.length or length > size - start:
            raise RefusedError(f"storage {shown(key)} does not have {storage.length:,} numbers")
        places[storage] = (start, length)
        file.seek(start + length)

    def stored(storage: Storage) -> bytes:
        start, length = places[storage]
        file.seek(start)
        return file.read(length)

    return Contents(_tensors(views, stored))


def _views(state: Any, wanted: Wanted) -> dict[str, View]:
    for key in PARTS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(type(k) is str and type(v) is View for k, v in state.items()):
        raise RefusedError("there are no tensors under names: save model.state_dict()")
    return {name: view for name, view in state.items() if wanted(name)}


def _tensors(views: Mapping[str, View], stored: Callable[[Storage], bytes]) -> dict[str, Tensor]:
    """Make the tensors; names of the same view get one."""
    distinct = set(views.values())
    for view in distinct:
        last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
        if last >= view.storage.length or not 0 < math.prod(view.shape) <= view.storage.length:
            raise RefusedError(f"a tensor of shape {shown(view.shape)} is empty, or has more numbers than are stored")
    # Views may overlap, as parts of a tensor beside the whole, but not to make much of little.
    storages = {view.storage for view in distinct}
    if sum(math.prod(view.shape) for view in distinct) > 4 * sum(storage.length for storage in storages):
        raise RefusedError("its tensors overlap, they have more numbers together than are stored")
    flat = {storage: torch.frombuffer(bytearray(stored(storage)), dtype=storage.dtype) for storage in storages}
    made = {view: flat[view.storage].as_strided(view.shape, view.strides, view.offset).contiguous() for view in distinct}
    return {name: made[view] for name, view in views.items()}


def _arrays(file: BinaryIO, size: int, wanted: Wanted) -> dict[str, Tensor]:
    """Read a pickle of arrays in dicts: each array under the keys that lead to it, joined by "/"."""
    machine, found, steps, left = Machine(file, size), {}, MOST_ARRAYS, size
    tree = machine.run()
    if machine.left:
        raise RefusedError("it does not end correctly")

    def walk(name: str, value: Any, depth: int) -> None:
        nonlocal steps, left
        steps -= 1
        if isinstance(value, Array) and value.value is not None:
            left -= value.value.nbytes
        if min(steps, left) < 0:
            raise RefusedError("it was made to fill memory")
        if isinstance(value, dict):
            if depth == DEEPEST:
                raise RefusedError(f"it has dicts in dicts, more than {DEEPEST} deep")
            for key, inner in value.items():
                if type(key) is not str or len(key) > LONGEST_NAME:
                    raise RefusedError(f"it has the key {shown(key)}, which is not a name")
                walk(f"{name}/{key}" if name else key, inner, depth + 1)
        elif not isinstance(value, Array) or value.value is None:
            raise RefusedError(f"it has {shown(value)} as {name[:80]!r}, not an array")
        elif name in found or len(name) > LONGEST_NAME:
            raise RefusedError(f"it has two arrays of one name, or one too long: {name[:80]!r}")
        elif wanted(name):
            array = value.value
            found[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))

    if not isinstance(tree, dict):
        raise RefusedError(f"it holds {shown(tree)}, not a dict of arrays")
    walk("", tree, 0)
    return found
