"""Files of tensors, recognised by what is in them; those of torch.save without PyTorch's reader: the same tensors."""

import pickle
import sys
import types
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from perceivers.checkpoints.readers.files import plain, read


@pytest.fixture(params=["zip", "before 1.6"])
def save(request, tmp_path):
    path = tmp_path / "model.pt"
    return lambda state: torch.save(state, path, _use_new_zipfile_serialization=request.param == "zip") or path


def assert_same(got, wanted):
    assert list(got) == list(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name
        assert got[name].is_contiguous()
        assert not got[name].requires_grad


def test_every_type(save):
    types = ("float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool").split()
    state = {name: (5 * torch.randn(3, 4)).to(getattr(torch, name)) for name in types}
    assert_same(read(save(state)).weights, state)


def test_views_and_shared_tensors(save):
    base = torch.randn(6, 5)
    state = {
        "whole": base,
        "again": base,
        "turned": base.t(),
        "part": base[1:4, ::2],
        "scalar": base[0, 0],
        "axes": base[None],
    }
    got = read(save(state)).weights
    assert_same(got, state)
    assert got["again"] is got["whole"]


def test_state_dicts_and_what_training_loops_write(save):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(torch.randn(5, 3)).sum().backward()
    optimiser = torch.optim.Adam(model.parameters())
    optimiser.step()
    state = model.state_dict()
    settings = {"lr": 0.1, "names": ["a", None, True], "dtype": torch.float32, "size": torch.Size([2, 3])}
    rest = {"epoch": 3, "settings": settings}
    for written in (state, dict(model.named_parameters()), {"state_dict": state, **rest}):
        assert_same(read(save(written)).weights, written.get("state_dict", written))
    assert_same(read(save({"model": state, "optimizer": optimiser.state_dict(), **rest})).weights, state)


def test_parameters_with_attributes(save):
    parameter, tensor = nn.Parameter(torch.randn(3)), torch.randn(4)
    parameter.mine, tensor.mine = "a", [1]
    assert_same(read(save({"a": parameter, "b": tensor})).weights, {"a": parameter, "b": tensor})


def test_settings_beside_the_weights(tmp_path, monkeypatch):
    """Objects of perceiver-io become records; their classes are not looked for, nor made."""
    module = types.ModuleType("perceiver.model")
    monkeypatch.setitem(sys.modules, "perceiver", types.ModuleType("perceiver"))
    monkeypatch.setitem(sys.modules, "perceiver.model", module)

    class Config:
        def __init__(self):
            self.heads, self.inner = 4, [1, 2]

    Config.__module__, Config.__qualname__, module.Config = "perceiver.model", "Config", Config
    state = {"a": torch.arange(3.0)}
    more = {"device": torch.device("cuda", 1), "some": defaultdict(list, {"x": [1]})}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"config": Config(), **more}}, path)
    monkeypatch.delitem(sys.modules, "perceiver.model")
    monkeypatch.delitem(sys.modules, "perceiver")
    assert_same(read(path).weights, state)
    found = plain(read(path).settings)
    assert found == {"config": {"heads": 4, "inner": [1, 2]}, "device": {}, "some": {"x": [1]}}


def test_settings_made_to_fill_memory():
    nested, settings = {"x": 1}, {}
    for _ in range(60):
        nested = {"a": nested, "b": nested}
    settings["self"] = settings
    for value in (nested, settings):
        with pytest.raises(ValueError, match="hyper_parameters are damaged"):
            plain(value)
    assert plain([1]) == plain(None) == {}
    assert plain({"a": (1, torch.zeros(2)), 3: True}) == {"a": [1, None], "3": True}


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pt", ".pystate", ".txt"])
@pytest.mark.parametrize("form", ["safetensors", "torch", "torch before 1.6", "pickle"])
def test_the_form_is_recognised_by_content(form, suffix, tmp_path):
    path, state = tmp_path / f"model{suffix}", {"a/b": torch.randn(3, 4), "c": torch.randn(5)}
    if form == "safetensors":
        save_file(state, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"a": {"b": state["a/b"].numpy()}, "c": state["c"].numpy()}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    assert_same(read(path).weights, state)
    assert_same(read(path, lambda name: name == "c").weights, {"c": state["c"]})


def test_what_is_not_read(save, tmp_path):
    for state, message in (
        ([torch.zeros(2)], "no tensors under names"),
        ({"a": 1}, "no tensors under names"),
        ({1: torch.zeros(2)}, "no tensors under names"),
        ({"a": torch.zeros(0)}, "is empty"),
        ({"a": torch.zeros(1).expand(1000)}, "more numbers than are stored"),
        ({str(i): view for i, view in enumerate(torch.zeros(100).unfold(0, 50, 1))}, "tensors overlap"),
        ({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.complex64)}, "damaged"),
        ({"a": torch.device("cpu")}, "no tensors under names"),
        ({"a": Path("x")}, "calls pathlib"),
        (nn.Linear(2, 2), "damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            read(save(state))
    file = tmp_path / "other.pt"
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, "big" if entry.endswith("byteorder") else old.read(entry))
    with pytest.raises(ValueError, match="not in the byte order of this machine, little"):
        read(file)


def test_flipped_numbers_are_found(tmp_path):
    """An archive has checksums."""
    torch.save({"a": torch.arange(100.0)}, tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    place = whole.index(torch.arange(100.0).numpy().tobytes()) + 200
    (tmp_path / "model.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match="Bad CRC-32"):
        read(tmp_path / "model.pt")
