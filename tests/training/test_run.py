"""A run as a function of typed arguments, without a command line."""

import logging
import signal
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from perceivers import PerceiverIO
from perceivers.training.datamodule import PathData
from perceivers.training.module import Training
from perceivers.training.run import Run, quiet
from training_material import SMALL

pytestmark = pytest.mark.filterwarnings("default")


def run(folder, **arguments):
    data = PathData("digits")
    module = Training(SMALL, preprocessing=data.preprocessing.describe())
    return Run(Path(folder), module, data, **arguments)


@pytest.fixture(autouse=True)
def _digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    material.images(Path("digits"), 80)


def test_fit_and_evaluate(capsys):
    """Nothing is printed, and nothing of the process is left changed; the optimiser and preprocessing.json are made once."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    handler, filters, level = signal.getsignal(signal.SIGINT), list(warnings.filters), logger.level
    made = []
    with pytest.MonkeyPatch.context() as patch:
        right = torch.optim.AdamW.__init__
        patch.setattr(torch.optim.AdamW, "__init__", lambda self, *a, **k: made.append(self) or right(self, *a, **k))
        one = run("run", trainer={"max_epochs": 2, "enable_progress_bar": False})
        assert not one.saved
        assert one.fit()
    assert len(made) == 1
    assert one.saved
    assert capsys.readouterr().out == ""
    assert signal.getsignal(signal.SIGINT) is handler
    assert warnings.filters == filters
    assert logger.level == level
    model = PerceiverIO.from_pretrained("run")
    assert model.preprocessing == one.module.preprocessing.describe()
    name, best = one.best_metric()
    assert name == "val_accuracy"
    assert one.evaluate("validate")[name] == pytest.approx(best, abs=1e-6)


def test_length(monkeypatch):
    """As many epochs as 2,000 steps need, from 10 to 200, unless a length is given."""
    batches = lambda n: monkeypatch.setattr(PathData, "train_dataloader", lambda self: range(n))  # noqa: E731
    for count, epochs in ((4, 200), (50, 40), (1000, 10)):
        batches(count)
        assert run("run").trainer.max_epochs == epochs
    assert not run("run", trainer={"max_steps": 7}).trainer.max_epochs
    assert run("run", trainer={"max_epochs": 3, "gradient_clip_val": 0.5}).trainer.gradient_clip_val == 0.5


def test_the_callbacks_of_the_user_are_kept():
    from lightning.pytorch.callbacks import EarlyStopping

    trainer = run("run", trainer={"callbacks": [EarlyStopping("val_loss")], "logger": False}).trainer
    assert any(isinstance(callback, EarlyStopping) for callback in trainer.callbacks)
    assert trainer.loggers == []
    assert {"History", "Interrupt", "BestCheckpoint"} <= {type(callback).__name__ for callback in trainer.callbacks}


def test_fsdp2_without_ema():
    with pytest.raises(ValueError, match=r"ema=0\.9 averages whole weights"):
        run("run", ema=0.9, trainer={"strategy": "fsdp2", "accelerator": "cpu", "devices": 2})


def test_quiet_is_local():
    with warnings.catch_warnings(record=True) as caught:
        with quiet():
            warnings.warn("Checkpoint directory exists", UserWarning, stacklevel=1)
        warnings.warn("The dirpath has changed", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["The dirpath has changed"]
