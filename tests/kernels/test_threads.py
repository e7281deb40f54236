"""PyTorch's own threads for the C kernel: found if they are there, refused if in doubt, and turned off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perceivers.kernels import threads

REQUIRED = "kernel" in os.environ.get("PERCEIVERS_REQUIRE", "")
TORCH = Path(torch.__file__).parent


def line(path: str) -> str:
    return f"7f00-7f01 r-xp 00000000 08:01 1234    {path}"


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ([], None),
        (["/usr/lib/libm.so"], None),
        (["/usr/lib/libgomp.so.1"], "/usr/lib/libgomp.so.1"),
        (["/a/scikit_learn.libs/libgomp-1.so"] * 2, "/a/scikit_learn.libs/libgomp-1.so"),
        (["/a/scikit_learn.libs/libgomp-1.so", f"{TORCH}/lib/libgomp-2.so"], f"{TORCH}/lib/libgomp-2.so"),
        (["/a/scikit_learn.libs/libgomp-1.so", "/a/torch.libs/libgomp-2.so"], "/a/torch.libs/libgomp-2.so"),
        (["/a/one/libgomp-1.so", "/a/two/libgomp-2.so"], None),
        ([f"{TORCH}/lib/libgomp-1.so", "/a/torch.libs/libgomp-2.so"], None),
    ],
)
def test_which_library_is_pytorchs(paths, found):
    assert threads.library(map(line, paths)) == found


def test_team_is_found():
    """On Linux PyTorch's wheels bring GNU's OpenMP; without it threads are started for each call."""
    torch.randn(300, 300) @ torch.randn(300, 300)
    if REQUIRED:
        assert threads.team() is not None


def test_off_switch(monkeypatch):
    monkeypatch.setattr(threads, "_address", lambda: 123)
    assert threads.team() == 123
    monkeypatch.setenv("PERCEIVERS_OPENMP", "1")
    assert threads.team() == 123
    monkeypatch.setenv("PERCEIVERS_OPENMP", "0")
    assert threads.team() is None


def test_a_forked_child_has_no_team(monkeypatch):
    monkeypatch.setattr(threads, "_address", lambda: 123)
    monkeypatch.setattr(threads, "LOADED_IN", os.getpid() + 1)
    assert threads.team() is None


def test_without_proc(monkeypatch):
    def read_text(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(threads.Path, "read_text", read_text)
    assert threads._address.__wrapped__() is None


def test_team_is_found_beside_that_of_another_package():
    sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    code = "import sklearn.svm, torch; from perceivers.kernels import threads; print(threads.team() is not None)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    if REQUIRED:
        assert found.strip() == "True", sklearn.__file__
