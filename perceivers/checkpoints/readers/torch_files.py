"""Files that `torch.save` wrote, both of its forms: tensors, numbers and text in lists and dicts; nothing else is read.

`torch.load(weights_only=True)` runs no command, but a file of a hundred bytes makes it fill the memory. Here the pickle only
tells where each tensor lies; tensors are made afterwards, of what the file really stores.
"""

import math
import mmap
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what the form before PyTorch 1.6 begins with
LARGEST_PICKLE = 2**25  # bytes; one of 10,000 tensors has 2 million
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What is kept of these is what they were made with. The package is perceiver-io's, whose checkpoints hold settings.
RECORDED = {("torch", "device"), ("builtins", "set"), ("builtins", "complex"), ("builtins", "slice")}
RECORDED_PACKAGE = "perceiver."
PYTHON_UNPICKLER: Any = pickle._Unpickler  # pyright: ignore  the one in Python, whose steps can be replaced


@dataclass(frozen=True, slots=True)
class Name:
    """Something outside the pickle that it names; it is not imported."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file."""

    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True, slots=True)  # no tuples, which settings in a file may be
class View:
    """A tensor: where it lies in a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Record:
    """An object of some class: what it was made with, and its attributes. The class itself is never looked for."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


class Unpickler(PYTHON_UNPICKLER):
    """Reads a pickle of `torch.save`: every name stays a name, and the only calls are those that make tensors and dicts."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Name:
        """Returns the name."""
        return Name(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        """Returns a storage: ("storage", its class, key, device, how many numbers)."""
        kind, cls, key, _, length, *views = pid
        if kind != "storage" or cls.module != "torch" or views not in ([], [None]) or type(key) is not str:
            raise ValueError(f"a storage {key!r} of a form that is not known")
        storage = Storage(key, DTYPES[cls.name], _whole(length))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key!r} is of two types or sizes")
        return storage

    def load_reduce(self) -> None:
        """A call."""
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def _call(self, function: Any, arguments: Any) -> Any:
        match function:
            case Name("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor"):
                storage, offset, shape, strides, *_ = arguments
                if type(storage) is not Storage or len(shape) != len(strides):
                    raise ValueError("a tensor of a form that is not known")
                return View(storage, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, strides)))
            case Name("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"):
                return arguments[0]
            case Name("torch._tensor", "_rebuild_from_type_v2"):  # a tensor with attributes
                return self._call(arguments[0], arguments[2])
            case Name("torch", "Size"):
                return tuple(arguments[0])
            case Name("collections", "OrderedDict") if not arguments:
                return {}
            case Name("collections", "defaultdict"):
                return {}
            case Name(module, name) if (module, name) in RECORDED or module.startswith(RECORDED_PACKAGE):
                return Record(*arguments)
            case Name(module, name):
                raise ValueError(f"it calls {module}.{name}")
            case _:
                raise ValueError("it calls what is no function")

    def load_build(self) -> None:
        """Attributes of an object; those of others than records are left out, such as the versions that a state_dict has."""
        state = self.stack.pop()
        if type(self.stack[-1]) is Record and type(state) is dict:
            vars(self.stack[-1]).update({name: value for name, value in state.items() if type(name) is str})

    def load_setitem(self) -> None:
        """One entry of a dict."""
        self._fill([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        """Entries of a dict."""
        self._fill(self.pop_mark())

    def _fill(self, items: list[Any]) -> None:
        # The hash of a tuple in a tuple, a million deep, ends the process.
        if not all(isinstance(key, str | int | float | None) for key in items[::2]):
            raise ValueError("a dict with keys that are neither text nor numbers")
        if type(self.stack[-1]) is not dict:
            raise ValueError("an entry of what is no dict")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))


REFUSED = (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.DICT)
REFUSED += (pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
Unpickler.dispatch = {code: step for code, step in Unpickler.dispatch.items() if bytes([code]) not in REFUSED} | {
    pickle.REDUCE[0]: Unpickler.load_reduce,
    pickle.NEWOBJ[0]: Unpickler.load_reduce,
    pickle.BUILD[0]: Unpickler.load_build,
    pickle.SETITEM[0]: Unpickler.load_setitem,
    pickle.SETITEMS[0]: Unpickler.load_setitems,
}


def read(path: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Reads named tensors, also those under the keys that training loops give them.

    Args:
        path: The file.
        wanted: Whether a name is to be read; `None` for all.

    Raises:
        Exception: Of many kinds, if the file is damaged or holds something else.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive, wanted)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        return _read_stream(stream, wanted)


def contents(path: Path) -> Any:
    """Reads what a file holds beside its tensors, which are `View`s; objects of perceiver-io are `Record`s.

    Raises:
        Exception: Of many kinds, if the file is damaged, holds something else, or is of the form before PyTorch 1.6.
    """
    with zipfile.ZipFile(path) as archive:
        return _unpickle(archive)[0]


def _unpickle(archive: zipfile.ZipFile) -> tuple[Any, dict[str, zipfile.ZipInfo], str]:
    """What a file holds, with its entries and the folder that they are in."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    unpacked, size = sum(entry.file_size for entry in archive.infolist()), os.stat(str(archive.filename)).st_size
    if unpacked > size:  # PyTorch stores, it does not compress
        raise ValueError(f"it would unpack from {size:,} to {unpacked:,} bytes, it was made to fill memory")
    (top,) = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if f"{top}byteorder" in entries and archive.read(f"{top}byteorder") != sys.byteorder.encode():
        raise ValueError(f"its numbers are not in the order of bytes of this machine, {sys.byteorder}")
    if entries[f"{top}data.pkl"].file_size > LARGEST_PICKLE:
        raise ValueError(f"its list of tensors is larger than {LARGEST_PICKLE:,} bytes")
    with archive.open(f"{top}data.pkl") as file:
        return Unpickler(file).load(), entries, top


