"""The laws of all pairs of input and output modules that can be combined, with random shapes.

All parameters are random float64, and results must vary over the batch: a module that ignores its input would keep every law.
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

from accuracy import IMPLEMENTATIONS, draw_parameters
from perceivers import PerceiverIO
from perceivers.testing import check_model

DIM, CLASSES, VOCABULARY = 12, 3, 9
draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731


@dataclass
class Source:
    """An input module's description, and data for it."""

    describe: Callable[[int, int], dict[str, Any]]
    data: Callable[[int, int, int], Any]  # batch, height, width
    masks: Callable[[int, int, int], Any] | None = None
    hidden: Callable[[Any, Any], Any] | None = None  # data with other values where a mask is False


def rubbish(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.reshape(len(x), 1, *x.shape[2:]), x, math.nan)


def some(*shape: int) -> Tensor:
    mask = torch.rand(*shape) > 0.4
    mask.flatten(1)[:, 0] = True
    return mask


LEARNED = {"embed_dim": 4, "position_channels": 3, "position_dim": 5}
PATCHES = {"kind": "Patches", "patch_size": [1, 2], "num_bands": 2, "resolution": 8}
SOURCES = {
    "pixels": Source(
        lambda h, w: {"kind": "Pixels", "data_shape": [2, h, w], "num_bands": 2, "resolution": 8},
        lambda b, h, w: draw(b, 2, h, w),
        some,
        rubbish,
    ),
    "learned pixels": Source(
        lambda h, w: {"kind": "LearnedPixels", "data_shape": [2, h, w], **LEARNED},
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
CLASS = {"kind": "LearnedQueries", "dim": 8, "num_channels": CLASSES}


def sink(name: str, h: int, w: int, source: str) -> dict[str, Any]:
    """Return the description of an output module, for a height, a width and the name of an input."""
    tokens = {"kind": "TokenLogits", "max_length": h * w, "vocab_size": VOCABULARY}
    grid = {"kind": "Grid", "axes": [h, w], "num_channels": 2, "num_bands": 2, "resolution": 8}
    shared = {"video": {**grid, "decoded_channels": 7}, "label": {**CLASS, "decoded_channels": 7}}
    return {
        "mean": {"kind": "MeanPool", "dim": DIM, "num_channels": CLASSES, "final_norm": True},
        "class": CLASS,
        "learned": {**CLASS, "num_queries": 4, "num_channels": None},
        "tasks": {"kind": "MultiTask", "dim": 8, "tasks": {"a": 2, "b": 5}},
        "tokens": {**tokens, "dim": 6},
        "own tokens": {**tokens, "dim": 5, "tied_to": None},
        "grid": {**grid, "patch": [2, 1]},
        "learned grid": {**grid, "learned_channels": 5},
        "grid with content": {**grid, "content_channels": 4 if source == "frames" else 2},
        "inputs": {"kind": "PerInput", "dim": WIDTHS[source], "num_channels": 2, "divisor": 0.5},
        "each token": {"kind": "PerToken", "dim": WIDTHS[source], "num_channels": VOCABULARY},
        "several": {
            "kind": "Multimodal",
            "modalities": {**shared, "mean": {"kind": "MeanPool", "dim": DIM}},
            "decoded_channels": 7,
        },
    }[name]


# The inputs that each output makes sense for.
SINKS = {name: list(SOURCES) for name in ("mean", "class", "grid", "inputs", "several")} | {
    "learned": ["pixels", "several"],
    "tasks": ["text", "several"],
    "tokens": ["text"],
    "own tokens": ["text", "pixels"],
    "learned grid": ["pixels", "text"],
    "grid with content": ["pixels", "frames"],
    "each token": ["text", "features"],
}
PAIRS = [(source, name) for name, sources in SINKS.items() for source in sources]

pairs = pytest.mark.parametrize(("source", "output"), PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
sizes = given(height=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 99))
few = settings(max_examples=4, derandomize=True, deadline=None, database=None)


def build(source: str, output: str, height: int, width: int, **changes: Any) -> PerceiverIO:
    model = PerceiverIO(
        **{
            "inputs": SOURCES[source].describe(height, width),
            "outputs": sink(output, height, width, source),
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
def test_masked_is_absent(source, output, height, width, seed):
    """Values under False, including NaN, have no effect on results and gradients."""
    torch.manual_seed(seed)
    kind, model = SOURCES[source], build(source, output, height, width)
    x, mask = kind.data(2, height, width), kind.masks(2, height, width)
    wanted = model(x, mask)
    ours = model(kind.hidden(x, mask), mask)
    assert_same(ours, wanted, exactly=True)
    sum(out.sum() for out in flat(ours).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pairs
@sizes
@few
def test_batch_of_two_is_two_batches(source, output, height, width, seed):
    torch.manual_seed(seed)
    kind, model = SOURCES[source], build(source, output, height, width)
    x, mask = kind.data(2, height, width), kind.masks(2, height, width)
    whole = flat(model(x, mask))
    for b in range(2):
        part = slice(b, b + 1)
        assert_same(model(rows(x, part), rows(mask, part)), {name: out[part] for name, out in whole.items()})


@pairs
@sizes
@few
def test_chunked_is_whole(source, output, height, width, seed):
    torch.manual_seed(seed)
    kind, model = SOURCES[source], build(source, output, height, width)
    x = kind.data(2, height, width)
    wanted = model(x)
    for chunk_size in (1, 3, 1000):
        assert_same(model(x, chunk_size=chunk_size), wanted)


@pairs
def test_checks_of_the_library(source, output):
    """Samples, chunks, implementations, hooks, gradients of every parameter, and the description."""
    kind = SOURCES[source]
    model = build(source, output, 3, 4, decoder_query_residual=False, query_residual=False)
    check_model(model, kind.data(2, 3, 4), rtol=1e-9, atol=1e-9)
    x, mask = kind.data(2, 3, 4), kind.masks(2, 3, 4)
    wanted = model(x, mask)
    for implementation in IMPLEMENTATIONS:
        model.set_attention_implementation(implementation)
        assert_same(model(x, mask), wanted)
