"""Pickles of arrays: what NumPy writes is read exactly; everything else is one error, quickly and in little memory."""

import pickle
import pickletools
import random
import struct
import time
import tracemalloc
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from perceivers import from_pretrained
from perceivers.checkpoints.readers import pickles
from perceivers.checkpoints.readers.pickles import read_pickle
from perceivers.checkpoints.state_dict import read_weights

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.standard_normal((3, 4)).astype("f4"),
    "float64, by columns": np.asfortranarray(RNG.standard_normal((2, 3))),
    "every other": RNG.standard_normal(9)[::2],
    "float16": RNG.standard_normal(5).astype("f2"),
    "big-endian": np.arange(3, dtype=">f4"),
    "whole numbers": np.arange(-3, 3, dtype="i8"),
    "bool": np.array([True, False]),
    "a number": np.array(7, "i4"),
    "a scalar": np.float32(3),
    "empty": np.zeros((0, 5)),
}
TREE = {"params": {"a/~/b": {**ARRAYS}, "c": OrderedDict(w=ARRAYS["float32"])}, "state": {}}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_read_exactly(protocol, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(TREE, protocol))
    got = read_pickle(path)
    assert got.keys() == {f"params/a/~/b/{name}" for name in ARRAYS} | {"params/c/w"}
    for name, array in ARRAYS.items():
        tensor = got[f"params/a/~/b/{name}"]
        assert tensor.shape == array.shape
        assert tensor.numpy().dtype == array.dtype.newbyteorder("=")
        assert tensor.is_contiguous()
        assert np.array_equal(tensor.numpy(), array)
    # One array, stored once, under two names: changing one tensor must not change the other.
    got["params/c/w"].zero_()
    assert got["params/a/~/b/float32"].abs().min() > 0


