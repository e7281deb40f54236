"""Every implementation of the table that takes projected queries, by the same tests: accuracy, gradients, laws, refusals.

Broken on purpose, each seen to fail: scale dropped, mask ignored, gamma left out, groups of two softmaxes, sums not rescaled
in the merge, the last table axis swapped with the first.
"""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accuracy import IMPLEMENTATIONS, Case, assert_accurate, assert_varies
from perceivers import Perceiver
from perceivers.ops.cross_attention import IMPLEMENTATIONS as TABLE
from perceivers.ops.cross_attention import (
    Cost,
    Implementation,
    Norm,
    OpaqueProjections,
    Shared,
    choices,
    cross_attention,
    dense,
    explain,
    merge,
    partial,
    register_implementation,
    separable,
)
from perceivers.ops.cross_attention.maps import attention_maps
from perceivers.ops.tokens import Positions, Tokens

CASES = {
    "grid_7x9": {},
    "line_63": {"grids": ((63,),)},
    "video_3x5x7_heads_3": {"grids": ((3, 5, 7),), "heads": 3},
    "volume_2x3x2x5": {"grids": ((2, 3, 2, 5),)},
    "two_groups": {"grids": ((7, 9), (3, 4))},
    "masked": {"masked": 0.4},
    "nothing_to_attend": {"masked": 0.4, "nothing": True},
    "index_list": {"indexed": True, "masked": 0.3},
    "k_16_v_9": {"v": 9},
    "k_5_v_33_heads_2": {"k": 5, "v": 33, "heads": 2},
    "no_norm_no_bias": {"norm": False, "bias": False},
    "one_sample": {"batch": 1},  # and one head: `dense` and `absorbed` write the products out
    "one_sample_k_5_v_33": {"batch": 1, "k": 5, "v": 33, "score": 6.0},
    "one_query": {"queries": 1},
    "one_row": {"grids": ((1, 65),)},
    "sharp_scores": {"score": 6.0},
    "rms_norm": {"centred": False},
    "rms_norm_added": {"centred": False, "embedded": 7, "starts": [0, 0]},
    "embedded_and_added": {"embedded": 7, "starts": [0, 0], "constant": True},  # patch embedding plus position codes
    "projected_positions": {"starts": [3, 3], "masked": 0.3},  # one block of channels for the sum of both axes
    "modality_code": {"constant": True, "grids": ((3, 5), (4, 2))},  # reaches two channels further
    "crops": {"per_sample": True, "masked": 0.3},
    "crops_of_points_added": {"per_sample": True, "indexed": True, "embedded": 9, "starts": [0, 0], "queries": 7},
    "line_embedded": {"grids": ((63,),), "embedded": 7, "starts": [0], "constant": True, "masked": 0.3},
}
everywhere = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)

# Every case with every implementation that takes it.
PAIRS = {
    f"{name}-{implementation}": (case, implementation)
    for name, case in CASES.items()
    for implementation in IMPLEMENTATIONS
    if not Case(**case).refused(implementation)
}
each_pair = pytest.mark.parametrize(("case", "implementation"), PAIRS.values(), ids=PAIRS)


@each_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_accuracy(case, dtype, implementation):
    assert_accurate(Case(**case), implementation, dtype)


@each_pair
def test_float64_equals_reference(case, implementation):
    assert_equals_reference(Case(**case), implementation)


