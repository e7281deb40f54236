"""The command line as a new user meets it, on small real data of each kind."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from perceivers import PerceiverIO
from perceivers.__main__ import main
from training_material import TINY

pytestmark = [pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERCEIVERS_RUN", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


MADE = {
    "pictures": (lambda: material.pictures(Path("digits")), "accuracy", 0.9, ["digits/1"]),
    "sounds": (lambda: material.sounds(Path("tones")), "accuracy", None, ["tones/high"]),
    "videos": (lambda: material.videos(Path("moves")), "accuracy", None, ["moves"]),
    "arrays": (lambda: material.arrays(Path("digits.npz")), "accuracy", None, ["digits.npz"]),
    "table": (lambda: material.wines(Path("wines.csv")), "accuracy", None, ["wines.csv"]),
    "numbers": (lambda: material.diabetes(Path("diabetes.csv")), "mae", None, ["diabetes.csv"]),
    "texts": (lambda: material.texts(Path("texts")), "accuracy", None, ["texts/code"]),
}


@pytest.mark.parametrize("kind", MADE)
def test_fit_validate_test_predict_explain(kind, capsys):
    make, metric, _, files = MADE[kind]
    path = make()
    assert main(["fit", str(path), "--output=run", *TINY]) == 0
    said = capsys.readouterr().out
    assert "perceivers fit --resume run" in said
    assert "perceivers predict run" in said
    model = ("config.json", "model.safetensors", "preprocessing.json")
    for name in (*model, "metrics.csv", "curves.png", "run.yaml", "last.ckpt", "best.ckpt"):
        assert (Path("run") / name).stat().st_size > 0, name
    assert list(Path("run/tensorboard").iterdir())
    history = rows("run/metrics.csv")
    assert len(history) == 2
    assert {"epoch", "step", "train_loss", "val_loss", f"val_{metric}"} <= history[0].keys()

    assert main(["validate", "run"]) == 0
    best = (min if metric == "mae" else max)(float(row[f"val_{metric}"]) for row in history)
    line = next(line for line in capsys.readouterr().out.splitlines() if f"val_{metric}" in line)
    assert float(line.split()[1]) == pytest.approx(best, rel=1e-3)
    assert main(["test", "run"]) == 0
    assert f"test_{metric}" in capsys.readouterr().out

    assert main(["predict", "run", *files, "--output=said.csv"]) == 0
    predictions = rows("said.csv")
    labels = json.loads(Path("run/preprocessing.json").read_text())["labels"]
    assert len(predictions) > 10
    assert all(label in predictions[0] for label in labels)
    if metric == "accuracy":
        assert sum(float(predictions[0][label]) for label in labels) == pytest.approx(1, abs=1e-4)
        assert {row["prediction"] for row in predictions} <= set(labels)
    assert len({tuple(row[label] for label in labels) for row in predictions}) > 1  # it looks at them

    assert main(["explain", "run", *files, "--most=1", "--output=maps"]) == 0
    (drawn,) = Path("maps").glob("explain-*.png")
    assert drawn.stat().st_size > 5000


def test_digits_are_learned():
    material.arrays(Path("digits.npz"), 1797)
    smaller = ["--model.network.dim=64", "--trainer.max_epochs=8", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "digits.npz", "--output=run", *smaller]) == 0
    assert max(float(row["val_accuracy"]) for row in rows("run/metrics.csv")) > 0.7


def test_predictions_do_not_depend_on_the_batch(capsys):
    material.sounds(Path("tones"))  # of different lengths, padded and masked
    assert main(["fit", "tones", "--output=run", *TINY]) == 0
    for size in ("1", "7"):
        assert main(["predict", "run", "tones", f"--output={size}.csv", f"--batch-size={size}"]) == 0
    one, seven = (np.array([float(row["high"]) for row in rows(f"{size}.csv")]) for size in ("1", "7"))
    np.testing.assert_allclose(one, seven, atol=1e-5)


def test_the_model_is_an_ordinary_one():
    material.pictures(Path("digits"))
    assert main(["fit", "digits", "--output=run", "--ema=0.9", *TINY]) == 0
    model = PerceiverIO.from_pretrained("run")
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    averaged = torch.load("run/best.ckpt", weights_only=True)["state_dict"]
    for name, tensor in load_file("run/model.safetensors").items():
        assert torch.equal(tensor, averaged[f"network.{name}"])


@pytest.mark.parametrize("option", ["pictures=randaugment", "pictures=flip", "mixup=0.2", "cutmix=1.0"])
def test_augmentation(option):
    material.pictures(Path("digits"))
    assert (
        main(["fit", "digits", "--output=run", f"--model.{option}", "--model.optimizer=lamb", *TINY, "--trainer.max_epochs=1"])
        == 0
    )


def test_several_labels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 2, 12)).astype(np.float32)
    np.savez("many.npz", x=x, y=(x.mean(-1) > 0).astype(np.int64))
    assert main(["fit", "many.npz", "--output=run", *TINY]) == 0
    assert "val_f1" in rows("run/metrics.csv")[0]
    assert main(["predict", "run", "many.npz"]) == 0
    assert list(rows("predictions.csv")[0]) == ["file", "y0", "y1"]


def test_folders_are_numbered():
    material.pictures(Path("digits"), 40)
    arguments = [*TINY, "--trainer.max_epochs=1"]
    script = f"from perceivers.__main__ import main; raise SystemExit(main(['fit', 'digits', *{arguments}]))"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert sorted(folder.name for folder in Path("runs").iterdir()) == ["digits-1", "digits-2"]


def fails(arguments, capsys, status=2):
    assert main(arguments) == status
    return capsys.readouterr().err


def _pictures_with_a_broken_one():
    folder = material.pictures(Path("digits"))
    (folder / "1" / "1.png").write_bytes((folder / "1" / "1.png").read_bytes()[:40])
    return folder


def _one_class():
    folder = material.pictures(Path("digits"))
    for file in (folder / "1").iterdir():
        file.unlink()
    (folder / "1").rmdir()
    return folder


def _write(name, text):
    Path(name).write_text(text)
    return name


BAD = {
    "nothing there": (lambda: "missing", [], "no such file"),
    "an empty folder": (lambda: str(_made("empty")), [], "no pictures, sounds or .txt"),
    "an unknown suffix": (lambda: _write("notes.doc", "x"), [], "none of .npz"),
    "one class": (_one_class, [], "only one class"),
    "a broken picture": (_pictures_with_a_broken_one, [], "1.png is damaged"),
    "a broken archive": (lambda: _write("x.npz", "no archive"), [], "x.npz"),
    "no target column": (lambda: material.wines(Path("wines.csv")), ["--data.target=price"], "price"),
    "a target without numbers": (lambda: material.wines(Path("wines.csv")), ["--data.task=regression"], "no numbers"),
    "missing targets": (lambda: _write("x.csv", "a,label\n1,u\n2,\n3,v\n"), [], "missing in 1 of 3"),
    "no columns": (lambda: _write("x.csv", "a,label\n1,u\n1,v\n1,u\n"), [], "none of the columns"),
    "a wrong share": (lambda: material.arrays(Path("x.npz")), ["--data.validation=1.5"], "validation=1.5"),
    "a wrong optimiser": (lambda: material.arrays(Path("x.npz")), ["--model.optimizer=sgdx"], "optimizer='sgdx'"),
    "a wrong width": (lambda: material.arrays(Path("x.npz")), ["--model.network.dim=30", "--model.network.heads=4"], "heads"),
}


def _made(name):
    Path(name).mkdir()
    return name


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case, capsys):
    make, options, message = BAD[case]
    path = make()
    assert message in fails(["fit", str(path), "--output=run", *options], capsys)
    assert not Path("run/last.ckpt").exists()


def test_a_run_is_not_overwritten(capsys):
    material.pictures(Path("digits"), 40)
    assert main(["fit", "digits", "--output=run", *TINY, "--trainer.max_epochs=1"]) == 0
    before = Path("run/model.safetensors").read_bytes()
    assert "--resume run" in fails(["fit", "digits", "--output=run", *TINY], capsys)
    assert Path("run/model.safetensors").read_bytes() == before


def test_a_loss_that_is_no_number_ends_the_run(capsys, monkeypatch):
    from perceivers.training.module import Training

    material.pictures(Path("digits"))
    right = Training.loss

    def wrong(self, outputs, targets, label_smoothing=0.0):
        return right(self, outputs, targets, label_smoothing) * (float("nan") if self.global_step == 6 else 1)

    monkeypatch.setattr(Training, "loss", wrong)
    error = fails(["fit", "digits", "--output=run", "--every=2", *TINY], capsys, status=1)
    assert "the loss is nan at step 6" in error
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 6


def test_wrong_files_to_predict(capsys):
    material.pictures(Path("digits"))
    assert main(["fit", "digits", "--output=run", *TINY, "--trainer.max_epochs=1"]) == 0
    Path("broken.png").write_bytes(b"no picture")
    assert main(["predict", "run", "broken.png", "digits/0"]) == 1  # the others are predicted
    assert "broken.png is damaged" in capsys.readouterr().err
    assert len(rows("predictions.csv")) > 10
    assert "no such file" in fails(["predict", "run", "nowhere.png"], capsys)
    assert "reads pictures" in fails(["predict", "run", _write("a.txt", "x")], capsys)
    assert "perceivers fit" in fails(["predict", "digits", "digits/0"], capsys)
    Path("run/preprocessing.json").write_text("{")
    assert "damaged" in fails(["predict", "run", "digits/0"], capsys)


def test_help_is_quick_and_complete():
    said = subprocess.run([sys.executable, "-m", "perceivers", "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("fit", "validate", "test", "predict", "explain", "info", "models"):
        assert command in said
    said = subprocess.run([sys.executable, "-X", "importtime", "-m", "perceivers", "--help"], capture_output=True, text=True)
    assert "| torch\n" not in said.stderr  # so it takes no second


def test_what_a_command_needs(capsys):
    assert "PATH is missing" in fails(["fit"], capsys)
    assert "FOLDER is missing" in fails(["test"], capsys)
    assert "no last.ckpt" in fails(["fit", "--resume", _made("empty")], capsys)
