"""Names by what they start with, the order of columns, and files that are written whole or not at all."""

import json

import pytest
import torch

from perceivers.checkpoints.feature_order import columns, orders
from perceivers.checkpoints.readers.files import read
from perceivers.checkpoints.state_dict import by_start, counterpart, differences, in_their_order, write_folder, write_weights


def test_the_longest_start_counts():
    table = {"a": "x", "a.b": "y", "c.weight": "z"}
    assert by_start(table, "a.b.weight") == ("a.b", "y")
    assert counterpart(table, "a.b.weight") == "y.weight"
    assert counterpart(table, "a.c.weight") == "x.c.weight"
    assert counterpart(table, "c.weight") == "z"
    for other in ("ab", "c", "c.bias", ""):
        assert counterpart(table, other) is None


def test_columns_and_back():
    """2 channels, 2 axes of 3 bands: content, then per axis its coordinate, sines and cosines."""
    order = columns(2, 2, 3)
    assert order == [0, 1, 2, 4, 5, 6, 10, 11, 12, 3, 7, 8, 9, 13, 14, 15]
    theirs = torch.randn(5, 16)
    ours = theirs[:, order]
    assert torch.equal(in_their_order("a.weight", ours, {"a": order}), theirs)
    assert in_their_order("b.weight", ours, {"a": order}) is ours


def test_orders_of_inputs_and_queries():
    pixels = {"kind": "Pixels", "data_shape": [2, 9, 9], "num_bands": 3}
    given = {"inputs": pixels, "outputs": {"kind": "PerInput"}, "layers_indice": [0, None, 1]}
    found = orders(given)
    assert found.keys() >= {"encoder.cross_attentions.1.attention.to_k.weight", "decoder.attention.to_q.weight"}
    assert set(map(tuple, found.values())) == {tuple(columns(2, 2, 3))}
    assert not orders(given | {"inputs": {"kind": "TokenIds"}})


def test_differences_leave_out_dropout_and_image_sizes():
    pixels = {"kind": "Pixels", "data_shape": [3, 8, 8]}
    ours = {"dim": 4, "ff_dropout": 0.1, "inputs": pixels}
    assert not list(differences(ours, {"dim": 4, "ff_dropout": 0.0, "inputs": {**pixels, "data_shape": [3, 9, 9]}}))
    assert list(differences(ours, {"dim": 5, "inputs": pixels})) == ["dim=4, only 5"]
    (found,) = differences(ours, {"dim": 4, "inputs": {**pixels, "data_shape": [1, 8, 8]}})
    assert found.startswith("inputs=")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_failure_leaves_the_old_file(suffix, tmp_path, monkeypatch):
    path, state = tmp_path / "new" / f"weights{suffix}", {"a": torch.arange(3.0)}
    write_weights(path, state)
    assert torch.equal(read(path).weights["a"], state["a"])
    before = path.read_bytes()
    with pytest.raises((AttributeError, TypeError, ValueError)):
        write_weights(path, {"a": lambda: None})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"weights\.bin must end with \.safetensors or \.pt"):
        write_weights(tmp_path / "weights.bin", state)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_folder(tmp_path, {"config.json": {"a": 1}}, {"a": torch.zeros(2)})
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}
    assert read(tmp_path / "model.safetensors").weights["a"].tolist() == [0, 0]
    shared = torch.zeros(2)
    with pytest.raises(RuntimeError, match="share memory"):
        write_folder(tmp_path, {"config.json": {"a": 2}}, {"a": shared, "b": shared})
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 2
