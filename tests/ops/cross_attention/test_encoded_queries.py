"""Encoded queries: the operator by itself, the accuracy rule against projected queries, and when it is used.

Broken on purpose, each seen to fail: c left out, the norm's bias left out of c, centring dropped, offset dropped from dS, the
gradient of the first table written to the wrong rows, a tile's rows counted from zero.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

import accuracy
from accuracy import assert_accurate
from perceivers import PerceiverIO, inputs, outputs
from perceivers.ops.cross_attention import (
    IMPLEMENTATIONS,
    EncodedQueries,
    OpaqueQueryProjection,
    QueryProjection,
    Shared,
    cross_attention,
    encoded_queries,
    tiles,
)
from perceivers.ops.tokens import Positions, Tokens


@dataclass
class Case(accuracy.Case):
    """The other direction: what `accuracy.Case` makes the inputs of are the queries here, and latents are the inputs."""

    keys: int = 13
    v: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        leaves, width = self.leaves, 8
        del leaves["q"]
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
        leaves |= {"latents": draw(self.batch, self.keys, width), "w_q": 2 * leaves["w_k"]}
        leaves |= {f"w_{x}": draw(self.heads * n, width) / width**0.5 for x, n in (("k", self.k), ("v", self.v))}
        if self.bias:
            leaves["b_q"] = draw(self.heads * self.k)
        self.empty = leaves.pop("content_0") if self.content == 0 else None
        self.cotangent = draw(self.batch, self.heads, self.num_queries, self.v)

    @property
    def num_queries(self) -> int:
        """The number of encoded queries."""
        return 11 if self.indexed else prod(self.grids[0])

    def arguments(self, leaves: dict[str, Tensor], **kwargs) -> dict[str, Any]:
        """Return leaves as arguments of `cross_attention`."""
        empty = {} if self.empty is None else {"content_0": self.empty.to(leaves["w_q"].dtype)}
        arguments = super().arguments({"q": leaves["w_q"], **empty, **leaves}, **kwargs)
        projection = QueryProjection(arguments["norm"], leaves["w_q"], leaves.get("b_q"))
        queries = EncodedQueries(arguments["inputs"][0], projection, self.heads)
        return arguments | {"q_BHNK": queries, "inputs": [Tokens.of(leaves["latents"])], "norm": None}


CASES = {
    "grid": {},
    "positions alone": {"content": 0},
    "video, heads": {"grids": ((3, 4, 5),), "heads": 3},
    "index list": {"indexed": True},
    "rms": {"centred": False},
    "no norm, no bias": {"norm": False, "bias": False},
    "added": {"embedded": 5, "starts": [0, 0], "constant": True},
    "padding": {"content": 0, "constant": True},
    "one query": {"grids": ((1, 1),), "batch": 3},
    "one key": {"keys": 1},
}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("one key", "one query")])
def test_accuracy(name):
    assert_accurate(Case(**CASES[name]), "encoded_queries", torch.float32)


@pytest.mark.parametrize("tile", [1, 64, 1 << 18])
@pytest.mark.parametrize("name", CASES)
def test_float64_equals_projected_queries(name, tile, monkeypatch):
    """Whatever the tile: one row of the first axis, a few, all."""
    monkeypatch.setattr(tiles, "TILE", tile)
    case = Case(**CASES[name])
    ours, truth = case.evaluate("encoded_queries", torch.float64), case.evaluate("reference", torch.float64)
    for leaf, true in truth.items():
        torch.testing.assert_close(ours[leaf], true, rtol=1e-10, atol=1e-11, msg=lambda text, leaf=leaf: f"{leaf}: {text}")


@pytest.mark.parametrize("index", [False, True])
def test_operator(index):
    """Schema, fake tensors, autograd registration, and gradients of both results."""
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    lengths, axes = [3, 4], (7,) if index else (3, 4)
    indices = torch.stack([torch.randint(n, (2, 7)) for n in lengths], -1) if index else None
    tensors = draw(2, 10, 9), draw(2, 10), draw(2, 2, 5, 3), draw(2, 2, *axes), draw(2, *axes)
    torch.library.opcheck(encoded_queries.encoded_queries, (*tensors, indices, lengths))
    assert torch.autograd.gradcheck(lambda *x: encoded_queries.encoded_queries(*x, indices, lengths), tensors)


@pytest.fixture
def used(monkeypatch):
    """The numbers of queries of the calls that are computed by encoded queries."""
    calls, row = [], IMPLEMENTATIONS["encoded_queries"]
    run = lambda call: calls.append(call.num_queries) or row.run(call)  # noqa: E731
    monkeypatch.setitem(IMPLEMENTATIONS, "encoded_queries", replace(row, run=run))
    return calls


def image_model(**arguments):
    """Return a model from images to images with one wide head."""
    return PerceiverIO(
        inputs=inputs.Pixels(data_shape=[3, 12, 12], num_bands=4),
        outputs=outputs.Grid(axes=[40, 30], num_channels=3, num_bands=8),
        num_latent_tokens=64,
        dim=32,
        heads=2,
        decoder_qk_channels=512,
        decoder_query_residual=False,
        **arguments,
    )


@pytest.mark.parametrize("chunk_size", [None, 7, 100])
def test_a_model_uses_it(used, chunk_size):
    model, x = image_model().eval(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        ours = model(x, chunk_size=chunk_size)
        assert sum(used) == (0 if chunk_size == 7 else 1200)  # few queries do not pay
        model.set_attention_implementation("dense")
        torch.testing.assert_close(ours, model(x), rtol=1e-5, atol=5e-6)
    assert sum(used) == (0 if chunk_size == 7 else 1200)


def test_gradients_of_a_model(used):
    model, x = image_model(), torch.randn(2, 3, 12, 12)
    gradients = []
    for name in ("auto", "dense"):
        model.set_attention_implementation(name)
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    assert used == [1200]
    for (name, _), ours, theirs in zip(model.named_parameters(), *gradients, strict=True):
        if not name.endswith("to_k.bias"):  # nothing but rounding
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item(), msg=name)


@pytest.mark.parametrize("why", ["half precision", "autocast", "dropout", "narrow heads", "selected"])
def test_a_model_leaves_it(why, used):
    model, x = image_model(), torch.randn(2, 3, 12, 12)
    match why:
        case "half precision":
            model, x = model.bfloat16(), x.bfloat16()
        case "dropout":
            model = image_model(attention_dropout=0.1)
        case "narrow heads":
            model = image_model(decoder_heads=32)
        case "selected":
            model.set_attention_implementation("separable")
    with torch.autocast("cpu", enabled=why == "autocast"):
        model(x)
    assert not used


def test_queries_are_projected_only_when_needed(monkeypatch):
    case, projected = Case(), []
    project = EncodedQueries.projected
    monkeypatch.setattr(EncodedQueries, "projected", lambda self: projected.append(1) or project(self))
    case.call(case.leaves, "encoded_queries")
    assert not projected
    for name in ("reference", "dense", "absorbed", "separable"):
        case.call(case.leaves, name)
        assert len(projected) == 1
        projected.clear()


def refusals() -> dict[str, tuple[dict, str]]:
    case = Case()
    arguments = case.arguments(case.leaves)
    queries = arguments["q_BHNK"]
    opaque = OpaqueQueryProjection(queries.projection, "to_q is a table", torch.float64)
    line = Tokens(case.leaves["content_0"].flatten(2), Positions([torch.randn(63, 14).double()]))
    per_sample = Positions([table.expand(2, -1, -1) for table in queries.tokens.tables])
    halves = {name: leaf.bfloat16() for name, leaf in case.leaves.items()}
    masked = Tokens.of(case.leaves["latents"], torch.rand(2, 13) > 0.3)
    return {
        "projected": (arguments | {"q_BHNK": queries.projected()}, "the queries are projected already"),
        "opaque": (arguments | {"q_BHNK": replace(queries, projection=opaque)}, "to_q is a table"),
        "one axis": (arguments | {"q_BHNK": replace(queries, tokens=line)}, "no positions of two or more axes"),
        "crops": (
            arguments | {"q_BHNK": replace(queries, tokens=replace(queries.tokens, positions=per_sample))},
            "with the same tables for all samples",
        ),
        "mask": (arguments | {"inputs": [masked]}, "it attends to all inputs, and some are masked"),
        "half precision": (case.arguments(halves), "it is for float32 and float64"),
        "dropout": (arguments | {"dropout_p": 0.1}, "it cannot drop attention weights, and dropout_p=0.1"),
    }


@pytest.mark.parametrize("why", refusals())
def test_refusals(why):
    arguments, message = refusals()[why]
    with pytest.raises(ValueError, match=f"implementation='encoded_queries' cannot do this: .*{message}"):
        cross_attention(**arguments, implementation="encoded_queries")
    assert cross_attention(**arguments).isfinite().all()  # "auto" chooses another


def test_opaque_query_projection_equals_the_known_one():
    case = Case()
    arguments = case.arguments(case.leaves)
    queries = arguments["q_BHNK"]
    opaque = replace(queries, projection=OpaqueQueryProjection(queries.projection, "to_q is a table", torch.float64))
    wanted = cross_attention(**arguments, implementation="dense")
    assert torch.equal(cross_attention(**arguments | {"q_BHNK": opaque}, implementation="dense"), wanted)


def test_folded_keys_are_shared_by_calls_with_the_same_projection():
    case, shared = Case(), Shared()
    arguments = case.arguments(case.leaves) | {"implementation": "encoded_queries", "shared": shared}
    first = cross_attention(**arguments)
    keys = shared.folded_keys
    assert torch.equal(cross_attention(**arguments), first)
    assert shared.folded_keys is keys
    queries = arguments["q_BHNK"]
    other = replace(queries, projection=replace(queries.projection, w_q=2 * queries.projection.w_q))
    doubled = cross_attention(**arguments | {"q_BHNK": other})
    torch.testing.assert_close(doubled, cross_attention(**arguments | {"q_BHNK": other, "shared": None}))
    assert (doubled - first).abs().max() > 0.1


def test_holds_neither_scores_nor_queries():
    """200 x 200 queries of 384 channels and 128 keys: 20 MB of scores, 61 MB of queries; tiles are 1 MB."""
    case = Case(grids=((200, 200),), batch=1, keys=128, table=192, content=0, k=384, v=3)
    leaves = {name: leaf.float().requires_grad_() for name, leaf in case.leaves.items()}
    with torch.profiler.profile(profile_memory=True) as profile:
        case.call(leaves, "auto").sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events() if event.name.startswith("aten::"))
    assert 1e5 < largest < 8e6
