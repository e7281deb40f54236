"""A restricted reader of pickles: tensors, arrays, containers, text and numbers; nothing is imported or run.

A pickle is a program for a small stack machine. `Machine` knows the operations that parameters need. The names of classes and
functions in a file stay names, and calls are looked up in one table, `CALLS`. A tensor of `torch.save` becomes a `View`, which
states where its numbers lie; the caller reads them, so that they are only as many as the file stores.

Time and memory are bounded: by the number of operations, by the bytes that the file has, and because no operation can copy
the same bytes again and again.
"""

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO

import numpy as np
import torch

# A published file of Haiku has 20,000 operations, a file of 10,000 tensors by torch.save half a million.
MOST_OPERATIONS = 1_000_000
LONGEST_NAME, MOST_AXES = 250, 32
ARRAY_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
STORAGE_TYPES = {"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16}
STORAGE_TYPES |= {"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8}
STORAGE_TYPES |= {"Byte": torch.uint8, "Bool": torch.bool}


class RefusedError(Exception):
    """Something that is never read."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names; it is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module[:80]}.{self.name[:80]}"


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in a file of `torch.save`."""

    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True, slots=True)  # not a tuple, which settings in a file may be
class View:
    """A tensor: where its numbers lie in a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class Record:
    """The attributes of an object, whose class is never looked for."""

    attributes: dict[Any, Any] = field(default_factory=dict)


class Dtype:
    """`numpy.dtype(kind)`; its byte order follows as a state."""

    def __init__(self, kind: Any, align: Any = False, copy: Any = True) -> None:
        if kind not in ARRAY_TYPES:
            raise RefusedError(f"it has an array of dtype {shown(kind)}, not of numbers")
        self.value = np.dtype(kind)

    def build(self, state: Any) -> None:
        """Set the byte order."""
        if state[1] not in ("<", ">", "|", "=") or any(part not in (None, -1, 0) for part in state[2:]):
            raise RefusedError("it has an array of a dtype with fields")
        self.value = self.value.newbyteorder(state[1])


class Array:
    """An array of NumPy or JAX; its values may follow as a state."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Set the values, as `numpy.ndarray.__setstate__` does."""
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> "Array":
        """Set the values to bytes of the file, which are not copied."""
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes) or order not in ("C", "F"):
            raise RefusedError("it has an array whose values are not bytes")
        if not isinstance(shape, tuple) or len(shape) > MOST_AXES or any(type(n) is not int or n < 0 for n in shape):
            raise RefusedError(f"it has an array of shape {shown(shape)}")
        if prod(shape) * dtype.value.itemsize != len(raw):
            raise RefusedError(f"it has an array of shape {shown(shape)}, but {len(raw):,} bytes for it")
        self.value = np.frombuffer(raw, dtype.value).reshape(shape, order=order)
        return self


def shown(value: Any) -> str:
    """Return a value as it is shown in a message: short, whatever it holds."""
    if isinstance(value, str):
        return value[:80]
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, tuple) and len(value) <= MOST_AXES and all(type(n) is int and abs(n) < 2**64 for n in value):
        return str(value)
    return f"a {type(value).__name__}"


def size(value: Any) -> int:
    """Return `value` if it is an int of at least 0."""
    if type(value) is not int or value < 0:
        raise RefusedError("it has a size that is not a whole number")
    return value


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    if type(storage) is not Storage or len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise RefusedError("it has a tensor of an unknown form")
    return View(storage, size(offset), tuple(map(size, shape)), tuple(map(size, strides)))


def _shape(lengths: Any) -> tuple[Any, ...]:
    if type(lengths) is not tuple:
        raise RefusedError(f"it makes a torch.Size of {shown(lengths)}")
    return lengths


def _empty_array(kind: Any, shape: Any, code: Any) -> Array:
    if kind != Name("numpy", "ndarray"):
        raise RefusedError("it has an array of another class")
    return Array()


def _jax_array(empty: Any, arguments: Any, state: Any, aval: Any) -> Array:
    if CALLS.get(str(empty)) is not _empty_array:
        raise RefusedError("it has a JAX array of another class")
    array = _empty_array(*arguments)
    array.build(state)
    return array