def unicode(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode()


def number(n: int) -> bytes:
    size = n.bit_length() // 8 + 1
    return pickle.LONG1 + bytes([size]) + n.to_bytes(size, "little", signed=True)


def ask(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def call(name: str, *arguments: bytes) -> bytes:
    return ask(name) + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def array(shape: bytes, kind: str = "f4", raw: bytes = pickle.SHORT_BINBYTES + b"\x10" + bytes(16)) -> bytes:
    """`shape` and `raw` as operations."""
    return call("numpy._core.numeric._frombuffer", raw, call("numpy.dtype", unicode(kind)), shape, unicode("C"))


def shape(*numbers: int) -> bytes:
    return pickle.MARK + b"".join(map(number, numbers)) + pickle.TUPLE


def program(body: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + body + pickle.STOP


def named(value: bytes) -> bytes:
    return program(pickle.EMPTY_DICT + unicode("w") + value + pickle.SETITEM)


GET = pickle.BINGET + b"\0"
MANY = 300_000
TEXT = "x" * 200
BIG = unicode("y" * 10**6) + pickle.MEMOIZE
DTYPE, RAW = call("numpy.dtype", unicode("f4")), pickle.SHORT_BINBYTES + b"\x10" + np.arange(4, dtype="f4").tobytes()
EMPTY = np.zeros(0, "f4")
SHARED = {"w": np.zeros(250_000, "f4")}
NOTHING = {str(i): EMPTY for i in range(200)}
DEEP = {"w": EMPTY}
for _ in range(6):
    DEEP = {str(i): DEEP for i in range(100)}
HOSTILE = {
    # Names that would run something, or that nobody needs.
    "a command": (program(call("posix.system", unicode("touch ran"))), "posix.system"),
    "eval": (program(call("builtins.eval", unicode("1"))), "builtins.eval"),
    "numpy.load": (program(call("numpy.load", unicode("x"))), "numpy.load"),
    "a method": (program(ask("numpy.ndarray.tofile")), "numpy.ndarray.tofile"),
    "defaultdict": (pickle.dumps(defaultdict(dict), 4), "collections.defaultdict"),
    "Haiku's module": (program(ask("haiku._src.data_structures.jax")), "data_structures.jax"),
    "a long name": (program(pickle.GLOBAL + b"x" * 10**6), "kkk|xxx"),
    "a name of numbers": (program(number(1) + number(2) + pickle.STACK_GLOBAL), "a int.a int"),
    "a new object": (program(ask("numpy.ndarray") + pickle.EMPTY_TUPLE + pickle.NEWOBJ), "operation"),
    "an instance": (program(pickle.MARK + pickle.INST + b"os\nsystem\n"), "operation"),
    "a persistent id": (program(unicode("x") + pickle.BINPERSID), "operation"),
    "an extension": (program(pickle.EXT1 + b"\1"), "operation"),
    "a duplicate": (program(pickle.EMPTY_DICT + pickle.DUP), "operation"),
    "a state for a dict": (program(pickle.EMPTY_DICT + pickle.EMPTY_DICT + pickle.BUILD), "a dict with a state"),
    "an item of a tuple": (program(pickle.EMPTY_TUPLE + pickle.NONE + pickle.APPEND), "a tuple where a list must be"),
    "a call of a class": (program(call("numpy.ndarray", number(3))), "it calls"),
    "a call of a number": (program(number(3) + pickle.EMPTY_TUPLE + pickle.REDUCE), "it calls"),
    "a call with a list": (program(ask("numpy.dtype") + pickle.EMPTY_LIST + pickle.REDUCE), "it calls"),
    "another coding": (program(call("_codecs.encode", unicode("x"), unicode("zip"))), "_codecs.encode"),
    "an array of a class": (named(call("numpy._core.multiarray._reconstruct", *[number(1)] * 3)), "another class"),
    "a JAX array of a command": (named(call("jax._src.array._reconstruct_array", *[ask("numpy.dtype")] * 4)), "another class"),
    "a mapping of numbers": (program(call("haiku._src.data_structures.FlatMapping", number(1))), "not made of a dict"),
    # Arrays that are not there.
    "10^12 numbers": (named(array(shape(10**12))), r"shape \(1000000000000,\)"),
    "10^6 x 10^6 numbers": (named(array(shape(10**6, 10**6))), "16 bytes for it"),
    "2^64 + 4 numbers": (named(array(shape(2**64 + 4))), "16 bytes for it"),
    "fewer than nothing": (named(array(shape(-2, -2))), r"shape \(-2, -2\)"),
    "so many axes": (named(array(shape(*[1] * 1000, 4))), "shape"),
    "an axis of True": (named(array(pickle.NEWTRUE + number(4) + pickle.TUPLE2)), "shape"),
    "an axis in an axis": (named(array(shape(4) + pickle.TUPLE1)), "shape"),
    "nothing of 2^63": (named(array(shape(0, 2**63), raw=pickle.SHORT_BINBYTES + b"\0")), "damaged"),
    "objects": (named(array(shape(2), "O8")), "dtype O8"),
    "pickled objects": (pickle.dumps({"w": np.array([{}], object)}, 4), "dtype O8"),
    "text": (pickle.dumps({"w": np.array(["x"])}, 4), "dtype U1"),
    "fields": (pickle.dumps({"w": np.zeros(2, [("x", "f4")])}, 4), "dtype V4"),
    "a dtype with a state": (
        named(call("numpy.dtype", unicode("f4")) + pickle.MARK + number(3) + unicode("<") * 2 + pickle.TUPLE + pickle.BUILD),
        "a dtype with fields",
    ),
    "dates": (pickle.dumps({"w": np.array(["2020"], "M8")}, 4), "dtype M8"),
    "a dtype of a list": (named(call("numpy.dtype", pickle.EMPTY_LIST)), "dtype a list"),
    "values of a text": (named(array(shape(4), raw=unicode("x" * 16))), "no bytes"),
    "an array without values": (
        named(call("numpy._core.multiarray._reconstruct", ask("numpy.ndarray"), shape(0), unicode("b"))),
        "a _Array as 'w'",
    ),
    # Lengths that the file does not have.
    "2^62 bytes": (program(pickle.BINBYTES8 + struct.pack("<Q", 2**62)), "ends in the middle"),
    "2^64 - 1 bytes": (program(pickle.BYTEARRAY8 + b"\xff" * 8), "ends in the middle"),
    "4 GB of text": (program(pickle.BINUNICODE + b"\xff" * 4), "ends in the middle"),
    "2^63 of text": (program(pickle.BINUNICODE8 + struct.pack("<Q", 2**63)), "ends in the middle"),
    "out of bytes, out of sync": (program(pickle.EMPTY_TUPLE * 20)[:-1], "ends in the middle"),
    # What grows when it is read.
    "tuples of tuples": (named(shape(0) + (pickle.BINPUT + b"\0" + GET + pickle.TUPLE2) * 60), "a tuple as 'w'"),
    "dicts of dicts of dicts": (pickle.dumps(DEEP, 4), "fill memory"),
    "one array under many names": (pickle.dumps({str(i): SHARED for i in range(2000)}, 4), "fill memory"),
    "nothing under many names": (pickle.dumps({str(i): NOTHING for i in range(60)}, 4), "fill memory"),
    "long keys in long keys": (pickle.dumps({TEXT: {TEXT: EMPTY}}, 4), "too long"),
    "a dict in itself": (program(pickle.EMPTY_DICT + pickle.MEMOIZE + unicode("w") + GET + pickle.SETITEM), "8 deep"),
    "a dict in itself, often": (
        program(
            pickle.EMPTY_DICT
            + pickle.MEMOIZE
            + pickle.MARK
            + b"".join(unicode(str(i)) + GET for i in range(1000))
            + pickle.SETITEMS
        ),
        "more than 8 deep",
    ),
    "one text encoded again and again": (
        program(
            BIG
            + pickle.EMPTY_LIST
            + pickle.MARK
            + b"".join(call("_codecs.encode", GET, unicode("latin1")) for _ in range(3000))
            + pickle.APPENDS
        ),
        "fill memory",
    ),
    "a long key": (program(pickle.EMPTY_DICT + unicode("x" * 10**5) + pickle.EMPTY_DICT + pickle.SETITEM), "which is no name"),
    "a key of a number": (program(pickle.EMPTY_DICT + number(3) + pickle.EMPTY_DICT + pickle.SETITEM), "which is no name"),
    "numbers without end": (program(pickle.NONE * MANY), "operations"),
    "marks without end": (program(pickle.MARK * MANY), "operations"),
    "lists in lists": (program(pickle.EMPTY_LIST * MANY + pickle.APPEND * MANY), "operations"),
    "memories without end": (program(pickle.EMPTY_LIST + pickle.MEMOIZE * MANY), "operations"),
    "dicts without end": (program((pickle.EMPTY_DICT + pickle.MEMOIZE) * MANY), "operations"),
    "one tuple in another": (program(pickle.NONE + pickle.TUPLE1 * 150_000), "holds a tuple"),
    "one list in another": (program(pickle.EMPTY_LIST * 99_000 + pickle.APPEND * 98_999), "holds a list"),
    # What is no dict of arrays, or no whole pickle.
    "a number": (pickle.dumps(3, 4), "holds a int"),
    "a list": (pickle.dumps([ARRAYS["float32"]], 4), "holds a list"),
    "an array": (pickle.dumps(ARRAYS["float32"], 5), "holds a _Array"),
    "a number in a dict": (pickle.dumps({"a": {"b": 3}}, 4), "a int as 'a/b'"),
    "two arrays of one name": (pickle.dumps({"a": {"b/c": EMPTY}, "a/b": {"c": EMPTY}}, 4), "two arrays of one name"),
    "more behind the end": (pickle.dumps(TREE, 4) + b".", "does not end where it should"),
    "two results": (program(pickle.EMPTY_DICT * 2), "does not end where it should"),
    "no result": (program(b""), "does not end where it should"),
    "a stack that is empty": (program(pickle.APPENDS), "IndexError"),
    "a memory that is empty": (program(GET), "KeyError"),
    "a key without a value": (program(pickle.EMPTY_DICT + pickle.MARK + unicode("x") + pickle.SETITEMS), "ValueError"),
    "text that is none": (program(pickle.SHORT_BINUNICODE + b"\1\xff"), "UnicodeDecodeError"),
    "protocol 9": (pickle.PROTO + b"\x09" + pickle.EMPTY_DICT + pickle.STOP, "protocol 9"),
    "protocol 0": (pickle.dumps({"w": ARRAYS["float32"]}, 0), "neither a safetensors file"),
}  # fmt: skip


def refused(path, message=""):
    """Checks that there is one error, and what it takes."""
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        from_pretrained(path)
    assert time.process_time() - start < 1
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000
    tracemalloc.start()
    with pytest.raises(ValueError, match="file"):
        from_pretrained(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50 * 10**6 + 4 * path.stat().st_size
    with pytest.raises(ValueError, match="file"):
        read_pickle(path)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_error(case, tmp_path, monkeypatch):
    content, message = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pystate"
    path.write_bytes(content)
    refused(path, message)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_truncated_anywhere(protocol, tmp_path):
    content = pickle.dumps(TREE, protocol)
    path = tmp_path / "file"
    for _, _, cut in pickletools.genops(content):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="file"):
            read_weights(path)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_both_names_that_numpy_has_had_for_its_core(core, tmp_path):
    state = pickle.MARK + number(1) + shape(2, 2) + DTYPE + pickle.NEWFALSE + RAW + pickle.TUPLE + pickle.BUILD
    forms = [
        call(f"numpy.{core}.multiarray._reconstruct", ask("numpy.ndarray"), shape(0), unicode("b")) + state,
        call(f"numpy.{core}.numeric._frombuffer", RAW, DTYPE, shape(2, 2), unicode("C")),
        call(
            f"numpy.{core}.multiarray.scalar", call("numpy.dtype", unicode("f8")), pickle.SHORT_BINBYTES + b"\x08" + bytes(8)
        ),
    ]
    path = tmp_path / "file"
    for form, wanted in zip(forms, ([[0, 1], [2, 3]], [[0, 1], [2, 3]], 0), strict=True):
        path.write_bytes(named(form))
        assert read_pickle(path)["w"].tolist() == wanted


def test_published_files_are_far_from_the_limits():
    """26 layers of 16 arrays and 50 more, three dicts deep: what the largest of them has."""
    layer = {f"self_attention_{i}/{j}": {"w": np.zeros(1), "b": np.zeros(1)} for i in range(26) for j in range(8)}
    rest = {str(i): {"w": np.zeros(1)} for i in range(50)}
    operations = sum(1 for _ in pickletools.genops(pickle.dumps({"params": {**layer, **rest}}, 4)))
    assert 10_000 < operations < pickles.MOST_OPERATIONS / 4


# Pieces that random programs are made of.
PIECES = [
    *(pickle.MARK, pickle.STOP, pickle.NONE, pickle.NEWTRUE, pickle.EMPTY_TUPLE, pickle.EMPTY_LIST, pickle.EMPTY_DICT),
    *(
        pickle.TUPLE,
        pickle.TUPLE1,
        pickle.TUPLE2,
        pickle.TUPLE3,
        pickle.APPEND,
        pickle.APPENDS,
        pickle.SETITEM,
        pickle.SETITEMS,
    ),
    *(pickle.REDUCE, pickle.BUILD, pickle.MEMOIZE, pickle.STACK_GLOBAL, pickle.FRAME, pickle.POP, pickle.DUP, pickle.NEWOBJ),
    *(
        GET,
        pickle.BINGET + b"\1",
        pickle.BINPUT + b"\1",
        pickle.LONG_BINGET + b"\0\0\0\0",
        number(4),
        number(10**12),
        number(-1),
    ),
    *(
        unicode("w"),
        unicode("f4"),
        unicode("C"),
        unicode("latin1"),
        unicode("numpy"),
        pickle.SHORT_BINBYTES + b"\x10" + bytes(16),
    ),
    *(pickle.BINBYTES + b"\xff\xff\xff\x7f", pickle.BINFLOAT + bytes(8), array(shape(4)), array(shape(10**12)), shape(2, 2)),
    *(ask(name) for name in pickles.TABLE),
]


def broken(content: bytes, rng: random.Random) -> bytes:
    """A file that something happened to, or that somebody made."""
    place, other = sorted(rng.randrange(len(content)) for _ in range(2))
    match rng.randrange(7):
        case 0:
            return content[:place]
        case 1:
            return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        case 2:
            return content[:place] + rng.randbytes(rng.randrange(1, 20)) + content[other:]
        case 3:
            return content[:other] + content[place:]
        case 4:
            return content[:place] + rng.choice(PIECES) + content[place:]
        case 5:
            return content[:place] + content[other:]
        case _:
            return program(b"".join(rng.choices(PIECES, k=rng.randrange(1, 60))))


def outcome(path) -> str:
    """The error, or nothing where tensors are read."""
    try:
        tensors = read_weights(path)
    except ValueError as error:
        return str(error)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    return ""


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_broken_files(count, tmp_path):
    """Read, or refused with one error: nothing else, and never long."""
    rng, path, refusals = random.Random(count), tmp_path / "file", 0
    files = [pickle.dumps(TREE, protocol) for protocol in (2, 3, 4, 5)]
    tracemalloc.start()
    for _ in range(count):
        content = rng.choice(files)
        for _ in range(rng.randrange(1, 4)):
            content = broken(content, rng) or b"."
        path.write_bytes(content)
        tracemalloc.reset_peak()
        start = time.process_time()
        error = outcome(path)
        assert time.process_time() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 10 * 10**6
        assert not error or str(path) in error
        refusals += bool(error)
    tracemalloc.stop()
    assert refusals > 0.7 * count
