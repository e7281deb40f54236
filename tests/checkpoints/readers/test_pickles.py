"""Pickles of arrays: what NumPy writes is read exactly; everything else is one error that gives the reason."""

import pickle
import pickletools
import struct
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
from checkpoints.opcodes import array, called, name, number, numbers, program, state_of, text

from perceivers import from_pretrained
from perceivers.checkpoints.readers import pickles
from perceivers.checkpoints.readers.files import read

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
}
TREE = {"params": {"a/~/b": {**ARRAYS}, "c": OrderedDict(w=ARRAYS["float32"])}, "state": {}}
EMPTY = np.zeros(0, "f4")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_read_exactly(protocol, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(TREE, protocol))
    got = read(path).weights
    assert got.keys() == {f"params/a/~/b/{key}" for key in ARRAYS} | {"params/c/w"}
    for key, wanted in ARRAYS.items():
        tensor = got[f"params/a/~/b/{key}"]
        assert tensor.shape == wanted.shape
        assert tensor.numpy().dtype == wanted.dtype.newbyteorder("=")
        assert tensor.is_contiguous()
        assert np.array_equal(tensor.numpy(), wanted)
    # One array, stored once, under two names: changing one tensor must not change the other.
    got["params/c/w"].zero_()
    assert got["params/a/~/b/float32"].abs().min() > 0


@pytest.mark.parametrize("core", ["core", "_core"])
def test_both_names_that_numpy_has_had_for_its_core(core, tmp_path):
    dtype, raw = called("numpy.dtype", text("f4")), pickle.SHORT_BINBYTES + b"\x10" + np.arange(4, dtype="f4").tobytes()
    state = b"(" + number(1) + numbers(2, 2) + dtype + pickle.NEWFALSE + raw + b"tb"
    double = called("numpy.dtype", text("f8"))
    forms = [
        called(f"numpy.{core}.multiarray._reconstruct", name("numpy.ndarray"), numbers(0), text("b")) + state,
        called(f"numpy.{core}.numeric._frombuffer", raw, dtype, numbers(2, 2), text("C")),
        called(f"numpy.{core}.multiarray.scalar", double, pickle.SHORT_BINBYTES + b"\x08" + bytes(8)),
    ]
    for form, wanted in zip(forms, ([[0, 1], [2, 3]], [[0, 1], [2, 3]], 0), strict=True):
        (tmp_path / "file").write_bytes(state_of({"w": form}))
        assert read(tmp_path / "file").weights["w"].tolist() == wanted


