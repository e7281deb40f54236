"""Two processes train as one does."""

import csv
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from training_material import TINY

OPTIONS = [*TINY, "--data.batch_size=32", "--model.pictures=none", "--trainer.accelerator=cpu"]


def fit(*options, **environment):
    command = [sys.executable, "-m", "perceivers", "fit", *options, *OPTIONS]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_alike(one, other):
    for a, b in zip(rows(one / "metrics.csv"), rows(other / "metrics.csv"), strict=True):
        assert (a["epoch"], a["step"]) == (b["epoch"], b["step"])
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), rel=1e-4)
        assert float(a["val_accuracy"]) == pytest.approx(float(b["val_accuracy"]), abs=1e-6)
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name, tensor in first.items():
        np.testing.assert_allclose(second[name], tensor, rtol=1e-2, atol=2e-4, err_msg=name)


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    material.pictures(tmp_path / "digits")
    data = str(tmp_path / "digits")
    finish(fit(data, f"--output={tmp_path / 'one'}"))
    finish(fit(data, f"--output={tmp_path / 'two'}", "--trainer.devices=2", "--trainer.strategy=ddp"))
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_processes_that_a_launcher_starts(tmp_path):
    """As torchrun and SLURM do: each process is started from outside."""
    material.pictures(tmp_path / "digits")
    data = str(tmp_path / "digits")
    finish(fit(data, f"--output={tmp_path / 'one'}"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    options = [f"--output={tmp_path / 'two'}", "--trainer.devices=2", "--trainer.strategy=ddp"]
    started = [fit(data, *options, RANK=rank, LOCAL_RANK=rank, TORCHELASTIC_RUN_ID="x", **common) for rank in ("0", "1")]
    for process in started:
        finish(process)
    assert_alike(tmp_path / "one", tmp_path / "two")
