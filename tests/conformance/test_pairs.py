"""Laws that any input with any output keeps: one suite over the pairs that make sense, with random shapes.

Every parameter is drawn at random, in float64, and results must vary over the batch: a dead part would keep every law.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accuracy import IMPLEMENTATIONS, assert_varies, draw_parameters
from perceivers import PerceiverIO

DIM, CLASSES, VOCABULARY = 12, 3, 9
draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731


@dataclass
class Source:
    """One input module: its description, and data for it."""

    describe: Callable[[int, int], dict[str, Any]]
    data: Callable[[int, int, int], Any]  # batch, height, width
    masks: Callable[[int, int, int], Any] | None = None
    hidden: Callable[[Any, Any], Any] | None = None  # data with rubbish where a mask is False


def rubbish(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.reshape(len(x), 1, *x.shape[2:]), x, math.nan)


def some(*shape: int) -> Tensor:
    mask = torch.rand(*shape) > 0.4
    mask.flatten(1)[:, 0] = True
    return mask


PATCHES = {"kind": "Patches", "patch_size": [1, 2], "num_bands": 2, "resolution": 8}
SOURCES = {
    "pixels": Source(
        lambda h, w: {"kind": "Pixels", "data_shape": [2, h, w], "num_bands": 2, "resolution": 8},
        lambda b, h, w: draw(b, 2, h, w),
        some,
        rubbish,
    ),
    "learned pixels": Source(
        lambda h, w: {
            "kind": "LearnedPixels",
            "data_shape": [2, h, w],
            "embed_dim": 4,
            "position_channels": 3,
            "position_dim": 5,
        },
        lambda b, h, w: draw(b, 2, h, w),
        some,
        rubbish,
    ),
    "frames": Source(
        lambda h, w: {"kind": "FramePairs", "data_shape": [1, h, w], "embed_dim": 4, "num_bands": 2, "resolution": 8},
        lambda b, h, w: draw(b, 1, 2, h, w),
        some,
        lambda x, mask: torch.where(mask[:, None, None], x, math.nan),
    ),
    "text": Source(
        lambda h, w: {"kind": "TokenIds", "vocab_size": VOCABULARY, "max_length": h * w, "dim": 6},
        lambda b, h, w: torch.randint(VOCABULARY, (b, h * w)),
        lambda b, h, w: some(b, h * w),
        lambda x, mask: torch.where(mask, x, 10**6),
    ),
    "features": Source(
        lambda h, w: {"kind": "Features", "dim": 5},
        lambda b, h, w: draw(b, h * w, 5),
        lambda b, h, w: some(b, h * w),
        lambda x, mask: torch.where(mask.unsqueeze(-1), x, math.nan),
    ),
    "several": Source(
        lambda h, w: {
            "kind": "Multimodal",
            "modalities": {
                "video": {**PATCHES, "data_shape": [1, h, 2 * w], "feature_order": "kinds"},
                "label": {"kind": "Labels", "num_classes": CLASSES},
            },
        },
        lambda b, h, w: {"video": draw(b, 1, h, 2 * w), "label": draw(b, CLASSES)},
        lambda b, h, w: {"video": some(b, h, 2 * w)},
        lambda x, mask: {**x, "video": rubbish(x["video"], mask["video"])},
    ),
}
WIDTHS = {"pixels": 12, "learned pixels": 9, "frames": 14, "text": 6, "features": 5, "several": 14}
GRID = {"kind": "Grid", "num_channels": 2, "num_bands": 2, "resolution": 8}
CLASS = {"kind": "LearnedQueries", "dim": 8, "num_channels": CLASSES}

# name of the output: (its description from height, width and the name of the input; inputs it makes sense for)
SINKS: dict[str, tuple[Callable[[int, int, str], dict[str, Any]], list[str]]] = {
    "mean": (
        lambda h, w, source: {"kind": "MeanPool", "dim": DIM, "num_channels": CLASSES, "final_norm": True},
        list(SOURCES),
    ),
    "class": (lambda h, w, source: CLASS, list(SOURCES)),
    "learned": (lambda h, w, source: {**CLASS, "num_queries": 4, "num_channels": None}, ["pixels", "several"]),
    "tasks": (lambda h, w, source: {"kind": "MultiTask", "dim": 8, "tasks": {"a": 2, "b": 5}}, ["text", "several"]),
    "tokens": (
        lambda h, w, source: {"kind": "TokenLogits", "max_length": h * w, "dim": 6, "vocab_size": VOCABULARY},
        ["text"],
    ),
    "own tokens": (
        lambda h, w, source: {
            "kind": "TokenLogits",
            "max_length": h * w,
            "dim": 5,
            "vocab_size": VOCABULARY,
            "tied_to": None,
        },
        ["text", "pixels"],
    ),
    "grid": (lambda h, w, source: {**GRID, "axes": [h, w], "patch": [2, 1]}, list(SOURCES)),
    "learned grid": (lambda h, w, source: {**GRID, "axes": [h, w], "learned_channels": 5}, ["pixels", "text"]),
    "grid with content": (
        lambda h, w, source: {**GRID, "axes": [h, w], "content_channels": 4 if source == "frames" else 2},
        ["pixels", "frames"],
    ),
    "inputs": (
        lambda h, w, source: {"kind": "PerInput", "dim": WIDTHS[source], "num_channels": 2, "divisor": 0.5},
        list(SOURCES),
    ),
    "each token": (
        lambda h, w, source: {"kind": "PerToken", "dim": WIDTHS[source], "num_channels": VOCABULARY},
        ["text", "features"],
    ),
    "several": (
        lambda h, w, source: {
            "kind": "Multimodal",
            "modalities": {
                "video": {**GRID, "axes": [h, w], "decoded_channels": 7},
                "label": {**CLASS, "decoded_channels": 7},
                "mean": {"kind": "MeanPool", "dim": DIM},
            },
            "decoded_channels": 7,
        },
        list(SOURCES),
    ),
}
PAIRS = [(source, sink) for sink, (_, sources) in SINKS.items() for source in sources]

pairs = pytest.mark.parametrize(("source", "sink"), PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
sizes = given(height=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 99))
few = settings(max_examples=4, derandomize=True, deadline=None, database=None)


def build(source: str, sink: str, height: int, width: int, **changes: Any) -> PerceiverIO:
    model = PerceiverIO(
        **{
            "inputs": SOURCES[source].describe(height, width),
            "outputs": SINKS[sink][0](height, width, source),
            "num_latent_tokens": 5,
            "dim": DIM,
            "heads": 2,
            "cross_heads": 2,
            "layers_indice": [0, 1],
            "num_latent_transformers_in_layers": [1, 0],
            "qk_channels": 6,
            "v_channels": 8,
            "decoder_heads": 2,
            "decoder_qk_channels": 10,
            "decoder_v_channels": 4,
            **changes,
        }
    )
    return draw_parameters(model.double().eval(), lambda p: 1.5 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.5)  # pyright: ignore


def flat(out: Any) -> dict[str, Tensor]:
    return dict(out) if isinstance(out, Mapping) else {"": out}


def assert_same(ours: Any, wanted: Any, exactly: bool = False) -> None:
    ours, wanted = flat(ours), flat(wanted)
    assert ours.keys() == wanted.keys()
    for name in ours:
        if exactly:
            assert torch.equal(ours[name], wanted[name]), name
        else:
            torch.testing.assert_close(ours[name], wanted[name], rtol=1e-10, atol=1e-10)


def rows(x: Any, part: slice) -> Any:
    return {name: rows(value, part) for name, value in x.items()} if isinstance(x, Mapping) else x[part]


@pairs
@sizes
@few
def test_masked_is_absent(source, sink, height, width, seed):
    """What lies under False has no effect on a result or a gradient, not even NaN."""
    torch.manual_seed(seed)
    kind, model = SOURCES[source], build(source, sink, height, width)
    x, mask = kind.data(2, height, width), kind.masks(2, height, width)
    wanted = model(x, mask)
    ours = model(kind.hidden(x, mask), mask)
    assert_same(ours, wanted, exactly=True)
    sum(out.sum() for out in flat(ours).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pairs
@sizes
@few
def test_batch_of_two_is_two_batches(source, sink, height, width, seed):
    torch.manual_seed(seed)
    kind, model = SOURCES[source], build(source, sink, height, width)
    x, mask = kind.data(2, height, width), kind.masks(2, height, width)
    whole = flat(model(x, mask))
    for b in range(2):
        part = slice(b, b + 1)
        assert_same(model(rows(x, part), rows(mask, part)), {name: out[part] for name, out in whole.items()})


@pairs
@sizes
@few
def test_chunked_is_whole(source, sink, height, width, seed):
    torch.manual_seed(seed)
    kind, model = SOURCES[source], build(source, sink, height, width)
    x = kind.data(2, height, width)
    wanted = model(x)
    for chunk_size in (1, 3, 1000):
        assert_same(model(x, chunk_size=chunk_size), wanted)


@pairs
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_implementations_agree(source, sink, implementation):
    kind, model = SOURCES[source], build(source, sink, 3, 4)
    x, mask = kind.data(2, 3, 4), kind.masks(2, 3, 4)
    wanted = model(x, mask)
    model.set_attention_implementation(implementation)
    assert_same(model(x, mask), wanted)


@pairs
def test_every_parameter_gets_a_gradient(source, sink):
    kind, model = SOURCES[source], build(source, sink, 3, 4)
    out = flat(model(kind.data(2, 3, 4)))
    for result in out.values():
        assert_varies(result)
    sum(result.square().sum() for result in out.values()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
    assert not {name for name in without if not name.endswith("to_k.bias")}  # that one cancels in the softmax


@pairs
def test_saved_and_loaded(source, sink, tmp_path):
    kind, model = SOURCES[source], build(source, sink, 3, 4, decoder_query_residual=False, query_residual=False)
    model.save_pretrained(tmp_path)
    again = PerceiverIO.from_pretrained(tmp_path)
    x = kind.data(2, 3, 4)
    assert again.config == model.config
    assert_same(again(x), model(x))  # up to rounding: loaded tensors lie elsewhere in memory
