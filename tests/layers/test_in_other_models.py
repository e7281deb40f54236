"""What the modules for other models share: laws, errors, running compiled or elsewhere, their examples."""

import ast
import copy
import math
import re
import textwrap

import pytest
import torch
from torch.export import Dim

from accuracy import assert_varies, draw_parameters
from perceivers.layers import InducedSetAttention, Pooler, Resampler

WIDTH, CONDITION = 10, 6
RESAMPLER = {"dim": 12, "kv_dim": WIDTH, "num_latent_tokens": 5, "depth": 2, "heads": 4}
POOLER = {"dim": 12, "kv_dim": WIDTH, "heads": 4}
SET = {"dim": WIDTH, "num_latent_tokens": 4, "heads": 2}
MODULES = {
    "resampler": lambda: Resampler(**RESAMPLER),
    "inputs alone": lambda: Resampler(**RESAMPLER, attend_latents=False, bias=True),
    "grouped": lambda: Resampler(**RESAMPLER, kv_heads=2, norm="rms_norm", activation="swiglu"),
    "qk_norm": lambda: Resampler(**RESAMPLER, kv_heads=2, qk_norm=True, bias=True, final_norm=False),
    "qk_norm, inputs alone": lambda: Resampler(**RESAMPLER, qk_norm=True, attend_latents=False, activation="geglu"),
    "projected": lambda: Resampler(**{**RESAMPLER, "dim": WIDTH, "heads": 2}, project_inputs=True, output_dim=7, norm_eps=0.1),
    "relu, projected alone": lambda: Resampler(
        **RESAMPLER, attend_latents=False, project_inputs=True, output_dim=12, activation="relu"
    ),
    "mean pooled": lambda: Resampler(**RESAMPLER, num_latents_mean_pooled=2),
    "conditioned": lambda: Resampler(**RESAMPLER, condition_dim=CONDITION, num_latents_mean_pooled=1, attend_latents=False),
    "pooler": lambda: Pooler(**POOLER),
    "pooler of several": lambda: Pooler(**POOLER, num_queries=3, query_residual=True),
    "induced set attention": lambda: InducedSetAttention(**SET),
    "induced, pre-norm": lambda: InducedSetAttention(**SET, pre_norm=True, bias=False),
}

every_module = pytest.mark.parametrize("name", MODULES)


def build(name, dtype=torch.float64):
    return draw_parameters(MODULES[name]().to(dtype).eval())


def arguments(module, batch=3, length=17, dtype=torch.float64):
    """Inputs, a mask, and a condition if the module takes one."""
    mask = torch.rand(batch, length) > 0.4
    mask[:, 3] = True
    condition = (torch.randn(batch, CONDITION, dtype=dtype),) if getattr(module, "condition_dim", None) else ()
    return torch.randn(batch, length, WIDTH, dtype=dtype), mask, *condition


@pytest.fixture(autouse=True)
def _forget_compiled():
    yield
    torch._dynamo.reset()


@every_module
def test_masked_is_absent(name):
    module = build(name)
    x, mask, *condition = arguments(module, batch=2)
    out = module(x, mask, *condition)
    assert_varies(out)
    assert (out - module(x, None, *condition)).abs().max() > 1e-3
    for i in range(2):
        alone = module(x[i : i + 1, mask[i]], None, *(c[i : i + 1] for c in condition))
        kept = out[i : i + 1, mask[i]] if isinstance(module, InducedSetAttention) else out[i : i + 1]
        torch.testing.assert_close(kept, alone)
    for rubbish in (1e30, math.nan, math.inf):
        dirty = torch.where(mask.unsqueeze(-1), x, rubbish).requires_grad_()
        again = module(dirty, mask, *condition)
        assert torch.equal(again, out)
        grads = torch.autograd.grad(again.sum(), [dirty, *module.parameters()])
        assert all(grad.isfinite().all() for grad in grads)
        assert (grads[0][~mask] == 0).all()


