"""Preprocessing of transformers and back. `tests/against_peers/test_transformers_predict.py` compares the numbers."""

import pytest

from perceivers.checkpoints.processors import labels_of, read, write

IMAGES = {"architectures": ["PerceiverForImageClassificationFourier"]}
LABELS = ["cat", "dog"]


def described(processor, **config):
    return read({**IMAGES, **config}, LABELS, processor, "folder")


def test_labels():
    assert labels_of({}) == ["LABEL_0", "LABEL_1"]
    assert labels_of({"id2label": {"1": "dog", "0": "cat", "2": None}}) == ["cat", "dog", "LABEL_2"]
    for bad in ([], {}, "cat", {"0": ["cat"]}):
        with pytest.raises(ValueError, match="id2label is not a dict of names"):
            labels_of({"id2label": bad})


def test_there_and_back():
    """What is not given has their defaults; what we write is read as what it was."""
    found = described({"size": 32, "image_mean": 0.5, "crop_size": {"height": 40, "width": 50}, "unknown": 1})
    assert found == {
        "kind": "CenterCroppedImages",
        "labels": LABELS,
        "task": "classification",
        "size": [32, 32],
        "crop": [40, 50],
        "resample": 3,
        "scale": 1 / 255,
        "mean": [0.5] * 3,
        "std": [0.229, 0.224, 0.225],
    }
    assert described(write(found)) == found
    plain = described({"do_center_crop": False, "do_rescale": False, "do_normalize": False})
    assert (plain["crop"], plain["scale"], plain["mean"], plain["std"]) == (None, 1.0, [0.0] * 3, [1.0] * 3)
    assert described(write(plain)) == plain
    assert write({"kind": "Text"}) is None


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"do_resize": False}, "do_resize=false is not supported"),
        ({"size": {"shortest_edge": 3}}, "size=.* must have height and width"),
        ({"crop_size": [1, 2, 3]}, r"crop_size=\[1, 2, 3\] must be a height and a width"),
        ({"image_std": [1.0]}, r"image_std=\[1.0\] must be a number for each of three channels"),
        ({"resample": "bicubic"}, "resample='bicubic' must be a whole number"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_left_out_with_a_warning(processor, message):
    with pytest.warns(UserWarning, match=rf"folder: preprocessor_config\.json is left out, and the labels: {message}"):
        assert described(processor) is None


def test_tasks_and_text():
    assert described({}, problem_type="multi_label_classification")["task"] == "multi_label"
    regression = read(IMAGES, ["size"], {}, "folder")
    assert (regression["task"], regression["target_mean"], regression["target_std"]) == ("regression", [0.0], [1.0])
    text = {"architectures": ["PerceiverForSequenceClassification"]}
    found = read({**text, "max_position_embeddings": 60}, LABELS, None, "folder")
    assert found == {"kind": "Text", "labels": LABELS, "task": "classification", "max_length": 60, "cls_sep": True}
    assert read({**text, "vocab_size": 300}, LABELS, None, "folder") is None  # of another tokenizer
    assert described(None) is None
