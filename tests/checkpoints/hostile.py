"""Files that are damaged or were made to do harm, generated: each family is what stands in a list, and then random changes.

Nothing here is ever run: a file is written, and `from_pretrained` is asked to load it.
"""

import copy
import io
import json
import pickle
import pickletools
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from inputs.cases import CASES
from safetensors.torch import save
from torch import Tensor

from perceivers import Perceiver, PerceiverIO, from_pretrained, inputs, outputs
from perceivers.checkpoints.formats import transformers
from perceivers.data.preprocessing import Preprocessing

HUGE = 10**12
DEEP = 200_000  # enough to end a process that follows it by recursion


@dataclass
class Case:
    """A file, or a folder, to be loaded.

    Attributes:
        name: What was done to it.
        source: Where it is.
        refused: Whether it must be refused; else it may also load, as no more than what it holds.
        load: How it is loaded.
    """

    name: str
    source: Path
    refused: bool = True
    load: Callable[[Path], Any] = from_pretrained


Family = Callable[[Path, random.Random], Iterator[Case]]


def their_state() -> dict[str, Tensor]:
    """The tensors of a small Perceiver of perceiver-pytorch: 13 channels, width 8, one layer, 3 classes."""
    shapes: dict[str, list[int]] = {"latents": [4, 8]}

    def attention(name: str, context: int) -> None:
        shapes.update({f"{name}.norm.weight": [8], f"{name}.norm.bias": [8]})
        shapes.update({f"{name}.fn.to_q.weight": [8, 8], f"{name}.fn.to_kv.weight": [16, context]})
        shapes.update({f"{name}.fn.to_out.weight": [8, 8], f"{name}.fn.to_out.bias": [8]})

    def feed_forward(name: str) -> None:
        shapes.update({f"{name}.norm.weight": [8], f"{name}.norm.bias": [8]})
        shapes.update({f"{name}.fn.net.0.weight": [64, 8], f"{name}.fn.net.0.bias": [64]})
        shapes.update({f"{name}.fn.net.2.weight": [8, 32], f"{name}.fn.net.2.bias": [8]})

    attention("layers.0.0", 13)
    shapes.update({"layers.0.0.norm_context.weight": [13], "layers.0.0.norm_context.bias": [13]})
    feed_forward("layers.0.1")
    attention("layers.0.2.0.0", 8)
    feed_forward("layers.0.2.0.1")
    shapes.update({"to_logits.1.weight": [8], "to_logits.1.bias": [8], "to_logits.2.weight": [3, 8], "to_logits.2.bias": [3]})
    return {name: torch.linspace(-1, 1, max(1, torch.Size(shape).numel())).reshape(shape) for name, shape in shapes.items()}


def load_theirs(path: Path) -> Any:
    """Loads it with what its file does not tell."""
    return from_pretrained(path, max_freq=10.0)


# Pickles, opcode by opcode.


def text(value: str) -> bytes:
    """A string."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: Any) -> bytes:
    """A whole number; bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def called(module: str, name: str, *arguments: bytes) -> bytes:
    """The call of a function."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def tensor(
    key: str, count: Any, shape: list[Any], strides: list[Any] | None = None, offset: Any = 0, kind: str = "Float"
) -> bytes:
    """A tensor of a storage in the file."""
    if strides is None:
        strides = [1] * len(shape)
        for i in range(len(shape) - 2, -1, -1):
            strides[i] = strides[i + 1] * shape[i + 1]
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"
    sizes = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides)]
    return called(
        "torch._utils", "_rebuild_tensor_v2", storage, number(offset), *sizes, b"\x89", called("collections", "OrderedDict")
    )


def state_of(values: dict[str, bytes]) -> bytes:
    """A pickle of a dict of text."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in values.items()) + b"u."