def _mapping(*items: Any) -> dict[Any, Any]:
    if len(items) > 1 or not all(type(item) is dict for item in items):
        raise RefusedError("it has a mapping that is not made of a dict")
    return items[0] if items else {}


def _encode(text: Any, coding: Any) -> bytes:
    if type(text) is not str or coding != "latin1":
        raise RefusedError("it calls _codecs.encode for anything but text to latin1")
    return text.encode("latin1")


def _record(*_: Any) -> Record:
    return Record()


# All that a file can call. Protocol 2 writes bytes as calls: of _codecs.encode, or of bytes if there are none.
CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": _shape,
    "numpy.dtype": Dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",
    "jax._src.array._reconstruct_array": _jax_array,
    **{f"haiku._src.data_structures.{name}": _mapping for name in ("FlatMapping", "FlatMap", "frozendict")},
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": lambda dtype, raw: Array().fill(raw, dtype, (), "C") for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": lambda *values: Array().fill(*values) for core in ("core", "_core")},
    **dict.fromkeys(("torch.device", "builtins.set", "builtins.complex", "builtins.slice"), _record),
}
RECORDED_PACKAGE = "perceiver."  # krasserm's perceiver-io, whose checkpoints hold settings as objects
WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"  # the call of a function, for a tensor that has attributes

MARK = object()
TUPLES = {pickle.EMPTY_TUPLE: 0, pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.MARK: MARK}
NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
# The form of the length that follows an operation.
TEXTS = {pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE: "<I", pickle.BINUNICODE8: "<Q"}
TEXTS |= {pickle.SHORT_BINSTRING: "<B", pickle.BINSTRING: "<I"}  # of Python 2
BYTES = {pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES: "<I", pickle.BINBYTES8: "<Q", pickle.BYTEARRAY8: "<Q"}
MEMO_SET = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
MEMO_GET = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}


