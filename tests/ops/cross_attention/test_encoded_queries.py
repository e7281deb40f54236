"""Encoded queries: the operator by itself, the accuracy rule against projected queries, and when it is used.

Broken on purpose, each seen to fail: c left out, the norm's bias left out of c, centring dropped, offset dropped from dS, the
gradient of the first table written to the wrong rows, a tile's rows counted from zero.
"""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from accuracy import assert_accurate
from perceivers import PerceiverIO, inputs, outputs
from perceivers.ops.cross_attention import EncodedQueries, Norm, cross_attention, encoded_queries
from perceivers.ops.cross_attention.call import Call
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
        """Runs "encoded", or a name of the table on projected queries."""
        positions = Positions([leaves[f"table_{a}"] for a in range(len(self.grid))], self.index, self.starts)
        content = leaves.get("content", self.empty.to(leaves["w_q"].dtype))
        tokens = Tokens(content, positions, None, leaves.get("embedding"), leaves.get("constant"))
        norm = Norm(leaves["gamma"], leaves["beta"], centred=self.centred) if self.norm else None
        queries = EncodedQueries(tokens, norm, leaves["w_q"], leaves.get("b_q"), self.heads)
        rest = ([Tokens.of(leaves["latents"])], None, leaves["w_k"], leaves.get("b_k"), leaves["w_v"], leaves.get("b_v"))
        if implementation == "encoded":
            return encoded_queries.run(queries, Call(torch.empty(self.batch, self.heads, 0, self.k), *rest, self.k**-0.5))
        return cross_attention(queries, *rest, scale=self.k**-0.5, implementation=implementation)

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
    assert_accurate(Case(**CASES[name]), "encoded", torch.float32)


@pytest.mark.parametrize("tile", [1, 64, 1 << 18])
@pytest.mark.parametrize("name", CASES)
def test_float64_equals_projected_queries(name, tile, monkeypatch):
    """Whatever the tile: one row of the first axis, a few, all."""
    monkeypatch.setattr(encoded_queries, "TILE", tile)
    case = Case(**CASES[name])
    ours, truth = case.evaluate("encoded", torch.float64), case.evaluate("reference", torch.float64)
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
    """The sizes of the calls that "auto" gave to encoded queries."""
    calls, right = [], encoded_queries.run
    monkeypatch.setattr(encoded_queries, "run", lambda q, call: calls.append(q.tokens.num_inputs) or right(q, call))
    return calls


def picture_model(**arguments):
    """Makes pictures out of pictures with one wide head."""
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
    model, x = picture_model().eval(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        ours = model(x, chunk_size=chunk_size)
        assert sum(used) == (0 if chunk_size == 7 else 1200)  # few queries do not pay
        model.set_attention_implementation("dense")
        torch.testing.assert_close(ours, model(x), rtol=1e-5, atol=5e-6)
    assert sum(used) == (0 if chunk_size == 7 else 1200)


def test_gradients_of_a_model(used):
    model, x = picture_model(), torch.randn(2, 3, 12, 12)
    gradients = []
    for name in ("auto", "dense"):
        model.set_attention_implementation(name)
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    assert used == [1200]
    for (name, _), ours, theirs in zip(model.named_parameters(), *gradients, strict=True):
        if not name.endswith("to_k.bias"):  # nothing but rounding
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item(), msg=name)


@pytest.mark.parametrize("why", ["half precision", "autocast", "dropout", "narrow heads", "asked for"])
def test_a_model_leaves_it(why, used):
    model, x = picture_model(), torch.randn(2, 3, 12, 12)
    match why:
        case "half precision":
            model, x = model.bfloat16(), x.bfloat16()
        case "dropout":
            model = picture_model(attention_dropout=0.1)
        case "narrow heads":
            model = picture_model(decoder_heads=32)
        case "asked for":
            model.set_attention_implementation("separable")
    with torch.autocast("cpu", enabled=why == "autocast"):
        model(x)
    assert not used


def test_holds_neither_scores_nor_queries():
    """200 x 200 queries of 384 channels and 128 keys: 20 MB of scores, 61 MB of queries; tiles are 1 MB."""
    case = Case(grid=(200, 200), batch=1, keys=128, table=192, content=0, k=384, v=3)
    leaves = {name: leaf.float().requires_grad_() for name, leaf in case.leaves.items()}
    with torch.profiler.profile(profile_memory=True) as profile:
        case.call(leaves, "auto").sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events() if event.name.startswith("aten::"))
    assert 1e5 < largest < 8e6
