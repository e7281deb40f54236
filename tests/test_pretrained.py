"""Saving and loading in the library's own format: exact, strict, complete or not at all."""

import json
import os
import re
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import nn

from accuracy import draw_parameters
from perceivers import Perceiver, create_model
from perceivers.pretrained import without_storage

SMALL = {
    "data_shape": [1, 6, 5],
    "num_latent_tokens": 4,
    "dim": 8,
    "heads": 2,
    "layers_indice": [0, 0, None],
    "latent_layers_indice": [0, 1, 1],
    "num_latent_transformers_in_layers": [1, 1],
    "num_bands": 2,
    "resolution": [6, 5],
    "num_classes": 3,
}


@pytest.fixture
def model():
    return draw_parameters(Perceiver(**SMALL).eval())


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "REMOVE"}))


def test_round_trip(model, saved):
    assert sorted(os.listdir(saved)) == ["README.md", "config.json", "model.safetensors"]
    again = Perceiver.from_pretrained(saved)
    assert again.config == model.config
    assert not again.training
    x = torch.randn(2, 1, 6, 5)
    assert torch.equal(again(x), model(x))
    assert [p.requires_grad for p in again.parameters()] == [True] * len(list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_dtype(model, tmp_path, dtype):
    model.to(dtype).save_pretrained(tmp_path)
    again = Perceiver.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert again.state_dict()[name].dtype == dtype


def test_loading_leaves_the_random_state_alone(saved):
    state = torch.get_rng_state()
    Perceiver.from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_name_travels(tmp_path):
    create_model("perceiver_imagenet_fourier_tiny", num_classes=3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_name"] == "perceiver_imagenet_fourier_tiny"
    assert Perceiver.from_pretrained(tmp_path).model_name == "perceiver_imagenet_fourier_tiny"


def test_overrides(saved):
    assert Perceiver.from_pretrained(saved, ff_dropout=0.3).config["ff_dropout"] == 0.3
    with pytest.raises(TypeError, match="ff_droput"):
        Perceiver.from_pretrained(saved, ff_droput=0.3)
    with pytest.raises(ValueError, match=r"head.bias has shape \[3\], not \[4\]"):
        Perceiver.from_pretrained(saved, num_classes=4)


def test_loads_in_a_new_process(model, saved):
    x = torch.linspace(-1, 1, 30).view(1, 1, 6, 5)
    code = (
        "import torch, perceivers, sys; model = perceivers.Perceiver.from_pretrained(sys.argv[1]);"
        "print(model(torch.linspace(-1, 1, 30).view(1, 1, 6, 5)).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code, saved], check=True, capture_output=True, text=True).stdout
    torch.testing.assert_close(torch.tensor(json.loads(out)), model(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version=2 is newer than 1: update perceivers"),
        ({"format_version": "1"}, "format_version='1' is newer"),
        ({"format_version": "REMOVE"}, "not a configuration of this library"),
        ({"model_class": "PerceiverIO"}, "model_class='PerceiverIO': load it with PerceiverIO, not Perceiver"),
        ({"num_latents": 3}, "config.json: unexpected keys ['num_latents'] for Perceiver; did you mean 'num_latent_tokens'?"),
        (
            {"dim": 10},
            "does not fit its config.json: encoder.cross_attentions.0.attention.to_out.bias has shape [8], not [10]",
        ),
        ({"num_classes": None}, "head.bias is unexpected"),
        ({"num_classes": 0}, "head.bias is unexpected"),
        ({"final_norm": True}, "norm.bias is missing; norm.weight is missing"),
        ({"dim": "8"}, "dim='8' must be a whole number"),
        ({"data_shape": "REMOVE"}, "config.json: data_shape of Perceiver is missing"),
    ],
    ids=str,
)
def test_configuration_that_does_not_fit(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        Perceiver.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1}', "\x00"])
def test_file_that_is_not_a_configuration(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is (damaged|not a configuration)"):
        Perceiver.from_pretrained(saved)


def test_missing_files(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not a folder or repository with config\.json and model\.safetensors"):
        Perceiver.from_pretrained(saved)
    for source in (tmp_path, tmp_path / "no" / "such" / "folder", "no-such-model"):
        with pytest.raises(ValueError, match="not a folder or repository"):
            Perceiver.from_pretrained(source, local_files_only=True)


def test_every_truncation_is_refused(saved):
    whole = (saved / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 1, 8, 9, header // 2, header - 1, header, header + 1, len(whole) - 1):
        (saved / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            Perceiver.from_pretrained(saved)


def test_not_a_safetensors_file(saved, model):
    torch.save(model.state_dict(), saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or not a safetensors file"):
        Perceiver.from_pretrained(saved)


def test_weights_that_do_not_fit(saved):
    state = load_file(saved / "model.safetensors")
    for changed, message in (
        ({**state, "extra": torch.zeros(1)}, "extra is unexpected"),
        ({k: v for k, v in state.items() if k != "head.bias"}, "head.bias is missing"),
        ({**state, "head.bias": torch.zeros(4)}, "head.bias has shape [4], not [3]"),
        ({**state, "head.bias": torch.zeros(3, dtype=torch.int64)}, "head.bias is torch.int64, not floating point"),
        ({}, f"; and {len(state) - 5} more"),
    ):
        save_file(changed, saved / "model.safetensors")
        with pytest.raises(ValueError, match=re.escape(message)):
            Perceiver.from_pretrained(saved)


def test_a_failed_save_leaves_what_was_there(saved, model, monkeypatch):
    before = {file: (saved / file).read_bytes() for file in os.listdir(saved)}

    def fail(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("perceivers.pretrained.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(saved)
    assert {file: (saved / file).read_bytes() for file in os.listdir(saved)} == before


def test_saving_again_keeps_an_edited_model_card(saved, model):
    (saved / "README.md").write_text("mine")
    with torch.no_grad():
        model.head.bias.add_(1)
    model.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"
    assert torch.equal(Perceiver.from_pretrained(saved).head.bias, model.head.bias)


def test_configuration_cannot_be_replaced(model, tmp_path):
    with pytest.raises(ValueError, match=r"config=\{.dim.: 3\} must be None: the model has its own"):
        model.save_pretrained(tmp_path, config={"dim": 3})


def test_push_to_hub_uploads_these_files(model, monkeypatch):
    """All but the network: the hub's client is asked to create the repository and to upload a folder that loads again."""
    calls = {}

    class Repository:
        repo_id = "someone/digits"

    def upload_folder(self, *, folder_path, **kwargs):
        calls["uploaded"] = sorted(os.listdir(folder_path))
        calls["model"] = Perceiver.from_pretrained(folder_path)
        return "address of the commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **kwargs: Repository())
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert model.push_to_hub("someone/digits") == "address of the commit"
    assert calls["uploaded"] == ["README.md", "config.json", "model.safetensors"]
    x = torch.randn(2, 1, 6, 5)
    assert torch.equal(calls["model"](x), model(x))


def test_from_the_hub_reads_these_files(saved, model, monkeypatch):
    asked = []

    def download(repo_id, filename, **kwargs):
        asked.append((repo_id, filename, kwargs["revision"]))
        return str(saved / filename)

    monkeypatch.setattr("perceivers.pretrained.hf_hub_download", download)
    again = Perceiver.from_pretrained("someone/digits", revision="v1")
    assert asked == [("someone/digits", name, "v1") for name in ("config.json", "model.safetensors", "preprocessing.json")]
    x = torch.randn(2, 1, 6, 5)
    assert torch.equal(again(x), model(x))


def test_models_that_a_file_is_too_small_for():
    def layers(count):
        return nn.ModuleList(nn.Linear(2, 2) for _ in range(count))

    assert len(without_storage(lambda: layers(10), 20, "file").state_dict()) == 20
    for count in (100, 10**9):
        with pytest.raises(ValueError, match="file: the configuration is of a model with many more tensors than the 20"):
            without_storage(partial(layers, count), 20, "file")
    assert len(layers(100)) == 100  # afterwards there is no limit

    def make():
        others = threading.Thread(target=lambda: done.append(len(layers(1000))))
        others.start()
        others.join()
        return layers(1)

    done: list[int] = []
    without_storage(make, 2, "file")  # what other threads make does not count
    assert done == [1000]
