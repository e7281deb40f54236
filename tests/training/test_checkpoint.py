"""Checkpoint files: always the old one or the new one, never half of one."""

import errno
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")
from perceivers.training.checkpoint import AtomicCheckpointIO, BestCheckpoint
from training_material import Killed, Writes


def checkpoint(number):
    return {"weights": torch.full((1000,), float(number)), "step": number}


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["killed", "full disk"])
def test_a_checkpoint_is_old_or_new(error, tmp_path, monkeypatch):
    """Dies at the k-th write, sync or rename, for every k."""
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    outcomes = []
    for k in range(1, 1000):
        with monkeypatch.context() as patch:
            writes, raised = Writes(k, error, patch), None
            try:
                io.save_checkpoint(checkpoint(2), path)
            except (Killed, OSError, RuntimeError) as caught:
                raised = caught
        loaded = io.load_checkpoint(path)
        if isinstance(error, OSError) and loaded["step"] == 1:
            assert "the disk is full" in str(raised)
            assert raised.filename == str(tmp_path)
        outcomes.append(loaded["step"])
        assert torch.equal(loaded["weights"], checkpoint(loaded["step"])["weights"])
        assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
        io.save_checkpoint(checkpoint(1), path)
        if writes.count < k:
            break
    assert len(outcomes) > 5
    assert outcomes[-1] == 2  # nothing failed
    assert outcomes[0] == 1


@pytest.mark.parametrize("damage", ["empty", "half", "no checkpoint", "missing", "code"])
def test_a_damaged_checkpoint_is_one_clear_error(damage, tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    whole = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "code":
            torch.save({"weights": Runs()}, path)
        case _:
            path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "no checkpoint": b"hello"}[damage])
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        io.load_checkpoint(path)
    assert not Path(tmp_path / "ran").exists()


class Runs:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def test_the_best_checkpoint_is_found_in_a_moved_folder(tmp_path):
    best = BestCheckpoint(dirpath=tmp_path / "old", filename="best", monitor="val_loss")
    best.best_model_path, best.kth_best_model_path = str(tmp_path / "old/best.ckpt"), str(tmp_path / "old/best.ckpt")
    best.best_k_models = {best.best_model_path: torch.tensor(0.5)}
    moved = BestCheckpoint(dirpath=tmp_path / "new", filename="best", monitor="val_loss")
    moved.load_state_dict(best.state_dict())
    assert moved.best_model_path == str(tmp_path / "new/best.ckpt")
    assert list(moved.best_k_models) == [str(tmp_path / "new/best.ckpt")]
    assert moved.last_model_path == ""
