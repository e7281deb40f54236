"""A run that was stopped, at any moment and in any way, ends with what an uninterrupted one ends with, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from perceivers.__main__ import main
from perceivers.training.module import Training
from training_material import TINY, Killed, killed_at

pytestmark = [pytest.mark.filterwarnings("default")]

OPTIONS = [*TINY, "--every=3", "--ema=0.9", "--model.network.ff_dropout=0.1", "--data.batch_size=32", "--model.augment=light"]
STEPS = 2 * 4  # two epochs of 144 images in batches of 32


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    material.images(folder / "digits")
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


def assert_same(whole, run, steps=STEPS):
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (whole / "run", run))
        del one["callbacks"], other["callbacks"]  # they hold file names
        assert one["global_step"] == (steps if name == "last.ckpt" else one["global_step"])
        assert not differences(one, other)
    assert (whole / "run" / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert (whole / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [3, 4, 5, 7])
def test_killed_at_a_step(step, workers, whole, tmp_path, monkeypatch):
    if workers and step not in (3, 5):
        pytest.skip("workers make no difference at these steps")
    run = tmp_path / "run"
    options = [*OPTIONS, f"--data.num_workers={workers}"]
    with monkeypatch.context() as patch:
        killed_at(step, Training, patch)
        with pytest.raises(Killed):
            main(["fit", str(whole / "digits"), f"--output={run}", *options])
    with monkeypatch.context() as patch:  # and once more, where it went on
        killed_at(1, Training, patch)
        with pytest.raises(Killed):
            main(["fit", "--resume", str(run)])
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(whole, run)


@pytest.mark.parametrize("step", [3, 5, 7])
def test_killed_while_gradients_add_up(step, whole, tmp_path, monkeypatch):
    """With all else that has a state: LAMB, half precision, recomputed activations, mixed samples."""
    options = [*OPTIONS, "--every=1", "--trainer.accumulate_grad_batches=2", "--trainer.precision=bf16-mixed"]
    options += ["--model.optimizer=lamb", "--model.grad_checkpointing=true", "--model.augment=crop+flip+randaugment"]
    options += ["--model.mixup=0.3"]
    data = str(whole / "digits")
    assert main(["fit", data, f"--output={tmp_path / 'run'}", *options]) == 0
    with monkeypatch.context() as patch:
        killed_at(step, Training, patch)
        with pytest.raises(Killed):
            main(["fit", data, f"--output={tmp_path / 'other'}", *options])
    assert 0 < torch.load(tmp_path / "other" / "last.ckpt", weights_only=True)["global_step"] < STEPS // 2
    assert main(["fit", "--resume", str(tmp_path / "other")]) == 0
    assert_same(tmp_path, tmp_path / "other", STEPS // 2)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A run of so many epochs that a signal after the first comes while it trains."""
    folder = tmp_path_factory.mktemp("long")
    material.images(folder / "digits")
    assert main(["fit", str(folder / "digits"), f"--output={folder / 'run'}", *OPTIONS, *LONG]) == 0
    return folder


LONG = ["--trainer.max_epochs=24"]


