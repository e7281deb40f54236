"""A line per epoch; in a terminal also a bar to the end of the run, which a resumed run starts where it was."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from perceivers.__main__ import main
from perceivers.training.progress import History, draw_curves, read_metrics
from training_material import TINY, read_rows

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("default")]
METRICS, CURVES = Path("metrics.csv"), Path("curves.png")


def test_progress(capsys, monkeypatch):
    material.images(Path("digits"))
    options = [option for option in TINY if "bar" not in option]
    assert main(["fit", "digits", "--output=run", *options, "--data.batch_size=32"]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("epoch")]
    history = read_rows("run/metrics.csv")
    assert len(lines) == 2
    for number, (line, row) in enumerate(zip(lines, history, strict=True), 1):
        assert line.startswith(f"epoch {number}/2  step {row['step']}  train_loss {float(row['train_loss']):.4g}")
        assert f"val_accuracy {float(row['val_accuracy']):.4g}" in line
    assert "step/s" not in said.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["fit", "--resume", "run", "--trainer.max_epochs=4"]) == 0
    said = capsys.readouterr()
    frames = [frame for frame in said.err.split("\r") if "step/s" in frame or "s/step" in frame]
    assert f"{2 * int(history[0]['step'])}/{4 * int(history[0]['step'])}" in frames[0]
    assert "epoch 3/4" in said.err
    assert "train_loss" in said.err


def validated(step, **metrics):
    """What a trainer is after the validation at a step."""
    return SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        state=SimpleNamespace(fn="fit"),
        current_epoch=step // 10,
        global_step=step,
        callback_metrics=metrics,
    )


def test_history_replaces_rows_that_are_computed_again():
    history = History(METRICS)
    for step, loss in ((10, 3.0), (20, 2.0), (30, 1.5), (20, 2.5)):
        history.on_validation_end(validated(step, val_loss=loss), None)
    rows = read_metrics(METRICS)
    assert [(row["step"], row["val_loss"]) for row in rows] == [("10", "3"), ("20", "2.5")]
    history.on_validation_end(validated(40, val_loss=1.0, val_f1=0.5), None)
    assert read_metrics(METRICS)[0]["val_f1"] == ""


def test_curves():
    draw_curves(METRICS, CURVES)
    assert not CURVES.exists()  # of nothing
    History(METRICS).on_validation_end(validated(10, val_loss=1.0, train_loss=2.0, val_f1=0.5), None)
    draw_curves(METRICS, CURVES)
    assert CURVES.stat().st_size > 5000
