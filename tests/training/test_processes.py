"""Two processes train as one does."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from training_material import TINY, read_rows

pytestmark = [pytest.mark.filterwarnings("default")]

OPTIONS = [*TINY, "--data.batch_size=32", "--model.augment=none", "--trainer.accelerator=cpu"]


def fit(*options, again=False, **environment):
    path, *others = options
    command = [sys.executable, "-m", "perceivers", "fit", path, *([] if again else OPTIONS), *others]
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said


def assert_alike(one, other):
    for a, b in zip(read_rows(one / "metrics.csv"), read_rows(other / "metrics.csv"), strict=True):
        assert (a["epoch"], a["step"]) == (b["epoch"], b["step"])
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), rel=1e-4)
        assert float(a["val_accuracy"]) == pytest.approx(float(b["val_accuracy"]), abs=1e-6)
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name, tensor in first.items():
        np.testing.assert_allclose(second[name], tensor, rtol=1e-2, atol=2e-4, err_msg=name)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Data, whose 15 validation samples cannot be shared evenly, and a run of one process."""
    folder = tmp_path_factory.mktemp("one")
    material.images(folder / "digits", 150)
    finish(fit(str(folder / "digits"), f"--output={folder / 'run'}"))
    return folder


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_processes_have_the_loss_curve_of_one(strategy, one, tmp_path):
    finish(fit(str(one / "digits"), f"--output={tmp_path}", "--trainer.devices=2", f"--trainer.strategy={strategy}"))
    assert_alike(one / "run", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_go_on(strategy, one, tmp_path):
    """Stopped after one of two epochs; the schedule is that of both."""
    options = ["--trainer.devices=2", f"--trainer.strategy={strategy}", "--model.optimizer=lamb", "--model.schedule=constant"]
    data = str(one / "digits")
    finish(fit(data, f"--output={tmp_path / 'whole'}", *options))
    finish(fit(data, f"--output={tmp_path / 'run'}", *options, "--trainer.max_epochs=1"))
    finish(fit("--resume", str(tmp_path / "run"), "--trainer.max_epochs=2", again=True))
    assert_alike(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(one, tmp_path):
    options = [f"--output={tmp_path}", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=40"]
    process = fit(str(one / "digits"), *options)
    until = time.monotonic() + 120
    while not (tmp_path / "metrics.csv").exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] < 40 * 4
    assert (tmp_path / "model.safetensors").exists()
    finish(fit("--resume", str(tmp_path), again=True))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 40 * 4


def test_the_first_process_chooses_the_folder(one, tmp_path, monkeypatch):
    """The others make no folder of their own, though neither the environment nor their arguments name the first one's."""
    monkeypatch.chdir(tmp_path)
    finish(fit(str(one / "digits"), "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1"))
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["digits-1"]
    assert (tmp_path / "runs/digits-1/model.safetensors").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]


@pytest.mark.slow
def test_processes_that_a_launcher_starts(one, tmp_path):
    """As torchrun and SLURM do: each process is started from outside."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    options = [f"--output={tmp_path}", "--trainer.devices=2", "--trainer.strategy=ddp"]
    started = [
        fit(str(one / "digits"), *options, RANK=rank, LOCAL_RANK=rank, TORCHELASTIC_RUN_ID="x", **common)
        for rank in ("0", "1")
    ]
    for process in started:
        finish(process)
    assert_alike(one / "run", tmp_path)
