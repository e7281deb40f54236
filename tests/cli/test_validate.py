from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")
from perceivers.__main__ import main
from training_material import TINY

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("default")]


def test_other_data(capsys):
    """The model is evaluated on its own data, or on those that are given; test samples are those to test."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 60), ("test", 20)):
        y = np.arange(count) % 2
        parts |= {f"x_{part}": rng.standard_normal((count, 2, 9)) + 3 * y[:, None, None], f"y_{part}": y}
    np.savez("x.npz", **parts)
    np.savez("wrong.npz", **{**parts, "y_test": 1 - parts["y_test"]})
    assert main(["fit", "x.npz", "--output=run", *TINY, "--trainer.max_epochs=8", "--model.lr=0.01"]) == 0
    capsys.readouterr()
    found = []
    for path in ([], ["wrong.npz"]):
        assert main(["test", "run", *path]) == 0
        said = capsys.readouterr().out
        assert "no test samples" not in said
        found.append(float(said.split("test_accuracy")[1]))
    assert found[0] > 0.9
    assert sum(found) == pytest.approx(1)


def test_wrong_use(capsys):
    Path("empty").mkdir()
    for arguments, message in (
        (["test"], "FOLDER is missing: perceivers test FOLDER"),
        (["validate", "empty"], "empty does not hold a run, as it has no run.yaml"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    Path("empty/run.yaml").write_text("path: x\n")
    assert main(["validate", "empty"]) == 2
    assert "there is no model in it yet: perceivers fit --resume empty" in capsys.readouterr().err
