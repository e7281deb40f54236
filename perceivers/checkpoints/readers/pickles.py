"""Pickles of arrays, as JAX and Haiku projects save parameters, read without running anything.

A pickle is a program for a small machine. This is such a machine, for what parameters are made of: dicts with strings as
keys, lists, tuples, strings, numbers and arrays of numbers. Names that a file asks for are looked up in a table; none is
imported. Time and memory are bounded by the size of the file: there is a limit of operations, bytes are only asked for where
the file has them, and neither arrays nor strings can be made of the same bytes again and again.
"""

import pickle
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

# A published file has some twenty thousand operations and five hundred arrays, with names of up to 90 characters, in dicts
# that lie three deep.
MOST_OPERATIONS, MOST_ARRAYS, LONGEST_NAME, DEEPEST = 200_000, 10_000, 250, 8
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def read_pickle(path: str | Path) -> dict[str, Tensor]:
    """Reads a pickle of arrays in dicts.

    Containers are dicts, `collections.OrderedDict`, and Haiku's own of every version; arrays are NumPy's or JAX's, of numbers.

    Args:
        path: The file, of protocol 2 to 5.

    Returns:
        Each array under its name: the keys that lead to it, joined by "/".

    Raises:
        ValueError: If the file is damaged, or holds anything else; the message names what.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            tree = _Machine(file, size).run()
        return _tensors(tree, size)
    except Exception as error:  # of many kinds, by what is damaged
        reason = str(error) if isinstance(error, _RefusedError) else f"{type(error).__name__}: {error}"[:200]
        raise ValueError(
            f"{path} is no pickle of arrays, or damaged: {reason}. Copy or download it again if you trust who made it"
        ) from error


class _RefusedError(Exception):
    """Something that is never read."""


class _Dtype:
    """`numpy.dtype(kind)`, whose byte order comes later."""

    def __init__(self, kind: Any, align: Any = False, copy: Any = True) -> None:
        if kind not in DTYPES:
            raise _RefusedError(f"it has an array of dtype {_shown(kind)}, not of numbers")
        self.value = np.dtype(kind)

    def build(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(part not in (None, -1, 0) for part in state[2:]):
            raise _RefusedError("it has an array of a dtype with fields")
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """An array, whose bytes come later."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or order not in ("C", "F"):
            raise _RefusedError("it has an array whose values are no bytes")
        if not isinstance(shape, tuple) or len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
            raise _RefusedError(f"it has an array of shape {_shown(shape)}")
        if prod(shape) * dtype.value.itemsize != len(raw):
            raise _RefusedError(f"it has an array of shape {_shown(shape)}, but {len(raw):,} bytes for it")
        self.value = np.frombuffer(raw, dtype.value).reshape(shape, order=order)


def _empty_array(kind: Any, shape: Any, code: Any) -> _Array:
    """`numpy._core.multiarray._reconstruct(numpy.ndarray, (0,), b"b")`: an array of nothing, to be built."""
    if kind is not NDARRAY:
        raise _RefusedError("it has an array of another class")
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.fill(raw, dtype, shape, order)
    return array


def _scalar(dtype: Any, raw: Any) -> _Array:
    return _from_buffer(raw, dtype, (), "C")


def _jax_array(empty: Any, arguments: Any, state: Any, aval: Any) -> _Array:
    if empty is not _empty_array:
        raise _RefusedError("it has a JAX array of another class")
    array = _empty_array(*arguments)
    array.build(state)
    return array


def _mapping(*items: Any) -> dict[str, Any]:
    if len(items) > 1 or not all(isinstance(item, dict) for item in items):
        raise _RefusedError("it has a mapping that is not made of a dict")
    return items[0] if items else {}


