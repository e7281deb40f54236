"""The cross-attentions of each published model, "auto" against "dense": forward, one sample.

    python -m benchmarks.published [--quick] [--only PATTERN] [--keep]

"reads" is the first cross-attention block to the inputs, with norms, projections and feed-forward; "writes" is the whole
decoder, 20,000 queries at a time, for outputs whose queries are made from positions. Weights and inputs are random; results
are compared before anything is timed. The last line is a JSON document.
"""

import json
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks.harness import differences, keep, parser, row, times
from perceivers import Perceiver, PerceiverIO, create_model, list_models
from perceivers.factory import example_inputs
from perceivers.layers.block import CrossAttentionBlock
from perceivers.outputs import Grid, Multimodal, PerInput

CHUNK = 20_000


def main() -> None:
    """Measure, print a table, and append the rows to the results if `--keep` is given."""
    arguments = parser(__doc__, only="models").parse_args()
    rows = []
    print(f"{'model':40} {'part':7} {'sizes':>28} {'dense ms':>10} {'auto ms':>10} {'ratio':>7}")
    for name in list_models():
        small = name.endswith(("_tiny", "_small"))
        if small == arguments.quick and fnmatch(name, arguments.only):
            measured = compare(name, seconds=0.02 if arguments.quick else 3)
            rows += keep("published", measured) if arguments.keep else measured
    print(json.dumps(rows))


@torch.no_grad()
def compare(name: str, seconds: float) -> list[dict[str, Any]]:
    """Compare results and time the parts of one model."""
    torch.manual_seed(0)
    model, rows = create_model(name).eval(), []
    for parameter in model.parameters():  # including those initialised to zero, which would make results zero
        parameter.normal_(std=(parameter.shape[-1] if parameter.ndim > 1 else 4) ** -0.5)
    for part, (sizes, call) in parts(model, example_inputs(name)).items():
        calls: dict[str, Callable[[], Tensor]] = {}
        for implementation in ("dense", "auto"):
            calls[implementation] = partial(run, model, implementation, call)
        results = {implementation: {"output": call()} for implementation, call in calls.items()}
        differences(name, results["auto"], results["dense"])
        sizes += f" -> {results['dense']['output'].numel()} values" if part == "writes" else ""
        lines = {
            what: row(ms, benchmark="published", model=name, part=part, sizes=sizes, what=what)
            for what, ms in times(calls, seconds=seconds, at_least=2 if part == "writes" else 3).items()
        }
        dense, auto = (lines[what]["p50_ms"] for what in ("dense", "auto"))
        lines["auto"]["ratio_to_dense"] = round(dense / auto, 3)
        print(f"{name:40} {part:7} {sizes:>28} {dense:10.1f} {auto:10.1f} {dense / auto:7.2f}", flush=True)
        rows += lines.values()
    return rows


def run(model: Perceiver | PerceiverIO, implementation: str, call: Callable[[], Tensor]) -> Tensor:
    """Call a part of a model with one implementation."""
    model.set_attention_implementation(implementation)
    return call()


def parts(model: Perceiver | PerceiverIO, x: Any) -> dict[str, tuple[str, Callable[[], Tensor]]]:
    """Return the sizes and the function of each part of a model."""
    x = tree_map(lambda leaf: torch.randn_like(leaf) if leaf.is_floating_point() else leaf, x)
    tokens = model.tokens(x)
    latents, block = model.encoder.latents[None], cast(CrossAttentionBlock, model.encoder.cross_attentions[0])
    sizes = f"{len(latents[0])} x {sum(group.num_inputs for group in tokens)} x {tokens[0].num_channels}"
    result = {"reads": (sizes, lambda: block(latents, tokens))}
    if isinstance(model, PerceiverIO) and isinstance(model.outputs, Grid | PerInput | Multimodal):
        result["writes"] = (str(len(latents[0])), lambda: flat(model.decode(latents, tokens, chunk_size=CHUNK)))
    return result


def flat(results: Tensor | dict[str, Tensor]) -> Tensor:
    """Return all results of a model, concatenated."""
    return results.flatten() if isinstance(results, Tensor) else torch.cat([result.flatten() for result in results.values()])


if __name__ == "__main__":
    main()
