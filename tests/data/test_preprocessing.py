"""What holds for every kind of data."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("datasets", reason="the extra predict is not installed")
pytest.importorskip("PIL", reason="the extra predict is not installed")
pytest.importorskip("sklearn", reason="the extra demo is not installed")
from perceivers import PerceiverIO
from perceivers.data import Arrays, CenterCroppedImages, Preprocessing, Sizes
from perceivers.data.detect import detect
from perceivers.data.preprocessing import spread
from training_material import KINDS

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("default")]


def chosen(kind):
    """The preprocessing that is chosen for data of a kind, and their records."""
    found = detect(str(KINDS[kind][0]()))
    records = found.splits["train"].records
    return found.kind.choose(records, Sizes(num_frames=4), labels=found.labels, task=found.task), records


def test_every_kind_is_tested():
    kinds = {name for name, kind in Preprocessing.kinds.items() if kind.__module__.startswith("perceivers.")}
    assert kinds == {*KINDS, "CenterCroppedImages"}  # which only models of transformers have
    for name in kinds:
        assert Path(inspect.getfile(Preprocessing.kinds[name])).parent.name == "data"


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind):
    """Detected as it is; described, and made again; records become what its input module takes, alone and in a batch."""
    preprocessing, records = chosen(kind)
    assert type(preprocessing).__name__ == kind
    again = Preprocessing.create(json.loads(json.dumps(preprocessing.describe())))
    assert again == preprocessing
    samples = [preprocessing(record) for record in spread(records, 3)]
    x, mask = preprocessing.collate(samples)
    example, _ = preprocessing.collate([preprocessing.example()] * 3)
    shapes = [{k: v.shape for k, v in one.items()} if isinstance(one, dict) else one.shape for one in (x, example)]
    if kind != "PointClouds":  # any number of points
        assert shapes[0] == shapes[1]
    assert (mask is None) == (preprocessing.example()[1] is None)
    outputs = {"kind": "LearnedQueries", "dim": 16, "num_channels": 2}
    model = PerceiverIO(inputs=preprocessing.inputs(16), outputs=outputs, dim=16, heads=2, num_latent_tokens=4).eval()
    with torch.inference_mode():
        together = model(x, mask)
        alone = torch.cat([model(*preprocessing.collate([sample])) for sample in samples])
    assert together.shape == (3, 2)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if Preprocessing.kinds[kind].mask_ratio is not None])
def test_reconstruction_loss(kind):
    """Only what is asked for counts, and a better prediction costs less."""
    preprocessing, records = chosen(kind)
    x, mask = preprocessing.collate([preprocessing(record) for record in spread(records, 2)])
    model = PerceiverIO(inputs=preprocessing.inputs(16), outputs={"kind": "LearnedQueries", "dim": 16, "num_channels": 2})
    (tokens,) = model.inputs(x, mask)
    known = preprocessing.known(x, tokens)
    assert known.shape == (2, tokens.num_inputs)
    rows = known.int().argmax(1, keepdim=True)  # an input that is known
    channels = preprocessing.target_channels(tokens.content.shape[1])
    predicted = torch.randn(2, 1, channels, requires_grad=True)
    loss = preprocessing.reconstruction_loss(predicted, x, tokens, known, rows)
    assert loss.shape == (2, 1)
    (gradient,) = torch.autograd.grad(loss.sum(), predicted)
    better = preprocessing.reconstruction_loss(predicted - 1e-3 * gradient, x, tokens, known, rows)
    assert (better < loss).all()


def test_a_new_kind_is_one_class(monkeypatch):
    """A subclass is detected, chosen, described and made again, without a change elsewhere."""
    monkeypatch.setattr(Preprocessing, "kinds", dict(Preprocessing.kinds))

    @dataclass(frozen=True, kw_only=True)
    class Counts(Preprocessing):
        plural: ClassVar[str] = "counts"
        suffixes: ClassVar[frozenset[str]] = frozenset({".counts"})
        length: int

        def check(self) -> None:
            pass

        def __call__(self, record: Any):
            return torch.tensor([[float(number) for number in record.read_text().split()]]), None

        def example(self):
            return torch.zeros(1, self.length), None

        def inputs(self, dim: int):
            return {"kind": "Pixels", "data_shape": [1, self.length], "num_bands": 2, "resolution": self.length}

        @classmethod
        def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any):
            return cls(**common, length=len(records[0].read_text().split()))

    for name in ("a", "b"):
        Path(name).mkdir()
        for i in range(2):
            Path(name, f"{i}.counts").write_text("1 2 3")
    found = detect(".")
    assert found.kind is Counts
    assert found.facts[0].startswith("counts (.): 4 train")
    preprocessing = found.kind.choose(found.splits["train"].records, Sizes(), labels=found.labels, task=found.task)
    assert Preprocessing.create(preprocessing.describe()) == preprocessing
    with pytest.raises(ValueError, match="pretraining on counts is not supported"):
        detect(".", task="pretraining")


COMMON = {"labels": ["a", "b"], "task": "classification"}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"kind": "Drawings"}, "kind='Drawings' must be one of"),
        ({"kind": "Images", **COMMON, "size": [8, 8], "sizes": 1}, r"unexpected keys \['sizes'\] for Images"),
        ({"kind": "Images", **COMMON}, "preprocessing: size of Images is missing"),
        ({"kind": "Images", **COMMON, "size": [8, 8], "channels": 2}, "channels=2 must be 1"),
        ({"kind": "Images", **COMMON, "size": [2**20, 2**20]}, "product of at most"),
        ({"kind": "Images", "labels": [1], "task": "classification", "size": [8, 8]}, "must be a list of names"),
        ({"kind": "Images", "labels": ["a"], "task": "guessing", "size": [8, 8]}, "task='guessing'"),
        ({"kind": "Text", "labels": ["a"], "task": "regression", "max_length": 4}, "target_mean=.* must be 1 numbers"),
        ({"kind": "Table", **COMMON, "numeric": ["a"], "mean": [0.0], "std": [0.0]}, "std=.* must be 1 positive numbers"),
        ({"kind": "Table", **COMMON, "categorical": ["a"]}, "categorical=.* must be a dict"),
        ({"kind": "Arrays", **COMMON, "data_shape": [1], "mean": [0], "std": [1], "channels_last": 1}, "channels_last=1"),
    ],
)
def test_a_wrong_description_is_one_clear_error(description, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.create(description)


def test_load(tmp_path):
    file = tmp_path / "preprocessing.json"
    arrays = Arrays(**COMMON, data_shape=[1, 4], mean=[0.1], std=[2.0])
    file.write_text(json.dumps(arrays.describe()))
    assert Preprocessing.load(file) == arrays
    file.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Preprocessing.load(file)
    with pytest.raises(ValueError, match="cannot be read"):
        Preprocessing.load(tmp_path / "missing.json")


@pytest.mark.parametrize("sizes", [{"image_size": 0}, {"num_frames": 0}, {"seconds": 0}, {"max_length": -1}])
def test_sizes(sizes):
    ((name, value),) = sizes.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Sizes(**sizes)


def test_spread():
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert spread(np.arange(3), 5) == [0, 1, 2]


def test_center_cropped_images_are_chosen_as_transformers_reads_them():
    found = detect(str(KINDS["Images"][0]()))
    records = found.splits["train"].records
    preprocessing = CenterCroppedImages.choose(records, Sizes(), labels=found.labels, task=found.task)
    x, _ = preprocessing(records[0])
    assert x.shape == preprocessing.example()[0].shape == (3, 8, 8)
    assert preprocessing.inputs(16)["data_shape"] == [3, 8, 8]
