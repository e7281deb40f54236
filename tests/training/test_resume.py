"""A run that was stopped, at any moment and in any way, ends with what one never stopped ends with, bit for bit."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from perceivers.__main__ import main
from perceivers.training import files
from perceivers.training.checkpoint import AtomicCheckpointIO
from perceivers.training.data import ShuffledBatches
from perceivers.training.module import Training
from training_material import TINY

pytestmark = [pytest.mark.filterwarnings("default")]

OPTIONS = [*TINY, "--every=3", "--ema=0.9", "--model.network.ff_dropout=0.1", "--data.batch_size=32", "--model.pictures=light"]
STEPS = 2 * 4  # two epochs of 144 pictures in batches of 32


class Killed(BaseException):
    """Ends a run as nothing that the run handles does."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    material.pictures(folder / "digits")
    assert main(["fit", str(folder / "digits"), f"--output={folder / 'run'}", *OPTIONS]) == 0
    return folder


def differences(one, other, place=""):
    """Where two checkpoints differ, file names apart."""
    if isinstance(one, torch.Tensor):
        return [] if isinstance(other, torch.Tensor) and torch.equal(one, other) else [place]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{place}: keys"]
        return [found for key in one for found in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list | tuple):
        return [found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{place}/{i}")]
    return [] if one == other else [place]


def assert_same(whole, run):
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (whole / "run", run))
        del one["callbacks"], other["callbacks"]  # they hold file names
        assert one["global_step"] == (STEPS if name == "last.ckpt" else one["global_step"])
        assert not differences(one, other)
    assert (whole / "run" / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert (whole / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def killed_at(step, monkeypatch):
    """Lets a run die in its training step number `step`, counted from now."""
    right, steps = Training.training_step, iter(range(10**6))

    def training_step(self, batch, batch_idx):
        if next(steps) == step:
            raise Killed
        return right(self, batch, batch_idx)

    monkeypatch.setattr(Training, "training_step", training_step)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [3, 4, 5, 7])
def test_killed_at_a_step(step, workers, whole, tmp_path, monkeypatch):
    if workers and step not in (3, 5):
        pytest.skip("workers make no difference at these steps")
    run = tmp_path / "run"
    options = [*OPTIONS, f"--data.num_workers={workers}"]
    with monkeypatch.context() as patch:
        killed_at(step, patch)
        with pytest.raises(Killed):
            main(["fit", str(whole / "digits"), f"--output={run}", *options])
    with monkeypatch.context() as patch:  # and once more, where it went on
        killed_at(1, patch)
        with pytest.raises(Killed):
            main(["fit", "--resume", str(run)])
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(whole, run)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_signals(how, whole, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "perceivers", "fit", str(whole / "digits"), f"--output={run}", *OPTIONS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (run / "last.ckpt").exists() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(random.Random(how).uniform(0, 0.3))
    process.send_signal(how)
    error = process.communicate(timeout=60)[1]
    assert process.returncode in ((-how,) if how == signal.SIGKILL else (130, 0)), error
    assert not how == signal.SIGINT or (run / "model.safetensors").exists()  # the best so far
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(whole, run)


def test_a_finished_run_goes_on(whole, tmp_path):
    """Two epochs and then two more: steps, rates and weights go on from where they were."""
    run = tmp_path / "run"
    assert main(["fit", str(whole / "digits"), f"--output={run}", *OPTIONS]) == 0
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=3"]) == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == STEPS // 2 * 3
    assert len((run / "metrics.csv").read_text().splitlines()) == 4


def test_the_order_is_a_function_of_how_many_batches_were_taken():
    whole = ShuffledBatches(23, 4, seed=5)
    epochs = []
    for _ in range(3):
        for batch in whole:
            epochs.append(batch)
            whole.consumed += 1
    assert len(epochs) == 15
    assert epochs[:5] != epochs[5:10]
    for consumed in range(15):
        rest = ShuffledBatches(23, 4, seed=5)
        rest.consumed = consumed
        assert next(iter(rest)) == epochs[consumed]
    shares = [ShuffledBatches(23, 4, seed=5, rank=rank, world_size=2) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(batch) for batch in epochs[:5]]


# Files: the old one or the new one, never half of one.


def checkpoint(number):
    return {"weights": torch.full((1000,), float(number)), "step": number}


class Writes:
    """Counts writes, syncs and renames, and fails at one of them."""

    def __init__(self, at, error, monkeypatch):
        self.count, self.at, self.error = 0, at, error
        for name in ("fsync", "replace"):
            monkeypatch.setattr(files.os, name, self.counted(getattr(os, name)))
        right = os.fdopen

        def fdopen(*arguments):
            file = right(*arguments)
            return Torn(file, self)

        monkeypatch.setattr(files.os, "fdopen", fdopen)

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


def test_a_full_disk_is_said(tmp_path, monkeypatch):
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
