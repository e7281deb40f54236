"""The laws of all input modules that `perceivers.testing.check_input` does not cover (tests/test_testing.py runs it).

Seen failing, here or in the other files of this folder: masks not applied to values that are mixed with neighbours, to
coordinates, to ids; sines and cosines swapped; channels of patches in another order; padding of the stem reversed; bias,
constant or padding omitted; samples of a ragged batch placed on the longest one's grid; tables in half precision.
"""

import json
import math

import pytest
import torch
from inputs.cases import CASES, B, attention, multimodal, multimodal_data

from accuracy import IMPLEMENTATIONS, draw_parameters
from perceivers._registry import describe
from perceivers.inputs import InputModule, Located, Multimodal

each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def float64():
    """Make float64 the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(case):
    """Return the module in evaluation mode with random parameters."""
    return draw_parameters(case.module()).eval()


def encode(module, x, mask=None):
    """Return the concatenated encoded inputs of all groups, and their masks."""
    groups = module(x, mask)
    return torch.cat([g.encoded() for g in groups], 1), torch.cat([g.flat_mask() for g in groups], 1)


def on_tensors(x, change):
    """Return the data with `change` applied to every tensor."""
    if isinstance(x, Located):
        return Located(*(on_tensors(part, change) for part in x))
    if isinstance(x, dict):
        return {name: on_tensors(part, change) for name, part in x.items()}
    return change(x)


def floats(x):
    """Return the floating-point tensors of the data."""
    found = []
    on_tensors(x, lambda t: found.append(t) if t.is_floating_point() else None)
    return found


def spoil(x, mask):
    """Return the data with NaN, or ids that are out of range, where the mask is False."""
    if isinstance(x, dict):  # columns of a table
        numeric, categorical = mask.split([3, 2], dim=1)
        return {"numeric": spoil(x["numeric"], numeric), "categorical": spoil(x["categorical"], categorical)}
    if isinstance(x, Located):
        times = x.coordinates.ndim == 2
        return Located(spoil(x.values, mask), spoil(x.coordinates, mask.any(1) if times else mask))
    hidden = ~mask
    while hidden.ndim < x.ndim:
        hidden = hidden.unsqueeze(-1 if x.shape[: hidden.ndim] == hidden.shape else 1)  # channels last or first
    return x.masked_fill(hidden, math.nan if x.is_floating_point() else 99)


@each
def test_shape_and_config(case):
    module, x = make(case), case.data()
    groups = module(x)
    encoded, mask = encode(module, x)
    assert module.num_channels == case.channels
    assert all(group.num_channels == case.channels for group in groups)
    assert encoded.shape == (B, case.inputs, case.channels)
    assert mask.all()
    same = InputModule.create(json.loads(json.dumps(describe(module))))
    assert type(same) is type(module)
    assert same.config == module.config


@each
def test_a_mask_of_true_changes_nothing(case):
    module, x = make(case), case.data()
    encoded, mask = encode(module, x, torch.ones(B, *case.mask_shape, dtype=torch.bool))
    assert mask.all()
    assert torch.equal(encoded, encode(module, x)[0])


@each
def test_gradients_reach_every_parameter(case):
    module, x = make(case), case.data()
    leaves = [t.requires_grad_() for t in floats(x)]
    for mask in (None, case.mask()):
        module.zero_grad()
        out = attention(module)(torch.randn(B, 3, 8), module(spoil(x, mask) if mask is not None else x, mask))
        out.square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
    for leaf in leaves:
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() > 0


@each
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.usefixtures("float64")
def test_every_implementation_of_attention_agrees(case, implementation):
    module, x, latents = make(case), case.data(), torch.randn(B, 3, 8)
    for mask in (None, case.mask()):
        results = []
        for name in ("reference", implementation):
            module.zero_grad()
            out = attention(module, name)(latents, module(x, mask))
            out.square().sum().backward()
            results.append([out, *(p.grad for p in module.parameters())])
        for ours, truth in zip(*results, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-10)


@each
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_half_precision(case, dtype):
    """Values may be half precision; Fourier features of positions stay exactly those of float32."""
    module, x, mask = make(case), case.data(), case.mask()
    values = x._replace(values=x.values.to(dtype)) if isinstance(x, Located) and x.values is not None else x
    if not isinstance(x, Located):
        values = on_tensors(x, lambda t: t.to(dtype) if t.is_floating_point() and not case.positions_only else t)
    for half, full in zip(module.to(dtype)(values, mask), make(case)(x, mask), strict=True):
        assert half.encoded().isfinite().all()
        for table, exact in zip(half.tables, full.tables, strict=True):
            learned = table.dtype == dtype
            assert learned or table.dtype == torch.float32
            assert learned or torch.equal(table, exact)
        fourier = hasattr(module, "features") or hasattr(module, "patches")
        assert not fourier or any(table.dtype == torch.float32 for table in half.tables) or case.positions_only


@each
def test_compiles_as_one_graph(case):
    torch.compiler.reset()
    module, x, mask = make(case), case.data(), case.mask()
    compiled = torch.compile(lambda x, mask: [g.encoded() for g in module(x, mask)], fullgraph=True, backend="aot_eager")
    for given in (None, mask):
        for ours, plain in zip(compiled(x, given), [g.encoded() for g in module(x, given)], strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_every_kind_is_tested():
    kinds = {type(case.module()).__name__ for case in CASES.values()} | {Multimodal.__name__}
    ours = {name for name, kind in InputModule.kinds.items() if kind.__module__.startswith("perceivers.")}
    assert ours == kinds
    assert multimodal()(multimodal_data())
