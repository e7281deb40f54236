"""Files that are damaged or were made to do harm, generated: each family is a list of such files, and then random changes.

Nothing here is ever run: a file is written, and `from_pretrained` is asked to load it.
"""

import contextlib
import copy
import io
import itertools
import json
import pickle
import pickletools
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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


class Case(NamedTuple):
    """What was done to a file, the file or folder, whether it must be refused (else it may load as what it holds), and how."""

    name: str
    source: Path
    refused: bool
    load: Callable[[Path], Any]


Family = Callable[[Path, random.Random], Iterator[Case]]
Contents = Iterator[tuple[str, bytes, bool]]
load_theirs = partial(from_pretrained, max_freq=10.0)


def files(name: str, contents: Callable[[random.Random], Contents]) -> Family:
    """A family of files with these contents."""

    def family(folder: Path, rng: random.Random) -> Iterator[Case]:
        for what, content, refused in contents(rng):
            (folder / name).write_bytes(content)
            yield Case(what, folder / name, refused, load_theirs)

    return family


def their_state() -> dict[str, Tensor]:
    """The tensors of a small Perceiver of perceiver-pytorch: 13 channels, width 8, one layer, 3 classes."""
    norm: dict[str, list[int]] = {"norm.weight": [8], "norm.bias": [8]}
    attention = {**norm, "fn.to_q.weight": [8, 8], "fn.to_out.weight": [8, 8], "fn.to_out.bias": [8]}
    mlp = {**norm, "fn.net.0.weight": [64, 8], "fn.net.0.bias": [64], "fn.net.2.weight": [8, 32], "fn.net.2.bias": [8]}
    cross = {**attention, "fn.to_kv.weight": [16, 13], "norm_context.weight": [13], "norm_context.bias": [13]}
    blocks = {"0": cross, "1": mlp, "2.0.0": {**attention, "fn.to_kv.weight": [16, 8]}, "2.0.1": mlp}
    shapes = {"latents": [4, 8]}  # the first storage, as `claims` needs it
    shapes |= {f"layers.0.{block}.{part}": shape for block, parts in blocks.items() for part, shape in parts.items()}
    shapes |= {"to_logits.1.weight": [8], "to_logits.1.bias": [8]}
    shapes |= {"to_logits.2.weight": [3, 8], "to_logits.2.bias": [3]}
    return {name: torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape) for name, shape in shapes.items()}


OPCODES, STORAGES = parts_of(their_state())
WHOLE = state_of(OPCODES)


