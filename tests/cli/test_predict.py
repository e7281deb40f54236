"""`perceivers predict`: from files to a table, without the training extra."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm", reason="the extra predict is not installed")
pytest.importorskip("PIL", reason="the extra predict is not installed")
pytest.importorskip("sklearn", reason="the extra demo is not installed")
import training_material as material
from perceivers import PerceiverIO
from perceivers.__main__ import main
from perceivers.cli.predict import in_words, load, read_records, results
from perceivers.data import Arrays, Audio, Images, Preprocessing, Table
from training_material import read_rows

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("default")]
COMMON = {"labels": ["0", "1"], "task": "classification"}


def save(preprocessing: Preprocessing, folder="run"):
    """A model with random weights for data, as a run leaves it."""
    outputs = {"kind": "LearnedQueries", "dim": 16, "num_channels": len(preprocessing.labels)}
    model = PerceiverIO(inputs=preprocessing.inputs(16), outputs=outputs, dim=16, heads=2, num_latent_tokens=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.preprocessing = preprocessing.describe()
    model.save_pretrained(folder)
    return folder


def fails(arguments, capsys):
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_predictions_do_not_depend_on_the_batch():
    material.audio(Path("tones"))  # of different lengths, padded and masked
    save(Audio(**COMMON, num_samples=1600, sample_rate=8000))
    for size in ("1", "7"):
        assert main(["predict", "run", "tones", f"--output={size}.csv", f"--batch-size={size}"]) == 0
    one, seven = (np.array([float(row["1"]) for row in read_rows(f"{size}.csv")]) for size in ("1", "7"))
    assert one.std() > 1e-4
    np.testing.assert_allclose(one, seven, atol=1e-5)


def test_no_training_package_is_imported():
    """Nor anything that reads other files, or draws."""
    material.images(Path("digits"), 20)
    save(Images(**COMMON, size=[8, 8], channels=1))
    script = """
import sys
blocked = "lightning pytorch_lightning torchmetrics kornia jsonargparse tensorboard datasets av soundfile".split()
class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] in blocked: raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
from perceivers.__main__ import main
assert main(["predict", "run", "digits"]) == 0
assert "matplotlib" not in sys.modules
assert main(["explain", "run", "digits", "--most=1"]) == 0
assert main(["fit", "digits"]) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'perceivers[train]'" in done.stderr
    assert len(read_rows("predictions.csv")) == 20


def test_wrong_files(capsys):
    material.images(Path("digits"), 20)
    save(Images(**COMMON, size=[8, 8], channels=1))
    Path("broken.png").write_bytes(b"no image")
    assert main(["predict", "run", "broken.png", "digits/0"]) == 1  # the others are predicted
    assert "broken.png is damaged" in capsys.readouterr().err
    assert len(read_rows("predictions.csv")) == len(list(Path("digits/0").iterdir()))
    Path("a.txt").write_text("x")
    Path("empty").mkdir()
    assert "no such file" in fails(["predict", "run", "nowhere.png"], capsys)
    assert "the model reads images" in fails(["predict", "run", "a.txt"], capsys)
    assert "no file in it with one of the suffixes" in fails(["predict", "run", "empty"], capsys)
    assert "--top 0 must be at least 1" in fails(["predict", "run", "digits", "--top=0"], capsys)
    assert "perceivers fit" in fails(["predict", "digits", "digits/0"], capsys)
    known = json.loads(Path("run/preprocessing.json").read_text())
    Path("run/preprocessing.json").write_text(json.dumps({**known, "channels": 2}))
    assert "channels=2 must be 1" in fails(["predict", "run", "digits/0"], capsys)
    Path("run/preprocessing.json").write_text(json.dumps({**known, "labels": ["a", "b", "c"]}))
    assert "outputs [2] numbers for 3 labels" in fails(["predict", "run", "digits/0"], capsys)
    Path("run/preprocessing.json").write_text(json.dumps({**known, "task": "pretraining"}))
    assert "was only pretrained and has no labels: perceivers fit PATH --from run" in fails(["predict", "run", "x"], capsys)
    Path("run/preprocessing.json").write_text("{")
    assert "damaged" in fails(["predict", "run", "digits/0"], capsys)
    Path("run/preprocessing.json").unlink()
    assert "has no preprocessing" in fails(["predict", "run", "digits/0"], capsys)


@pytest.mark.parametrize(("task", "total"), [("classification", 1.0), ("multi_label", None), ("regression", None)])
def test_results_of_each_task(task, total):
    """Probabilities that add up to 1; probabilities; and numbers in the units of the targets."""
    statistics = {"target_mean": [1000.0, 0.0], "target_std": [1.0, 1e-6]} if task == "regression" else {}
    arrays = Arrays(labels=["a", "b"], task=task, data_shape=[1, 6], mean=[0.0], std=[1.0], channel_axis=False, **statistics)
    model, preprocessing = load(save(arrays))
    found = dict(results(model, preprocessing, [("x", np.arange(6)), ("bad", np.zeros(3))], batch_size=2))
    assert "shape [1, 3]" in found["bad"]
    values = found["x"]
    if task == "regression":
        assert 900 < values[0] < 1100
        assert abs(values[1]) < 1e-3
        assert in_words(preprocessing, [1.5, 2.0], 1) == "a 1.5, b 2"
    else:
        assert ((values > 0) & (values < 1)).all()
        assert total is None or float(values.sum()) == pytest.approx(total)
        assert in_words(preprocessing, [0.25, 0.75], 1) == "b 75.0%"


def test_records_of_each_file():
    """Rows of tables, arrays, texts in tables and in folders."""
    np.savez("x.npz", x=np.arange(6).reshape(2, 3))
    table = Table(**COMMON, numeric=["0"], mean=[0.0], std=[1.0])
    assert list(read_records(["x.npz"], table)) == [
        ("x.npz:0", {"0": 0, "1": 1, "2": 2}),
        ("x.npz:1", {"0": 3, "1": 4, "2": 5}),
    ]
    arrays = Arrays(**COMMON, data_shape=[1, 3], mean=[0.0], std=[1.0])
    assert [name for name, _ in read_records(["x.npz"], arrays)] == ["x.npz:0", "x.npz:1"]
    pytest.importorskip("datasets", reason="the extra predict is not installed")
    text = Preprocessing.create({"kind": "Text", **COMMON, "max_length": 4})
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("abc")
    Path("b.csv").write_text("text,c\nxyz,1\n")
    assert list(read_records(["texts", "b.csv"], text)) == [("texts/a.txt", Path("texts/a.txt")), ("b.csv:0", "xyz")]
