"""The demo as users run it, on small data: numbers, figure, the same result for the same seed, clear errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.checkout
DEMO = [sys.executable, "examples/Perceiver/demo.py"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """200 images of crosses and rings, 12 x 12."""
    rng = np.random.default_rng(0)
    x, y = np.zeros((200, 12, 12), np.uint8), np.arange(200) % 2
    for image, kind in zip(x, y, strict=True):
        i, j = rng.integers(3, 9, 2)
        if kind:
            image[i - 2 : i + 3, j] = image[i, j - 2 : j + 3] = 255
        else:
            image[i - 2 : i + 3, j - 2 : j + 3] = 255
            image[i - 1 : i + 2, j - 1 : j + 2] = 0
    file = tmp_path_factory.mktemp("data") / "shapes.npz"
    np.savez(file, x=x, y=y)
    return file


def run(*arguments, check=True):
    environment = {**os.environ, "COLUMNS": "200", "MPLBACKEND": "agg"}
    return subprocess.run(
        [*DEMO, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=check, env=environment, timeout=550
    )


def test_trains_and_draws(shapes, tmp_path):
    output = tmp_path / "new" / "figure.png"
    done = run("--data", shapes, "--steps", 60, "--output", output)
    assert "Perceiver of the README: 44,140,556 parameters" in done.stdout
    assert re.search(r"one image: \[1, 1, 224, 224\] -> \[1, 512\] in \d+\.\d s", done.stdout)
    assert "160 training images, 40 test images" in done.stdout
    accuracies = dict(re.findall(r"^  (.+?) +(\d+\.\d)%$", done.stdout, re.MULTILINE))
    assert list(accuracies)[:3] == ["logistic regression", "3 nearest neighbours", "support vectors (RBF)"]
    assert float(next(v for k, v in accuracies.items() if k.startswith("Perceiver"))) >= 90
    assert re.search(r"training: 100%.*60/60.*accuracy=.*loss=", done.stderr)
    assert output.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_same_seed_same_result(shapes, tmp_path):
    code = """
import sys; sys.path.insert(0, "examples/Perceiver")
import demo, torch
def fit(seed):
    data = demo.load(sys.argv[1])
    torch.manual_seed(seed)
    model = demo.small_perceiver(data[0], classes=2)
    return demo.train(model, *data, steps=8), torch.cat([p.detach().flatten() for p in model.parameters()])
(curve, weights), (again, same), (_, others) = fit(0), fit(0), fit(1)
assert curve == again and torch.equal(weights, same)
assert not torch.equal(weights, others)
"""
    subprocess.run([sys.executable, "-c", code, shapes], cwd=ROOT, check=True, capture_output=True)


def test_help_explains_the_options():
    text = run("--help").stdout
    for option in ("--data", "--steps", "--seed", "--output"):
        assert re.search(rf"{option} \w+ +\S", text), option


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--data", "nowhere.npz"], "--data nowhere.npz: .*No such file"),
        (["--data", "README.md"], "--data README.md: "),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_bad_arguments(arguments, message):
    done = run(*arguments, check=False)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr


def test_bad_arrays(tmp_path):
    np.savez(tmp_path / "flat.npz", x=np.zeros((4, 784)), y=np.zeros(4))
    done = run("--data", tmp_path / "flat.npz", check=False)
    assert done.returncode == 2
    assert "x has shape (4, 784) and y (4,), but [n, height, width] and [n] are needed" in done.stderr


def test_make_demo_runs_it():
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".venv/bin/python examples/Perceiver/demo.py" in [line.strip() for line in recipe.splitlines()]


@pytest.mark.slow
def test_whole_demo(tmp_path):
    """The README's claim, at full length: at least 96% test accuracy."""
    done = run("--output", tmp_path / "demo.png")
    assert float(re.search(r"^  Perceiver, \d+ s +(\d+\.\d)%$", done.stdout, re.MULTILINE)[1]) >= 96