@every_module
def test_order_of_the_inputs_does_not_matter(name):
    module = build(name)
    x, mask, *condition = arguments(module)
    order = torch.randperm(x.shape[1])
    out, permuted = module(x, mask, *condition), module(x[:, order], mask[:, order], *condition)
    assert_varies(out)
    if isinstance(module, InducedSetAttention):
        assert (out[:, order] - out).abs().max() > 1e-3
        out = out[:, order]
    torch.testing.assert_close(permuted, out)


@every_module
def test_batch_of_two_is_two_batches(name):
    module = build(name)
    both = arguments(module, batch=2)
    out = module(*both)
    assert_varies(out)
    torch.testing.assert_close(torch.cat([module(*(a[i : i + 1] for a in both)) for i in range(2)]), out)
    assert module(*(a[:0] for a in both)).shape == (0, *out.shape[1:])


@every_module
def test_nothing_to_attend(name):
    """A sample without inputs gives the same whatever lies under the mask, all of it finite, gradients too."""
    module = build(name)
    x, mask, *condition = arguments(module)
    out = module(x, mask, *condition)
    mask[1] = False
    x[1] = math.nan
    x.requires_grad_()
    without = module(x, mask, *condition)
    torch.testing.assert_close(without[[0, 2]], out[[0, 2]])
    assert without.isfinite().all()
    grads = torch.autograd.grad(without.square().sum(), [x, *module.parameters()])
    assert all(grad.isfinite().all() for grad in grads)


@every_module
def test_every_parameter_gets_a_gradient(name):
    module = build(name)
    module(*arguments(module)).square().sum().backward()
    for key, parameter in module.named_parameters():
        last_of_keys = "k_norm.bias" if "qk_norm" in name else "to_k.bias"
        cancels = key.endswith(last_of_keys)  # what all keys have in common cancels in the softmax
        assert (parameter.grad.abs().max() > 1e-6) == (not cancels), key