def started(folder, run, *options):
    """A run in a process of its own, in its second epoch or later."""
    command = [sys.executable, "-m", "perceivers", "fit", str(folder / "digits"), f"--output={run}", *OPTIONS, *LONG, *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (run / "metrics.csv").exists() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    return process


MOMENTS = [(signal.SIGKILL, 0, 0), (signal.SIGINT, 1, 0)]
MORE_MOMENTS = [(signal.SIGKILL, seed, 2 * (seed % 2)) for seed in range(2, 10)]


@pytest.mark.parametrize(
    ("how", "seed", "workers"), [*MOMENTS, *(pytest.param(*moment, marks=pytest.mark.slow) for moment in MORE_MOMENTS)]
)
def test_signals(how, seed, workers, long, tmp_path):
    """At random moments of an epoch."""
    run = tmp_path / "run"
    process = started(long, run, f"--data.num_workers={workers}")
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.send_signal(how)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == (-how if how == signal.SIGKILL else 130), error
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] < 24 * STEPS // 2
    assert not how == signal.SIGINT or (run / "model.safetensors").exists()  # the best so far
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(long, run, 24 * STEPS // 2)


def test_a_late_interrupt_changes_nothing(whole, tmp_path):
    """From when all is saved to the end of the process."""
    script = (
        "import atexit, os, signal, sys, time\n"
        "from perceivers.__main__ import main\n"
        "from perceivers.training.run import Run\n"
        "def interrupt(*given): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.01)\n"
        "right = Run.export\n"
        "Run.export = lambda *given: (interrupt(), right(*given))\n"
        "atexit.register(interrupt)\n"  # the first to be registered is the last to run
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", script, "fit", str(whole / "digits"), f"--output={tmp_path}", *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "KeyboardInterrupt" not in done.stderr
    assert_same(whole, tmp_path)


def test_a_moved_run_goes_on_from_anywhere(whole, tmp_path, monkeypatch):
    """Its data are found by their full path, all else in its folder."""
    monkeypatch.chdir(tmp_path)
    material.images(Path("digits"))
    with monkeypatch.context() as patch:
        killed_at(5, Training, patch)
        with pytest.raises(Killed):
            main(["fit", "digits", "--output=run", *OPTIONS])
    (tmp_path / "other").mkdir()
    (tmp_path / "run").rename(tmp_path / "other" / "moved")
    monkeypatch.chdir(tmp_path / "other")
    assert main(["fit", "--resume", "moved"]) == 0
    assert_same(whole, Path("moved"))
    assert main(["validate", "moved"]) == 0
    assert not (tmp_path / "run").exists()


DRIVER = """
import os, shutil, sys
from pathlib import Path
from pytest import MonkeyPatch
from perceivers.__main__ import main
from perceivers._atomic import sweep
from perceivers.training.checkpoint import AtomicCheckpointIO
from training_material import Writes

run, stride, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
CHECKPOINT = 3  # which of the run's, from 1: there is an older one
right = AtomicCheckpointIO.save_checkpoint


def dies(k, save):  # in a process of its own, at write, sync or rename number k; returns the number of these otherwise
    pipe = os.pipe()
    pid = os.fork()
    if pid == 0:
        writes = Writes(k, lambda: os._exit(99), MonkeyPatch())
        save()
        os.write(pipe[1], str(writes.count).encode())
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pipe[1])
    said = os.read(pipe[0], 20)
    os.close(pipe[0])
    assert status == (0 if said else 99), (k, status)
    return int(said or 0)


def save_checkpoint(self, checkpoint, path, *given, **named):
    global saved
    saved += 1
    if saved == CHECKPOINT:
        path, states = Path(path), set()
        old, save = path.read_bytes(), lambda: right(self, checkpoint, path, *given, **named)
        whole = dies(0, save)
        new = path.read_bytes()
        assert old != new
        for k in sorted({*range(1, whole + 1, stride), *range(whole - 4, whole + 1)}):
            path.write_bytes(old)
            dies(k, save)
            left = list(run.glob(".saving-*/*"))
            assert path.read_bytes() in (old, new), k
            state = path.read_bytes() == new, [file.stat().st_size // 20_000 for file in left]
            if str(state) not in states:  # going on is a function of what lies there
                states.add(str(state))
                shutil.copytree(run, f"{run}-{k}")
                print(k, len(left), file=sys.stderr)
            sweep(run)
        path.write_bytes(old)
    right(self, checkpoint, path, *given, **named)


saved = 0
AtomicCheckpointIO.save_checkpoint = save_checkpoint
sys.exit(main(arguments))
"""


@pytest.mark.parametrize("stride", [200, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_dies_while_it_saves(stride, whole, tmp_path):
    """A process really dies at the k-th write (half of it done), sync or rename; each state that it leaves is gone on with."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "run"), str(stride), "fit", str(whole / "digits")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*command, f"--output={tmp_path / 'run'}", *OPTIONS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(whole, tmp_path / "run")
    died = list(tmp_path.glob("run-*"))
    assert len(died) > 5
    assert any(list(run.glob(".saving-*/*")) for run in died)
    for run in died:
        assert main(["fit", "--resume", str(run)]) == 0
        assert_same(whole, run)
        assert not list(run.glob(".*"))  # what the dead process left was removed
