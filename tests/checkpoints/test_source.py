"""A source reads each part once, and only when it is asked for."""

import json

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from perceivers.checkpoints import source as module
from perceivers.checkpoints.readers import files
from perceivers.checkpoints.source import Source


@pytest.fixture
def opened(monkeypatch):
    """The names of files that are read."""
    found = []
    for where, name in ((files, "read"), (module, "read_json")):
        read = getattr(where, name)
        monkeypatch.setattr(where, name, lambda path, *rest, read=read: (found.append(path.name), read(path, *rest))[1])
    return found


def test_a_file_is_read_once(tmp_path, opened):
    torch.save({"state_dict": {"a": torch.ones(2)}, "hyper_parameters": {"heads": 3}}, tmp_path / "model.ckpt")
    source = Source(tmp_path / "model.ckpt")
    assert not opened
    assert (source.is_file, source.config, list(source.names), source.settings) == (True, {}, ["a"], {"heads": 3})
    source.weights().clear()
    assert source.weights().keys() == {"a"}
    assert opened == ["model.ckpt"]


def test_a_folder_and_its_shards(tmp_path, opened):
    (tmp_path / "config.json").write_text('{"model_type": "perceiver"}')
    for name in "ab":
        save_file({name: torch.ones(2), f"{name}.more": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {f"{name}{more}": f"{name}.safetensors" for name in "ab" for more in ("", ".more")}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    source = Source(tmp_path)
    assert (source.is_file, source.config, tuple(source.names)) == (False, {"model_type": "perceiver"}, ())
    assert source.config is source.config
    assert source.json("preprocessor_config.json") is None
    assert opened == ["config.json"]
    assert source.weights(lambda name: name == "b").keys() == {"b"}
    assert opened[1:] == ["model.safetensors.index.json", "b.safetensors"]
    assert source.weights().keys() == {"a", "a.more", "b", "b.more"}


def test_a_repository(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    asked = []

    def download(repository, name, *, local_files_only):
        asked.append((repository, name, local_files_only))
        if not (tmp_path / name).exists():
            raise EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(module, "hf_hub_download", download)
    source = Source("someone/model", local_files_only=True)
    assert source.config == {}
    assert source.weights().keys() == {"a"}
    assert source.json("preprocessor_config.json") is None
    assert {(repository, local) for repository, _, local in asked} == {("someone/model", True)}
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"someone/model is not a file, a folder, or a repository with model\.safetensors or"):
        source.weights()