def _encode(text: Any, coding: Any) -> bytes:
    """How protocol 2 writes bytes: as text."""
    if not isinstance(text, str) or coding != "latin1":
        raise _RefusedError("it asks for _codecs.encode of anything but text to latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 writes no bytes."""
    return b""


NDARRAY = "numpy.ndarray"
# All that a file can ask for.
TABLE: dict[str, Callable[..., Any] | str] = {
    "numpy.ndarray": NDARRAY,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "collections.OrderedDict": _mapping,
    "jax._src.array._reconstruct_array": _jax_array,
    **{f"haiku._src.data_structures.{name}": _mapping for name in ("FlatMapping", "FlatMap", "frozendict")},
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
MARK = object()
TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
# Of what stands behind an operation, the form of its length.
TEXTS = {pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE: "<I", pickle.BINUNICODE8: "<Q"}
BYTES = {pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES: "<I", pickle.BINBYTES8: "<Q", pickle.BYTEARRAY8: "<Q"}
MEMO_SET = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
MEMO_GET = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}


class _Machine:
    """Runs one pickle."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.left = size  # bytes that were not read
        self.encodable = size  # bytes that may still be made of text
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MOST_OPERATIONS):
            code = self.read(1)
            if code == pickle.STOP:
                if len(self.stack) != 1 or self.left:
                    raise _RefusedError("it does not end where it should")
                return self.stack[0]
            self.step(code)
        raise _RefusedError(f"it has more than {MOST_OPERATIONS:,} operations")

    def read(self, count: int) -> bytes:
        self.left -= count
        if self.left < 0:
            raise _RefusedError("it ends in the middle")
        return self.file.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def line(self) -> str:
        line = self.file.readline(LONGEST_NAME)
        self.left -= len(line)
        return line.decode("ascii").removesuffix("\n")

    def items(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = []
        while (value := self.stack.pop()) is not MARK:
            items.append(value)
        return items[::-1]

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise _RefusedError(f"it has a {type(self.stack[-1]).__name__} where a {kind.__name__} must be")
        return self.stack[-1]

    def step(self, code: bytes) -> None:
        stack = self.stack
        if code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in NUMBERS:
            stack.append(self.number(NUMBERS[code]))
        elif code in TEXTS:
            stack.append(self.read(self.number(TEXTS[code])).decode("utf-8"))
        elif code in BYTES:
            stack.append(self.read(self.number(BYTES[code])))
        elif code in MEMO_SET:
            self.memo[self.number(MEMO_SET[code])] = stack[-1]
        elif code in MEMO_GET:
            stack.append(self.memo[self.number(MEMO_GET[code])])
        elif code in TUPLES:
            items = [stack.pop() for _ in range(TUPLES[code])]
            stack.append(tuple(items[::-1]))
        else:
            self.structure(code)

    def structure(self, code: bytes) -> None:
        stack = self.stack
        match code:
            case pickle.PROTO:
                if (protocol := self.read(1)[0]) not in range(2, 6):
                    raise _RefusedError(f"it has protocol {protocol}, only 2 to 5 are read")
            case pickle.FRAME:
                self.number("<Q")  # how much is best read at once
            case pickle.LONG1:
                stack.append(pickle.decode_long(self.read(self.read(1)[0])))
            case pickle.MARK:
                stack.append(MARK)
            case pickle.EMPTY_TUPLE:
                stack.append(())
            case pickle.TUPLE:
                stack.append(tuple(self.items()))
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.APPEND:
                value = stack.pop()
                self.top(list).append(value)
            case pickle.APPENDS:
                items = self.items()
                self.top(list).extend(items)
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.SETITEM:
                value, key = stack.pop(), stack.pop()
                self.assign([key, value])
            case pickle.SETITEMS:
                self.assign(self.items())
            case pickle.MEMOIZE:
                self.memo[len(self.memo)] = stack[-1]
            case pickle.GLOBAL:
                stack.append(self.named(self.line(), self.line()))
            case pickle.STACK_GLOBAL:
                name, module = stack.pop(), stack.pop()
                stack.append(self.named(module, name))
            case pickle.REDUCE:
                arguments = stack.pop()
                stack.append(self.call(stack.pop(), arguments))
            case pickle.BUILD:
                state, built = stack.pop(), stack[-1]
                if not isinstance(built, _Dtype | _Array):
                    raise _RefusedError(f"it has a {type(built).__name__} with a state")
                built.build(state)
            case _:
                raise _RefusedError(f"it has the operation {code!r}, which arrays do not need")

    def assign(self, items: list[Any]) -> None:
        into = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or len(key) > LONGEST_NAME:
                raise _RefusedError(f"it has the key {_shown(key)}, which is no name")
            into[key] = value

    def named(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str) or f"{module}.{name}" not in TABLE:
            raise _RefusedError(f"it asks for {_shown(module)}.{_shown(name)}, which arrays do not need")
        return TABLE[f"{module}.{name}"]

    def call(self, function: Any, arguments: Any) -> Any:
        if not callable(function) or not isinstance(arguments, tuple):
            raise _RefusedError(f"it calls {_shown(function)}")
        if function is _encode and isinstance(arguments[0], str):  # alone in making more bytes of what was read
            self.encodable -= len(arguments[0])
            if self.encodable < 0:
                raise _RefusedError("it was made to fill memory")
        return function(*arguments)


def _shown(value: Any) -> str:
    """A value in a message: short, whatever it holds."""
    if isinstance(value, str):
        return value[:80]
    if isinstance(value, tuple) and len(value) <= 32 and all(type(n) is int and abs(n) < 2**64 for n in value):
        return str(value)
    return f"a {type(value).__name__}"


def _tensors(tree: Any, size: int) -> dict[str, Tensor]:
    """Names all arrays, and copies them out of the file's bytes."""
    found: dict[str, Tensor] = {}
    steps, left = MOST_ARRAYS, size

    def walk(name: str, value: Any, depth: int) -> None:
        nonlocal steps, left
        steps -= 1
        if isinstance(value, _Array) and value.value is not None:
            left -= value.value.nbytes
        if min(steps, left) < 0:
            raise _RefusedError("it was made to fill memory")
        if isinstance(value, dict):
            if depth == DEEPEST:
                raise _RefusedError(f"it has dicts in dicts, more than {DEEPEST} deep")
            for key, inner in value.items():
                walk(f"{name}/{key}" if name else key, inner, depth + 1)
        elif not isinstance(value, _Array) or value.value is None:
            raise _RefusedError(f"it has a {type(value).__name__} as {name[:80]!r}, not an array")
        elif name in found or len(name) > LONGEST_NAME:
            raise _RefusedError(f"it has two arrays of one name, or one too long: {name[:80]!r}")
        else:
            array = value.value
            found[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))

    if not isinstance(tree, dict):
        raise _RefusedError(f"it holds a {type(tree).__name__}, not a dict of arrays")
    walk("", tree, 0)
    return found
