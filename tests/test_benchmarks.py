"""The benchmarks run at small sizes. What they measure is not checked here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from accuracy import IMPLEMENTATIONS

pytest.importorskip("benchmarks", reason="needs the checkout")  # a wheel's tests are collected without it
from benchmarks.cases import COMPARISONS, QUICK, write
from benchmarks.harness import MODES, differences
from benchmarks.peers import PEERS, interpreter
from benchmarks.processes import Failed, Process

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.checkout, pytest.mark.peer("transformers")]


def run(*arguments: str) -> tuple[list[dict], str]:
    """Return the rows on a benchmark's last line, and the table before it."""
    out = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    table, _, last = out.rstrip().rpartition("\n")
    return json.loads(last), table


def installed(peer: str, table: str) -> bool:
    """Return whether a peer is installed; if not, check that the table gives the reason."""
    try:
        interpreter(peer)
    except LookupError as error:
        reason = str(error)
    else:
        return True
    assert f"left out: {reason}" in table
    return False


def test_cross_attention(peer):
    rows, table = run("benchmarks.cross_attention", "--quick")
    refused = {name for name in IMPLEMENTATIONS if f"{name:16} left out: " in table}
    assert refused.isdisjoint({"reference", "dense", "absorbed", "separable"})
    ours = [name for name in IMPLEMENTATIONS if name not in refused]
    peers = ["transformers", *(["keops"] if installed("keops", table) else [])]
    assert [(row["mode"], row["what"]) for row in rows] == [(mode, what) for mode in MODES for what in (*ours, *peers)]
    assert all(row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in rows)
    assert table.count("x the time of transformers") == 2


def test_models(peer):
    rows, table = run("benchmarks.models", "--quick")
    for name in ("transformers", "perceiver_pytorch", "krasserm"):
        if installed(name, table):
            assert f"{name:20} differs by" in table
            assert [row["mode"] for row in rows if row["what"] == name] == ["forward", "step"]
    assert all(row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in rows)


def test_published():
    rows, table = run("benchmarks.published", "--quick", "--only", "*_tiny")
    parts = {(row["model"], row["part"]) for row in rows}
    assert ("perceiver_imagenet_fourier_tiny", "reads") in parts
    assert ("perceiver_io_optical_flow_tiny", "writes") in parts
    assert table.count("\n") == len(rows) / 2
    assert all(row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in rows)


def test_memory(peer):
    rows, _ = run("benchmarks.memory", "--quick", "--only", "fourier_1cross")
    assert [(row["what"], row["mode"]) for row in rows] == [
        *(("ours", mode) for mode in MODES),
        ("checkpointing", "step"),
        *(("transformers", mode) for mode in MODES),
    ]
    assert all(0 < row["added_mib"] < row["peak_mib"] for row in rows)


def test_out_of_memory_is_reported(peer, tmp_path):
    config = COMPARISONS["fourier_1cross"].config | QUICK | {"data_shape": [3, 2048, 2048]}
    write(tmp_path / "case.pt", config)
    with Process("transformers", tmp_path / "case.pt", budget=2**30) as process:
        with pytest.raises(Failed, match=r"^transformers: out of memory$"):
            process.call("forward")


def test_different_results_are_refused():
    true = torch.randn(3, 4)
    assert differences("x", {"output": true * 1.0001}, {"output": true})["output"] == pytest.approx(1e-4, rel=0.01)
    with pytest.raises(AssertionError, match=r"x: output differs by 0\.01 of"):
        differences("x", {"output": true * 1.01}, {"output": true})
    with pytest.raises(AssertionError, match="x: output has shape"):
        differences("x", {"output": true.T}, {"output": true})


def test_unknown_peers_are_refused():
    command = [sys.executable, "-m", "benchmarks.peers", "nothing"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2
    assert f"nothing: not a peer, must be one of {', '.join(PEERS)}" in process.stderr


@pytest.mark.parametrize(
    ("verb", "commands"),
    [
        ("bench", ["cross_attention", "models"]),
        ("bench-full", ["cross_attention --full", "models --full", "published", "memory"]),
    ],
)
def test_make_runs_them(verb, commands):
    recipe = subprocess.run(["make", "-n", verb], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in recipe.splitlines()]
    assert [line for line in lines if "-m benchmarks." in line] == [
        f".venv/bin/python -m benchmarks.{command}" for command in ("peers", *commands)
    ]
