"""Pickles and files of torch.save, put together operation by operation."""

import io
import math
import pickle
import struct
import zipfile
from typing import Any

from torch import Tensor


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: Any) -> bytes:
    """A whole number; bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(raw)]) + raw


def numbers(*values: Any) -> bytes:
    """A tuple of whole numbers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def name(dotted: str) -> bytes:
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def called(dotted: str, *arguments: bytes) -> bytes:
    return name(dotted) + b"(" + b"".join(arguments) + b"tR"


def storage(key: bytes, count: Any, kind: str = "torch.FloatStorage", word: str = "storage", more: bytes = b"") -> bytes:
    return b"(" + text(word) + name(kind) + key + text("cpu") + number(count) + more + b"tQ"


def view(of: bytes, shape: list[Any], strides: list[Any], offset: Any = 0) -> bytes:
    arguments = (of, number(offset), numbers(*shape), numbers(*strides), pickle.NEWFALSE, called("collections.OrderedDict"))
    return called("torch._utils._rebuild_tensor_v2", *arguments)


def tensor(key: str, count: Any, shape: list[Any], strides: Any = None, offset: Any = 0, kind: str = "Float") -> bytes:
    """A tensor of a storage in the file."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))] if strides is None else strides
    return view(storage(text(key), count, f"torch.{kind}Storage"), shape, strides, offset)


def array(shape: bytes, kind: str = "f4", raw: bytes = pickle.SHORT_BINBYTES + b"\x10" + bytes(16)) -> bytes:
    """An array of NumPy, of 16 bytes."""
    return called("numpy._core.numeric._frombuffer", raw, called("numpy.dtype", text(kind)), shape, text("C"))


def program(body: bytes) -> bytes:
    return pickle.PROTO + b"\x02" + body + pickle.STOP


def state_of(values: dict[str, bytes]) -> bytes:
    """A pickle of a dict."""
    return program(b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u")


def zipped(pickled: bytes, storages: list[bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for i, raw in enumerate(storages):
            archive.writestr(f"archive/data/{i}", raw)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def legacy(pickled: bytes, storages: list[bytes], counts: list[int] | None = None) -> bytes:
    """A file of torch.save before version 1.6, whose storages are of float32."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [pickled.replace(b"tQ", b"NtQ"), pickle.dumps([str(i) for i in range(len(storages))], 2)]
    for raw, count in zip(storages, counts or [len(raw) // 4 for raw in storages], strict=True):
        parts.append(count.to_bytes(8, "little", signed=True) + raw)
    return b"".join(parts)


def parts_of(state: dict[str, Tensor]) -> tuple[dict[str, bytes], list[bytes]]:
    """Tensors as operations, and the bytes of their storages."""
    opcodes = {name: tensor(str(i), x.numel(), list(x.shape)) for i, (name, x) in enumerate(state.items())}
    return opcodes, [x.numpy().tobytes() for x in state.values()]
