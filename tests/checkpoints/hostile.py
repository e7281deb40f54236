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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints.opcodes import (
    array,
    called,
    legacy,
    name,
    number,
    numbers,
    parts_of,
    program,
    state_of,
    storage,
    tensor,
    text,
    view,
    zipped,
)
from inputs.cases import CASES
from safetensors.torch import save
from torch import Tensor

from perceivers import Perceiver, PerceiverIO, from_pretrained, inputs, outputs
from perceivers.checkpoints.formats import transformers
from perceivers.data.preprocessing import Preprocessing

HUGE = 10**12
DEEP = 200_000  # enough to end a process that follows it by recursion
MARK = "/tmp/perceivers-ran-a-file"  # what the commands would make


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
    for block, context in (("layers.0.0", 13), ("layers.0.2.0.0", 8)):
        shapes |= {f"{block}.norm.weight": [8], f"{block}.norm.bias": [8], f"{block}.fn.to_q.weight": [8, 8]}
        shapes |= {
            f"{block}.fn.to_kv.weight": [16, context],
            f"{block}.fn.to_out.weight": [8, 8],
            f"{block}.fn.to_out.bias": [8],
        }
    for block in ("layers.0.1", "layers.0.2.0.1"):
        shapes |= {f"{block}.norm.weight": [8], f"{block}.norm.bias": [8], f"{block}.fn.net.0.weight": [64, 8]}
        shapes |= {f"{block}.fn.net.0.bias": [64], f"{block}.fn.net.2.weight": [8, 32], f"{block}.fn.net.2.bias": [8]}
    shapes |= {"layers.0.0.norm_context.weight": [13], "layers.0.0.norm_context.bias": [13]}
    shapes |= {"to_logits.1.weight": [8], "to_logits.1.bias": [8], "to_logits.2.weight": [3, 8], "to_logits.2.bias": [3]}
    return {name: torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape) for name, shape in shapes.items()}


def load_theirs(path: Path) -> Any:
    """Load it with what its file does not specify."""
    return from_pretrained(path, max_freq=10.0)


