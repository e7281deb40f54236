"""Checkpoint files: always the old one or the new one, never half of one."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")
from perceivers import _atomic
from perceivers.training.checkpoint import AtomicCheckpointIO, BestCheckpoint, read_preprocessing
from training_material import Killed


def checkpoint(number):
    return {"weights": torch.full((1000,), float(number)), "step": number}


class Writes:
    """Counts writes, syncs and renames, and fails at one of them."""

    def __init__(self, at, error, monkeypatch):
        self.count, self.at, self.error = 0, at, error
        for name in ("fsync", "replace"):
            monkeypatch.setattr(_atomic.os, name, self.counted(getattr(os, name)))
        right = os.fdopen

        def fdopen(*arguments):
            file = right(*arguments)
            return Torn(file, self)

        monkeypatch.setattr(_atomic.os, "fdopen", fdopen)

    def counted(self, function):
        def call(*arguments):
            self.step()
            return function(*arguments)

        return call

    def step(self):
        self.count += 1
        if self.count == self.at:
            raise self.error


class Torn:
    """A file of which the failing write leaves a half."""

    def __init__(self, file, writes):
        self.file, self.writes = file, writes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        try:
            self.writes.step()
        except BaseException:
            self.file.write(bytes(data)[: len(data) // 2])
            raise
        return self.file.write(data)


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["killed", "full disk"])
def test_a_checkpoint_is_old_or_new(error, tmp_path, monkeypatch):
    """Dies at the k-th write, sync or rename, for every k."""
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    outcomes = []
    for k in range(1, 1000):
        with monkeypatch.context() as patch:
            writes = Writes(k, error, patch)
            with suppress(Killed, OSError, RuntimeError):
                io.save_checkpoint(checkpoint(2), path)
        loaded = io.load_checkpoint(path)
        outcomes.append(loaded["step"])
        assert torch.equal(loaded["weights"], checkpoint(loaded["step"])["weights"])
        assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
        io.save_checkpoint(checkpoint(1), path)
        if writes.count < k:
            break
    assert len(outcomes) > 5
    assert outcomes[-1] == 2  # nothing failed
    assert outcomes[0] == 1


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    Writes(2, OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    with pytest.raises(OSError, match=r"the disk is full, last\.ckpt was not written"):
        io.save_checkpoint(checkpoint(2), path)


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


def test_the_preprocessing_of_a_checkpoint(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"preprocessing": {"kind": "Text"}}, tmp_path / "last.ckpt")
    assert read_preprocessing(tmp_path / "last.ckpt") == {"kind": "Text"}
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        read_preprocessing(tmp_path / "missing.ckpt")


def test_the_best_checkpoint_is_found_in_a_moved_folder(tmp_path):
    best = BestCheckpoint(dirpath=tmp_path / "old", filename="best", monitor="val_loss")
    best.best_model_path, best.kth_best_model_path = str(tmp_path / "old/best.ckpt"), str(tmp_path / "old/best.ckpt")
    best.best_k_models = {best.best_model_path: torch.tensor(0.5)}
    moved = BestCheckpoint(dirpath=tmp_path / "new", filename="best", monitor="val_loss")
    moved.load_state_dict(best.state_dict())
    assert moved.best_model_path == str(tmp_path / "new/best.ckpt")
    assert list(moved.best_k_models) == [str(tmp_path / "new/best.ckpt")]
    assert moved.last_model_path == ""
