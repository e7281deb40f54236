"""Peak memory of a fresh process, at growing image sizes, within a budget.

    python -m benchmarks.memory [--quick] [--only PATTERN] [--budget GIB] [--seconds S] [--keep]

Published models, their training step with activation checkpointing, the same models in other libraries, and 3840 x 2160, which
only ours can do. Each row has:

    held_mib      memory of the process after imports, with the model, its weights and its input
    peak_mib      peak memory of the process during the two calls that follow
    added_mib     the difference
    first_ms, ms  times of the first and the second call

A process that exceeds the budget (`RLIMIT_DATA`) is out of memory. Larger sizes are then not tried, nor after a call that took
longer than `--seconds`. The last line is a JSON document.
"""

import argparse
import json
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import COMPARISONS, QUICK, write
from benchmarks.harness import MODES, keep, parser
from benchmarks.processes import Failed, Process

MODELS = ("fourier_1cross", "fourier")
IMAGE_SIZES = tuple((224 * 2**i, 224 * 2**i) for i in range(5))
COLUMNS = ("held_mib", "peak_mib", "added_mib", "first_ms", "ms")
FOUR_K = (2160, 3840)  # too large for the other libraries


def main() -> None:
    """Measure, print a table, and append the rows to the results if `--keep` is given."""
    options = parser(__doc__, only="models")
    options.add_argument("--budget", type=float, default=12, metavar="GIB", help="memory that a process may hold (12)")
    options.add_argument("--seconds", type=float, default=120, metavar="S", help="no larger size after a slower call (120)")
    arguments = options.parse_args()
    rows = []
    print(f"{'model':16} {'mode':8} {'what':14} {'image':>12}" + "".join(f"{column:>11}" for column in COLUMNS))
    for name in MODELS:
        for what in ("ours", "checkpointing", COMPARISONS[name].peer):
            for mode in MODES if what != "checkpointing" else ("step",):
                image_sizes = [(12, 10)] if arguments.quick else [*IMAGE_SIZES, *([FOUR_K] if what == "ours" else [])]
                if fnmatch(name, arguments.only):
                    measured = grow(name, what, mode, image_sizes, arguments)
                    rows += keep("memory", measured) if arguments.keep else measured
    print(json.dumps(rows))


def grow(
    name: str, what: str, mode: str, image_sizes: list[tuple[int, int]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure one subject once per size, smallest first, until it fails or becomes too slow."""
    rows = []
    for height, width in sorted(image_sizes):
        facts = {"benchmark": "memory", "model": name, "mode": mode, "what": what, "image_size": f"{height}x{width}"}
        facts |= {"threads": torch.get_num_threads(), "budget_gib": arguments.budget}
        head = f"{name:16} {mode:8} {what:14} {facts['image_size']:>12}"
        config = COMPARISONS[name].config | (QUICK if arguments.quick else {}) | {"data_shape": [3, height, width]}
        try:
            measured = measure(what, mode, config, arguments)
        except LookupError as error:
            print(f"{head} left out: {error}")
            break
        except Failed as error:
            print(f"{head} {error} (budget {arguments.budget:g} GiB)")
            rows.append(facts | {"failed": str(error)})
            break
        rows.append(facts | measured)
        print(head + "".join(f"{measured[column]:11,.0f}" for column in COLUMNS))
        if measured["ms"] > arguments.seconds * 1e3:
            print(f"{head} no larger size: more than {arguments.seconds:g} s")
            break
    return rows


def measure(what: str, mode: str, config: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return memory and times of two calls in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder) / "case.pt"
        write(case, config)
        with Process(what, case, budget=int(arguments.budget * 2**30), seconds=5 * arguments.seconds) as process:
            first, second = process.call(mode), process.call(mode)
            return {
                **process.facts,
                "peak_mib": second["peak_mib"],
                "added_mib": round(second["peak_mib"] - process.facts["held_mib"], 1),
                "first_ms": round(first["ms"], 3),
                "ms": round(second["ms"], 3),
            }


if __name__ == "__main__":
    main()
