from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the extra predict is not installed")
pytest.importorskip("sklearn", reason="the extra demo is not installed")
import training_material as material
from perceivers import PerceiverIO
from perceivers.__main__ import main
from perceivers.cli.explain import distinct
from perceivers.data import Images

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("default")]


def test_figures(capsys):
    """One per sample, also of files with the same name; at most --most."""
    material.images(Path("digits"), 4)
    Path("digits/1/0.png").write_bytes(Path("digits/1/1.png").read_bytes())  # as digits/0/0.png
    images = Images(labels=["0", "1"], task="classification", size=[8, 8], channels=1)
    outputs = {"kind": "LearnedQueries", "dim": 16, "num_channels": 2}
    model = PerceiverIO(inputs=images.inputs(16), outputs=outputs, dim=16, heads=2, num_latent_tokens=2)
    model.preprocessing = images.describe()
    model.save_pretrained("run")
    assert main(["explain", "run", "digits", "--most=3", "--output=maps", "--layer=0"]) == 0
    said = capsys.readouterr()
    assert sorted(said.out.split()) == ["maps/explain-0-png-2.png", "maps/explain-0-png.png", "maps/explain-2-png.png"]
    assert "2 more samples were left out: --most 5" in said.err
    for file in said.out.split():
        assert Path(file).stat().st_size > 5000
    assert main(["explain", "run", "digits", "--layer=7"]) == 2
    assert "layer=7" in capsys.readouterr().err


def test_distinct():
    maps = torch.tensor([[1.0, 0, 0], [1.0, 0, 0.1], [0, 1.0, 0], [0, 0, 1.2]])
    assert set(distinct(maps, 3)) == {0, 2, 3}
    assert len(distinct(maps[:2], 3)) == 2
    assert distinct(torch.from_numpy(np.eye(5)), 1) == [0]