# Reasons. `hostile.py` has the other files, whose reasons do not matter.
CLASS = called("numpy._core.multiarray._reconstruct", *[number(1)] * 3)
BUILT = called("numpy.dtype", text("f4")) + b"(" + number(3) + text("<") * 2 + b"tb"
NO_VALUES = called("numpy._core.multiarray._reconstruct", name("numpy.ndarray"), numbers(0), text("b"))
REFUSED = [
    (program(called("posix.system", text("touch ran"))), r"it calls posix\.system, which"),
    (program(called("numpy.ndarray", number(3))), r"it calls numpy\.ndarray"),
    (program(name("numpy.ndarray.tofile")), r"it holds numpy\.ndarray\.tofile, not a dict"),
    (state_of({"w": name("numpy.load")}), r"it has numpy\.load as 'w', not an array"),
    (program(name("torch.Size") + b"]R"), r"it calls torch\.Size"),
    (program(b"c" + b"x" * 10**6), "the operation b'x', which"),
    (program(number(1) + number(2) + b"\x93"), "it names a int.a int"),
    (program(b")N2"), "the operation b'2'"),
    (program(b")Na"), r"it has \(\) instead of a list"),
    (program(called("_codecs.encode", text("x"), text("zip"))), r"calls _codecs\.encode for anything but"),
    (state_of({"w": CLASS}), "an array of another class"),
    (state_of({"w": called("jax._src.array._reconstruct_array", *[name("numpy.dtype")] * 4)}), "a JAX array of another class"),
    (program(called("haiku._src.data_structures.FlatMapping", number(1))), "not made of a dict"),
    (state_of({"w": array(numbers(10**12))}), r"shape \(1000000000000,\), but 16 bytes for it"),
    (state_of({"w": array(numbers(-2, -2))}), r"shape \(-2, -2\)"),
    (state_of({"w": array(numbers(4), "O8")}), "dtype O8"),
    (pickle.dumps({"w": np.zeros(2, [("x", "f4")])}, 4), "dtype V4"),
    (state_of({"w": BUILT}), "a dtype with fields"),
    (state_of({"w": array(numbers(4), raw=text("x" * 16))}), "not bytes"),
    (state_of({"w": NO_VALUES}), "a Array as 'w'"),
    (program(pickle.BINBYTES8 + struct.pack("<Q", 2**62)), "ends in the middle"),
    (pickle.dumps({str(i): {"w": np.zeros(99, "f4")} for i in range(3)} | {"4": {"w": EMPTY}}, 4)[:-1], "ends in the middle"),
    (program(text("y" * 9**5) + b"q\0](" + called("_codecs.encode", b"h\0", text("latin1")) * 30 + b"e"), "fill memory"),
    (pickle.dumps({str(i): {str(j): EMPTY for j in range(200)} for i in range(60)}, 4), "fill memory"),
    (pickle.dumps({"x" * 200: {"x" * 200: EMPTY}}, 4), "too long"),
    (pickle.dumps({"x" * 300: EMPTY}, 4), "which is not a name"),
    (pickle.dumps({3: EMPTY}, 4), "which is not a name"),
    (program(b"})Ns"), "keys that are neither text nor numbers"),
    (program(b"}q\0" + text("w") + b"h\0s"), "more than 8 deep"),
    (pickle.dumps({"a": {"b": 3}}, 4), "a int as 'a/b'"),
    (pickle.dumps([EMPTY], 4), "holds a list"),
    (pickle.dumps({"a": {"b/c": EMPTY}, "a/b": {"c": EMPTY}}, 4), "two arrays of one name"),
    (pickle.dumps(TREE, 4) + b".", "does not end correctly"),
    (program(b"}}"), "does not end correctly"),
    (program(b"e"), "IndexError"),
    (program(b"h\0"), "KeyError"),
    (program(b"}(" + text("x") + b"u"), "ValueError"),
    (program(pickle.SHORT_BINUNICODE + b"\1\xff"), "UnicodeDecodeError"),
    (pickle.PROTO + b"\x09}.", "protocol 9"),
    (pickle.dumps({"w": EMPTY}, 0), "neither a safetensors file"),
    (pickle.dumps(defaultdict(dict), 4), "unknown format"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=range(len(REFUSED)))
def test_reasons(content, message, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        from_pretrained(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_truncated_anywhere(protocol, tmp_path):
    content = pickle.dumps(TREE, protocol)
    for _, _, cut in pickletools.genops(content):
        (tmp_path / "file").write_bytes(content[:cut])
        with pytest.raises(ValueError, match="file"):
            read(tmp_path / "file")


@pytest.mark.parametrize("operations", [b"N", b"(", b"]\x94", b"}\x94", b"N\x85"], ids=str)
def test_a_file_without_end(operations, tmp_path, monkeypatch):
    """The machine stops at the limit, which published files are far from: 26 layers of 16 arrays and 50 more."""
    layer = {f"self_attention_{i}/{j}": {"w": np.zeros(1), "b": np.zeros(1)} for i in range(26) for j in range(8)}
    largest = {"params": {**layer, **{str(i): {"w": np.zeros(1)} for i in range(50)}}}
    assert 10_000 < sum(1 for _ in pickletools.genops(pickle.dumps(largest, 4))) < pickles.MOST_OPERATIONS / 4
    monkeypatch.setattr(pickles, "MOST_OPERATIONS", 1000)
    steps = []
    monkeypatch.setattr(
        pickles.Machine, "step", lambda self, code, step=pickles.Machine.step: (steps.append(1), step(self, code))
    )
    (tmp_path / "file").write_bytes(program(operations * 5000))
    with pytest.raises(ValueError, match="more than 1,000 operations"):
        read(tmp_path / "file")
    assert len(steps) == 1000
