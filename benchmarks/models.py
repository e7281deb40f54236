"""Whole models in this and other libraries, with the same weights and image: inference and training steps.

    python -m benchmarks.models [--quick | --full] [--only PATTERN] [--keep]

Each runs in its own process and environment (created by `python -m benchmarks.peers`; libraries that are not installed are
left out, with a note). Outputs and gradients of the latents are compared before anything is timed; then calls take turns.
"forward" is without gradients; "step" is forward and backward to all parameters, without an optimiser. Ratios are the other
library's time over ours. "latent_transformers" is our model without its cross-attention blocks, the lower bound of its time;
"checkpointing" is our model with activation checkpointing. The last line is a JSON document.
"""

import json
import tempfile
from contextlib import ExitStack
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cases import COMPARISONS, QUICK, Comparison, write
from benchmarks.harness import MODES, differences, keep, parser, row, times
from benchmarks.processes import Process


def main() -> None:
    """Measure, print a table, and append the rows to the results if `--keep` is given."""
    options = parser(__doc__, only="models")
    options.add_argument("--full", action="store_true", help="all comparisons, not only those of make bench")
    arguments = options.parse_args()
    rows = []
    print(f"{'model':26} {'mode':8} {'what':20} {'median ms':>10} {'ratio':>7}")
    for name, comparison in COMPARISONS.items():
        if fnmatch(name, arguments.only) and (comparison.bench or arguments.full):
            measured = compare(name, comparison, quick=arguments.quick)
            rows += keep("models", measured) if arguments.keep else measured
    print(json.dumps(rows))


def compare(name: str, comparison: Comparison, quick: bool) -> list[dict[str, Any]]:
    """Build the models of one comparison, compare their results and time them."""
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = comparison.config | (QUICK if quick else {})
        write(folder / "case.pt", config, unbiased=comparison.unbiased)
        processes = {}
        for subject in ("ours", comparison.peer, *comparison.others):
            try:
                processes[subject] = stack.enter_context(Process(subject, folder / "case.pt"))
            except LookupError as error:
                print(f"{name:26} {'-':8} {subject:20} left out: {error}")
        if comparison.peer in processes:
            errors = differences(comparison.peer, processes[comparison.peer].results(), processes["ours"].results())
            print(
                f"{name:26} {'':8} {comparison.peer:20} differs by " + ", ".join(f"{e:.1e} ({k})" for k, e in errors.items())
            )
        for mode in MODES:
            calls = {s: partial(p.call, mode) for s, p in processes.items()}
            measured = times(calls, seconds=0.01 if quick else 6, at_least=3)
            lines = {
                s: row(ms, benchmark="models", model=name, mode=mode, what=s, version=processes[s].facts["version"])
                for s, ms in measured.items()
            }
            for s, line in lines.items():
                line["ratio_to_ours"] = round(line["p50_ms"] / lines["ours"]["p50_ms"], 3)
                print(f"{name:26} {mode:8} {s:20} {line['p50_ms']:10.1f} {line['ratio_to_ours']:7.2f}")
                rows.append(line)
    return rows


if __name__ == "__main__":
    main()