def _read_zip(archive: zipfile.ZipFile, wanted: Callable[[str], bool] | None) -> dict[str, Tensor]:
    state, entries, top = _unpickle(archive)

    def stored(storage: Storage) -> bytearray:
        entry = entries[f"{top}data/{storage.key}"]
        if entry.file_size != storage.length * storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key!r} has {entry.file_size:,} bytes, not {storage.length:,} numbers")
        return bytearray(archive.read(entry))

    return _tensors(_views(state, wanted), stored)


def _read_stream(stream: mmap.mmap, wanted: Callable[[str], bool] | None) -> dict[str, Tensor]:
    if (Unpickler(stream).load(), Unpickler(stream).load()) != (MAGIC, PROTOCOL):
        raise ValueError("it does not begin as files of torch.save do")
    if Unpickler(stream).load().get("little_endian") is not (sys.byteorder == "little"):
        raise ValueError(f"its numbers are not in the order of bytes of this machine, {sys.byteorder}")
    unpickler = Unpickler(stream)
    views = _views(unpickler.load(), wanted)
    places = {}
    for key in Unpickler(stream).load():
        storage = unpickler.storages.pop(key)
        count, start = int.from_bytes(stream.read(8), "little"), stream.tell()
        length = count * storage.dtype.itemsize
        if count != storage.length or length > len(stream) - start:
            raise ValueError(f"storage {key!r} has no {storage.length:,} numbers")
        places[storage] = (start, start + length)
        stream.seek(start + length)
    return _tensors(views, lambda storage: bytearray(stream[slice(*places[storage])]))


def _views(state: Any, wanted: Callable[[str], bool] | None) -> dict[str, View]:
    for key in ("state_dict", "model_state_dict", "model", "image_proj"):  # of training loops, of IP-Adapter
        if type(state) is dict and type(state.get(key)) is dict:
            state = state[key]
    if type(state) is not dict or not all(type(k) is str and type(v) is View for k, v in state.items()):
        raise ValueError("there are no tensors under names: save model.state_dict()")
    return {name: view for name, view in state.items() if wanted is None or wanted(name)}


def _tensors(views: Mapping[str, View], stored: Callable[[Storage], bytearray]) -> dict[str, Tensor]:
    """Makes the tensors; names of the same view get one."""
    distinct = set(views.values())
    flat = {}
    for view in distinct:
        last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
        if last >= view.storage.length or not 0 < math.prod(view.shape) <= view.storage.length:
            raise ValueError(f"a tensor of shape {list(view.shape)} is empty, or has more numbers than are stored")
    # Views may overlap, as parts of a tensor beside the whole, but not to make much of little.
    storages = {view.storage for view in distinct}
    if sum(math.prod(view.shape) for view in distinct) > 4 * sum(storage.length for storage in storages):
        raise ValueError("its tensors overlap, they have more numbers together than are stored")
    for storage in storages:
        flat[storage] = torch.frombuffer(stored(storage), dtype=storage.dtype)
    made = {view: flat[view.storage].as_strided(view.shape, view.strides, view.offset).contiguous() for view in distinct}
    return {name: made[view] for name, view in views.items()}


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a size that is no whole number")
    return value
