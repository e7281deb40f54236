"""`perceivers fit` as a new user meets it, on small real data of each kind."""

import errno
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from perceivers import PerceiverIO, _atomic
from perceivers.__main__ import main
from perceivers.cli.fit import new_folder
from perceivers.layers.encoder import LatentEncoder
from perceivers.training.module import Training
from training_material import KINDS, TINY
from training_material import read_rows as rows

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("kind", [*KINDS, "numbers"])
def test_fit_validate_test_predict_explain(kind, capsys):
    numbers = (lambda: material.diabetes(Path("diabetes.csv")), "diabetes.csv")
    make, *files = numbers if kind == "numbers" else KINDS[kind]
    path, metric, handler = make(), "mae" if kind == "numbers" else "accuracy", signal.getsignal(signal.SIGINT)
    assert main(["fit", str(path), "--output=run", *TINY]) == 0
    said = capsys.readouterr().out
    assert "perceivers fit --resume run" in said
    assert "perceivers predict run" in said
    model = ("config.json", "model.safetensors", "preprocessing.json")
    for name in (*model, "metrics.csv", "curves.png", "run.yaml", "last.ckpt", "best.ckpt"):
        assert (Path("run") / name).stat().st_size > 0, name
    assert list(Path("run/tensorboard").iterdir())
    assert f"val_{metric}" in Path("run/README.md").read_text()
    history = rows("run/metrics.csv")
    assert len(history) == 2
    assert {"epoch", "step", "train_loss", "val_loss", f"val_{metric}"} <= history[0].keys()

    assert main(["validate", "run"]) == 0
    best = (min if metric == "mae" else max)(float(row[f"val_{metric}"]) for row in history)
    line = next(line for line in capsys.readouterr().out.splitlines() if f"val_{metric}" in line)
    assert float(line.split()[1]) == pytest.approx(best, rel=1e-3)
    assert main(["test", "run"]) == 0
    assert f"test_{metric}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler

    assert main(["predict", "run", *files, "--output=said.csv"]) == 0
    predictions = rows("said.csv")
    labels = json.loads(Path("run/preprocessing.json").read_text())["labels"]
    assert len(predictions) > 10
    assert all(label in predictions[0] for label in labels)
    if metric == "accuracy":
        assert sum(float(predictions[0][label]) for label in labels) == pytest.approx(1, abs=1e-4)
        assert {row["prediction"] for row in predictions} <= set(labels)
    assert len({tuple(row[label] for label in labels) for row in predictions}) > 1

    assert main(["explain", "run", *files, "--most=1", "--output=maps"]) == 0
    (figure,) = Path("maps").glob("explain-*.png")
    assert figure.stat().st_size > 5000


def test_digits_are_learned():
    material.arrays(Path("digits.npz"), 1797)
    smaller = ["--model.network.dim=64", "--trainer.max_epochs=8", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "digits.npz", "--output=run", *smaller]) == 0
    assert max(float(row["val_accuracy"]) for row in rows("run/metrics.csv")) > 0.7


def test_the_model_is_an_ordinary_one():
    material.images(Path("digits"))
    assert main(["fit", "digits", "--output=run", "--ema=0.9", *TINY]) == 0
    model = PerceiverIO.from_pretrained("run")
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    checkpoint = torch.load("run/best.ckpt", weights_only=True)
    averaged, last = checkpoint["state_dict"], checkpoint["current_model_state"]
    for name, tensor in load_file("run/model.safetensors").items():
        assert torch.equal(tensor, averaged[f"network.{name}"])
    assert not torch.equal(averaged["network.encoder.latents"], last["network.encoder.latents"])