def harmful() -> list[bytes]:
    """Values that would run something, or fill the memory, if a pickle were believed."""
    shell, lots, x, system = text(f"touch {MARK}"), number(2**30), text("x"), name("os.system")
    makers = (
        "builtins.bytearray builtins.bytes builtins.range builtins.set builtins.complex torch.Size torch.Tensor torch.zeros"
    )
    functions = {
        shell: "os.system posix.system os.popen subprocess.getoutput subprocess.call",
        text(f"open({MARK!r}, 'w')"): "builtins.eval builtins.exec __builtin__.eval code.interact timeit.timeit",
        text(MARK): "torch.hub.load torch.load torch.jit.load pickle.loads importlib.import_module runpy.run_path numpy.load",
        lots: f"{makers} torch.empty torch.FloatStorage torch.ByteStorage torch.UntypedStorage numpy.ndarray",
        x: "collections.Counter torch._utils._rebuild_meta_tensor_no_storage torch._utils._rebuild_sparse_tensor",
    }
    values = [called(function, argument) for argument, names in functions.items() for function in names.split()]
    # Other ways to find or call something.
    values += [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", number(1) * 2 + b"\x93", b"c" + b"x" * 10**6]
    values += [called("builtins.getattr", name("os"), text("system")), text("os") + text("system") + b"\x93(" + shell + b"tR"]
    values += [b"(" + shell + b"ios\nsystem\n", b"(" + system + shell + b"o", system + b"(" + shell + b"t\x81"]
    values += [system + b"(" + shell + b"t}\x92", x + b")R", number(1) + b")R", name("torch.Size") + b"]R"]
    built = ("torch.FloatStorage", "torch._utils._rebuild_tensor_v2")
    values += [name(one) + b"}(" + text("__code__") + x + b"ub" for one in built]
    values += [called("builtins.list", called("builtins.range", lots)), called("operator.mul", x, lots)]
    values += [called("_codecs.encode", x, text("hex")), called("collections.OrderedDict", b"]")]
    values += [called("haiku._src.data_structures.FlatMapping", number(1))]
    values += [called("jax._src.array._reconstruct_array", *[system] * 4)]
    # More bytes than there are: bytes, a bytearray, text, a frame, numbers, strings, the memo.
    values += [one + size for one in (b"\x8e", b"\x96", b"\x8d", b"\x95") for size in (struct.pack("<Q", HUGE), b"\xff" * 8)]
    values += [one + struct.pack("<i", 2**31 - 1) for one in (b"\x8b", b"T")]
    values += [b"\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5, b"I" + b"9" * 10**5 + b"\n", b"j\xff\xff\xff\xff"]
    # Much of little: copied often, in itself, nested too deep to be hashed or followed.
    tuples = b"()" + b"\x85" * DEEP  # behind a mark
    values += [b"(]q\0(" + number(1) * 10**4 + b"e](" + called("torch.Size", b"h\0") * 10**4 + b"et"]
    values += [text("y" * 10**5) + b"q\0](" + called("_codecs.encode", b"h\0", text("latin1")) * 3000 + b"e"]
    values += [b"]" * 10**5 + b"a" * (10**5 - 1), tuples[1:], b"}" + tuples[1:] + b"Ns", b"}" + tuples + b"Nu", b"(" * DEEP]
    values += [b"\x8f" + tuples + b"\x90", tuples + b"\x91", tuples + b"Nd", b")" + b"q\0h\0\x86" * 60]
    values += [b"}q\0" + text("w") + b"h\0s"]
    # Storages that are not.
    first = text("0")
    stored = [x + b"Q", storage(first, 32, "os.system", "module"), storage(first, 32, "os.system"), storage(b"]", 32)]
    stored += [storage(first, 32, more=text("v")), storage(text("../../../etc/passwd"), 32)]
    return values + [view(one, [4, 8], [8, 1]) for one in stored]


def claims() -> list[bytes]:
    """Tensors and arrays that claim what the first storage, of 32 numbers, or 16 bytes do not have."""
    # Numbers in the storage, shape, strides, offset.
    views: list[Any] = [(HUGE, [HUGE]), (32, [HUGE]), (32, [HUGE, 8], [0, 1]), (32, [HUGE // 8, 8], [0, 0]), (32, [5, 8])]
    views += [(32, [2**62, 4], [0, 0]), (32, [10**30], [0]), (10**30, [4, 8]), (512, [64, 8]), (32, [8, 8], [3, 1])]
    views += [(32, [4, 8], [8, 1], 1), (32, [4, 8], [8, 1], HUGE), (32, [4, 8], [8, 1], -1), (32, [4, 8], [-8, 1])]
    views += [(32, [4, 8], [HUGE, 1]), (32, [-4, -8], [8, 1]), (32, [0, HUGE]), (32, [HUGE, 0]), (32, [4, 8], [1])]
    views += [(32, [text("4"), 8], [8, 1]), (32, [b"\x88", 8], [8, 1]), (32, [4, 8], [b"N", 1]), (32, [1] * 1000, [1] * 1000)]
    found = [tensor("0", *one) for one in views] + [tensor("99", 32, [4, 8])]
    found += [tensor("0", 32, [4, 8], kind=kind) for kind in ("Double", "Quantised")]
    shapes = ((HUGE,), (10**6, 10**6), (2**64 + 4,), (-2, -2), (1,) * 1000, (b"\x88", 4), (numbers(4),), (0, 2**63))
    found += [array(numbers(*shape)) for shape in shapes] + [array(numbers(4), raw=text("x" * 16))]
    return found + [array(numbers(4), kind) for kind in ("O8", "U1", "V4", "M8", "S4", "(1000000,)f4", "x")]


def changed(whole: bytes, rng: random.Random) -> bytes:
    """A file with random changes of one to four places: flipped, cut, doubled, or other numbers."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 32))
        old = data[at : at + length]
        flipped, fill = bytes(byte ^ rng.randrange(1, 256) for byte in old[:1]) + old[1:], rng.choice(b"\xff\0\x7f\x80")
        data[at : at + length] = rng.choice((flipped, flipped, b"", old * 2, bytes([fill]) * len(old)))
    return bytes(data)


def pickles(rng: random.Random, make: Callable[[bytes, list[bytes]], bytes]) -> Contents:
    """Hostile pickles in a container that is whole."""
    with_state = lambda **values: make(state_of({**OPCODES, **values}), STORAGES)  # noqa: E731
    for i, value in enumerate((*harmful(), *claims())):
        what = f"value {i}, {value[:50]!r}"
        for place in ("latents", "layers.0.0.fn.to_q.weight", "more"):
            yield f"{what} as {place}", with_state(**{place: value}), True
        yield f"only {what}", make(program(value), STORAGES), True
        deeper = state_of({"state_dict": WHOLE[2:-1], "hidden": value})
        yield f"{what}, deeper", make(deeper, STORAGES), False
    for _, _, place in pickletools.genops(WHOLE):
        yield f"cut at opcode {place}", make(WHOLE[:place], STORAGES), True
    same = OPCODES["latents"]
    more = [f"layers.{i}.x" for i in (7, HUGE, -1, "", "٣", "9" * 5000, "0.0.2")] + ["layers.", "layers", ".", ""]
    for other in more + [f"layers.0.2.{i}.0.x" for i in (7, HUGE, "", "x")]:
        yield f"a tensor named {other[:20]}", with_state(**{other: same}), True
    yield "10^4 names of one tensor", with_state(**{f"layers.{i}.x": same for i in range(10**4)}), True
    for one in OPCODES:
        without = {key: value for key, value in OPCODES.items() if key != one}
        yield f"{one} is missing", make(state_of(without), STORAGES), True
        for shape in ([], [2, 2, 8]):
            yield f"{one} has shape {shape}", with_state(**{one: tensor("0", 32, shape)}), True
    while True:
        yield "a changed pickle", make(changed(WHOLE, rng), STORAGES), False


def pickles_of_arrays(rng: random.Random) -> Contents:
    """Hostile pickles as JAX projects save them, and programs of random operations."""
    empty, shared = np.zeros(0, "f4"), {"w": np.zeros(250_000, "f4")}
    deep: dict[str, Any] = {"w": empty}
    for _ in range(6):
        deep = {str(i): deep for i in range(100)}
    nothing = {str(i): {str(j): empty for j in range(200)} for i in range(60)}
    for tree in (deep, {str(i): shared for i in range(2000)}, nothing):
        yield "one array, many names", pickle.dumps(tree, 4), True
    for i, value in enumerate((*harmful(), *claims())):
        yield f"only value {i}", program(value), True
        yield f"value {i} as w", state_of({"w": value}), True
    pieces = [*map(name, ("numpy.dtype", "numpy.ndarray", "_codecs.encode", "numpy._core.multiarray._reconstruct"))]
    pieces += [array(numbers(4)), array(numbers(HUGE)), *map(number, (4, HUGE, -1)), text("w"), b"h\0", b"q\1"]
    pieces += [bytes([code]) for code in b"(.N\x88)]}t\x85\x86\x87aesuRb\x94\x93\x95021\x81Q"] + [b"C\x10" + bytes(16)]
    tree = {"a/~/b": {"w": np.zeros((2, 3), "f4")}, "c": np.float32(3)}
    while True:
        yield "random operations", program(b"".join(rng.choices(pieces, k=rng.randrange(1, 60)))), False
        for protocol in (2, 3, 4, 5):
            yield "a changed pickle", changed(pickle.dumps(tree, protocol), rng), False


def containers(rng: random.Random, whole: bytes) -> Contents:
    """The cuts of a whole file, and its random changes."""
    places = {0, 1, 4, 8, *(len(whole) - n for n in (1, 2, 4, 8, 22))}
    for signature in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"archive/", b"}", b"{", b"tQ"):
        for at in [at for at in range(len(whole)) if whole.startswith(signature, at)]:
            places |= {max(0, at - 1), at, at + 1, at + len(signature)}
    for place in sorted(place for place in places if place < len(whole)):
        yield f"cut at {place}", whole[:place], True
    while True:
        yield "cut", whole[: rng.randrange(len(whole))], True
        for _ in range(4):
            yield "changed", changed(whole, rng), False


def zip_bombs(rng: random.Random) -> Contents:
    """Archives that unpack to more than they are, or whose index lies."""
    whole, deflated, rest, many = zipped(WHOLE, STORAGES), zipfile.ZIP_DEFLATED, STORAGES[1:], 3 * 10**7
    claimed = state_of({**OPCODES, "latents": tensor("0", many, [many // 8, 8])})
    yield "deflated zeros that are asked for", zipped(claimed, [bytes(4 * many), *rest], deflated), True
    yield "deflated zeros", zipped(WHOLE, [bytes(5 * 10**7), *rest], deflated), True
    yield "a deflated pickle", zipped(program(b"]" * 10**7), STORAGES, deflated), True
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"method {method}", zipped(WHOLE + bytes(10**6), [bytes(10**7)], method), True
    yield "all zeros", bytes(10**6), True
    yield "10^5 entries", zipped(WHOLE, STORAGES + [b""] * 10**5), False
    yield "another archive inside", zipped(WHOLE, [whole, *rest]), True
    for what, content in {"two": whole * 2, "before": b"x" * 1000 + whole, "behind": whole + b"x" * 1000}.items():
        yield what, content, False
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for part in ("pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(part)
            entry.size = len(WHOLE)
            archive.addfile(entry, io.BytesIO(WHOLE))
    yield "a tar", tar.getvalue(), True
    starts = [at for at in range(len(whole)) if whole.startswith(b"PK\x01\x02", at)]
    end, same = whole.find(b"PK\x05\x06"), bytearray(whole)
    for start in starts[2:]:  # all storages at one place
        same[start + 42 : start + 46] = whole[starts[2] + 42 : starts[2] + 46]
    yield "entries that overlap", bytes(same), True
    of_entry = [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)]
    places = [(start + at, width) for at, width in of_entry for start in (starts[0], starts[2], starts[-1])]
    places += [(end + at, width) for at, width in ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))]
    for (place, width), value in itertools.product(places, (0, 1, 8, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)):
        number = (value & (256**width - 1)).to_bytes(width, "little")
        yield f"byte {place} of the index is {value}", whole[:place] + number + whole[place + width :], False
    while True:
        yield "a changed index", whole[: starts[0]] + changed(whole[starts[0] :], rng), False


def legacy_counts(rng: random.Random) -> Contents:
    """Files of the older form whose storages are not as long as they claim."""
    right = [len(raw) // 4 for raw in STORAGES]
    while True:
        counts, claimed, i = list(right), dict(OPCODES), rng.randrange(len(right))
        counts[i] = rng.choice((0, -1, HUGE, 2**62, 2**63 - 1, -(2**63), counts[i] + 1, counts[i] - 1, rng.randrange(10**6)))
        if rng.random() < 0.5 and counts[i] > 0:
            claimed[list(OPCODES)[i]] = tensor(str(i), counts[i], [counts[i]])
        what = f"storage {i} of {right[i]} claims {counts[i]}"
        yield what, legacy(state_of(claimed), STORAGES, counts), counts[i] != right[i]


def safetensors_headers(rng: random.Random) -> Contents:
    """Headers that claim what is not there."""
    whole = save(their_state())
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    for claimed in (0, 1, length - 1, length + 1, len(whole), 10**8, 10**9, HUGE, 2**62, 2**64 - 1):
        yield f"a header of {claimed} bytes", claimed.to_bytes(8, "little") + whole[8:], True
    raw = ["", "[]", "1", "null", "[" * 10**5, '{"a":' * 10**5, b"\xff" * 100]
    raw += ['{"latents": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 128]}}']
    raw += [json.dumps(header)[:-1] + f', "latents": {json.dumps(nothing | {"shape": [HUGE]})}}}']  # two of a name
    raw += [{"x" * 10**6: header["latents"]}, {f"layers.{i}.x": nothing for i in range(10**4)}]
    raw += [header | {"more": nothing | {"shape": [HUGE, 0]}}]
    values: dict[str, Any] = {
        "shape": ([HUGE], [2**62, 4], [2**32] * 2, [-1], [0], [1.5], ["8"], None, [], [[8]], [4, 8, 1, HUGE], [10**30]),
        "data_offsets": ([0, HUGE], [HUGE, 0], [-1, 127], [0], [0, 128, 256], [128, 0], None, "0", [0, 2**64], [0, 64]),
        "dtype": ("F64", "I64", "BOOL", "F8_E4M3", "x", "", None, 1, ["F32"], "U8"),
    }
    values["data_offsets"] += ([1, 129], header["to_logits.1.bias"]["data_offsets"])  # the second is another tensor's
    for one, key in itertools.product(("latents", "layers.0.0.norm_context.weight", "to_logits.2.weight"), values):
        raw += [header | {one: header[one] | {key: value}} for value in values[key]]
        raw += [header | {one: {k: v for k, v in header[one].items() if k != key}}]
    for other in itertools.chain(raw, (changed(json.dumps(header).encode(), rng) for _ in itertools.count())):
        text = other if isinstance(other, bytes) else (other if isinstance(other, str) else json.dumps(other)).encode()
        yield f"header {text[:80]!r}", len(text).to_bytes(8, "little") + text + body, other in raw


# Folders. What no JSON library writes is put in afterwards.
RAW = {"NaN": "NaN", "-Infinity": "-Infinity", "1e999": "1e999", "digits": "9" * 5000, "nested": "[" * 10**5 + "]" * 10**5}
VALUES: list[Any] = [HUGE, 10**9, 10**6, 2**63, 10**30, -1, 0, 1, 3, 1.5, -0.5, True, False, None, "", "x", "Pixels", [], {}]
VALUES += [[HUGE], [HUGE] * 3, [-1], [None], ["x"], [[1]], [0] * 1000, [10**9, 10**9], {"kind": "Pixels"}]
VALUES += [{"kind": "os.system"}, {"height": HUGE, "width": HUGE}, {"0": "a"}, *(f"RAW {what}" for what in RAW)]
Document = tuple[Path, Path, Callable[[Path], Any]]  # a file of JSON, what is then loaded, and how


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, one in items:
        yield from leaves(one, (*path, key))


def edited(whole: bytes, changes: list[tuple[tuple[Any, ...], Any]]) -> bytes:
    """A document with other values at some places."""
    document = json.loads(whole)
    for path, new in changes:
        value = document
        with contextlib.suppress(TypeError, IndexError, KeyError):  # what it is in was replaced
            for key in path[:-1]:
                value = value[key]
            value[path[-1]] = copy.deepcopy(new)
    written = json.dumps(document)
    for what, raw in RAW.items():
        written = written.replace(f'"RAW {what}"', raw)
    return written.encode()


def documents(make: Callable[[Path], Iterator[Document]]) -> Family:
    """Every value of every document replaced by every hostile one, in random order; some together, and random changes."""

    def family(folder: Path, rng: random.Random) -> Iterator[Case]:
        made = {document: document[0].read_bytes() for document in make(folder)}
        single = [(one, path, new) for one, raw in made.items() for path in leaves(json.loads(raw)) for new in VALUES]
        rng.shuffle(single)
        for document, path, new in itertools.cycle(single):
            (file, source, load), kind, changes = document, rng.random(), [(path, new)]
            if kind < 0.1:
                changes += [(p, n) for one, p, n in rng.choices(single, k=30) if one == document][:2]
            written = changed(made[document], rng) if kind > 0.9 else edited(made[document], changes)
            file.write_bytes(written)
            yield Case(f"{file.parent.name}: {'changed' if kind > 0.9 else str(changes)[:200]}", source, False, load)
            file.write_bytes(made[document])

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


def our_folders(folder: Path) -> Iterator[Document]:
    """Models of this library with every kind of input, and some outputs."""
    layers = {"layers_indice": [0, 0, None], "latent_layers_indice": [0] * 3}
    models: dict[str, Any] = {"perceiver": Perceiver(data_shape=[3, 8, 8], num_bands=2, num_classes=3, **layers, **SMALL)}
    models |= {kind: PerceiverIO(inputs=case.module(), outputs=CLASSES, **SMALL) for kind, case in CASES.items()}
    ids = {"vocab_size": 9, "max_length": 5, "dim": 8}
    models["tokens"] = PerceiverIO(inputs=inputs.TokenIds(**ids), outputs={"kind": "TokenLogits", **ids}, **SMALL)
    grid = {"kind": "Grid", "axes": [4, 4], "num_channels": 3, "num_bands": 2}
    models["grid"] = PerceiverIO(inputs=inputs.Pixels(data_shape=[3, 4, 4], num_bands=2), outputs=grid, **SMALL)
    models["perceiver"].preprocessing = {"kind": "Images", **NAMED, "size": [8, 8]}
    for kind, model in models.items():
        model.save_pretrained(folder / kind)
        yield folder / kind / "config.json", folder / kind, from_pretrained


def their_folders(folder: Path) -> Iterator[Document]:
    """Folders of transformers, of most heads, with processors."""
    for kind, module in {
        "fourier": inputs.Pixels(data_shape=[3, 224, 224], num_bands=64, resolution=224),
        "text": inputs.TokenIds(vocab_size=262, max_length=7, dim=6),
        "learned": inputs.LearnedPixels(data_shape=[3, 5, 5]),
    }.items():
        wide = {"cross_qk_channels": module.num_channels, "decoder_qk_channels": 8, "query_residual": True}
        model = PerceiverIO(inputs=module, outputs=CLASSES, **wide, **SMALL)
        model.preprocessing = DESCRIPTIONS[1] if kind != "text" else None
        transformers.save(model, folder / kind, labels=["a", "b", "c"])
        yield from ((file, folder / kind, from_pretrained) for file in sorted((folder / kind).glob("*.json")))


def preprocessings(folder: Path) -> Iterator[Document]:
    """Descriptions of preprocessing."""
    for i, description in enumerate(DESCRIPTIONS):
        path = folder / f"{i}.json"
        path.write_text(json.dumps(Preprocessing.create(description).describe()))
        yield path, path, Preprocessing.load


FAMILIES: dict[str, tuple[int, Family]] = {  # with the share of each, in hundredths
    "pickles in archives": (13, files("model.pt", partial(pickles, make=zipped))),
    "pickles in older files": (9, files("model.pt", partial(pickles, make=legacy))),
    "pickles of arrays": (9, files("model.pystate", pickles_of_arrays)),
    "archives": (7, files("model.pt", partial(containers, whole=zipped(WHOLE, STORAGES)))),
    "bombs": (8, files("model.pt", zip_bombs)),
    "older files": (6, files("model.pt", partial(containers, whole=legacy(WHOLE, STORAGES)))),
    "lengths in older files": (3, files("model.pt", legacy_counts)),
    "safetensors": (6, files("model.safetensors", partial(containers, whole=save(their_state())))),
    "headers of safetensors": (7, files("model.safetensors", safetensors_headers)),
    "our folders": (17, documents(our_folders)),
    "folders of transformers": (9, documents(their_folders)),
    "preprocessing": (6, documents(preprocessings)),
}