@pytest.mark.parametrize("first", [True, False], ids=["queries_first", "rows_first"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_separable_projects_queries_or_rows(case, first, monkeypatch):
    monkeypatch.setattr(separable, "_queries_first", lambda *_: first)
    assert_equals_reference(Case(**case), "separable")


def assert_equals_reference(case: Case, implementation: str) -> None:
    ours, truth = case.evaluate(implementation, torch.float64), case.evaluate("reference", torch.float64)
    for name, true in truth.items():
        torch.testing.assert_close(ours[name], true, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@everywhere
def test_gradcheck(implementation):
    case = Case(grids=((2, 3), (2, 2)), queries=2, content=2, table=2, k=3, v=3, heads=2, masked=0.3)
    names, leaves = zip(*((n, leaf.requires_grad_()) for n, leaf in case.leaves.items()), strict=True)
    assert torch.autograd.gradcheck(lambda *x: case.call(dict(zip(names, x, strict=True)), implementation), leaves)


@everywhere
def test_written_out(implementation):
    """Against the formula of the paper for one query at a time, written again: no batched products, no softmax call."""
    case = Case(grids=((3, 4),), heads=2, v=5)
    out = case.call(case.leaves, implementation)
    assert_varies(out)
    x = case.leaves
    for b in range(2):
        columns = [
            torch.cat([x["content_0"][b, :, i, j], x["table_00"][i], x["table_01"][j]]) for i in range(3) for j in range(4)
        ]
        normed = [(c - c.mean()) / (c.var(correction=0) + 1e-5).sqrt() * x["gamma"] + x["beta"] for c in columns]
        for h in range(2):
            keys = [x["w_k"][16 * h : 16 * (h + 1)] @ c + x["b_k"][16 * h : 16 * (h + 1)] for c in normed]
            values = [x["w_v"][5 * h : 5 * (h + 1)] @ c + x["b_v"][5 * h : 5 * (h + 1)] for c in normed]
            for n in range(5):
                weights = [(x["q"][b, h, n] @ k / 4).exp() for k in keys]
                wanted = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
                torch.testing.assert_close(out[b, h, n], wanted, rtol=1e-10, atol=1e-10)


@everywhere
@settings(max_examples=25, derandomize=True, deadline=None)
@given(data=st.data())
def test_random_shapes(implementation, data):
    size = lambda most: data.draw(st.integers(1, most))  # noqa: E731
    axes = size(4)
    grids = [[size(5) for _ in range(axes)] for _ in range(size(2))]
    kwargs = {"heads": size(3), "queries": size(6), "content": size(4), "table": size(5), "k": size(9), "v": size(9)}
    case = Case(grids=grids, batch=size(3), masked=data.draw(st.sampled_from([0.0, 0.5])), **kwargs)
    if case.refused(implementation):
        return
    out, truth = (case.call(case.leaves, name) for name in (implementation, "reference"))
    torch.testing.assert_close(out, truth, rtol=1e-9, atol=1e-9)


@everywhere
def test_masked_equals_absent_even_nan(implementation):
    """A grid with holes, NaN and infinity in them, gives what the list of the inputs outside the holes gives."""
    case = Case(grids=((5, 6),), batch=1, masked=0.5)
    case.leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves.items()}
    keep = case.masks[0][0]
    assert 0 < keep.sum() < 30
    holes = case.leaves["content_0"].detach().masked_fill(~keep, torch.nan)
    holes[0, 0][~keep] = torch.inf
    dirty = {**case.leaves, "content_0": holes.requires_grad_()}
    out = case.call(dirty, implementation)
    present = Case(grids=((5, 6),), batch=1)
    present.leaves = {**case.leaves, "content_0": case.leaves["content_0"].detach()[:, :, keep].requires_grad_()}
    present.indices = [keep.nonzero()[None]]
    wanted = present.call(present.leaves, implementation)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    grads, wanted_grads = (
        torch.autograd.grad(o.square().sum(), list(leaves.values())) for o, leaves in ((out, dirty), (wanted, present.leaves))
    )
    for name, ours, theirs in zip(dirty, grads, wanted_grads, strict=True):
        if name == "content_0":
            assert (ours[:, :, ~keep] == 0).all()
            ours = ours[:, :, keep]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@everywhere
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_nothing_to_attend_is_exactly_zero(implementation, dtype):
    case = Case(nothing=True)
    result = case.evaluate(implementation, dtype)
    assert (result["out"][0] == 0).all()
    assert result["out"][1].abs().max() > 0.1
    assert all(value.isfinite().all() for value in result.values())
    assert (result["q"][0] == 0).all()


@everywhere
def test_permuting_inputs_with_their_positions(implementation):
    case = Case(indexed=True)
    order = torch.randperm(11)
    out = case.call(case.leaves, implementation)
    assert_varies(out)
    case.leaves["content_0"] = case.leaves["content_0"][:, :, order]
    moved = case.call(case.leaves, implementation)
    assert (moved - out).abs().max() > 1e-3  # contents moved without their positions: another array
    case.indices[0] = case.indices[0][:, order]
    torch.testing.assert_close(case.call(case.leaves, implementation), out, rtol=1e-10, atol=1e-10)


@everywhere
def test_batch_of_two_is_two_batches(implementation):
    case = Case(masked=0.3)
    out = case.call(case.leaves, implementation)
    assert_varies(out)
    for b in range(2):
        one = Case(batch=1)
        one.leaves = {n: x[b : b + 1] if n in ("q", "content_0") else x for n, x in case.leaves.items()}
        one.masks = [case.masks[0][b : b + 1]]
        torch.testing.assert_close(one.call(one.leaves, implementation), out[b : b + 1], rtol=1e-10, atol=1e-10)


@everywhere
def test_views_of_any_strides(implementation):
    case = Case(grids=((4, 6),))
    out = case.call(case.leaves, implementation)
    base = torch.zeros(2, 4, 12, 3, dtype=torch.float64)
    view = base[:, :, ::2].permute(0, 3, 1, 2)
    view.copy_(case.leaves["content_0"])
    assert not view.is_contiguous()
    torch.testing.assert_close(case.call({**case.leaves, "content_0": view}, implementation), out)
    line = torch.randn(4 + 6 - 1, dtype=torch.float64)
    overlapping = line.as_strided((2, 3, 4, 6), (0, 0, 1, 1))
    wanted = case.call({**case.leaves, "content_0": overlapping.clone()}, implementation)
    torch.testing.assert_close(case.call({**case.leaves, "content_0": overlapping}, implementation), wanted)


@everywhere
def test_dropout_keeps_the_mean(implementation):
    case = Case(grids=((30, 30),), queries=64, bias=False, score=0.1)
    if case.refused(implementation, dropout_p=0.5):
        return
    out = case.call(case.leaves, implementation)
    dropped = torch.stack([case.call(case.leaves, implementation, dropout_p=0.5) for _ in range(50)])
    assert (dropped[0] - dropped[1]).abs().max() > 1e-3
    torch.testing.assert_close(dropped.mean(0), out, rtol=0, atol=0.05)


PARTIAL = [name for name, implementation in TABLE.items() if implementation.partial]


@pytest.mark.parametrize("grid", [(7, 9), (63,)])
@pytest.mark.parametrize("implementations", [PARTIAL, PARTIAL[::-1], PARTIAL[:1], PARTIAL[1:]], ids="-".join)
def test_pieces_merge_to_the_whole(implementations, grid):
    """Also pieces of different implementations, in any grouping, with all gradients."""
    case = Case(grids=(grid,), heads=2, masked=0.5)
    case.leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves.items()}
    x, cotangent = case.leaves, case.cotangent
    arguments = case.arguments(x)
    pieces = list(arguments["inputs"][0].pieces(18))
    assert sum(piece.num_inputs for piece in pieces) == 63
    parts = [
        partial(**arguments | {"inputs": [piece]}, implementation=implementations[i % len(implementations)])
        for i, piece in enumerate(pieces)
    ]
    wanted = case.call(x, "dense")
    wanted_grads = torch.autograd.grad(wanted, list(x.values()), cotangent)
    for whole in (merge(parts), merge([merge(parts[2:]), merge(parts[:2])])):
        torch.testing.assert_close(whole.finish(), wanted, rtol=1e-10, atol=1e-10)
        grads = torch.autograd.grad(whole.finish(), list(x.values()), cotangent, retain_graph=True)
        for name, ours, theirs in zip(x, grads, wanted_grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_partial_refuses():
    case = Case()
    with pytest.raises(ValueError, match="implementation='dense' must be one of 'reference', 'separable'"):
        partial(**case.arguments(case.leaves), implementation="dense")


# What an implementation leaves in `Shared` for the next call, and the functions that make it.
SHARED = {
    "reference": [],
    "dense": ["keys_and_values"],
    "absorbed": ["folded", "normalised"],
    "separable": ["factored", "folded"],
}


@everywhere
def test_shared(implementation):
    """Calls with other queries and the same `shared` give what they give without; the inputs are encoded once."""
    case = Case(masked=0.3)
    arguments = case.arguments(case.leaves) | {"implementation": implementation}
    shared = Shared()
    first = cross_attention(**arguments, shared=shared)
    made = {name: value for name, value in vars(shared).items() if value is not None and value != {}}
    factors = dict(shared.factored)
    assert sorted(made) == SHARED.get(implementation, sorted(made))
    arguments["q_BHNK"] = arguments["q_BHNK"].flip(2) * 2
    second = cross_attention(**arguments, shared=shared)
    assert all(getattr(shared, name) is value for name, value in made.items())
    assert all(shared.factored[g] is value for g, value in factors.items())
    torch.testing.assert_close(second, cross_attention(**arguments))
    assert (first - second).abs().max() > 0.1
    if made:  # the second call reads them: with others it gives something else
        other = Case(masked=0.3)
        cross_attention(**other.arguments(other.leaves), implementation=implementation, shared=(wrong := Shared()))
        assert (cross_attention(**arguments, shared=wrong) - second).abs().max() > 0.1


def test_explain():
    case = Case(grids=((60, 70),), batch=1, k=133, v=133, queries=128)
    arguments = case.arguments({name: leaf.float() for name, leaf in case.leaves.items()})
    text = explain(**arguments)
    assert "> separable" in text
    assert "the least work" in text
    assert "separable uses" in text
    assert "encoded_queries refuses: the queries are projected already" in text
    text = explain(**arguments, dropout_p=0.1)
    assert "refuses: it cannot drop attention weights, and dropout_p=0.1" in text
    assert "> dense" in text
    assert "'reference' was selected by name" in explain(**arguments, implementation="reference")
    half = case.arguments({name: leaf.bfloat16() for name, leaf in case.leaves.items()})
    assert "this is half precision" in explain(**half)


def test_each_row_is_asked_once(monkeypatch):
    case, asked = Case(), []
    for name, row in list(TABLE.items()):
        ask = lambda call, row=row: asked.append(row.name) or row.why_not(call)  # noqa: E731
        monkeypatch.setitem(TABLE, name, replace(row, why_not=ask))
    case.call(case.leaves, "auto")
    assert sorted(asked) == sorted(name for name, row in TABLE.items() if row.cost)
    asked.clear()
    case.call(case.leaves, "separable")
    assert asked == ["separable"]
    asked.clear()
    explain(**case.arguments(case.leaves))
    assert asked == list(TABLE)


def test_pieces_of_an_index_list():
    tokens = Tokens(torch.randn(1, 2, 5), Positions([torch.randn(9, 3)], torch.randint(9, (1, 5, 1))), torch.rand(1, 5) > 0.5)
    together = torch.cat([piece.encoded() for piece in tokens.pieces(2)], dim=1)
    assert torch.equal(together, tokens.encoded())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_maps_are_the_softmax_of_the_scores(case):
    case = Case(**case)
    arguments, (_, values) = case.arguments(case.leaves), case.make(case.leaves).keys_and_values()
    maps = attention_maps(**arguments)
    torch.testing.assert_close(maps @ values, case.call(case.leaves, "reference"), rtol=1e-9, atol=1e-9)
    logs = attention_maps(**arguments, log_scores=True)
    torch.testing.assert_close(logs.exp(), maps)


def test_maps_in_pieces(monkeypatch):
    case = Case(grids=((7, 9), (4, 4)), masked=0.3)
    x = case.leaves
    groups = [Tokens(x[f"content_{g}"], Positions([x[f"table_{g}0"], x[f"table_{g}1"]]), case.masks[g]) for g in range(2)]
    arguments = (x["q"], groups, Norm(x["gamma"], x["beta"]), x["w_k"], x["b_k"], x["w_v"], x["b_v"])
    whole = attention_maps(*arguments, scale=0.25)
    monkeypatch.setattr("perceivers.ops.cross_attention.maps.PIECE", 10)
    torch.testing.assert_close(attention_maps(*arguments, scale=0.25), whole, rtol=1e-12, atol=1e-14)


def test_auto_equals_each_implementation():
    case = Case(grids=((7, 9), (3, 4)), heads=2, masked=0.3)
    out = case.call(case.leaves, "auto")
    for name in IMPLEMENTATIONS:
        torch.testing.assert_close(case.call(case.leaves, name), out, rtol=1e-10, atol=1e-10)


def test_refusals():
    """What each implementation cannot do, and nothing else: inputs that are not on a grid are refused by none."""
    calls = {
        "grid": (Case(), {}),
        "one axis": (Case(grids=((63,),)), {}),
        "index list": (Case(indexed=True), {}),
        "mask": (Case(masked=0.3), {}),
        "several heads": (Case(heads=2), {}),
        "tables per sample": (Case(per_sample=True), {}),
        "dropout": (Case(), {"dropout_p": 0.1}),
    }
    refused = {name: [what for what, (case, kwargs) in calls.items() if case.refused(name, **kwargs)] for name in TABLE}
    assert refused == {
        "reference": [],
        "dense": [],
        "absorbed": ["dropout"],
        "separable": ["dropout"],
        "encoded_queries": list(calls),
    }


def test_unknown_implementation():
    case = Case()
    with pytest.raises(ValueError, match="implementation='flash' must be one of 'auto', 'reference', 'dense', "):
        case.call(case.leaves, "flash")


def test_refusal_says_why(monkeypatch):
    monkeypatch.setitem(TABLE, "dense", replace(TABLE["dense"], why_not=lambda call: "it is Sunday"))
    case = Case()
    with pytest.raises(ValueError, match="implementation='dense' cannot do this: it is Sunday; use 'auto'"):
        case.call(case.leaves, "dense")


@pytest.mark.parametrize("width", [5, 8, 261])
def test_dense_never_materialises_on_this_machine(width):
    """Fused attention runs whatever the widths, also where K differs from V: no N x M tensor is made."""
    case = Case(grids=((40, 50),), k=width, v=width + 3, queries=33, batch=1, masked=0.1)
    names = operations(case, torch.float32)
    assert any("flash_attention" in name for name in names)
    assert "aten::_scaled_dot_product_attention_math" not in names


@pytest.mark.parametrize("implementation", ["dense", "absorbed"])
def test_writes_the_products_out_only_where_scores_are_few(implementation, monkeypatch):
    small = {"grids": ((4, 5),), "batch": 1}
    assert "aten::softmax" in operations(Case(**small), torch.float32, implementation)
    for other in ({"batch": 2}, {"masked": 0.1}, *({"heads": 2},) * (implementation == "dense")):
        assert "aten::scaled_dot_product_attention" in operations(Case(**small | other), torch.float32, implementation), other
    assert "aten::scaled_dot_product_attention" in operations(Case(**small), torch.bfloat16, implementation)
    monkeypatch.setattr(dense, "FEW_PAIRS", 99)
    assert "aten::scaled_dot_product_attention" in operations(Case(**small), torch.float32, implementation)


def operations(case: Case, dtype: torch.dtype, implementation: str = "dense") -> set[str]:
    with torch.profiler.profile() as profile:
        case.call({name: leaf.to(dtype) for name, leaf in case.leaves.items()}, implementation)
    return {event.name for event in profile.events()}


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_minimal_call(implementation, dtype):
    """Content alone, no norm, no bias: the result has the dtype of the queries and the numbers of the definition."""
    q, content, w_k, w_v = (torch.randn(shape) for shape in ((2, 2, 4, 3), (2, 6, 10), (6, 6), (8, 6)))
    call = lambda name, *x: cross_attention(  # noqa: E731
        x[0], [Tokens(x[1])], None, x[2], None, x[3], None, scale=1.0, implementation=name
    )
    wanted = call("reference", *(x.double() for x in (q, content, w_k, w_v)))
    out = call(implementation, *(x.to(dtype) for x in (q, content, w_k, w_v)))
    assert out.shape == (2, 2, 4, 4)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)


def test_projections_are_given_once():
    case = Case()
    arguments = case.arguments(case.leaves)
    weights = arguments.pop("w_k"), arguments.pop("w_v")
    with pytest.raises(ValueError, match="w_k or w_v is None and so is project"):
        cross_attention(**arguments, w_k=None, w_v=weights[1])
    project = OpaqueProjections(lambda x: (x, x), "to_k is a table", 16, 16, torch.float64)
    with pytest.raises(ValueError, match="project is given together with norm, weights or biases"):
        cross_attention(**arguments, w_k=weights[0], w_v=weights[1], project=project)


@everywhere
def test_opaque_projections(implementation):
    """Functions that make keys and values are called, or refused with their reason."""
    case = Case(grids=((7, 9), (3, 4)), heads=2, masked=0.3)
    arguments, call = case.arguments(case.leaves), case.make(case.leaves)
    function = lambda x: call.weights.keys_and_values(x, 2)  # noqa: E731
    project = OpaqueProjections(function, "to_k is a table", 32, 32, torch.float64)
    opaque = arguments | dict.fromkeys(("norm", "w_k", "b_k", "w_v", "b_v")) | {"project": project}
    if implementation in ("absorbed", "separable"):
        message = f"implementation='{implementation}' cannot do this: to_k is a table; use 'auto'"
        with pytest.raises(ValueError, match=re.escape(message)):
            cross_attention(**opaque, implementation=implementation)
    else:
        wanted = cross_attention(**arguments, implementation=implementation)
        assert torch.equal(cross_attention(**opaque, implementation=implementation), wanted)
    torch.testing.assert_close(cross_attention(**opaque), cross_attention(**arguments))
    torch.testing.assert_close(attention_maps(**opaque), attention_maps(**arguments))
    assert "absorbed        refuses: to_k is a table" in explain(**opaque)


class TestRegistration:
    @pytest.fixture(autouse=True)
    def _restore(self, monkeypatch):
        monkeypatch.setattr("perceivers.ops.cross_attention.IMPLEMENTATIONS", dict(TABLE))

    def test_by_name_and_by_auto(self):
        calls = []
        run = lambda call: calls.append(call.num_inputs) or TABLE["dense"].run(call)  # noqa: E731
        row = Implementation("mine", run, why_not=lambda call: "it is too small" if call.num_inputs < 20 else None)
        register_implementation(row)
        assert choices() == ("auto", *TABLE, "mine")
        model = Perceiver(data_shape=[3, 7, 9], num_bands=2, num_classes=2, num_latent_tokens=4, dim=8, heads=2)
        x = torch.randn(1, 3, 7, 9)
        wanted = model(x)
        model.set_attention_implementation("mine")
        torch.testing.assert_close(model(x), wanted)
        assert set(calls) == {63}
        with pytest.raises(ValueError, match="implementation='mine' cannot do this: it is too small; use 'auto'"):
            model(x[..., :2])
        calls.clear()
        model.set_attention_implementation("auto")
        model(x)
        assert not calls  # it has no cost

    def test_by_cost(self):
        calls = []
        run = lambda call: calls.append(1) or TABLE["dense"].run(call)  # noqa: E731
        register_implementation(
            Implementation("free", run, lambda call: None, lambda call: Cost(flops=0, exponentials=0, held=0, work=0))
        )
        case = Case()
        torch.testing.assert_close(case.call(case.leaves, "auto"), case.call(case.leaves, "dense"))
        assert calls
        assert "> free" in explain(**case.arguments(case.leaves))

    def test_devices(self):
        register_implementation(replace(TABLE["dense"], name="gpu", devices=("cuda",)))
        case = Case()
        with pytest.raises(ValueError, match="implementation='gpu' cannot do this: it runs on cuda, and this is cpu"):
            case.call(case.leaves, "gpu")

    @pytest.mark.parametrize("name", ["dense", "auto"])
    def test_names_are_unique(self, name):
        with pytest.raises(ValueError, match=f"an implementation called '{name}' exists: choose another name"):
            register_implementation(replace(TABLE["dense"], name=name))