@pytest.mark.parametrize(
    ("precision", "dtype", "mixed"), [("bf16-mixed", torch.float32, True), ("bf16-true", torch.bfloat16, False)]
)
def test_precision_and_activation_checkpointing(precision, dtype, mixed, monkeypatch):
    recomputed, seen = LatentEncoder._recomputed, set()

    def spy(self, latents, inputs):
        seen.add((latents.dtype, torch.is_autocast_enabled(latents.device.type)))
        return recomputed(self, latents, inputs)

    monkeypatch.setattr(LatentEncoder, "_recomputed", spy)
    material.images(Path("digits"))
    options = [*TINY, "--trainer.max_epochs=3", "--model.grad_checkpointing=true", "--model.lr=0.005"]
    assert main(["fit", "digits", "--output=run", f"--trainer.precision={precision}", *options]) == 0
    assert seen == {(dtype, mixed)}
    losses = [float(row["val_loss"]) for row in rows("run/metrics.csv")]
    assert losses[-1] < losses[0] < 1
    assert load_file("run/model.safetensors")["encoder.latents"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled():
    """The same curve, and a checkpoint that a run without it goes on from."""
    material.images(Path("digits"))
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        assert main(["fit", "digits", f"--output={name}", *TINY, f"--model.compile={compiled}"]) == 0
    for one, other in zip(rows("plain/metrics.csv"), rows("compiled/metrics.csv"), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=1e-3)
    assert main(["fit", "--resume", "compiled", "--model.compile=false", "--trainer.max_epochs=3"]) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_sample_in_the_middle_of_a_run(workers, capsys):
    """Its header is whole, so that only its turn shows it; what was trained until then is kept."""
    folder = material.images(Path("digits"), 360)
    broken = folder / "1" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    options = [*TINY, "--every=1", "--data.batch_size=8", f"--data.num_workers={workers}", "--data.seed=3"]
    error = fails(["fit", "digits", "--output=run", *options], capsys)
    assert error.splitlines()[-1].startswith("perceivers fit: digits/1/1.png is damaged")
    assert "perceivers fit --resume run" in error
    assert "Traceback" not in error
    trained = torch.load("run/last.ckpt", weights_only=True)["global_step"]
    broken.write_bytes(whole)
    assert main(["fit", "--resume", "run"]) == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] > trained > 0


def test_a_full_disk_ends_the_run(capsys, monkeypatch):
    material.images(Path("digits"))
    options = [*TINY, "--every=2", "--data.batch_size=32"]
    assert main(["fit", "digits", "--output=whole", *options]) == 0
    right, calls = _atomic.os.fsync, iter(range(1000))

    def fsync(descriptor):
        if next(calls) > 9:  # of a file, not of its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        right(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(_atomic.os, "fsync", fsync)
        error = fails(["fit", "digits", "--output=run", *options], capsys, status=1)
    assert "the disk is full" in error
    assert not list(Path("run").glob(".*"))
    assert main(["fit", "--resume", "run"]) == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_several_labels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 2, 12)).astype(np.float32)
    np.savez("many.npz", x=x, y=(x.mean(-1) > 0).astype(np.int64))
    assert main(["fit", "many.npz", "--output=run", *TINY]) == 0
    assert "val_f1" in rows("run/metrics.csv")[0]
    assert main(["predict", "run", "many.npz"]) == 0
    assert list(rows("predictions.csv")[0]) == ["file", "y0", "y1"]


def test_a_number_of_steps(capsys):
    material.images(Path("digits"))
    arguments = [option for option in TINY if "epochs" not in option]
    assert main(["fit", "digits", "--output=run", *arguments, "--trainer.max_steps=5", "--data.batch_size=48"]) == 0
    said = capsys.readouterr().out
    assert "5 steps, in epochs of 3 batches of 48" in said
    assert "perceivers fit --resume run --trainer.max_steps 10" in said
    assert main(["fit", "--resume", "run", "--trainer.max_steps=10"]) == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 10


def test_folders_are_numbered():
    material.arrays(Path("digits.npz"))
    for _ in range(2):
        assert main(["fit", "digits.npz", *TINY, "--trainer.max_epochs=1"]) == 0
    assert sorted(folder.name for folder in Path("runs").iterdir()) == ["digits-1", "digits-2"]
    assert new_folder("hub:someone/things") == Path("runs/things-1")


def fails(arguments, capsys, status=2):
    assert main(arguments) == status
    return capsys.readouterr().err


def broken_image():
    folder = material.images(Path("digits"))
    (folder / "1" / "1.png").write_bytes((folder / "1" / "1.png").read_bytes()[:40])
    return folder