def harmful() -> dict[str, bytes]:
    """Values that would run something, or fill the memory, if a pickle were believed."""
    shell, code, lots = text(f"touch {MARK}"), text(f"open({MARK!r}, 'w')"), number(2**30)
    commands = "os.system posix.system os.popen subprocess.getoutput subprocess.call"
    python = "builtins.eval builtins.exec __builtin__.eval code.interact timeit.timeit"
    files = "torch.hub.load torch.load torch.jit.load pickle.loads importlib.import_module runpy.run_path numpy.load"
    values = {function: called(function, shell) for function in commands.split()}
    values |= {function: called(function, code) for function in python.split()}
    values |= {function: called(function, text(MARK)) for function in files.split()}
    makers = "builtins.bytearray builtins.bytes builtins.range builtins.set builtins.complex torch.Size"
    makers += " torch.Tensor torch.FloatStorage torch.ByteStorage torch.UntypedStorage torch.zeros torch.empty numpy.ndarray"
    values |= {f"{maker} of a gigabyte": called(maker, lots) for maker in makers.split()}
    others = "collections.Counter torch._utils._rebuild_meta_tensor_no_storage torch._utils._rebuild_sparse_tensor"
    values |= {other: called(other, text("x")) for other in others.split()}
    values |= {f"extension {code[0]:x}": code for code in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00")}
    for what, code in {"bytes": b"\x8e", "bytearray": b"\x96", "text": b"\x8d", "frame": b"\x95"}.items():
        values[f"{what} of 10^12"] = code + struct.pack("<Q", HUGE)
        values[f"{what} of 2^64 - 1"] = code + b"\xff" * 8
    tuples = b"()" + b"\x85" * DEEP  # in tuples, behind a mark
    values["one shape, copied often"] = (
        b"(]q\0(" + number(1) * 10**4 + b"e](" + called("torch.Size", b"h\0") * 10**4 + b"et"  # a list, not a tuple
    )
    values["one text, encoded often"] = (
        text("y" * 10**5) + b"q\0](" + called("_codecs.encode", b"h\0", text("latin1")) * 3000 + b"e"
    )
    names = (called("builtins.getattr", name("os"), text("system")), text("os") + text("system") + b"\x93(" + shell + b"tR")
    names += (b"(" + shell + b"ios\nsystem\n", b"(" + name("os.system") + shell + b"o", b"c" + b"x" * 10**6)
    names += (
        name("os.system") + b"(" + shell + b"t\x81",
        name("os.system") + b"(" + shell + b"t}\x92",
        number(1) * 2 + b"\x93",
    )
    attributes = text("__code__") + text("x") + b"ub"
    names += (name("torch.FloatStorage") + b"}(" + attributes, name("torch._utils._rebuild_tensor_v2") + b"}(" + attributes)
    calls = (called("builtins.list", called("builtins.range", lots)), called("operator.mul", text("x"), lots))
    calls += (
        text("x") + b")R",
        number(1) + b")R",
        name("torch.Size") + b"]R",
        called("_codecs.encode", text("x"), text("hex")),
    )
    calls += (called("haiku._src.data_structures.FlatMapping", number(1)), called("collections.OrderedDict", b"]"))
    calls += (called("jax._src.array._reconstruct_array", *[name("os.system")] * 4),)
    sizes = (b"\x8b" + struct.pack("<i", 2**31 - 1), b"I" + b"9" * 10**5 + b"\n", b"T" + struct.pack("<i", 2**31 - 1))
    sizes += (b"\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5, b"j\xff\xff\xff\xff")
    nested = (b"]" * 10**5 + b"a" * (10**5 - 1), b")" + b"\x85" * 10**5, b"}" + tuples[1:] + b"Ns", b"}" + tuples + b"Nu")
    nested += (b"\x8f" + tuples + b"\x90", tuples + b"\x91", tuples + b"Nd", b"(" * DEEP)
    nested += (b")" + b"q\0h\0\x86" * 60, b"}q\0" + text("w") + b"h\0s")
    stored = [text("x") + b"Q", storage(text("0"), 32, "os.system", "module"), storage(text("0"), 32, "os.system")]
    stored += [storage(text("0"), 32, more=text("v")), storage(text("../../../etc/passwd"), 32), storage(b"]", 32)]
    for what, many in {"names": names, "calls": calls, "sizes": sizes, "nested": nested}.items():
        values |= {f"{what}: {one[:40]!r}, {len(one)} bytes": one for one in many}
    return values | {f"storage: {one[:60]!r}": view(one, [4, 8], [8, 1]) for one in stored}


def claims() -> dict[str, bytes]:
    """Tensors and arrays that claim what the first storage, of 32 numbers, or 16 bytes do not have."""
    # Numbers in the storage, shape, strides, offset.
    views: list[Any] = [(HUGE, [HUGE]), (32, [HUGE]), (32, [HUGE, 8], [0, 1]), (32, [HUGE // 8, 8], [0, 0])]
    views += [
        (32, [2**62, 4], [0, 0]),
        (32, [10**30], [0]),
        (10**30, [4, 8]),
        (512, [64, 8]),
        (32, [5, 8]),
        (32, [8, 8], [3, 1]),
    ]
    views += [(32, [4, 8], [8, 1], 1), (32, [4, 8], [8, 1], HUGE), (32, [4, 8], [8, 1], -1), (32, [4, 8], [-8, 1])]
    views += [(32, [4, 8], [HUGE, 1]), (32, [-4, -8], [8, 1]), (32, [0, HUGE]), (32, [HUGE, 0]), (32, [4, 8], [1])]
    views += [(32, [text("4"), 8], [8, 1]), (32, [b"\x88", 8], [8, 1]), (32, [4, 8], [b"N", 1]), (32, [1] * 1000, [1] * 1000)]
    found = {f"a tensor of {str(one)[:60]}": tensor("0", *one) for one in views}
    for shape in ((HUGE,), (10**6, 10**6), (2**64 + 4,), (-2, -2), (1,) * 1000, (b"\x88", 4), (numbers(4),), (0, 2**63)):
        found[f"an array of {str(shape)[:30]}"] = array(numbers(*shape))
    for kind in ("O8", "U1", "V4", "M8", "S4", "(1000000,)f4", "x"):
        found[f"an array of {kind}"] = array(numbers(4), kind)
    found["an array of text"] = array(numbers(4), raw=text("x" * 16))
    return found | {
        "of another type": tensor("0", 32, [4, 8], kind="Double"),
        "of an unknown type": tensor("0", 32, [4, 8], kind="Quantised"),
        "of one that is not there": tensor("99", 32, [4, 8]),
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
        opcodes, storages = parts_of(their_state())

        def case(what: str, pickled: bytes, refused: bool = True) -> Case:
            path.write_bytes(make(pickled, storages))
            return Case(what, path, refused, load_theirs)

        for what, value in {**harmful(), **claims()}.items():
            for place in ("latents", "layers.0.0.fn.to_q.weight", "more"):
                yield case(f"{what} as {place}", state_of({**opcodes, place: value}))
            yield case(f"only {what}", program(value))
            yield case(f"{what}, deeper", state_of({"state_dict": state_of(opcodes)[2:-1], "hidden": value}), refused=False)
        whole, same = state_of(opcodes), opcodes["latents"]
        for _, _, place in pickletools.genops(whole):
            yield case(f"cut at opcode {place}", whole[:place])
        more = [f"layers.{i}.x" for i in (7, HUGE, -1, "", "٣", "9" * 5000, "0.0.2")] + ["layers.", "layers", ".", ""]
        for other in more + [f"layers.0.2.{i}.0.x" for i in (7, HUGE, "", "x")]:
            yield case(f"a tensor named {other[:20]}", state_of({**opcodes, other: same}))
        yield case("10^4 names of one tensor", state_of({**opcodes, **{f"layers.{i}.x": same for i in range(10**4)}}))
        for one in opcodes:
            yield case(f"{one} is missing", state_of({key: value for key, value in opcodes.items() if key != one}))
            yield case(f"{one} is a number", state_of({**opcodes, one: tensor("0", 32, [])}))
            yield case(f"{one} has three axes", state_of({**opcodes, one: tensor("0", 32, [2, 2, 8])}))
        while True:
            what, pickled = changed(whole, rng)
            yield case(f"pickle: {what}", pickled, refused=False)

    return family


def pickles_of_arrays(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile pickles as JAX projects save them, and programs of random operations."""
    path = folder / "model.pystate"
    empty, shared = np.zeros(0, "f4"), {"w": np.zeros(250_000, "f4")}
    deep: dict[str, Any] = {"w": empty}
    for _ in range(6):
        deep = {str(i): deep for i in range(100)}
    grown = {"dicts in dicts": deep, "one array, many names": {str(i): shared for i in range(2000)}}
    grown["nothing, many names"] = {str(i): {str(j): empty for j in range(200)} for i in range(60)}
    trees = {what: pickle.dumps(tree, 4) for what, tree in grown.items()}
    for what, value in {**harmful(), **claims()}.items():
        trees |= {f"only {what}": program(value), f"{what} as w": state_of({"w": value})}
    for what, content in trees.items():
        path.write_bytes(content)
        yield Case(what, path)
    known = [name(one) for one in ("numpy.dtype", "numpy.ndarray", "_codecs.encode", "numpy._core.multiarray._reconstruct")]
    pieces = [*known, *(array(shape) for shape in (numbers(4), numbers(HUGE))), *map(number, (4, HUGE, -1)), text("w")]
    pieces += [bytes([code]) for code in b"(.N\x88)]}t\x85\x86\x87aesuRb\x94\x93\x95021\x81Q"] + [
        b"h\0",
        b"q\1",
        b"C\x10" + bytes(16),
    ]
    whole = [pickle.dumps({"a/~/b": {"w": np.zeros((2, 3), "f4")}, "c": np.float32(3)}, protocol) for protocol in (2, 3, 4, 5)]
    while True:
        if rng.random() < 0.3:
            what, content = "random operations", program(b"".join(rng.choices(pieces, k=rng.randrange(1, 60))))
        else:
            what, content = changed(rng.choice(whole), rng)
        path.write_bytes(content)
        yield Case(f"{what}: {content[:60]!r}", path, refused=False)


def containers(whole: bytes, path_name: str) -> Family:
    """Random changes of a whole file, and its cuts."""

    def family(folder: Path, rng: random.Random) -> Iterator[Case]:
        path = folder / path_name
        places = {0, 1, 4, 8, *(len(whole) - n for n in (1, 2, 4, 8, 22))}
        for signature in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"archive/", b"}", b"{", b"tQ"):
            at = whole.find(signature)
            while at >= 0:
                places |= {at - 1, at, at + 1, at + len(signature)}
                at = whole.find(signature, at + 1)
        cuts = iter(sorted(place for place in places if 0 <= place < len(whole)))
        for place in cuts:
            path.write_bytes(whole[:place])
            yield Case(f"cut at {place}", path, True, load_theirs)
        while True:
            cut, (what, data) = rng.random() < 0.2, changed(whole, rng)
            path.write_bytes(whole[: rng.randrange(len(whole))] if cut else data)
            yield Case("cut" if cut else what, path, cut, load_theirs)

    return family


def zip_bombs(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Archives that unpack to more than they are, or whose index lies."""
    path = folder / "model.pt"
    opcodes, storages = parts_of(their_state())
    pickled = state_of(opcodes)
    whole, deflated, rest = zipped(pickled, storages), zipfile.ZIP_DEFLATED, storages[1:]

    def case(what: str, data: bytes, refused: bool = True) -> Case:
        path.write_bytes(data)
        return Case(what, path, refused, load_theirs)

    many = 3 * 10**7
    claimed = state_of({**opcodes, "latents": tensor("0", many, [many // 8, 8])})
    yield case("deflated zeros that are asked for", zipped(claimed, [bytes(4 * many), *rest], deflated))
    yield case("deflated zeros", zipped(pickled, [bytes(5 * 10**7), *rest], deflated))
    yield case("a deflated pickle", zipped(program(b"]" * 10**7), storages, deflated))
    yield case("bzip2", zipped(pickled + bytes(10**6), [bytes(10**7)], zipfile.ZIP_BZIP2))
    yield case("lzma", zipped(pickled + bytes(10**6), [bytes(10**7)], zipfile.ZIP_LZMA))
    yield case("all zeros", bytes(10**6))
    yield case("10^5 entries", zipped(pickled, storages + [b""] * 10**5), refused=False)
    yield case("another archive inside", zipped(pickled, [whole, *rest]))
    yield case("two in one", whole * 2, refused=False)
    yield case("something in front", b"x" * 1000 + whole, refused=False)
    yield case("something behind", whole + b"x" * 1000, refused=False)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for part in ("pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(part)
            entry.size = len(pickled)
            archive.addfile(entry, io.BytesIO(pickled))
    yield case("a tar", tar.getvalue())
    starts = [at for at in range(len(whole)) if whole.startswith(b"PK\x01\x02", at)]
    end, same = whole.find(b"PK\x05\x06"), bytearray(whole)
    for start in starts[2:]:  # all storages at one place
        same[start + 42 : start + 46] = whole[starts[2] + 42 : starts[2] + 46]
    yield case("entries that overlap", bytes(same))
    of_entry = [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)]
    places = [(start + at, width) for at, width in of_entry for start in (starts[0], starts[2], starts[-1])]
    places += [(end + at, width) for at, width in ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))]
    for place, width in places:
        for value in (0, 1, 8, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF):
            data = bytearray(whole)
            data[place : place + width] = (value & (256**width - 1)).to_bytes(width, "little")
            yield case(f"byte {place} of the index is {value}", bytes(data), refused=False)
    while True:  # only the index
        what, data = changed(whole[starts[0] :], rng)
        yield case(f"index: {what}", whole[: starts[0]] + data, refused=False)


def legacy_counts(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Files of the older form whose storages are not as long as they claim."""
    path = folder / "model.pt"
    opcodes, storages = parts_of(their_state())
    right = [len(raw) // 4 for raw in storages]
    while True:
        counts, i = list(right), rng.randrange(len(right))
        counts[i] = rng.choice((0, -1, HUGE, 2**62, 2**63 - 1, -(2**63), counts[i] + 1, counts[i] - 1, rng.randrange(10**6)))
        claimed = dict(opcodes)
        if rng.random() < 0.5 and counts[i] > 0:
            claimed[list(opcodes)[i]] = tensor(str(i), counts[i], [counts[i]])
        path.write_bytes(legacy(state_of(claimed), storages, counts))
        yield Case(f"storage {i} of {right[i]} claims {counts[i]}", path, counts[i] != right[i], load_theirs)


def safetensors_headers(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Headers that claim what is not there."""
    path = folder / "model.safetensors"
    whole = save(their_state())
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def case(what: str, raw: Any, claimed: int | None = None, refused: bool = True) -> Case:
        raw = raw if isinstance(raw, bytes) else (raw if isinstance(raw, str) else json.dumps(raw)).encode()
        path.write_bytes((len(raw) if claimed is None else claimed).to_bytes(8, "little") + raw + body)
        return Case(what, path, refused, load_theirs)

    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    for claimed in (0, 1, length - 1, length + 1, len(whole), 10**8, 10**9, HUGE, 2**62, 2**64 - 1):
        yield case(f"a header of {claimed} bytes", header, claimed)
    for what in ("", "[]", "1", "null", "[" * 10**5, '{"a":' * 10**5, b"\xff" * 100):
        yield case(f"{what[:20]!r}", what)
    yield case("not a number", '{"latents": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 128]}}')
    yield case("two of a name", json.dumps(header)[:-1] + f', "latents": {json.dumps(nothing | {"shape": [HUGE]})}}}')
    yield case("a name of 10^6", {"x" * 10**6: header["latents"]})
    yield case("10^4 tensors of nothing", {f"layers.{i}.x": nothing for i in range(10**4)})
    yield case("10^12 times nothing", header | {"more": nothing | {"shape": [HUGE, 0]}})
    shapes = ([HUGE], [2**62, 4], [2**32, 2**32], [-1], [0], [1.5], ["8"], None, [], [[8]], [4, 8, 1, 1, HUGE], [10**30])
    places = ([0, HUGE], [HUGE, 0], [-1, 127], [0], [0, 128, 256], [128, 0], None, "0", [0, 2**64], [0, 64], [1, 129])
    dtypes = ("F64", "I64", "BOOL", "F8_E4M3", "x", "", None, 1, ["F32"], "U8")
    for one in ("latents", "layers.0.0.norm_context.weight", "to_logits.2.weight"):
        for key, values in {"shape": shapes, "dtype": dtypes, "data_offsets": places}.items():
            for value in values:
                yield case(f"{key} of {one} is {value}", header | {one: header[one] | {key: value}})
            yield case(f"no {key} of {one}", header | {one: {k: v for k, v in header[one].items() if k != key}})
        other = {"data_offsets": header["to_logits.1.bias"]["data_offsets"]}
        yield case(f"{one} where another is", header | {one: header[one] | other})
    while True:
        what, raw = changed(json.dumps(header).encode(), rng)
        yield case(f"header: {what}", raw, refused=False)


# Folders. What no JSON library writes is put in afterwards.
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
VALUES += [{"height": HUGE, "width": HUGE}, {"0": "a"}, *(f"RAW {what}" for what in RAW)]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, one in items:
        yield from leaves(one, (*path, key))


@dataclass
class Document:
    """A file of JSON that is changed, in the source that is then loaded."""

    path: Path
    source: Path
    load: Callable[[Path], Any] = from_pretrained

    def written(self, changes: list[tuple[Any, tuple[Any, ...], Any]]) -> bytes:
        """The document with other values at some places."""
        changed = copy.deepcopy(json.loads(self.path.read_text()))
        for _, path, new in changes:
            value = changed
            try:
                for key in path[:-1]:
                    value = value[key]
                value[path[-1]] = copy.deepcopy(VALUES[new])
            except (TypeError, IndexError, KeyError):
                pass  # what it is in was replaced
        written = json.dumps(changed)
        for what, raw in RAW.items():
            written = written.replace(f'"RAW {what}"', raw)
        return written.encode()


def documents(make: Callable[[Path], list[Document]]) -> Family:
    """Every value of every document replaced by every hostile one, in random order; then some together, and random changes."""

    def family(folder: Path, rng: random.Random) -> Iterator[Case]:
        made = make(folder)
        whole = [document.path.read_bytes() for document in made]
        paths = [(i, path) for i, raw in enumerate(whole) for path in leaves(json.loads(raw))]
        single = [(i, path, new) for i, path in paths for new in range(len(VALUES))]
        rng.shuffle(single)
        left = iter(single)
        while True:
            kind, changes = rng.random(), []
            if kind < 0.9:
                changes = [(next(left, None) if kind < 0.8 else None) or rng.choice(single)]
                changes += [one for one in rng.choices(single, k=30) if one[0] == changes[0][0]][:2] if kind > 0.8 else []
            i = changes[0][0] if changes else rng.randrange(len(made))
            document = made[i]
            what = f"{document.path.parent.name}: {[('.'.join(map(str, p)), str(VALUES[n])[:30]) for _, p, n in changes]}"
            written = document.written(changes) if changes else changed(whole[i], rng)[1]
            document.path.write_bytes(written)
            yield Case(what if changes else f"{what} {written!r}", document.source, False, document.load)
            document.path.write_bytes(whole[i])

    return family


SMALL = {"num_latent_tokens": 4, "dim": 8, "heads": 2, "num_latent_transformers_in_layers": [1]}
CLASSES = outputs.LearnedQueries(dim=8, num_channels=3)
NAMED: dict[str, Any] = {"labels": ["a", "b", "c"], "task": "classification"}
CROPPED = {"size": [8, 8], "crop": [9, 9], "resample": 3, "scale": 0.1, "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
COLUMNS = {"numeric": ["x", "y"], "mean": [0.5, 1.0], "std": [2.0, 3.0], "categorical": {"z": ["u", "v"]}}
DESCRIPTIONS: list[dict[str, Any]] = [
    {"kind": "Images", **NAMED, "size": [8, 8], "channels": 3},
    {"kind": "CenterCroppedImages", **NAMED, **CROPPED},
    {"kind": "Audio", **NAMED, "num_samples": 100, "sample_rate": 8000},
    {"kind": "Arrays", **NAMED, "data_shape": [1, 5], "mean": [0.5], "std": [2.0]},
    {"kind": "Table", **NAMED, **COLUMNS},
    {"kind": "Text", **NAMED, "max_length": 10, "cls_sep": True},
    {"kind": "Text", "labels": ["a"], "task": "regression", "max_length": 10, "target_mean": [1.0], "target_std": [2.0]},
]


def our_folders(folder: Path) -> list[Document]:
    """Models of this library with every kind of input, and some outputs."""
    layers = {"layers_indice": [0, 0, None], "latent_layers_indice": [0] * 3}
    models: dict[str, Any] = {"perceiver": Perceiver(data_shape=[3, 8, 8], num_bands=2, num_classes=3, **layers, **SMALL)}
    models |= {kind: PerceiverIO(inputs=case.module(), outputs=CLASSES, **SMALL) for kind, case in CASES.items()}
    ids, pixels = inputs.TokenIds(vocab_size=9, max_length=5, dim=8), inputs.Pixels(data_shape=[3, 4, 4], num_bands=2)
    logits = {"kind": "TokenLogits", "vocab_size": 9, "max_length": 5, "dim": 8}
    models["tokens"] = PerceiverIO(inputs=ids, outputs=logits, **SMALL)
    grid = {"kind": "Grid", "axes": [4, 4], "num_channels": 3, "num_bands": 2}
    models["grid"] = PerceiverIO(inputs=pixels, outputs=grid, **SMALL)
    models["perceiver"].preprocessing = {"kind": "Images", **NAMED, "size": [8, 8]}
    for kind, model in models.items():
        model.save_pretrained(folder / kind)
    return [Document(folder / kind / "config.json", folder / kind) for kind in models]


def their_folders(folder: Path) -> list[Document]:
    """Folders of transformers, of most heads, with processors."""
    found = []
    for kind, module in {
        "fourier": inputs.Pixels(data_shape=[3, 224, 224], num_bands=64, resolution=224),
        "text": inputs.TokenIds(vocab_size=262, max_length=7, dim=6),
        "learned": inputs.LearnedPixels(data_shape=[3, 5, 5]),
    }.items():
        wide = {"cross_qk_channels": module.num_channels, "decoder_qk_channels": 8, "query_residual": True}
        model = PerceiverIO(inputs=module, outputs=CLASSES, **wide, **SMALL)
        model.preprocessing = DESCRIPTIONS[1] if kind != "text" else None
        transformers.save(model, folder / kind, labels=["a", "b", "c"])
        found += [Document(file, folder / kind) for file in sorted((folder / kind).glob("*.json"))]
    return found


def preprocessings(folder: Path) -> list[Document]:
    """Descriptions of preprocessing."""
    found = []
    for i, description in enumerate(DESCRIPTIONS):
        path = folder / str(i) / "preprocessing.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(Preprocessing.create(description).describe()))
        found.append(Document(path, path, Preprocessing.load))
    return found


FAMILIES: dict[str, tuple[int, Family]] = {  # with the share of each, in hundredths
    "pickles in archives": (13, pickles(zipped)),
    "pickles in older files": (9, pickles(legacy)),
    "pickles of arrays": (9, pickles_of_arrays),
    "archives": (7, containers(zipped(state_of(parts_of(their_state())[0]), parts_of(their_state())[1]), "model.pt")),
    "bombs": (8, zip_bombs),
    "older files": (6, containers(legacy(state_of(parts_of(their_state())[0]), parts_of(their_state())[1]), "model.pt")),
    "lengths in older files": (3, legacy_counts),
    "safetensors": (6, containers(save(their_state()), "model.safetensors")),
    "headers of safetensors": (7, safetensors_headers),
    "our folders": (17, documents(our_folders)),
    "folders of transformers": (9, documents(their_folders)),
    "preprocessing": (6, documents(preprocessings)),
}
