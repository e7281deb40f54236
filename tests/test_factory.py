"""Models by name: lists, overrides, examples and default preprocessing."""

import json
import re

import pytest
import torch
from torch.utils._pytree import tree_leaves

from perceivers import Perceiver, PerceiverIO, create_model, from_pretrained, list_models, outputs
from perceivers.factory import example_inputs
from perceivers.presets import PRESETS

TINY = "perceiver_imagenet_fourier_tiny"
IO_TINY = "perceiver_io_imagenet_fourier_tiny"


def test_lists_by_pattern():
    assert list_models() == sorted(PRESETS)
    assert list_models("*io*flow*") == ["perceiver_io_optical_flow", "perceiver_io_optical_flow_tiny"]
    assert list_models("*io*") == [name for name in sorted(PRESETS) if name.startswith("perceiver_io_")]
    assert list_models(["*flow", "*_fourier_tiny", "*flow*y"]) == [TINY, IO_TINY, *list_models("*io*flow*")]
    assert list_models("io") == list_models([]) == []
    with pytest.raises(ValueError, match="pattern=3 must be a list of patterns"):
        list_models(3)  # pyright: ignore


@pytest.mark.parametrize(("name", "kind"), [(TINY, Perceiver), (IO_TINY, PerceiverIO)])
def test_overrides(name, kind):
    model = create_model(name, num_classes=3, num_latent_tokens=5)
    assert isinstance(model, kind)
    assert (model.num_classes, model.config["num_latent_tokens"], model.model_name) == (3, 5, name)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert create_model(name).num_classes == 10
    assert create_model(name, num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 64)
    with pytest.raises(ValueError, match="num_classes=-3 must be a whole number of at least 0"):
        create_model(name, num_classes=-3)
    with pytest.raises(TypeError, match="num_clases"):
        create_model(name, num_clases=3)
    assert "num_classes" not in PRESETS[IO_TINY]
    assert PRESETS[TINY]["num_classes"] == 10


def test_the_number_of_classes_does_not_change_other_weights():
    states = []
    for classes in (10, 3):
        torch.manual_seed(1)
        states.append(create_model(TINY, num_classes=classes).state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items() if not name.startswith("head"))


def test_classes_of_a_model_that_is_not_a_classifier():
    with pytest.raises(ValueError, match="outputs is a TokenLogits, not a classifier"):
        create_model("perceiver_io_mlm_bytes_tiny", num_classes=3)
    model = create_model("perceiver_io_mlm_bytes_tiny", outputs=outputs.LearnedQueries(dim=8, num_channels=1), num_classes=3)
    assert model.num_classes == 3


def test_unknown_names():
    message = "name='perceiver_imagenet_fourrier' is not a model; the closest is 'perceiver_imagenet_fourier', and list"
    with pytest.raises(ValueError, match=re.escape(message)):
        create_model("perceiver_imagenet_fourrier")


def test_no_weights_are_published_here():
    assert create_model(TINY, pretrained=False).num_classes == 10
    with pytest.raises(ValueError, match=r"pretrained=True must be False: .* perceivers\.from_pretrained"):
        create_model(TINY, pretrained=True)


@pytest.mark.parametrize("name", list_models("*_tiny"))
def test_examples_fit_their_models(name):
    seed = torch.get_rng_state()
    x = example_inputs(name, 2)
    assert torch.equal(torch.get_rng_state(), seed)
    for leaf in tree_leaves(x):
        assert (leaf.device.type, len(leaf), leaf.count_nonzero()) == ("cpu", 2, 0)
    model = create_model(name).eval()
    with torch.no_grad():
        for out in tree_leaves(model(x)):
            assert len(out) == 2
    with torch.device("meta"):
        assert all(leaf.is_meta for leaf in tree_leaves(example_inputs(name)))


def test_default_preprocessing(tmp_path):
    model = create_model("perceiver_imagenet_fourier_tiny")
    wanted = {
        "input_size": (3, 32, 32),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
    }
    assert model.pretrained_cfg == wanted
    model.pretrained_cfg["crop_pct"] = 1  # a copy
    model.save_pretrained(tmp_path)
    assert from_pretrained(tmp_path).pretrained_cfg == wanted
    assert "pretrained_cfg" not in json.loads((tmp_path / "config.json").read_text())
    with torch.device("meta"):
        assert create_model("perceiver_io_imagenet_conv").pretrained_cfg == {**wanted, "input_size": (3, 224, 224)}
        assert create_model("perceiver_io_mlm_bytes_tiny").pretrained_cfg is None
        assert Perceiver(data_shape=[3, 8, 8]).pretrained_cfg is None
