"""The model compiled, exported, under autocast, copied, pickled, in threads, in half precision, and its gradients checked."""

import copy
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.export import Dim

from accuracy import IMPLEMENTATIONS, assert_varies, draw_parameters
from perceivers import Perceiver

SMALL = {
    "data_shape": [3, 12, 10],
    "num_latent_tokens": 7,
    "dim": 16,
    "heads": 2,
    "layers_indice": [0, 1, 1],
    "num_latent_transformers_in_layers": [2, 1],
    "num_bands": 4,
    "num_classes": 5,
}

implementations = pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS])


@pytest.fixture(autouse=True)
def _forget_compiled():
    """All tests compile the same code for other models; the compiler gives up after eight."""
    yield
    torch._dynamo.reset()


def build(**changes) -> Perceiver:
    return draw_parameters(Perceiver(**{**SMALL, **changes}).eval())  # pyright: ignore


def inputs(batch=2, axes=(12, 10)):
    return torch.randn(batch, 3, *axes), torch.rand(batch, *axes) > 0.4


@implementations
def test_compiles_as_one_graph(implementation):
    model = build(attention_implementation=implementation)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for arguments in (inputs()[:1], inputs()):
        ours, wanted = compiled(*arguments), model(*arguments)
        assert_varies(wanted)
        torch.testing.assert_close(ours, wanted)
        grads = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (ours, wanted)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@implementations
def test_compiles_with_dynamic_sizes(implementation):
    model = build(attention_implementation=implementation)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for batch, axes in ((2, (12, 10)), (3, (7, 9)), (5, (16, 4))):
        x, mask = inputs(batch, axes)
        torch.testing.assert_close(compiled(x, mask), model(x, mask))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile's default backend needs a C++ compiler")
def test_compiles_with_the_default_backend():
    model, (x, mask) = build(layers_indice=[0], num_latent_transformers_in_layers=[1]), inputs()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x, mask), model(x, mask), rtol=1e-4, atol=1e-5)


@implementations
@pytest.mark.parametrize("masked", [False, True])
def test_exports_with_fixed_and_dynamic_sizes(implementation, masked):
    model = build(attention_implementation=implementation)
    arguments = inputs() if masked else inputs()[:1]
    fixed = torch.export.export(model, arguments).module()
    torch.testing.assert_close(fixed(*arguments), model(*arguments))
    batch, height, width = (Dim(name, min=1, max=64) for name in ("batch", "height", "width"))
    shapes = {"x": {0: batch, 2: height, 3: width}, "mask": {0: batch, 1: height, 2: width} if masked else None}
    shapes = shapes if masked else {"x": shapes["x"]}
    dynamic = torch.export.export(model, arguments, dynamic_shapes=shapes).module()
    for size, axes in ((2, (12, 10)), (4, (5, 21)), (3, (30, 2))):
        others = inputs(size, axes)[: len(arguments)]
        torch.testing.assert_close(dynamic(*others), model(*others))


@implementations
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_autocast(implementation, dtype):
    model, (x, mask) = build(attention_implementation=implementation), inputs()
    wanted = model(x, mask)
    seen = []
    model.encoder.cross_attentions[0].attention.to_out.register_forward_pre_hook(lambda m, i: seen.append(i[0].dtype))
    with torch.autocast("cpu", dtype=dtype):
        out = model(x, mask)
        half_content = model(x.to(dtype), mask)
        table = model.tokens(x.to(dtype), mask).positions.tables[0]
    assert seen[0] == dtype
    assert table.dtype == torch.float32
    tolerance = 20 * torch.finfo(dtype).eps
    assert (out.float() - wanted).abs().max() < tolerance * wanted.abs().max()
    assert (half_content.float() - wanted).abs().max() < 2 * tolerance * wanted.abs().max()
    grads = torch.autograd.grad(out.float().sum(), list(model.parameters()))
    assert all(grad.isfinite().all() for grad in grads)


@implementations
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=lambda d: str(d)[6:])
def test_other_dtypes(implementation, dtype):
    model, (x, mask) = build(attention_implementation=implementation), inputs()
    wanted = model(x, mask)
    out = copy.deepcopy(model).to(dtype)(x.to(dtype), mask)
    assert out.dtype == dtype
    assert (out.double() - wanted).abs().max() < 20 * max(torch.finfo(dtype).eps, 1e-7) * wanted.abs().max()


def test_float32_pictures_in_wider_and_narrower_models():
    model, (x, _) = build(), inputs()
    wanted = model(x)
    torch.testing.assert_close(copy.deepcopy(model).double()(x), wanted.double(), rtol=1e-4, atol=1e-5)
    assert copy.deepcopy(model).bfloat16()(x).dtype == torch.bfloat16


@implementations
def test_gradcheck(implementation):
    model = build(
        data_shape=[2, 3, 4],
        num_latent_tokens=3,
        dim=4,
        num_bands=1,
        resolution=8,
        layers_indice=[0, 0],
        num_latent_transformers_in_layers=[1],
        attention_implementation=implementation,
    ).double()
    x, mask = torch.randn(2, 2, 3, 4, dtype=torch.float64), torch.rand(2, 3, 4) > 0.3
    names, values = zip(*model.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x, mask))

    assert torch.autograd.gradcheck(function, (x.requires_grad_(), *(v.detach().requires_grad_() for v in values)))


def test_deepcopy_and_pickle():
    model, (x, _) = build(layers_indice=[0, 0, None], latent_layers_indice=[0, 1, 1]), inputs()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert other.config == model.config
        with torch.no_grad():
            other.encoder.latents.add_(1)
        assert not torch.equal(other(x), model(x))


def test_calls_from_several_threads():
    model = build()
    arrays = [torch.randn(2, 3, 12 + i, 10) for i in range(8)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        wanted = [model(x) for x in arrays]
        together = list(pool.map(lambda x: model(x).detach(), arrays * 4))
    for i, out in enumerate(together):
        assert torch.equal(out, wanted[i % 8])


def test_batch_of_two_is_two_batches():
    model, (x, mask) = build(), inputs()
    out = model(x, mask)
    assert_varies(out)
    torch.testing.assert_close(torch.cat([model(x[:1], mask[:1]), model(x[1:], mask[1:])]), out)


@implementations
def test_empty_batch(implementation):
    model = build(attention_implementation=implementation)
    assert model(torch.randn(0, 3, 12, 10)).shape == (0, 5)


def test_meta_device():
    with torch.device("meta"):
        model = Perceiver(**SMALL)
        assert model(torch.empty(2, 3, 12, 10)).shape == (2, 5)
