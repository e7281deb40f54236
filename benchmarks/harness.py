"""Times functions side by side, and stores the rows with everything needed to interpret them later."""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
MODES = ("forward", "step")
TOLERANCE = 1e-3  # relative to the largest value of a result: float32, up to 48 layers


def parser(doc: str | None, only: str) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks; `only` names what `--only` selects from."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that everything runs")
    parser.add_argument("--only", default="*", metavar="PATTERN", help=f"{only} whose name matches")
    parser.add_argument("--keep", action="store_true", help="append rows to benchmarks/results")
    return parser


class Subject:
    """A function to measure.

    Args:
        function: Computes the output.
        leaves: The parameters whose gradients a training step computes.
    """

    def __init__(self, function: Callable[[], Tensor], leaves: list[Tensor]) -> None:
        self.function, self.leaves = function, leaves

    def call(self, mode: str) -> None:
        """Compute the output without gradients ("forward"), or with those of all leaves ("step", without an optimiser)."""
        if mode == "forward":
            with torch.no_grad():
                self.function()
        else:
            self._step()

    def results(self) -> dict[str, Tensor]:
        """Return the output of a step and the gradient of the first leaf."""
        output, gradients = self._step()
        return {"output": output.detach(), "gradient": gradients[0]}

    def _step(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        output = self.function()
        return output, torch.autograd.grad(output.square().mean(), self.leaves)


def differences(what: str, results: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of each result, relative to its largest value.

    Raises:
        AssertionError: If the results differ, so that their times cannot be compared.
    """
    errors = {}
    for name, true in wanted.items():
        assert results[name].shape == true.shape, f"{what}: {name} has shape {list(results[name].shape)}"
        errors[name] = ((results[name] - true).abs().max() / true.abs().max()).item()
        assert errors[name] < TOLERANCE, f"{what}: {name} differs by {errors[name]:.2g} of its largest value"
    return errors


def times(functions: Mapping[str, Callable[[], object]], seconds: float, at_least: int = 5) -> dict[str, list[float]]:
    """Call the functions in turn for about `seconds` each, and return all times in milliseconds.

    Taking turns spreads the machine's other work over all functions. The first call of each is a warmup and is not counted.
    """
    measured: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    while any(len(m) < at_least or sum(m) < seconds * 1e3 for m in measured.values()):
        for name, function in functions.items():
            if len(measured[name]) < at_least or sum(measured[name]) < seconds * 1e3:
                start = time.perf_counter()
                function()
                measured[name].append((time.perf_counter() - start) * 1e3)
    return measured


def machine() -> dict[str, Any]:
    """Return the commit, versions and device of this run."""
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit or "unknown",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def row(measured: list[float], **facts: Any) -> dict[str, Any]:
    """Return one row of results: the facts, and percentiles of the times in milliseconds."""
    fifths = statistics.quantiles(measured, n=5, method="inclusive")
    percentiles = {"p20_ms": fifths[0], "p50_ms": statistics.median(measured), "p80_ms": fifths[3]}
    facts = {**facts, "threads": torch.get_num_threads()}
    return {**facts, **{name: round(value, 3) for name, value in percentiles.items()}, "calls": len(measured)}


def keep(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Append the rows to `results/{name}.jsonl`, each with the facts of the machine, and return them."""
    RESULTS.mkdir(exist_ok=True)
    facts = machine()
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        for line in rows:
            file.write(json.dumps({**facts, **line}) + "\n")
    return rows


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), platform.machine()
    )
