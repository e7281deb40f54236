"""What lies at a path, and what is to be learned."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("datasets", reason="the extra predict is not installed")
pytest.importorskip("sklearn", reason="the extra demo is not installed")
import datasets
import pandas  # a dependency of datasets

import training_material as material
from perceivers.data import Sizes
from perceivers.data.detect import detect

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("default")]


def write(text, name="x.csv"):
    Path(name).write_text(text)
    return name


def save(**arrays):
    np.savez("x.npz", **arrays)
    return "x.npz"


@pytest.mark.parametrize(
    ("y", "task", "labels"),
    [
        ([10, -1, 2, 10, -1, 2], "classification", ["-1", "2", "10"]),
        (["b", "a", "b", "a", "b", "a"], "classification", ["a", "b"]),
        ([0.5, 1.5, 2.5, 0.5, 1.5, 2.5], "regression", ["y"]),
        ([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1], [1, 1]], "multi_label", ["y0", "y1"]),
        ([[0, 2], [1, 1], [0, 0], [1, 0], [0, 1], [1, 1]], "regression", ["y0", "y1"]),
    ],
)
def test_targets(y, task, labels):
    found = detect(save(x=np.zeros((6, 2, 9)), y=y))
    assert (found.task, found.labels) == (task, labels)
    if task == "classification":
        assert [labels[i] for i in found.splits["train"].targets] == [str(value) for value in y]
    else:
        np.testing.assert_array_equal(found.splits["train"].targets, np.array(y, np.float32).reshape(6, -1))


def test_many_whole_numbers_are_not_classes():
    assert detect(save(x=np.zeros((60, 3)), y=np.arange(60) % 20)).task == "classification"
    assert detect(save(x=np.zeros((60, 3)), y=np.arange(60) % 21)).task == "regression"


@pytest.mark.parametrize(
    ("arrays", "kind"),
    [
        ({"x": np.zeros((4, 256))}, "Table"),
        ({"x": np.zeros((4, 257))}, "Arrays"),
        ({"x": np.zeros((4, 5, 3))}, "Arrays"),
        ({"points": np.zeros((4, 5, 3))}, "PointClouds"),
    ],
)
def test_kinds_of_arrays(arrays, kind):
    assert detect(save(**arrays, y=[0, 1, 0, 1])).kind.__name__ == kind


@pytest.mark.parametrize("parts", [["_train", "_test"], [""]])
def test_splits_of_arrays_and_folders_of_them(parts):
    arrays = {f"{name}{part}": np.arange(n).reshape(4, -1) for part in parts for name, n in (("x", 72), ("y", 4))}
    Path("folder").mkdir()
    for name, array in arrays.items():
        np.save(f"folder/{name}.npy", array.reshape(4, 2, 9) if name.startswith("x") else array[:, 0])
    for path in (save(**{file.stem: np.load(file) for file in Path("folder").iterdir()}), "folder"):
        found = detect(path)
        assert list(found.splits) == (["train", "test"] if parts[0] else ["train"])
        for split in found.splits.values():
            np.testing.assert_array_equal(split.records, np.arange(72).reshape(4, 2, 9))
            assert split.targets.tolist() == [0, 1, 2, 3]


def test_tables():
    table = "a,text,y\n1,u,0\n2,v,1\n"
    assert detect(write(table)).kind.__name__ == "Text"
    found = detect(write(table), target="text")
    assert (found.kind.__name__, found.labels) == ("Table", ["u", "v"])
    assert list(found.splits["train"].records) == [{"a": 1, "y": 0}, {"a": 2, "y": 1}]
    assert detect(write("u,class,w\n1,p,2\n2,q,3\n")).labels == ["p", "q"]  # by its name
    assert detect(write("u,v,w\n1,p,2.5\n2,q,3.5\n")).labels == ["w"]  # the last


def test_formats_of_tables_and_their_column_split():
    table = pandas.DataFrame({"a": [1, 2, 3], "label": ["u", "u", "v"], "split": ["train", "test", "train"]})
    table.to_csv("x.csv", index=False)
    table.to_csv("x.tsv", index=False, sep="\t")
    table.to_parquet("x.parquet")
    table.to_json("x.jsonl", orient="records", lines=True)
    for suffix in ("csv", "tsv", "parquet", "jsonl"):
        splits = detect(f"x.{suffix}").splits
        assert {name: list(one.records) for name, one in splits.items()} == {"test": [{"a": 2}], "train": [{"a": 1}, {"a": 3}]}
        assert {name: one.targets.tolist() for name, one in splits.items()} == {"test": [0], "train": [0, 1]}


@pytest.mark.parametrize(
    ("make", "feature", "suffix"),
    [
        (material.images, datasets.Image, "png"),
        (material.audio, datasets.Audio, "wav"),
        (material.videos, datasets.Video, "mp4"),
        (material.texts, None, "txt"),
    ],
)
def test_a_data_set_on_the_hub(make, feature, suffix, monkeypatch):
    """A table of undecoded files, in parts, with the names of the classes: the records become what the files become."""
    files = sorted(make(Path("files")).rglob(f"*.{suffix}"))
    names, column = sorted({file.parent.name for file in files}), "media" if feature else "text"
    undecoded = [{"path": file.name, "bytes": file.read_bytes()} if feature else file.read_text() for file in files]
    records = [{column: one, "label": names.index(file.parent.name)} for one, file in zip(undecoded, files, strict=True)]
    parts = {"train": records[::2], "test": records[1::2]}
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()})
    made = made.cast_column("label", datasets.ClassLabel(names=names))
    (made.cast_column(column, feature()) if feature else made).save_to_disk("saved")
    monkeypatch.setattr(datasets, "load_dataset", {"someone/things": datasets.load_from_disk("saved")}.get)
    for path in ("hub:someone/things", "saved"):
        found = detect(path)
        assert found.labels == names
        assert {name: list(split.targets) for name, split in found.splits.items()} == {
            name: [record["label"] for record in part] for name, part in parts.items()
        }
        known = found.splits["train"].records
        preprocessing = found.kind.choose(known, Sizes(num_frames=4), labels=names, task=found.task)
        assert torch.equal(preprocessing(found.splits["test"].records[0])[0], preprocessing(files[1])[0])


def test_folders():
    material.images(Path("digits"), 40)
    assert detect("digits").labels == ["0", "1"]
    for name in ("train", "val"):
        material.images(Path("parts") / name, 20)
    found = detect("parts")
    assert sorted(found.splits) == ["train", "validation"]
    (Path("parts") / "val" / "7").mkdir()
    with pytest.raises(ValueError, match=r"the classes \['7'\] are not in"):
        detect("parts")


def array_alone():
    np.save("x.npy", np.zeros((8, 2, 9)))
    return "x.npy"


@pytest.mark.parametrize(
    ("make", "kind", "count"),
    [
        (lambda: material.images(Path("digits"), 40), "Images", 40),
        (lambda: Path(material.images(Path("digits"), 40), "0"), "Images", 21),  # not in class folders
        (array_alone, "Arrays", 8),
        (lambda: save(x=np.zeros((8, 2, 9))), "Arrays", 8),
        (lambda: write("To be, or not to be. " * 50, "plays.txt"), "Text", 5),
    ],
)
def test_data_without_labels(make, kind, count):
    found = detect(str(make()), task="pretraining")
    assert (found.kind.__name__, len(found.splits["train"].records), found.labels) == (kind, count, [])
    assert found.splits["train"].targets is None


def empty_folder():
    Path("empty").mkdir()
    return "empty"


BAD = {
    "nothing there": (lambda: "missing", {}, "no such file"),
    "an empty folder": (empty_folder, {}, r"no images, audio, videos or \.txt"),
    "an unknown suffix": (lambda: write("x", "notes.doc"), {}, r"must be one of \.npz"),
    "a text with labels": (lambda: write("x", "notes.txt"), {}, "can be pretrained on"),
    "flat points": (lambda: save(points=np.zeros((4, 5, 7)), y=[0, 1, 0, 1]), {}, r"\[n, m, 2 or 3\]"),
    "points to pretrain on": (lambda: save(points=np.zeros((4, 5, 3))), {"task": "pretraining"}, "point clouds is not supp"),
    "objects": (lambda: save(x=np.array([{}, {}]), y=[0, 1]), {}, "does not hold arrays"),
    "names": (lambda: save(x=np.array([["a"], ["b"]]), y=[0, 1]), {}, "not numbers"),
    "arrays without targets": (lambda: save(x=np.zeros((4, 5))), {}, r"no \['y'\]"),
    "lengths that differ": (lambda: save(x=np.zeros((4, 5)), y=[0, 1]), {}, "are needed"),
    "no arrays": (lambda: save(x=np.zeros((0, 5)), y=np.zeros((0, 1))), {}, "train is empty"),
    "one class": (lambda: save(x=np.zeros((4, 5)), y=[1, 1, 1, 1]), {}, "only one class"),
    "no target column": (lambda: write("a,b\n1,2\n"), {"target": "price"}, r"no columns \['price'\]"),
    "a target without numbers": (lambda: write("a,b\n1,u\n2,v\n"), {"task": "regression"}, "not numbers"),
    "missing targets": (lambda: write("a,label\n1,u\n2,\n3,v\n"), {}, "missing in 1 of 3"),
    "an unknown class": (lambda: write("a,label,split\n1,u,train\n2,v,train\n3,w,test\n"), {}, r"classes \['w'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_one_clear_error(case):
    make, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        detect(make(), **options)
