from pathlib import Path

import numpy as np
import pytest

from perceivers.data import files
from perceivers.data.files import read_array, read_arrays, read_table, source_of


def test_large_arrays_are_memory_mapped(tmp_path, monkeypatch):
    small = {"x": np.random.default_rng(0).standard_normal((20, 8, 8)), "y": np.arange(20)}
    np.savez(tmp_path / "x.npz", **small)
    assert not any(isinstance(array, np.memmap) for array in read_arrays(tmp_path / "x.npz").values())
    monkeypatch.setattr(files, "MAPPED", 1000)
    mapped = read_arrays(tmp_path / "x.npz")
    assert isinstance(mapped["x"], np.memmap)
    for name, array in small.items():
        np.testing.assert_array_equal(mapped[name], array)
    np.savez_compressed(tmp_path / "compressed.npz", **small)
    np.testing.assert_array_equal(read_arrays(tmp_path / "compressed.npz")["x"], small["x"])
    np.savez(tmp_path / "fortran.npz", x=np.asfortranarray(small["x"]))
    np.testing.assert_array_equal(read_arrays(tmp_path / "fortran.npz")["x"], small["x"])
    np.savez(tmp_path / "objects.npz", x=np.array([{}] * 5000))
    with pytest.raises(ValueError, match=r"Python objects|pickle"):
        read_arrays(tmp_path / "objects.npz")


@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_a_damaged_archive(damage, tmp_path):
    file = tmp_path / "x.npz"
    np.savez(file, x=np.zeros((40, 8)))
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"no archive"}[damage])
    with pytest.raises(ValueError, match=r"x\.npz is damaged or does not hold arrays"):
        read_arrays(file)


def test_the_array_of_records(tmp_path):
    np.savez(tmp_path / "a.npz", x_test=np.ones(3), y=np.zeros(3))
    assert read_array(tmp_path / "a.npz").sum() == 3
    np.save(tmp_path / "a.npy", np.ones(4))
    assert read_array(tmp_path / "a.npy").sum() == 4
    np.savez(tmp_path / "b.npz", z=np.ones(3))
    with pytest.raises(ValueError, match="but no x"):
        read_array(tmp_path / "b.npz")


def test_sources():
    assert source_of(Path("a/b.png")) == ("a/b.png", "a/b.png")
    source, name = source_of({"bytes": b"abc", "path": "c.png"})
    assert (source.read(), name) == (b"abc", "c.png")
    assert source_of({"bytes": None, "path": "d.png"}) == ("d.png", "d.png")
    assert source_of(b"abc")[1] == "a record"


def test_a_damaged_table(tmp_path):
    pytest.importorskip("datasets", reason="the extra predict is not installed")
    (tmp_path / "a.json").write_text("{[")
    with pytest.raises(ValueError, match=r"a\.json cannot be read as a table"):
        read_table(tmp_path / "a.json")
