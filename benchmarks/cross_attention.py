"""Cross-attention from latents to an encoded array: every implementation, and other libraries with the same weights.

    python -m benchmarks.cross_attention [--quick | --full] [--only PATTERN] [--keep]

The work is the attention of all latents before the output projection, computed from content and position tables. For
transformers, this is concatenation and its `PerceiverSelfAttention`; for KeOps, a formula (`benchmarks.peers.keops`), if it is
installed (`python -m benchmarks.peers keops`) and takes seconds rather than minutes. Results are compared before anything is
timed. Ratios are relative to `dense`, and above 1 is faster; they are fair as long as `dense` is about as fast as
transformers. `--full` adds sizes, and runs with one thread as well as with all. The last line is a JSON document.
"""

import json
import tempfile
from contextlib import ExitStack
from fnmatch import fnmatch
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import MODES, Subject, differences, keep, parser, row, times
from benchmarks.processes import Process
from perceivers.ops.cross_attention import IMPLEMENTATIONS, Call, Norm, cross_attention
from perceivers.ops.linear import linear
from perceivers.ops.tokens import Positions, Tokens
from perceivers.position import FourierFeatures


class Size(NamedTuple):
    """The sizes of one call: array, position features, queries."""

    grid: tuple[int, ...]
    content: int
    bands: int
    latents: int
    heads: int
    width: int


SIZES = {
    "64x64_N256": Size((64, 64), content=3, bands=32, latents=256, heads=1, width=133),
    "224x224_N512": Size((224, 224), content=3, bands=64, latents=512, heads=1, width=261),
    "224x224_N1024": Size((224, 224), content=1, bands=64, latents=1024, heads=1, width=512),
}
MORE_SIZES = {
    "224x224_N512_H8": Size((224, 224), content=3, bands=64, latents=512, heads=8, width=64),
    "512x512_N512": Size((512, 512), content=3, bands=64, latents=512, heads=1, width=261),
    "56x56_N512_U64": Size((56, 56), content=64, bands=64, latents=512, heads=1, width=322),  # after a convolution
    "16x112x112_N512": Size((16, 112, 112), content=3, bands=32, latents=512, heads=1, width=198),  # video
    "61440_N512": Size((61440,), content=1, bands=64, latents=512, heads=1, width=130),  # audio
}
QUICK = {"12x12_N16": Size((12, 12), content=3, bands=4, latents=16, heads=1, width=21)}
DENSE_TO_TRANSFORMERS = 1.1  # the aim: dense takes at most 1.1x the time of transformers
KEOPS_PAIRS, KEOPS_PAIRS_FULL = 1 << 20, 1 << 22  # pairs of a query and an input; a million takes KeOps 0.4 s


def main() -> None:
    """Measure, print a table, and append the rows to the results if `--keep` is given."""
    options = parser(__doc__, only="sizes")
    options.add_argument("--full", action="store_true", help="all sizes, with one thread and with all threads")
    arguments = options.parse_args()
    rows = []
    all_threads = torch.get_num_threads()
    print(f"{'size':16} {'threads':>7} {'mode':8} {'what':16} {'median ms':>10} {'ratio':>7}")
    for name, size in (QUICK if arguments.quick else SIZES | (MORE_SIZES if arguments.full else {})).items():
        for threads in sorted({1, all_threads} if arguments.full else {all_threads}):
            if fnmatch(name, arguments.only):
                torch.set_num_threads(threads)
                measured = compare(name, size, arguments.quick, KEOPS_PAIRS_FULL if arguments.full else KEOPS_PAIRS)
                rows += keep("cross_attention", measured) if arguments.keep else measured
    torch.set_num_threads(all_threads)
    print(json.dumps(rows))


