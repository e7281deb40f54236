"""Kernels and their loader do without PyTorch, so that `perceivers info` is fast."""

import subprocess
import sys

from perceivers import kernels
from perceivers.kernels import loader
from perceivers.ops.cross_attention import IMPLEMENTATIONS


def test_imports_no_torch():
    code = (
        "import sys; from perceivers.kernels import loader, threads; loader.description(); threads.team();"
        "print(sorted({'torch', 'numpy', 'einops'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_names_are_those_of_the_table():
    assert tuple(IMPLEMENTATIONS) == kernels.IMPLEMENTATIONS


def test_a_library_that_does_not_load(monkeypatch):
    def fail(path):
        raise OSError("invalid ELF header")

    monkeypatch.setattr(loader, "EXTENSION_SUFFIXES", [".py"])
    monkeypatch.setattr(loader.Path, "exists", lambda self: True)
    monkeypatch.setattr(loader.ctypes, "CDLL", fail)
    assert loader.library.__wrapped__() == "_separable.py does not load: invalid ELF header"
    monkeypatch.setattr(loader.Path, "exists", lambda self: False)
    assert "it was not built" in loader.library.__wrapped__()