def plain_state() -> tuple[dict[str, bytes], list[bytes]]:
    """`their_state` as opcodes, and the bytes of its storages."""
    state = their_state()
    opcodes = {name: tensor(str(i), x.numel(), list(x.shape)) for i, (name, x) in enumerate(state.items())}
    return opcodes, [x.numpy().tobytes() for x in state.values()]


def zipped(pickled: bytes, storages: list[bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for i, storage in enumerate(storages):
            archive.writestr(f"archive/data/{i}", storage)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def legacy(pickled: bytes, storages: list[bytes], counts: list[int] | None = None) -> bytes:
    """A file of torch.save before version 1.6, whose storages are of float32."""
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    parts += [pickled.replace(b"tQ", b"NtQ"), pickle.dumps([str(i) for i in range(len(storages))], 2)]
    for storage, count in zip(storages, counts or [len(storage) // 4 for storage in storages], strict=True):
        parts.append(count.to_bytes(8, "little", signed=True) + storage)
    return b"".join(parts)


MARK = "/tmp/perceivers-ran-a-file"  # what the commands would make
TOUCH = f"touch {MARK}"
PYTHON = f"open({MARK!r}, 'w')"


def harmful() -> dict[str, bytes]:
    """Values that would run something, or fill the memory, where a pickle is believed."""
    shell = [("os", "system"), ("posix", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "call")]
    python = [("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "eval"), ("code", "interact"), ("timeit", "timeit")]
    values = {f"{module}.{name}": called(module, name, text(TOUCH)) for module, name in shell}
    values |= {f"{module}.{name}": called(module, name, text(PYTHON)) for module, name in python}
    for name in (
        "torch.hub.load",
        "torch.load",
        "torch.jit.load",
        "pickle.loads",
        "importlib.import_module",
        "runpy.run_path",
    ):
        module, _, function = name.rpartition(".")
        values[name] = called(module, function, text(MARK))
    values["getattr"] = called("builtins", "getattr", b"cos\n\n", text("system"))
    values["instance"] = b"(" + text(TOUCH) + b"ios\nsystem\n"
    values["object"] = b"(cos\nsystem\n" + text(TOUCH) + b"o"
    values["new object"] = b"cos\nsystem\n(" + text(TOUCH) + b"t\x81"
    values["new object with names"] = b"cos\nsystem\n(" + text(TOUCH) + b"t}\x92"
    values["stacked name"] = text("os") + text("system") + b"\x93(" + text(TOUCH) + b"tR"
    values["attributes of a class"] = b"ctorch\nFloatStorage\n}(" + text("dtype") + text("x") + b"ub"
    values["attributes of a function"] = b"ctorch._utils\n_rebuild_tensor_v2\n}(" + text("__code__") + text("x") + b"ub"
    for code in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"):
        values[f"extension {code[0]:x}"] = code
    lots = number(2**30)
    for name in ("bytearray", "bytes", "range", "set", "complex"):
        values[f"{name} of a gigabyte"] = called("builtins", name, lots)
    for name in ("Tensor", "FloatStorage", "ByteStorage", "UntypedStorage", "zeros", "empty", "ones"):
        values[f"torch.{name} of a gigabyte"] = called("torch", name, lots)
    values["a list of a billion"] = called("builtins", "list", called("builtins", "range", lots))
    values["text times a billion"] = called("operator", "mul", text("x"), lots)
    values["encoded"] = called("_codecs", "encode", text("x" * 1000), text("hex"))
    values["a counter"] = called("collections", "Counter", text("x"))
    values["a meta tensor"] = called("torch._utils", "_rebuild_meta_tensor_no_storage", text("x"))
    values["a sparse tensor"] = called("torch._utils", "_rebuild_sparse_tensor", text("x"))
    values["a call of text"] = text("x") + b")R"
    values["a call of a number"] = number(1) + b")R"
    values["a size of a billion"] = called("torch", "Size", lots)
    values["a dict of a dict"] = called("collections", "OrderedDict", b"}")
    for name, code, width in (
        ("bytes", b"\x8e", "<Q"),
        ("bytearray", b"\x96", "<Q"),
        ("text", b"\x8d", "<Q"),
        ("frame", b"\x95", "<Q"),
    ):
        values[f"{name} of 10^12"] = code + struct.pack(width, HUGE)
    values["bytearray of a gigabyte"] = b"\x96" + struct.pack("<Q", 2**30)
    values["a number of two gigabytes"] = b"\x8b" + struct.pack("<i", 2**31 - 1)
    values["a number of 10^5 digits"] = b"I" + b"9" * 10**5 + b"\n"
    values["a number of 10^5 bytes"] = b"\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5
    values["bytes of two gigabytes"] = b"T" + struct.pack("<i", 2**31 - 1)
    values["lists in lists"] = b"]" * 10**5 + b"a" * (10**5 - 1)
    values["tuples in tuples"] = b")" + b"\x85" * 10**5
    values["a key of tuples in tuples"] = b"})" + b"\x85" * DEEP + b"Ns"
    values["keys of tuples in tuples"] = b"}()" + b"\x85" * DEEP + b"Nu"
    values["a set of tuples in tuples"] = b"\x8f()" + b"\x85" * DEEP + b"\x90"
    values["a frozen set of tuples in tuples"] = b"()" + b"\x85" * DEEP + b"\x91"
    values["a dict made at once"] = b"()" + b"\x85" * DEEP + b"Nd"
    values["a counter of a million marks"] = b"(" * DEEP
    values["what is not in the memo"] = b"j\xff\xff\xff\xff"
    for name, pid in {
        "no storage": text("x"),
        "a module": b"(" + text("module") + b"cos\nsystem\n" + text("0") + text("cpu") + number(1) + b"t",
        "another class": b"(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + number(1) + b"t",
        "a view": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(32) + text("v") + b"t",
        "a path": b"("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text("../../../etc/passwd")
        + text("cpu")
        + number(4)
        + b"t",
        "a list for a name": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + b"]" + text("cpu") + number(4) + b"t",
    }.items():
        rest = number(0) + b"(" + number(4) + number(8) + b"t(" + number(8) + number(1) + b"t\x89"
        values[f"storage: {name}"] = (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"Q" + rest + called("collections", "OrderedDict") + b"tR"
        )
    return values


def claims() -> dict[str, bytes]:
    """Tensors that claim what the first storage, of 32 numbers, does not have."""
    return {
        "10^12 numbers": tensor("0", HUGE, [HUGE]),
        "10^12 of 32 numbers": tensor("0", 32, [HUGE]),
        "10^12 rows of stride 0": tensor("0", 32, [HUGE, 8], [0, 1]),
        "10^12 times one number": tensor("0", 32, [HUGE // 8, 8], [0, 0]),
        "2^62 x 4": tensor("0", 32, [2**62, 4], [0, 0]),
        "10^30": tensor("0", 32, [10**30], [0]),
        "10^30 numbers": tensor("0", 10**30, [4, 8]),
        "16 times as many": tensor("0", 512, [64, 8]),
        "more than the storage": tensor("0", 32, [5, 8]),
        "twice, overlapping": tensor("0", 32, [8, 8], [3, 1]),
        "behind the end": tensor("0", 32, [4, 8], offset=1),
        "far behind the end": tensor("0", 32, [4, 8], offset=HUGE),
        "before the beginning": tensor("0", 32, [4, 8], offset=-1),
        "a stride backwards": tensor("0", 32, [4, 8], [-8, 1]),
        "a stride of 10^12": tensor("0", 32, [4, 8], [HUGE, 1]),
        "a negative length": tensor("0", 32, [-4, -8]),
        "nothing": tensor("0", 32, [0, HUGE]),
        "10^12 times nothing": tensor("0", 32, [HUGE, 0]),
        "fewer strides": tensor("0", 32, [4, 8], [1]),
        "text for a length": tensor("0", 32, [text("4"), 8], [8, 1]),
        "true for a length": tensor("0", 32, [b"\x88", 8], [8, 1]),
        "none for a stride": tensor("0", 32, [4, 8], [b"N", 1]),
        "of another type": tensor("0", 32, [4, 8], kind="Double"),
        "of an unknown type": tensor("0", 32, [4, 8], kind="Quantised"),
        "of one that is not there": tensor("99", 32, [4, 8]),
        "many axes": tensor("0", 32, [1] * 1000),
    }


def changed(whole: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A random change of one to four places."""
    data, what = bytearray(whole), ""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        at, how = rng.randrange(len(data)), rng.choice(("flip", "flip", "cut", "double", "numbers"))
        length = min(rng.choice((1, 2, 4, 8, 32)), len(data) - at)
        if how == "flip":
            data[at] ^= rng.randrange(1, 256)
        elif how == "cut":
            del data[at : at + length]
        elif how == "double":
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = rng.choice((b"\xff", b"\x00", b"\x7f", b"\x80")) * length
        what += f"{how} {length} at {at}, "
    return what, bytes(data)


def pickles(make: Callable[[bytes, list[bytes]], bytes]) -> Family:
    """Hostile pickles in a container that is whole."""

    def family(folder: Path, rng: random.Random) -> Iterator[Case]:
        path = folder / "model.pt"
        opcodes, storages = plain_state()

        def case(name: str, pickled: bytes, refused: bool = True) -> Case:
            path.write_bytes(make(pickled, storages))
            return Case(name, path, refused, load_theirs)

        for name, value in {**harmful(), **claims()}.items():
            for place in ("latents", "layers.0.0.fn.to_q.weight", "more"):
                yield case(f"{name} as {place}", state_of({**opcodes, place: value}))
            yield case(f"only {name}", b"\x80\x02" + value + b".")
            yield case(f"{name}, deeper", state_of({"state_dict": state_of(opcodes)[2:-1], "hidden": value}), refused=False)
        whole = state_of(opcodes)
        for _, _, place in pickletools.genops(whole):
            yield case(f"cut at opcode {place}", whole[:place])
        names = [f"layers.{i}.x" for i in (7, HUGE, -1, "", "٣", "9" * 5000, "0.0.2")] + ["layers.", "layers", ".", ""]
        names += [f"layers.0.2.{i}.0.x" for i in (7, HUGE, "", "x")]
        for name in names:
            yield case(f"a tensor named {name[:20]}", state_of({**opcodes, name: opcodes["latents"]}))
        yield case(
            "10^4 names of one tensor", state_of({**opcodes, **{f"layers.{i}.x": opcodes["latents"] for i in range(10**4)}})
        )
        for name in opcodes:
            yield case(f"{name} is missing", state_of({key: value for key, value in opcodes.items() if key != name}))
            yield case(f"{name} is a number", state_of({**opcodes, name: tensor("0", 32, [])}))
            yield case(f"{name} has three axes", state_of({**opcodes, name: tensor("0", 32, [2, 2, 8])}))
        while True:
            name, pickled = changed(whole, rng)
            yield case(f"pickle: {name}", pickled, refused=False)

    return family


def containers(whole: bytes, path_name: str, refused: bool = False) -> Family:
    """Random changes of a whole file, and its cuts."""

    def family(folder: Path, rng: random.Random) -> Iterator[Case]:
        path = folder / path_name
        places = {0, 1, 4, 8, *(len(whole) - n for n in (1, 2, 4, 8, 22))}
        for signature in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"archive/", b"}", b"{", b"tQ"):
            at = whole.find(signature)
            while at >= 0:
                places |= {at - 1, at, at + 1, at + len(signature)}
                at = whole.find(signature, at + 1)
        for place in sorted(place for place in places if 0 <= place < len(whole)):
            path.write_bytes(whole[:place])
            yield Case(f"cut at {place}", path, True, load_theirs)
        while True:
            if rng.random() < 0.2:
                place = rng.randrange(len(whole))
                path.write_bytes(whole[:place])
                yield Case(f"cut at {place}", path, True, load_theirs)
            else:
                name, data = changed(whole, rng)
                path.write_bytes(data)
                yield Case(name, path, refused, load_theirs)

    return family


def zip_bombs(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Archives that unpack to more than they are, or whose index lies."""
    path = folder / "model.pt"
    opcodes, storages = plain_state()
    pickled = state_of(opcodes)

    def case(name: str, data: bytes, refused: bool = True) -> Case:
        path.write_bytes(data)
        return Case(name, path, refused, load_theirs)

    numbers = 3 * 10**7
    claimed = state_of({**opcodes, "latents": tensor("0", numbers, [numbers // 8, 8])})
    yield case("deflated zeros that are asked for", zipped(claimed, [bytes(4 * numbers), *storages[1:]], zipfile.ZIP_DEFLATED))
    yield case("deflated zeros", zipped(pickled, [bytes(5 * 10**7), *storages[1:]], zipfile.ZIP_DEFLATED))
    yield case("a deflated pickle", zipped(b"\x80\x02" + b"]" * 10**7 + b".", storages, zipfile.ZIP_DEFLATED))
    yield case("bzip2", zipped(pickled + bytes(10**6), [bytes(10**7)], zipfile.ZIP_BZIP2))
    yield case("lzma", zipped(pickled + bytes(10**6), [bytes(10**7)], zipfile.ZIP_LZMA))
    yield case("all zeros", bytes(10**6))
    yield case("10^5 entries", zipped(pickled, storages + [b""] * 10**5), refused=False)
    yield case("another archive inside", zipped(pickled, [zipped(pickled, storages), *storages[1:]]))
    yield case("two in one", zipped(pickled, storages) * 2, refused=False)
    yield case("something in front", b"x" * 1000 + zipped(pickled, storages), refused=False)
    yield case("something behind", zipped(pickled, storages) + b"x" * 1000, refused=False)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            archive.addfile(entry, io.BytesIO(pickled))
    yield case("a tar", tar.getvalue())
    whole = zipped(pickled, storages)
    starts, at = [], whole.find(b"PK\x01\x02")
    while at >= 0:
        starts.append(at)
        at = whole.find(b"PK\x01\x02", at + 1)
    end = whole.find(b"PK\x05\x06")
    same = bytearray(whole)
    for start in starts[2:]:  # all storages at one place
        same[start + 42 : start + 46] = whole[starts[2] + 42 : starts[2] + 46]
    yield case("entries that overlap", bytes(same))
    fields = {"flags": (8, 2), "method": (10, 2), "crc": (16, 4), "packed": (20, 4), "size": (24, 4), "name": (28, 2)}
    fields |= {"extra": (30, 2), "comment": (32, 2), "disk": (34, 2), "offset": (42, 4)}
    values = (0, 1, 8, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
    for name, (place, width) in fields.items():
        for value in values:
            for start in (starts[0], starts[2], starts[-1]):
                data = bytearray(whole)
                data[start + place : start + place + width] = (value & (256**width - 1)).to_bytes(width, "little")
                yield case(f"{name} of the entry at {start} is {value}", bytes(data), refused=False)
    for place, width in ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)):
        for value in values:
            data = bytearray(whole)
            data[end + place : end + place + width] = (value & (256**width - 1)).to_bytes(width, "little")
            yield case(f"byte {place} of the end is {value}", bytes(data), refused=False)
    while True:  # only the index
        name, data = changed(whole[starts[0] :], rng)
        yield case(f"index: {name}", whole[: starts[0]] + data, refused=False)


def legacy_counts(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Files of the older form whose storages are not as long as they say."""
    path = folder / "model.pt"
    opcodes, storages = plain_state()
    right = [len(storage) // 4 for storage in storages]
    while True:
        counts, i = list(right), rng.randrange(len(right))
        counts[i] = rng.choice((0, -1, HUGE, 2**62, 2**63 - 1, -(2**63), counts[i] + 1, counts[i] - 1, rng.randrange(10**6)))
        claimed = {**opcodes}
        name = list(opcodes)[i]
        if rng.random() < 0.5 and counts[i] > 0:
            claimed[name] = tensor(str(i), counts[i], [counts[i]])
        path.write_bytes(legacy(state_of(claimed), storages, counts))
        yield Case(f"storage {i} of {right[i]} says {counts[i]}", path, counts[i] != right[i], load_theirs)


# safetensors


def safetensors_headers(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Headers that claim what is not there."""
    path = folder / "model.safetensors"
    whole = save(their_state())
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def case(name: str, raw: str | bytes, said: int | None = None, refused: bool = True) -> Case:
        raw = raw if isinstance(raw, bytes) else raw.encode()
        path.write_bytes((len(raw) if said is None else said).to_bytes(8, "little") + raw + body)
        return Case(name, path, refused, load_theirs)

    written = json.dumps(header)
    for said in (0, 1, length - 1, length + 1, len(whole), 10**8, 10**9, HUGE, 2**62, 2**64 - 1):
        yield case(f"a header of {said} bytes", written, said)
    for name, raw in {
        "empty": "",
        "a list": "[]",
        "a number": "1",
        "null": "null",
        "lists in lists": "[" * 10**5,
        "dicts in dicts": '{"a":' * 10**5,
        "not text": b"\xff" * 100,
        "not a number": '{"latents": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 128]}}',
        "two of a name": written[:-1] + ', "latents": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 128]}}',
        "a name of 10^6": json.dumps({"x" * 10**6: header["latents"]}),
        "10^4 tensors of nothing": json.dumps(
            {f"layers.{i}.x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10**4)}
        ),
        "10^12 times nothing": json.dumps({**header, "more": {"dtype": "F32", "shape": [HUGE, 0], "data_offsets": [0, 0]}}),
    }.items():
        yield case(name, raw)
    bad = {
        "shape": ([HUGE], [2**62, 4], [2**32, 2**32], [-1], [0], [1.5], ["8"], None, [], [[8]], [4, 8, 1, 1, HUGE], [10**30]),
        "dtype": ("F64", "I64", "BOOL", "F8_E4M3", "x", "", None, 1, ["F32"], "U8"),
        "data_offsets": (
            [0, HUGE],
            [HUGE, 0],
            [-1, 127],
            [0],
            [0, 128, 256],
            [128, 0],
            None,
            "0",
            [0, 2**64],
            [0, 64],
            [1, 129],
        ),
    }
    for name in ("latents", "layers.0.0.norm_context.weight", "to_logits.2.weight"):
        for key, values in bad.items():
            for value in values:
                yield case(f"{key} of {name} is {value}", json.dumps({**header, name: {**header[name], key: value}}))
            yield case(
                f"no {key} of {name}", json.dumps({**header, name: {k: v for k, v in header[name].items() if k != key}})
            )
        yield case(
            f"{name} where another is",
            json.dumps({**header, name: {**header[name], "data_offsets": header["to_logits.1.bias"]["data_offsets"]}}),
        )
    while True:
        name, raw = changed(written.encode(), rng)
        yield case(f"header: {name}", raw, refused=False)


# Folders

RAW = {"NaN": "NaN", "-Infinity": "-Infinity", "1e999": "1e999", "digits": "9" * 5000, "nested": "[" * 10**5 + "]" * 10**5}
VALUES: list[Any] = [HUGE, 10**9, 10**6, 2**63, 10**30, -1, 0, 1, 3, 1.5, -0.5, True, False, None, "", "x", "Pixels", [], {}]
VALUES += [
    [HUGE],
    [HUGE] * 3,
    [-1],
    [None],
    ["x"],
    [[1]],
    [0] * 1000,
    [10**9, 10**9],
    {"kind": "Pixels"},
    {"kind": "os.system"},
]
VALUES += [{"height": HUGE, "width": HUGE}, {"0": "a"}, *(f"RAW {name}" for name in RAW)]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, one in items:
        yield from leaves(one, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Replaces what is at a path."""
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def raw_json(value: Any) -> str:
    """JSON, with what no JSON library writes."""
    written = json.dumps(value)
    for name, raw in RAW.items():
        written = written.replace(f'"RAW {name}"', raw)
    return written


@dataclass
class Document:
    """A file of JSON that is changed."""

    path: Path
    value: Any
    source: Path
    load: Callable[[Path], Any] = field(default=from_pretrained)


def documents(make: Callable[[Path], list[Document]]) -> Family:
    """Every value of every document replaced by every hostile one, in random order; then two at a time, and random changes."""

    def family(folder: Path, rng: random.Random) -> Iterator[Case]:
        made = make(folder)
        whole = [json.dumps(document.value) for document in made]
        single = [(i, path, new) for i, d in enumerate(made) for path in leaves(d.value) for new in range(len(VALUES))]
        rng.shuffle(single)
        single_left = iter(single)
        while True:
            kind = rng.random()
            if kind < 0.8:
                changes = [next(single_left, None) or rng.choice(single)]
            elif kind < 0.9:
                first = rng.choice(single)
                changes = [first, *(one for one in rng.choices(single, k=30) if one[0] == first[0])][:3]
            else:
                changes = []
            i = changes[0][0] if changes else rng.randrange(len(made))
            document, value = made[i], copy.deepcopy(made[i].value)
            for _, path, new in changes:
                try:
                    put(value, path, copy.deepcopy(VALUES[new]))
                except (TypeError, IndexError, KeyError):
                    pass  # what it is in was replaced
            name = f"{document.path.parent.name}: {[('.'.join(map(str, p)), str(VALUES[n])[:30]) for _, p, n in changes]}"
            written = raw_json(value).encode()
            if not changes:
                name, written = changed(whole[i].encode(), rng)
            document.path.write_bytes(written)
            yield Case(name, document.source, False, document.load)
            document.path.write_text(whole[i])

    return family


SMALL = {"num_latent_tokens": 4, "dim": 8, "heads": 2, "num_latent_transformers_in_layers": [1]}
CLASSES = outputs.LearnedQueries(dim=8, num_channels=3)


def document_of(folder: Path, file: str = "config.json", load: Callable[[Path], Any] = from_pretrained) -> Document:
    """A file in a folder."""
    return Document(
        folder / file, json.loads((folder / file).read_text()), folder if load is from_pretrained else folder / file, load
    )


def our_folders(folder: Path) -> list[Document]:
    """Models of this library with every kind of input and output."""
    models: dict[str, Any] = {
        "perceiver": Perceiver(
            data_shape=[3, 8, 8], num_bands=2, layers_indice=[0, 0, None], latent_layers_indice=[0] * 3, num_classes=3, **SMALL
        )
    }
    for name, case in CASES.items():
        models[name] = PerceiverIO(inputs=case.module(), outputs=CLASSES, **SMALL)
    ids = inputs.TokenIds(vocab_size=9, max_length=5, dim=8)
    picture = inputs.Pixels(data_shape=[3, 4, 4], num_bands=2)
    for name, output in {
        "tokens": {"kind": "TokenLogits", "vocab_size": 9, "max_length": 5, "dim": 8},
        "grid": {"kind": "Grid", "axes": [4, 4], "num_channels": 3, "num_bands": 2},
    }.items():
        models[name] = PerceiverIO(inputs=ids if name == "tokens" else picture, outputs=output, **SMALL)
    models["perceiver"].preprocessing = {
        "kind": "Images",
        "labels": ["a", "b", "c"],
        "task": "classification",
        "size": [8, 8],
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return [document_of(folder / name) for name in models]


def their_folders(folder: Path) -> list[Document]:
    """Folders of transformers, of most heads, with processors."""
    wide = {**SMALL, "query_residual": True, "decoder_qk_channels": 8}
    pixels = inputs.Pixels(data_shape=[3, 224, 224], num_bands=64, resolution=224)
    text_in = inputs.TokenIds(vocab_size=262, max_length=7, dim=6)
    learned = inputs.LearnedPixels(data_shape=[3, 5, 5])
    models = {
        "fourier": PerceiverIO(inputs=pixels, outputs=CLASSES, cross_qk_channels=pixels.num_channels, **wide),
        "text": PerceiverIO(inputs=text_in, outputs=CLASSES, cross_qk_channels=6, **wide),
        "learned": PerceiverIO(inputs=learned, outputs=CLASSES, cross_qk_channels=learned.num_channels, **wide),
    }
    found = []
    for name, model in models.items():
        if name != "text":
            model.preprocessing = DESCRIPTIONS["CenterCroppedImages"]
        transformers.save(model, folder / name, labels=["a", "b", "c"])
        found.append(document_of(folder / name))
        if name != "text":
            processor = document_of(folder / name, "preprocessor_config.json")
            processor.source = folder / name
            found.append(processor)
    return found


NAMED: dict[str, Any] = {"labels": ["a", "b", "c"], "task": "classification"}
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "Images": {"kind": "Images", **NAMED, "size": [8, 8], "channels": 3},
    "CenterCroppedImages": {
        "kind": "CenterCroppedImages",
        **NAMED,
        "size": [8, 8],
        "crop": [9, 9],
        "resample": 3,
        "scale": 0.1,
    }
    | {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]},
    "Audio": {"kind": "Audio", **NAMED, "num_samples": 100, "sample_rate": 8000},
    "Arrays": {"kind": "Arrays", **NAMED, "data_shape": [1, 5], "mean": [0.5], "std": [2.0]},
    "Table": {
        "kind": "Table",
        **NAMED,
        "numeric": ["x", "y"],
        "mean": [0.5, 1.0],
        "std": [2.0, 3.0],
        "categorical": {"z": ["u", "v"]},
    },
    "Text": {"kind": "Text", **NAMED, "max_length": 10, "cls_sep": True},
    "numbers": {
        "kind": "Text",
        "labels": ["a"],
        "task": "regression",
        "max_length": 10,
        "target_mean": [1.0],
        "target_std": [2.0],
    },
}


def preprocessings(folder: Path) -> list[Document]:
    """Descriptions of preprocessing."""
    found = []
    for name, description in DESCRIPTIONS.items():
        path = folder / name / "preprocessing.json"
        path.parent.mkdir()
        path.write_text(json.dumps(Preprocessing.create(description).describe()))
        found.append(document_of(folder / name, path.name, Preprocessing.load))
    return found


FAMILIES: dict[str, tuple[int, Family]] = {  # with the share of each, in hundredths
    "pickles in archives": (16, pickles(zipped)),
    "pickles in older files": (12, pickles(legacy)),
    "archives": (7, containers(zipped(state_of(plain_state()[0]), plain_state()[1]), "model.pt")),
    "bombs": (8, zip_bombs),
    "older files": (6, containers(legacy(state_of(plain_state()[0]), plain_state()[1]), "model.pt")),
    "lengths in older files": (3, legacy_counts),
    "safetensors": (7, containers(save(their_state()), "model.safetensors")),
    "headers of safetensors": (8, safetensors_headers),
    "our folders": (18, documents(our_folders)),
    "folders of transformers": (9, documents(their_folders)),
    "preprocessing": (6, documents(preprocessings)),
}
