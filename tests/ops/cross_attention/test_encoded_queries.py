"""Encoded queries: the operator by itself, the accuracy rule against projected queries, and when it is used.

Broken on purpose, each seen to fail: c left out, the norm's bias left out of c, centring dropped, offset dropped from dS, the
gradient of the first table written to the wrong rows, a tile's rows counted from zero.
"""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from accuracy import assert_accurate
from perceivers import PerceiverIO, inputs, outputs
from perceivers.ops.cross_attention import (
    IMPLEMENTATIONS,
    EncodedQueries,
    Norm,
    OpaqueQueryProjection,
    QueryProjection,
    Shared,
    cross_attention,
    encoded_queries,
    tiles,
)
from perceivers.ops.tokens import Positions, Tokens


@dataclass
class Case:
    """One call in float64, with everything random and everything differentiable."""

    grid: tuple[int, ...] = (9, 11)
    batch: int = 2
    heads: int = 1
    keys: int = 13
    content: int = 3
    table: int = 5
    k: int = 16
    v: int = 9
    norm: bool = True
    centred: bool = True
    bias: bool = True
    indexed: bool = False
    embedded: int | None = None
    starts: list[int] | None = None
    constant: bool = False
    nothing: bool = False
    leaves: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
        width = self.embedded or self.content
        starts = self.starts or [width + a * self.table for a in range(len(self.grid))]
        channels = max([width, *(start + self.table for start in starts)]) + 2 * self.constant
        self.leaves = {
            "latents": draw(self.batch, self.keys, 8),
            "w_q": 2 * draw(self.heads * self.k, channels) / channels**0.5,
            "w_k": draw(self.heads * self.k, 8) / 8**0.5,
            "w_v": draw(self.heads * self.v, 8) / 8**0.5,
        }
        if self.norm:
            self.leaves |= {"gamma": 1 + 0.3 * draw(channels), "beta": draw(channels)}
        if self.bias:
            self.leaves |= {
                "b_q": draw(self.heads * self.k),
                "b_k": draw(self.heads * self.k),
                "b_v": draw(self.heads * self.v),
            }
        self.leaves |= {f"table_{a}": draw(n, self.table) for a, n in enumerate(self.grid)}
        if self.embedded:
            self.leaves["embedding"] = draw(self.embedded, self.content)
        if self.constant:
            self.leaves["constant"] = draw(channels)
        self.index = torch.stack([torch.randint(n, (self.batch, 60)) for n in self.grid], -1) if self.indexed else None
        axes = [60] if self.indexed else self.grid
        if self.content:
            self.leaves["content"] = draw(self.batch, self.content, *axes)
        self.empty = torch.empty(self.batch, 0, *axes)
        self.cotangent = draw(self.batch, self.heads, self.empty[0, :].shape[1:].numel(), self.v)

    def call(self, leaves: dict[str, Tensor], implementation: str) -> Tensor:
        """Run the operation."""
        return cross_attention(**self.arguments(leaves), implementation=implementation)

    def arguments(self, leaves: dict[str, Tensor]) -> dict:
        """Return leaves as arguments of `cross_attention`."""
        positions = Positions([leaves[f"table_{a}"] for a in range(len(self.grid))], self.index, self.starts)
        content = leaves.get("content", self.empty.to(leaves["w_q"].dtype))
        tokens = Tokens(content, positions, None, leaves.get("embedding"), leaves.get("constant"))
        norm = Norm(leaves["gamma"], leaves["beta"], centred=self.centred) if self.norm else None
        queries = EncodedQueries(tokens, QueryProjection(norm, leaves["w_q"], leaves.get("b_q")), self.heads)
        weights = {name: leaves.get(name) for name in ("w_k", "b_k", "w_v", "b_v")}
        return {"q_BHNK": queries, "inputs": [Tokens.of(leaves["latents"])], "norm": None, **weights, "scale": self.k**-0.5}

    def evaluate(self, implementation: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Returns the output and the gradient of every leaf."""
        leaves = {name: leaf.to(dtype).requires_grad_() for name, leaf in self.leaves.items()}
        out = self.call(leaves, implementation)
        grads = torch.autograd.grad(out, list(leaves.values()), self.cotangent.to(out.dtype))
        return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


CASES = {
    "grid": {},
    "positions alone": {"content": 0},
    "video, heads": {"grid": (3, 4, 5), "heads": 3},
    "index list": {"indexed": True},
    "rms": {"centred": False},
    "no norm, no bias": {"norm": False, "bias": False},
    "added": {"embedded": 5, "starts": [0, 0], "constant": True},
    "padding": {"content": 0, "constant": True},
    "one query": {"grid": (1, 1), "batch": 3},
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
    """Makes images out of images with one wide head."""
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
    line = Tokens(case.leaves["content"].flatten(2), Positions([torch.randn(99, 10).double()]))
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
    case = Case(grid=(200, 200), batch=1, keys=128, table=192, content=0, k=384, v=3)
    leaves = {name: leaf.float().requires_grad_() for name, leaf in case.leaves.items()}
    with torch.profiler.profile(profile_memory=True) as profile:
        case.call(leaves, "auto").sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events() if event.name.startswith("aten::"))
    assert 1e5 < largest < 8e6