@every_module
def test_compiles_as_one_graph(name):
    module = build(name, torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given = arguments(module, dtype=torch.float32)
    ours, wanted = compiled(*given), module(*given)
    torch.testing.assert_close(ours, wanted)
    grads = [torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (ours, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    dynamic = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    for batch, length in ((2, 17), (5, 30)):
        given = arguments(module, batch, length, torch.float32)
        torch.testing.assert_close(dynamic(*given), module(*given))


@every_module
def test_exports_with_dynamic_sizes(name):
    module = build(name, torch.float32)
    given = arguments(module, dtype=torch.float32)
    batch, length = Dim("batch", min=1, max=64), Dim("length", min=1, max=64)
    shapes = ({0: batch, 1: length}, {0: batch, 1: length}, {0: batch})[: len(given)]
    exported = torch.export.export(module, given, dynamic_shapes=shapes).module()
    for size, inputs in ((5, 30), (1, 4)):
        others = arguments(module, size, inputs, torch.float32)
        torch.testing.assert_close(exported(*others), module(*others))


@every_module
def test_autocast_and_other_dtypes(name):
    module = build(name, torch.float32)
    given = arguments(module, dtype=torch.float32)
    wanted = module(*given)
    tolerance = 20 * torch.finfo(torch.bfloat16).eps * wanted.abs().max()
    seen = []
    attention = next(m for key, m in module.named_modules() if key.endswith("attention") and hasattr(m, "to_out"))
    attention.to_out.register_forward_pre_hook(lambda m, i: seen.append(i[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(*given)
        half = module(given[0].bfloat16(), *given[1:])
    assert seen[0] == torch.bfloat16
    assert (out.float() - wanted).abs().max() < tolerance
    assert (half.float() - wanted).abs().max() < 2 * tolerance
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.float().sum(), list(module.parameters())))
    for dtype in (torch.bfloat16, torch.float64):  # inputs in float32 take the dtype of the module
        out = copy.deepcopy(module).to(dtype)(*given)
        assert out.dtype == dtype
        assert (out.double() - wanted).abs().max() < (2 * tolerance if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("setting", ["ff_dropout", "attention_dropout"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **dropout: Resampler(**RESAMPLER, **dropout),
        lambda **dropout: Resampler(**RESAMPLER, **dropout, qk_norm=True, activation="swiglu"),
        lambda **dropout: Pooler(**POOLER, **dropout),
        lambda **dropout: InducedSetAttention(**SET, **dropout),
    ],
    ids=["resampler", "qk_norm, swiglu", "pooler", "induced set attention"],
)
def test_dropouts_act_in_training_only(make, setting):
    module = draw_parameters(make(**{setting: 0.5}).double().eval())
    given = arguments(module)
    assert torch.equal(module(*given), module(*given))
    module.train()
    assert not torch.equal(module(*given), module(*given))


@pytest.mark.parametrize("module", [Resampler, Pooler, InducedSetAttention], ids=lambda m: m.__name__)
def test_example_of_the_docstring(module):
    """It runs, and a line that ends in a shape makes that shape."""
    code = textwrap.dedent(re.search(r"```python\n(.*?)```", module.__doc__, re.DOTALL)[1])
    lines, names, shapes = code.splitlines(), {}, 0
    for statement in ast.parse(code).body:
        exec(ast.get_source_segment(code, statement), names)
        if found := re.search(r"# (\[.*\])$", lines[statement.end_lineno - 1]):
            assert str(list(names[statement.targets[0].id].shape)) == found[1]
            shapes += 1
    assert shapes == code.count("# [") > 0


CONSTRUCTORS = [
    (lambda: Resampler(dim=0), "dim=0 must be a whole number of at least 1"),
    (lambda: Resampler(dim=8, kv_dim=-1), "kv_dim=-1 must be"),
    (lambda: Resampler(dim=8, num_latent_tokens=0), "num_latent_tokens=0 must be"),
    (lambda: Resampler(dim=8, num_latents_mean_pooled=-1), "num_latents_mean_pooled=-1 must be a whole number of at least 0"),
    (lambda: Resampler(dim=8, depth=0), "depth=0 must be"),
    (lambda: Resampler(dim=8, heads=3), "heads=3 does not divide dim=8: choose one that does, or give head_dim"),
    (lambda: Resampler(dim=8, heads=4, kv_heads=3), "kv_heads=3 does not divide heads=4: choose one that does"),
    (lambda: Resampler(dim=8, kv_heads=0), "kv_heads=0 must be"),
    (lambda: Resampler(dim=8, head_dim=0), "head_dim=0 must be"),
    (lambda: Resampler(dim=8, attend_latents=1), "attend_latents=1 must be True or False"),
    (lambda: Resampler(dim=8, ff_dim=0), "ff_dim=0 must be"),
    (
        lambda: Resampler(dim=8, activation="silu"),
        "activation='silu' must be one of 'gelu', 'gelu_tanh', 'geglu', 'relu', 'swiglu'",
    ),
    (lambda: Resampler(dim=8, norm="batch_norm"), "norm='batch_norm' must be one of 'layer_norm', 'rms_norm'"),
    (lambda: Resampler(dim=8, qk_norm="layer_norm"), "qk_norm='layer_norm' must be True or False"),
    (lambda: Resampler(dim=8, condition_dim=0), "condition_dim=0 must be"),
    (lambda: Resampler(dim=8, final_norm=None), "final_norm=None must be True or False"),
    (lambda: Resampler(dim=8, bias="no"), "bias='no' must be True or False"),
    (lambda: Resampler(dim=8, output_dim=0), "output_dim=0 must be"),
    (lambda: Resampler(dim=8, norm_eps=0), "norm_eps=0 must be a finite number greater than 0"),
    (lambda: Resampler(dim=8, project_inputs=1), "project_inputs=1 must be True or False"),
    (lambda: Resampler(dim=8, num_embeddings=0), "num_embeddings=0 must be"),
    (lambda: Resampler(dim=8, ff_dropout=1), "ff_dropout=1 must be a probability in [0, 1)"),
    (lambda: Resampler(dim=8, attention_dropout=-1), "attention_dropout=-1 must be a probability"),
    (lambda: Pooler(dim=0), "dim=0 must be"),
    (lambda: Pooler(dim=8, kv_dim=0), "kv_dim=0 must be"),
    (lambda: Pooler(dim=8, num_queries=0), "num_queries=0 must be"),
    (lambda: Pooler(dim=8, heads=3), "heads=3 does not divide dim=8"),
    (lambda: Pooler(dim=8, query_residual=2), "query_residual=2 must be True or False"),
    (lambda: Pooler(dim=8, norm_inputs="yes"), "norm_inputs='yes' must be True or False"),
    (lambda: Pooler(dim=8, ff_dim=-1), "ff_dim=-1 must be"),
    (lambda: Pooler(dim=8, activation="swiglu"), "activation='swiglu' must be one of 'gelu', 'gelu_tanh', 'geglu'"),
    (lambda: Pooler(dim=8, ff_dropout=2), "ff_dropout=2 must be"),
    (lambda: Pooler(dim=8, attention_dropout=2), "attention_dropout=2 must be"),
    (lambda: InducedSetAttention(dim=0, num_latent_tokens=4), "dim=0 must be"),
    (lambda: InducedSetAttention(dim=8, num_latent_tokens=0), "num_latent_tokens=0 must be"),
    (lambda: InducedSetAttention(dim=8, num_latent_tokens=4, heads=3), "heads=3 does not divide dim=8"),
    (lambda: InducedSetAttention(dim=8, num_latent_tokens=4, pre_norm=0), "pre_norm=0 must be True or False"),
    (lambda: InducedSetAttention(dim=8, num_latent_tokens=4, ff_dim=0), "ff_dim=0 must be"),
]


@pytest.mark.parametrize(("make", "message"), CONSTRUCTORS, ids=[message[:40] for _, message in CONSTRUCTORS])
def test_bad_constructor(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("module", [Resampler, Pooler, InducedSetAttention], ids=lambda m: m.__name__)
def test_unknown_and_positional_arguments(module):
    needed = {"dim": 8, "num_latent_tokens": 3} if module is InducedSetAttention else {"dim": 8}
    with pytest.raises(TypeError, match="num_latents"):
        module(**needed, num_latents=3)
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        module(8)


GOOD = torch.zeros(2, 7, WIDTH)
CALLS = [
    (GOOD[0], None, f"inputs has shape [7, {WIDTH}], 2 axes, but 3 are needed: [B, M, {WIDTH}]"),
    (GOOD[..., 1:], None, f"inputs has shape [2, 7, 9], 9 channels, but the module was built for {WIDTH}: [B, M, {WIDTH}]"),
    (GOOD[:, :0], None, f"inputs has shape [2, 0, {WIDTH}], no inputs: give at least one, and mask it if it is not meant"),
    (GOOD.long(), None, "inputs is torch.int64, not floating point"),
    (GOOD.double(), None, "inputs is torch.float64 but the module is torch.float32: convert one, inputs.float()"),
    (GOOD.numpy(), None, "inputs is a ndarray, not a tensor"),
    (GOOD, torch.ones(2, 6, dtype=torch.bool), "mask has shape [2, 6], but [2, 7] is needed: [B, M]"),
    (GOOD, torch.ones(2, 7), "mask is torch.float32, not a bool tensor"),
]


@pytest.mark.parametrize(("inputs", "mask", "message"), CALLS, ids=[message[:40] for _, _, message in CALLS])
@pytest.mark.parametrize("name", ["resampler", "pooler", "induced set attention"])
def test_bad_call(name, inputs, mask, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MODULES[name]()(inputs, mask)


@pytest.mark.parametrize(
    ("name", "condition", "message"),
    [
        ("conditioned", None, "condition has shape None, but [2, 6] is needed: [B, condition_dim]"),
        ("conditioned", torch.zeros(2, 5), "condition has shape [2, 5], but [2, 6] is needed"),
        ("conditioned", torch.zeros(1, 6), "condition has shape [1, 6], but [2, 6] is needed"),
        (
            "resampler",
            torch.zeros(2, 6),
            "condition is given, but condition_dim=None: leave it out, or build with condition_dim",
        ),
    ],
)
def test_bad_condition(name, condition, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MODULES[name]()(GOOD, None, condition)
