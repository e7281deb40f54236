"""What all tests share: what may be skipped, and the count of tests for each implementation and each peer.

`PERCEIVERS_REQUIRE` is a comma-separated list of what must be there: where it names "peers", a test whose peer is not
installed fails instead of being skipped; where it names "kernel", the C kernel must have been built; where it names
"training", the extra of that name must be installed.
"""

import importlib
import os
from collections import Counter

import pytest
import torch

from perceivers.ops.cross_attention import IMPLEMENTATIONS, kernel

REQUIRABLE = {"kernel", "peers", "training"}
REQUIRED = {name for name in os.environ.get("PERCEIVERS_REQUIRE", "").split(",") if name}
PEERS = ("transformers", "perceiver_pytorch", "flamingo_pytorch", "peft")

assert REQUIRED <= REQUIRABLE, f"PERCEIVERS_REQUIRE={sorted(REQUIRED)} may name {sorted(REQUIRABLE)}"

if "training" in REQUIRED:
    importlib.import_module("perceivers.training.run")

_counts: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Change to an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def peer(request):
    """The module named by `@pytest.mark.peer(name)`."""
    name = request.node.get_closest_marker("peer").args[0]
    try:
        return importlib.import_module(name)
    except ImportError:
        if "peers" in REQUIRED:
            raise
        pytest.skip(f"{name} is not installed: pip install 'perceivers[test]'")


def pytest_runtest_logreport(report):
    if report.when == "call":
        for key, value in report.user_properties:
            if key in ("implementation", "kernel", "peer"):
                _counts[f"{key} {value}: {report.outcome}"] += 1


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if marker := item.get_closest_marker("peer"):
        assert marker.args[0] in PEERS, f"{marker.args[0]} is not in PEERS of tests/conftest.py"
        item.user_properties.append(("peer", marker.args[0]))
    if callspec := getattr(item, "callspec", None):
        if (name := callspec.params.get("implementation")) in IMPLEMENTATIONS:
            item.user_properties.append(("implementation", name))
        if name := callspec.params.get("instruction_set"):
            item.user_properties.append(("kernel", name))


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("tests for each implementation and each peer")
    for kind, names in (("implementation", IMPLEMENTATIONS), ("kernel", kernel.INSTRUCTION_SETS), ("peer", PEERS)):
        for name in names:
            outcomes = {o: _counts[f"{kind} {name}: {o}"] for o in ("passed", "failed", "skipped")}
            terminalreporter.write_line(f"{kind} {name}: " + ", ".join(f"{n} {o}" for o, n in outcomes.items()))