class Machine:
    """A machine that runs the pickles of one stream, one after another.

    Attributes:
        steps: Operations so far.
        storages: The storages that tensors lie in, by key.
    """

    def __init__(self, file: BinaryIO, length: int) -> None:
        """Initialise a machine that reads at most `length` bytes of a file."""
        self.file = file
        self.left = length  # bytes that were not read
        self.encodable = length  # bytes that may still be made of text
        self.steps = 0
        self.storages: dict[str, Storage] = {}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return what the next pickle of the stream holds.

        Raises:
            Exception: Of many kinds, if it is damaged or asks for anything else; `RefusedError` gives the reason.
        """
        self.stack, self.memo = [], {}
        while (code := self.read(1)) != pickle.STOP:
            self.steps += 1
            if self.steps > MOST_OPERATIONS:
                raise RefusedError(f"it has more than {MOST_OPERATIONS:,} operations")
            self.step(code)
        if len(self.stack) != 1:
            raise RefusedError("it does not end correctly")
        return self.stack.pop()

    def read(self, count: int) -> bytes:
        """Return so many bytes of the file, which must have them."""
        self.left -= count
        if self.left < 0 or count < 0 or len(raw := self.file.read(count)) != count:
            raise RefusedError("it ends in the middle")
        return raw

    def number(self, form: str) -> Any:
        """Return a number of a form of `struct`."""
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Return the rest of a line."""
        line = self.file.readline(LONGEST_NAME)
        self.left -= len(line)
        return line.decode("ascii").removesuffix("\n")

    def items(self) -> list[Any]:
        """Pop what was pushed since the last mark."""
        items = []
        while (value := self.stack.pop()) is not MARK:
            items.append(value)
        return items[::-1]

    def step(self, code: bytes) -> None:
        """Run the operations that only push values."""
        stack = self.stack
        if code in MEMO_SET:
            self.memo[self.number(MEMO_SET[code])] = stack[-1]
        elif code in MEMO_GET:
            stack.append(self.memo[self.number(MEMO_GET[code])])
        elif code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in NUMBERS:
            stack.append(self.number(NUMBERS[code]))
        elif code in TEXTS:
            stack.append(self.read(self.number(TEXTS[code])).decode("utf-8"))
        elif code in BYTES:
            stack.append(self.read(self.number(BYTES[code])))
        elif code in TUPLES:
            items = [stack.pop() for _ in range(TUPLES[code])]
            stack.append(tuple(items[::-1]))
        else:
            self.structure(code)

    def structure(self, code: bytes) -> None:
        """Run the other operations."""
        stack = self.stack
        match code:
            case pickle.PROTO:
                if (protocol := self.read(1)[0]) not in range(2, 6):
                    raise RefusedError(f"it has protocol {protocol}, only 2 to 5 are read")
            case pickle.FRAME:
                self.number("<Q")  # how much is best read at once
            case pickle.LONG1:
                stack.append(pickle.decode_long(self.read(self.read(1)[0])))
            case pickle.TUPLE:
                stack.append(tuple(self.items()))
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.APPEND | pickle.APPENDS:
                items = self.items() if code == pickle.APPENDS else [stack.pop()]
                if type(stack[-1]) is not list:
                    raise RefusedError(f"it has {shown(stack[-1])} instead of a list")
                stack[-1].extend(items)
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.SETITEM | pickle.SETITEMS:
                items = self.items() if code == pickle.SETITEMS else [stack.pop(-2), stack.pop()]
                if type(stack[-1]) is not dict:
                    raise RefusedError(f"it has {shown(stack[-1])} instead of a dict")
                # The hash of a tuple in a tuple, a million deep, ends the process.
                if not all(isinstance(key, str | int | float | None) for key in items[::2]):
                    raise RefusedError("it has a dict with keys that are neither text nor numbers")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case pickle.MEMOIZE:
                self.memo[len(self.memo)] = stack[-1]
            case pickle.GLOBAL:
                stack.append(Name(self.line(), self.line()))
            case pickle.STACK_GLOBAL:
                module, name = stack.pop(-2), stack.pop()
                if type(module) is not str or type(name) is not str:
                    raise RefusedError(f"it names {shown(module)}.{shown(name)}")
                stack.append(Name(module, name))
            case pickle.BINPERSID:
                stack.append(self.storage(*stack.pop()))
            case pickle.REDUCE | pickle.NEWOBJ:
                stack.append(self.call(stack.pop(-2), stack.pop()))
            case pickle.BUILD:
                state, built = stack.pop(), stack[-1]
                if isinstance(built, Dtype | Array):
                    built.build(state)
                elif isinstance(built, Record) and type(state) is dict:
                    built.attributes = state  # those of others are left out, such as the versions that a state_dict has
            case _:
                raise RefusedError(f"it has the operation {code!r}, which parameters do not need")

    def storage(self, kind: Any, cls: Any, key: Any, device: Any, length: Any, views: Any = None) -> Storage:
        """Return the storage of a persistent id of `torch.save`."""
        if kind != "storage" or type(cls) is not Name or cls.module != "torch" or type(key) is not str or views is not None:
            raise RefusedError(f"it has a storage {shown(key)} of an unknown form")
        storage = Storage(key, STORAGE_TYPES[cls.name.removesuffix("Storage")], size(length))
        if self.storages.setdefault(key, storage) != storage:
            raise RefusedError(f"it has a storage {shown(key)} of two types or sizes")
        return storage

    def call(self, function: Any, arguments: Any) -> Any:
        """Return the result of a call that the table allows."""
        while function == Name(*WITH_ATTRIBUTES.rsplit(".", 1)) and type(arguments) is tuple:
            function, _, arguments, *_ = arguments
        made = CALLS.get(str(function)) if type(function) is Name else None
        if type(function) is Name and function.module.startswith(RECORDED_PACKAGE):
            made = _record
        if made is None or type(arguments) is not tuple:
            raise RefusedError(f"it calls {shown(function)}, which parameters do not need")
        if made is _encode and arguments and type(arguments[0]) is str:  # the only call that makes more bytes of what was read
            self.encodable -= len(arguments[0])
            if self.encodable < 0:
                raise RefusedError("it was made to fill memory")
        return made(*arguments)
