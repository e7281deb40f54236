"""Every command line of docs/training.md, in its order, as a user types it."""

import inspect
import re
import shlex
import shutil
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")
import pandas  # a dependency of datasets

import training_material as material
from perceivers.__main__ import main
from perceivers.data import Sizes
from perceivers.training.datamodule import PathData
from perceivers.training.module import Training
from perceivers.training.optim import OptimizerConfig
from perceivers.training.pretrain import Pretraining
from training_material import TINY

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "training.md"
pytestmark = [pytest.mark.checkout, pytest.mark.filterwarnings("default")]

# What is run elsewhere, or cannot be run here.
ELSEWHERE = {
    "pip install 'perceivers[train]'": "make test installs the extra",
    "perceivers fit digits --trainer.devices 2 --trainer.strategy ddp": "test_processes.py",
    "perceivers fit digits --trainer.devices 2 --trainer.strategy fsdp2": "test_processes.py",
    "python": "tests of tools/datasets",
    "torchrun": "test_processes.py starts two processes as it does; the page says what is not tested",
    "srun": "the page says so",
}
# Every option of ours, by its last name: the page has each.
OPTIONS = {
    name
    for kind in (PathData, Sizes, Training, Pretraining, OptimizerConfig)
    for name, parameter in inspect.signature(kind).parameters.items()
    if name not in ("path", "network") and parameter.kind != parameter.VAR_KEYWORD
} | {"--model.network", "--output", "--every", "--ema", "--from", "--resume", "--config"}
SMALL = [option for option in TINY if "epochs" not in option and "dim" not in option]


def blocks(language):
    text = PAGE.read_text() if PAGE.exists() else ""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    material.images(Path("digits"))
    material.audio(Path("tones"))
    material.videos(Path("moves"))
    material.texts(Path("texts"))
    material.point_clouds(Path("shapes.npz"))
    shutil.copytree(ROOT / "recipes", "recipes")
    material.wines(Path("wines.csv"))
    pandas.read_csv("wines.csv").to_parquet("wines.parquet")
    material.diabetes(Path("diabetes.csv"))
    material.arrays(Path("digits.npz"))
    ran = []
    for line in "".join(blocks("bash")).splitlines():
        words = shlex.split(line, comments=True)
        if shlex.join(words) in {shlex.join(shlex.split(one)) for one in ELSEWHERE} or words[0] in ELSEWHERE:
            continue
        assert words[0] == "perceivers", line
        if words[-1] == "--help":
            with pytest.raises(SystemExit) as ended:
                main(words[1:])
            assert ended.value.code == 0
            assert "--model.network" in capsys.readouterr().out
            continue
        new = words[1] in ("fit", "pretrain") and "--resume" not in words
        width = [] if "--model.network.dim" in words else ["--model.network.dim=16"]
        extra = [*SMALL, *width, "--trainer.max_epochs=1"] if new else []
        if "--config" in words:  # a recipe is run as it is, but for its length
            extra = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
        if new and "--model.network.num_latent_tokens" in words:
            extra = [option for option in extra if "num_latent_tokens" not in option]
        assert main([*words[1:], *extra]) == 0, line
        ran.append(words[1])
    assert set(ran) >= {"fit", "pretrain", "predict", "explain", "validate", "test"}
    assert len(ran) > 12
    assert {option for option in OPTIONS if option not in PAGE.read_text()} == set()
    for code in blocks("python"):
        names = {}
        exec(code, names)
        assert names["probabilities"].sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes(recipe, tmp_path, monkeypatch):
    """Their options exist, and their heads are complete."""
    monkeypatch.chdir(tmp_path)
    material.arrays(Path("digits.npz"))
    for word in ("# Data: ", "# Command: ", "# Hardware: ", "# Time: ", "# Result: ", f"--config recipes/{recipe.name}"):
        assert word in recipe.read_text()
    once = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--model.network.dim=16"]
    assert main(["fit", "digits.npz", "--config", str(recipe), "--output=run", *once]) == 0
