"""What "auto" chooses."""

import json
from pathlib import Path

import pytest
import torch

from accuracy import Case
from perceivers.kernels import loader
from perceivers.ops.cross_attention import IMPLEMENTATIONS, Call, EncodedQueries, Norm, QueryProjection
from perceivers.ops.cross_attention.implementation import choose
from perceivers.ops.tokens import Positions, Tokens

# What is chosen for the published models (decoders also in chunks of 20,000 and 1,000 queries) and for `make bench`.
RECORDED = json.loads(Path(__file__).with_name("choices.json").read_text())


def chosen(dtype=torch.float32, **kwargs) -> str:
    case = Case(batch=1, **kwargs)
    call = case.make({name: leaf.to(dtype) for name, leaf in case.leaves.items()})
    return choose(call, IMPLEMENTATIONS.values()).name


@pytest.mark.parametrize(
    ("wanted", "sizes"),
    [
        ("separable", {"grids": ((60, 70),), "content": 3, "table": 65, "k": 133, "v": 133, "queries": 128}),
        ("absorbed", {"grids": ((4200,),), "content": 3, "table": 33, "k": 133, "v": 133, "queries": 128}),  # one axis
        ("absorbed", {"grids": ((14, 14),), "content": 16, "table": 17, "k": 128, "v": 128, "queries": 16}),  # small images
        ("absorbed", {"grids": ((60, 70),), "content": 64, "table": 3, "k": 128, "v": 128, "queries": 128}),  # many channels
        ("dense", {"grids": ((14, 14),), "content": 64, "table": 65, "k": 16, "v": 16, "queries": 512, "heads": 8}),
    ],
)
def test_choice(wanted, sizes):
    assert chosen(**sizes) == wanted
    assert chosen(torch.bfloat16, **sizes) == "dense"
    with torch.autocast("cpu"):
        assert chosen(**sizes) == "dense"


def zeros(shape: list[int] | None, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
    """Zeros of any shape that take no memory."""
    return None if shape is None else torch.zeros((), dtype=dtype).expand(shape)


def tokens(sizes: dict) -> Tokens:
    tables = [zeros(table) for table in sizes["tables"]]
    positions = Positions(tables, zeros(sizes["index"], torch.long), sizes["starts"]) if tables else None
    return Tokens(zeros(sizes["content"]), positions, None, zeros(sizes["embedding"]), zeros(sizes["constant"]))


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("sizes", RECORDED, ids=lambda sizes: sizes["models"][0])
def test_recorded_choices(sizes, kernel, monkeypatch):
    """The same as when each was measured: a change here is one of the time that published models take."""
    if kernel and isinstance(loader.library(), str):
        pytest.skip(loader.description())
    if not kernel:
        monkeypatch.setenv("PERCEIVERS_INSTRUCTION_SET", "none")
    norm = lambda channels: Norm(zeros([channels]), zeros([channels]))  # noqa: E731
    queries = sizes["queries"]
    if isinstance(queries, dict):
        projection = QueryProjection(norm(queries["w_q"][1]) if queries["norm"] else None, zeros(queries["w_q"]), None)
        queries = EncodedQueries(tokens(queries), projection, queries["heads"])
    else:
        queries = zeros(queries)
    call = Call.of(
        queries,
        [tokens(group) for group in sizes["inputs"]],
        norm(sizes["w_k"][1]) if sizes["norm"] else None,
        zeros(sizes["w_k"]),
        None,
        zeros(sizes["w_v"]),
        None,
        scale=1.0,
    )
    assert choose(call, IMPLEMENTATIONS.values()).name == sizes["with_kernel" if kernel else "without_kernel"]


def test_keys_and_values_that_are_shared_cost_nothing():
    case = Case(grids=((7, 9),))
    call = case.make(case.leaves)
    before = IMPLEMENTATIONS["dense"].cost(call)
    call.keys_and_values()
    after = IMPLEMENTATIONS["dense"].cost(call)
    assert before.work - after.work == before.flops - after.flops == 2 * (16 + 16) * 63 * 17
