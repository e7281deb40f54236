"""Cross-attention from latents to an encoded picture: every implementation, and transformers' code on the same weights.

    python -m benchmarks.cross_attention [--quick] [--keep]

The work: content beside position tables in, attention of all latents out, before the output projection. For transformers
that is concatenation and its `PerceiverSelfAttention`; results are compared before anything is timed. Ratios are against
`dense`, above 1 is faster than it. The last line is one JSON document.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import keep, row, times
from perceivers.ops.cross_attention import IMPLEMENTATIONS, Norm, cross_attention
from perceivers.ops.tokens import Positions, Tokens
from perceivers.position import FourierFeatures

# name: grid, content channels, bands, latents, heads, width of a head
SIZES = {
    "64x64_N256": ((64, 64), 3, 32, 256, 1, 133),
    "224x224_N512": ((224, 224), 3, 64, 512, 1, 261),
    "224x224_N1024": ((224, 224), 1, 64, 1024, 1, 512),
}
QUICK = {"12x12_N16": ((12, 12), 3, 4, 16, 1, 21)}


def main() -> None:
    """Measures, prints a table, keeps rows where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small size, to see that all of it runs")
    parser.add_argument("--keep", action="store_true", help="append rows to benchmarks/results")
    arguments = parser.parse_args()
    rows = []
    print(f"{'size':16} {'mode':18} {'implementation':16} {'median ms':>10} {'ratio':>7}")
    for name, size in (QUICK if arguments.quick else SIZES).items():
        functions, leaves = build(*size)
        check(functions)
        for mode in ("forward", "forward_backward"):
            calls = {key: timed(function, leaves, mode) for key, function in functions.items()}
            measured = times(calls, seconds=0.05 if arguments.quick else 3)
            lines = {key: row(ms, benchmark="cross_attention", size=name, mode=mode, what=key) for key, ms in measured.items()}
            for key, line in lines.items():
                line["ratio_to_dense"] = round(lines["dense"]["p50_ms"] / line["p50_ms"], 3)
                print(f"{name:16} {mode:18} {key:16} {line['p50_ms']:10.2f} {line['ratio_to_dense']:7.2f}")
                rows.append(line)
    if arguments.keep:
        keep("cross_attention", rows)
    print(json.dumps(rows))


def build(
    grid: tuple[int, ...], content: int, bands: int, latents: int, heads: int, width: int
) -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
    """Returns functions of no argument that all compute the same, and the tensors whose gradients a training step needs."""
    torch.manual_seed(0)
    positions = FourierFeatures(num_bands=bands, resolutions=grid)
    tables = positions.tables(grid, dtype=torch.float32, device=torch.device("cpu"))
    channels = content + positions.num_channels
    tokens = Tokens(torch.randn(1, content, *grid), Positions(tables))
    theirs = transformers_attention(latents_width=width * heads, channels=channels, heads=heads, width=width * heads)
    q_input = torch.randn(1, latents, width * heads)
    weights = (theirs.key.weight, theirs.key.bias, theirs.value.weight, theirs.value.bias)
    norm = Norm(theirs.layernorm2.weight, theirs.layernorm2.bias)

    def ours(implementation: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            q = theirs.query(theirs.layernorm1(q_input)).unflatten(-1, (heads, width)).transpose(1, 2)
            out = cross_attention(q, [tokens], norm, *weights, scale=width**-0.5, implementation=implementation)
            return out.transpose(1, 2).flatten(-2)

        return call

    functions = {name: ours(name) for name in IMPLEMENTATIONS}
    functions["transformers"] = lambda: theirs(q_input, inputs=tokens.encoded())[0]
    return functions, list(theirs.parameters())


def transformers_attention(latents_width: int, channels: int, heads: int, width: int) -> Any:
    """Builds transformers' attention module with random weights."""
    from transformers import PerceiverConfig
    from transformers.models.perceiver.modeling_perceiver import PerceiverSelfAttention

    config = PerceiverConfig(attention_probs_dropout_prob=0.0)
    return PerceiverSelfAttention(
        config,
        is_cross_attention=True,
        qk_channels=width,
        v_channels=width,
        num_heads=heads,
        q_dim=latents_width,
        kv_dim=channels,
    )


def check(functions: dict[str, Callable[[], Tensor]]) -> None:
    """Fails where two of the functions disagree: the speed of something else is of no interest."""
    with torch.no_grad():
        wanted = functions["reference"]()
        for name, function in functions.items():
            torch.testing.assert_close(function(), wanted, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def timed(function: Callable[[], Tensor], leaves: list[Tensor], mode: str) -> Callable[[], object]:
    """Wraps a function for one mode: without gradients, or with those of the parameters."""
    if mode == "forward":
        return torch.no_grad()(function)
    return lambda: torch.autograd.grad(function().square().sum(), leaves)


if __name__ == "__main__":
    main()