def arrays():
    return material.arrays(Path("x.npz"))


BAD = {  # more in tests/data/test_detect.py, and in the tests of what raises them
    "nothing there": (lambda: "missing", [], "no such file"),
    "a broken image": (broken_image, [], "1.png is damaged"),
    "options that contradict": (arrays, ["--trainer.enable_checkpointing=false"], "enable_checkpointing=False"),
    "no frames": (arrays, ["--data.num_frames=0"], "num_frames=0"),
    "a wrong optimiser": (arrays, ["--model.optimizer=sgdx"], "optimizer='sgdx'"),
    "a wrong width": (arrays, ["--model.network.dim=30", "--model.network.heads=4"], "heads"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case, capsys):
    make, options, message = BAD[case]
    assert message in fails(["fit", str(make()), "--output=run", *options], capsys)
    assert not Path("run/last.ckpt").exists()


def test_unknown_options(capsys):
    for option in ("--model.augmentation=light", "--trainer.epochs=3", "--outputs=run"):
        with pytest.raises(SystemExit) as ended:
            main(["fit", str(arrays()), option])
        assert ended.value.code == 2
        assert option.split("=")[0].rpartition(".")[2].strip("-") in capsys.readouterr().err


def test_a_run_is_not_overwritten(capsys):
    material.images(Path("digits"), 40)
    assert main(["fit", "digits", "--output=run", *TINY, "--trainer.max_epochs=1"]) == 0
    before = Path("run/model.safetensors").read_bytes()
    assert "--resume run" in fails(["fit", "digits", "--output=run", *TINY], capsys)
    assert Path("run/model.safetensors").read_bytes() == before


def test_a_loss_that_is_nan_ends_the_run(capsys, monkeypatch):
    material.images(Path("digits"))
    right = Training.loss

    def wrong(self, outputs, targets, label_smoothing=0.0):
        return right(self, outputs, targets, label_smoothing) * (float("nan") if self.global_step == 6 else 1)

    monkeypatch.setattr(Training, "loss", wrong)
    error = fails(["fit", "digits", "--output=run", "--every=2", *TINY], capsys, status=1)
    assert "the loss is nan at step 6" in error
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 6


def test_wrong_use(capsys):
    assert "PATH is missing" in fails(["fit"], capsys)
    Path("empty").mkdir()
    assert "empty does not hold a run, as it has no run.yaml" in fails(["fit", "--resume", "empty"], capsys)
    material.arrays(Path("x.npz"))
    assert main(["fit", "x.npz", "--output=run", *TINY, "--trainer.max_epochs=1"]) == 0
    Path("run/last.ckpt").unlink()
    assert "stopped before its first checkpoint, last.ckpt" in fails(["fit", "--resume", "run"], capsys)


def test_arguments_are_over_the_configuration():
    """Of a file, and of the run that is resumed, wherever they stand; the options of the run are whole in run.yaml."""
    material.arrays(Path("x.npz"))
    Path("options.yaml").write_text("model: {lr: 0.5, network: {dim: 16, heads: 2}}\ntrainer: {max_epochs: 7}\n")
    arguments = ["--config=options.yaml", "--trainer.max_epochs=1", "--model.network.heads=4"]
    assert main(["fit", "x.npz", "--output=run", *arguments, "--trainer.enable_progress_bar=false"]) == 0
    written = Path("run/run.yaml").read_text()
    for line in ("lr: 0.5", "dim: 16", "heads: 4", "max_epochs: 1", "gradient_clip_val: 1.0", str(Path("x.npz").resolve())):
        assert line in written
    assert main(["fit", "--trainer.max_epochs=2", "--resume", "run"]) == 0
    assert len(rows("run/metrics.csv")) == 2
    assert "max_epochs: 2" in Path("run/run.yaml").read_text()
    for name in ("output", "resume", "preprocessing"):
        assert f"{name}:" not in Path("run/run.yaml").read_text()


def test_help(capsys):
    for command in ("fit", "pretrain", "validate"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert f"\nperceivers {command} " in said
        assert "--model.network" in said