def compare(name: str, size: Size, quick: bool, keops_pairs: int) -> list[dict[str, Any]]:
    """Compare results and time all subjects that can compute one size, with the current number of PyTorch threads."""
    work, rows = Work(size), []
    head = f"{name:16} {torch.get_num_threads():7}"
    with ExitStack() as stack:
        subjects, left_out = work.subjects()
        results = {what: subject.results() for what, subject in subjects.items()}
        if size.heads > 1 or size.latents * prod(size.grid) > keops_pairs:
            left_out["keops"] = "several heads, or so many pairs that it takes minutes"
        else:
            try:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                torch.save(work.case(), folder / "case.pt")
                subjects["keops"] = stack.enter_context(Process("keops", folder / "case.pt"))
                results["keops"] = subjects["keops"].results()
            except LookupError as error:
                left_out["keops"] = str(error)
        for what, result in results.items():
            differences(what, result, results["reference"])
        for what, reason in left_out.items():
            print(f"{head} {'-':8} {what:16} left out: {reason}")
        for mode in MODES:
            calls = {what: partial(subject.call, mode) for what, subject in subjects.items()}
            measured = times(calls, seconds=0.05 if quick else 3, at_least=3)
            lines = {
                what: row(ms, benchmark="cross_attention", size=name, mode=mode, what=what) for what, ms in measured.items()
            }
            for what, line in lines.items():
                line["ratio_to_dense"] = round(lines["dense"]["p50_ms"] / line["p50_ms"], 3)
                print(f"{head} {mode:8} {what:16} {line['p50_ms']:10.2f} {line['ratio_to_dense']:7.2f}")
                rows.append(line)
            slowness = lines["transformers"]["ratio_to_dense"]
            print(f"{head} {mode:8} dense takes {slowness:.2f}x the time of transformers (aim: {DENSE_TO_TRANSFORMERS}x)")
    return rows


class Work:
    """The tensors of one size, and the subjects that compute the same from them."""

    def __init__(self, size: Size) -> None:
        torch.manual_seed(0)
        self.heads, self.width = size.heads, size.width
        positions = FourierFeatures(num_bands=size.bands, resolutions=size.grid)
        tables = positions.tables(size.grid, dtype=torch.float32, device=torch.device("cpu"))
        self.tokens = Tokens(torch.randn(1, size.content, *size.grid), Positions(tables))
        self.theirs = transformers_attention(
            size.heads * size.width, channels=self.tokens.num_channels, heads=size.heads, width=size.heads * size.width
        )
        self.latents = torch.randn(1, size.latents, size.heads * size.width)

    def subjects(self) -> tuple[dict[str, Subject | Process], dict[str, str]]:
        """Return the subjects that can compute this size in this process, and for the others the reason why not."""
        leaves = list(self.theirs.parameters())
        subjects, left_out = {}, {}
        call = Call.of(**self.arguments())
        for name, implementation in IMPLEMENTATIONS.items():
            if (reason := implementation.refusal(call)) is not None:
                left_out[name] = reason
            else:
                subjects[name] = Subject(partial(self.ours, name), leaves)
        subjects["transformers"] = Subject(lambda: self.theirs(self.latents, inputs=self.tokens.encoded())[0], leaves)
        return subjects, left_out

    def ours(self, implementation: str) -> Tensor:
        """Compute the attention with one of our implementations."""
        return cross_attention(**self.arguments(), implementation=implementation).transpose(1, 2).flatten(-2)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `cross_attention`."""
        theirs = self.theirs
        q_BNK = linear(theirs.layernorm1(self.latents), theirs.query.weight, theirs.query.bias)
        return {
            "q_BHNK": q_BNK.unflatten(-1, (self.heads, self.width)).transpose(1, 2),
            "inputs": [self.tokens],
            "norm": Norm(theirs.layernorm2.weight, theirs.layernorm2.bias),
            "w_k": theirs.key.weight,
            "b_k": theirs.key.bias,
            "w_v": theirs.value.weight,
            "b_v": theirs.value.bias,
            "scale": self.width**-0.5,
        }

    def case(self) -> dict[str, Any]:
        """Return the case that `build` of a subject in another process takes."""
        return {"weights": self.theirs.state_dict(), "latents": self.latents, "x": self.tokens.encoded()}


def transformers_attention(latents_width: int, channels: int, heads: int, width: int) -> Any:
    """Return an attention module of transformers with random weights."""
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


if __name__ == "__main__":
    main()
