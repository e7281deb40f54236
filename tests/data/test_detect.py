"""What lies at a path, and what is to be learned."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets", reason="the extra predict is not installed")
pytest.importorskip("sklearn", reason="the extra demo is not installed")
import training_material as material
from perceivers.data.detect import detect

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
        ({"x": np.zeros((4, 5))}, "Table"),
        ({"x": np.zeros((4, 300))}, "Arrays"),
        ({"x": np.zeros((4, 5, 3))}, "Arrays"),
        ({"points": np.zeros((4, 5, 3))}, "PointClouds"),
    ],
)
def test_kinds_of_arrays(arrays, kind):
    assert detect(save(**arrays, y=[0, 1, 0, 1])).kind.__name__ == kind


def test_splits_of_arrays_and_folders_of_them():
    parts = {"x_train": np.zeros((4, 2, 9)), "y_train": [0, 1, 0, 1], "x_test": np.zeros((2, 2, 9)), "y_test": [1, 0]}
    for path in (save(**parts), "folder"):
        Path("folder").mkdir(exist_ok=True)
        for name, array in parts.items():
            np.save(f"folder/{name}.npy", array)
        found = detect(path)
        assert {name: len(split.records) for name, split in found.splits.items()} == {"train": 4, "test": 2}


def test_tables():
    table = "a,text,y\n1,u,0\n2,v,1\n"
    assert detect(write(table)).kind.__name__ == "Text"
    found = detect(write(table), target="text")
    assert (found.kind.__name__, found.labels) == ("Table", ["u", "v"])
    assert list(found.splits["train"].records) == [{"a": 1, "y": 0}, {"a": 2, "y": 1}]
    assert detect(write("u,class,w\n1,p,2\n2,q,3\n")).labels == ["p", "q"]  # by its name
    assert detect(write("u,v,w\n1,p,2.5\n2,q,3.5\n")).labels == ["w"]  # the last
    split = "a,label,split\n1,u,train\n2,v,train\n3,u,test\n"
    assert {name: len(one.records) for name, one in detect(write(split)).splits.items()} == {"test": 1, "train": 2}


def test_folders():
    material.images(Path("digits"), 40)
    assert detect("digits").labels == ["0", "1"]
    for name in ("train", "val"):
        material.images(Path("parts") / name, 20)
    found = detect("parts")
    assert sorted(found.splits) == ["train", "validation"]
    assert len(detect("digits", task="pretraining").splits["train"].records) == 40
    (Path("parts") / "val" / "7").mkdir()
    with pytest.raises(ValueError, match=r"the classes \['7'\] are not in"):
        detect("parts")


def test_text_to_pretrain_on():
    found = detect(write("To be, or not to be. " * 50, "plays.txt"), task="pretraining")
    assert (found.kind.__name__, len(found.splits["train"].records)) == ("Text", 5)


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
