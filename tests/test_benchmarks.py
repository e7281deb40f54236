"""The benchmarks run, on small sizes; what they measure is nobody's business here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perceivers.ops.cross_attention import IMPLEMENTATIONS

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.checkout, pytest.mark.peer("transformers")]


def test_cross_attention(peer):
    command = [sys.executable, "-m", "benchmarks.cross_attention", "--quick"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rows = json.loads(out.splitlines()[-1])
    assert [(row["mode"], row["what"]) for row in rows] == [
        (mode, what) for mode in ("forward", "forward_backward") for what in (*IMPLEMENTATIONS, "transformers")
    ]
    assert all(row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in rows)


def test_make_bench_runs_it():
    recipe = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".venv/bin/python -m benchmarks.cross_attention" in [line.strip() for line in recipe.splitlines()]
