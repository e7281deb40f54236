"""`torch.hub` from a checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.checkout

CODE = """
import importlib.util, sys, torch
from perceivers import Perceiver, list_models
source = sys.argv[1]
model = torch.hub.load(source, "perceiver_io_imagenet_fourier_tiny", source="local", num_classes=3)
assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
assert model.model_name == "perceiver_io_imagenet_fourier_tiny"
model.save_pretrained("saved")
again = torch.hub.load(source, "from_pretrained", "saved", source="local")
torch.testing.assert_close(again(torch.ones(1, 3, 32, 32)), model.eval()(torch.ones(1, 3, 32, 32)))
assert isinstance(torch.hub.load(source, "perceiver_imagenet_fourier_tiny", source="local"), Perceiver)

specification = importlib.util.spec_from_file_location("hubconf", f"{source}/hubconf.py")
module = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)
names = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")}  # as torch.hub.list
assert names == {"create_model", "from_pretrained", "list_models", *list_models()}, names
assert module.perceiver_imagenet_fourier.__doc__.startswith("Create perceiver_imagenet_fourier with random weights")
"""


def test_entry_points(tmp_path):
    subprocess.run([sys.executable, "-W", "error", "-c", CODE, ROOT], check=True, cwd=tmp_path)
