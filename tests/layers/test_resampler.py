"""`Resampler` against its formulas written out, and what its arguments mean."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from accuracy import assert_varies, draw_parameters
from perceivers import from_pretrained
from perceivers.layers import Resampler

SMALL = {"dim": 12, "num_latent_tokens": 5, "depth": 2, "heads": 4, "kv_dim": 10}


def build(**changes) -> Resampler:
    return draw_parameters(Resampler(**{**SMALL, **changes}).double().eval())  # pyright: ignore


def array(*shape) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def written_out(weights, latents, inputs, *, depth, heads, scale_and_shift=lambda name: (0, 0), attend_latents=True):
    """The formulas, one sample `[M, C]` and one head at a time; the two norms of the attention are apart."""

    def norm(name, x):
        scale, shift = scale_and_shift(name)
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return x * (1 + scale) + shift

    if "project_inputs.weight" in weights:
        inputs = inputs @ weights["project_inputs.weight"].T + weights["project_inputs.bias"]
    for layer in range(depth):
        block = f"blocks.{layer}"
        x, z = norm(f"{block}.inputs_norm.norm", inputs), norm(f"{block}.attention_norm.norm", latents)
        read = torch.cat([x, z]) if attend_latents else x
        q, k, v = z, read, read
        q, k, v = (y @ weights[f"{block}.attention.to_{n}.weight"].T for n, y in (("q", q), ("k", k), ("v", v)))
        width = q.shape[-1] // heads
        groups = heads // (k.shape[-1] // width)
        outs = []
        for head in range(heads):
            mine, shared = slice(head * width, (head + 1) * width), head // groups
            theirs = slice(shared * width, (shared + 1) * width)
            outs.append((q[:, mine] @ k[:, theirs].T / width**0.5).softmax(-1) @ v[:, theirs])
        latents = latents + torch.cat(outs, dim=-1) @ weights[f"{block}.attention.to_out.weight"].T
        y, ff = norm(f"{block}.feed_forward_norm.norm", latents), f"{block}.feed_forward.linear"
        y = F.gelu(y @ weights[f"{ff}_in.weight"].T + weights[f"{ff}_in.bias"])
        latents = latents + y @ weights[f"{ff}_out.weight"].T + weights[f"{ff}_out.bias"]
    scale_and_shift = lambda name: (0, 0)  # noqa: E731
    return norm("norm", latents)


@pytest.mark.parametrize("kv_dim", [10, 12])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("attend_latents", [True, False])
def test_written_out(kv_dim, kv_heads, attend_latents):
    """Flamingo's resampler: keys and values from normalised inputs and normalised latents, feed-forward 4 times as wide."""
    resampler = build(kv_dim=kv_dim, kv_heads=kv_heads, head_dim=5, attend_latents=attend_latents)
    assert resampler.blocks[0].feed_forward.linear_in.out_features == 48
    assert (resampler.project_inputs is not None) == (attend_latents and kv_dim != 12)
    x, mask, weights = array(2, 11, kv_dim), torch.rand(2, 11) > 0.4, resampler.state_dict()
    out = resampler(x, mask)
    assert_varies(out)
    settings = {"depth": 2, "heads": 4, "attend_latents": attend_latents}
    wanted = [written_out(weights, resampler.latents, x[i, mask[i]], **settings) for i in range(2)]
    torch.testing.assert_close(out, torch.stack(wanted), rtol=1e-10, atol=1e-10)


def test_adaptive_norms_written_out():
    resampler = build(condition_dim=6, kv_dim=12)
    x, condition, weights = array(2, 11, 12), array(2, 6), resampler.state_dict()
    out = resampler(x, condition=condition)
    assert (out - resampler(x, condition=condition.flip(0))).abs().max() > 1e-3

    def scale_and_shift(i):
        def function(name):
            linear = name.removesuffix("norm") + "to_scale_and_shift"
            return (F.silu(condition[i]) @ weights[f"{linear}.weight"].T + weights[f"{linear}.bias"]).chunk(2)

        return function

    wanted = [
        written_out(weights, resampler.latents, x[i], depth=2, heads=4, scale_and_shift=scale_and_shift(i)) for i in range(2)
    ]
    torch.testing.assert_close(out, torch.stack(wanted), rtol=1e-10, atol=1e-10)


def test_a_condition_starts_without_effect():
    resampler = Resampler(**SMALL, condition_dim=6)
    x = torch.randn(2, 11, 10)
    assert torch.equal(resampler(x, condition=torch.randn(2, 6)), resampler(x, condition=torch.zeros(2, 6)))
    resampler(x, condition=torch.randn(2, 6)).square().sum().backward()
    for block in resampler.blocks:
        for norm in (block.inputs_norm, block.attention_norm, block.feed_forward_norm):
            assert norm.to_scale_and_shift.weight.grad.abs().max() > 0


@pytest.mark.parametrize("masked", [False, True])
def test_mean_pooled_latents_written_out(masked):
    """IP-Adapter Plus: norm and linear layer of the mean of the (projected) inputs, before the learned latents."""
    resampler = build(num_latents_mean_pooled=3)
    x, mask, weights = array(2, 11, 10), torch.rand(2, 11) > 0.4, resampler.state_dict()
    mask = mask if masked else torch.ones_like(mask)
    wanted = []
    for i in range(2):
        projected = x[i, mask[i]] @ weights["project_inputs.weight"].T + weights["project_inputs.bias"]
        pooled = weights["mean_pooled_latents.norm.weight"] * F.layer_norm(projected.mean(0), (12,))
        pooled = weights["mean_pooled_latents.linear.weight"] @ (pooled + weights["mean_pooled_latents.norm.bias"])
        pooled = (pooled + weights["mean_pooled_latents.linear.bias"]).view(3, 12)
        latents = torch.cat([pooled, resampler.latents])
        wanted.append(written_out(weights, latents, x[i, mask[i]], depth=2, heads=4))
    out = resampler(x, mask if masked else None)
    assert out.shape == (2, 8, 12)
    torch.testing.assert_close(out, torch.stack(wanted), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("implementation", ["auto", "reference", "dense", "absorbed"])  # an array has no axes to separate
@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2}, {"attend_latents": False}], ids=str)
def test_implementations_agree(implementation, changes):
    resampler, x, mask = build(**changes), array(2, 11, 10), torch.rand(2, 11) > 0.4
    wanted = resampler(x, mask)
    resampler.set_attention_implementation(implementation)
    assert all(block.attention.attention_implementation == implementation for block in resampler.blocks)
    torch.testing.assert_close(resampler(x, mask), wanted, rtol=1e-10, atol=1e-10)


def test_implementations_are_obeyed_or_refused():
    resampler = build(qk_norm=True)
    x = array(2, 11, 10)
    wanted = resampler(x)
    for name in ("dense", "reference"):
        resampler.set_attention_implementation(name)
        torch.testing.assert_close(resampler(x), wanted)
    resampler.set_attention_implementation("absorbed")
    message = "implementation='absorbed' cannot do this: qk_norm normalises keys after their projection; use 'auto'"
    with pytest.raises(ValueError, match=re.escape(message)):
        resampler(x)
    dropping = build(attention_dropout=0.5).train()
    dropping(x)
    dropping.set_attention_implementation("absorbed")
    with pytest.raises(ValueError, match="implementation='absorbed' cannot do this: it cannot drop attention weights"):
        dropping(x)
    for module in (resampler, build()):
        with pytest.raises(ValueError, match="attention_implementation='fast' must be one of"):
            module.set_attention_implementation("fast")


@pytest.mark.parametrize("qk_norm", [False, True])
def test_nothing_to_attend_leaves_the_output_bias(qk_norm):
    resampler = build(attend_latents=False, bias=True, depth=1, qk_norm=qk_norm, final_norm=False)
    block, mask = resampler.blocks[0], torch.ones(2, 11, dtype=torch.bool)
    mask[1] = False
    wanted = resampler.latents + block.attention.to_out.bias
    wanted = wanted + block.feed_forward(block.feed_forward_norm(wanted))
    x = array(2, 11, 10)
    torch.testing.assert_close(resampler(x, mask)[1], wanted)
    torch.testing.assert_close(resampler(x, mask)[0], resampler(x)[0])


def test_nothing_to_attend_leaves_the_latents():
    resampler, mask = build(kv_dim=12), torch.zeros(1, 11, dtype=torch.bool)
    wanted = written_out(resampler.state_dict(), resampler.latents, torch.zeros(0, 12).double(), depth=2, heads=4)
    torch.testing.assert_close(resampler(array(1, 11, 12), mask)[0], wanted, rtol=1e-10, atol=1e-10)


def test_state_dict_keys():
    """The names are a promise: weights of one version load in the next."""
    changes = {"num_embeddings": 3, "output_dim": 7, "num_latents_mean_pooled": 1, "condition_dim": 3}
    resampler = build(depth=1, qk_norm=True, bias=True, **changes)
    both = lambda *names: [f"{name}.{part}" for name in names for part in ("weight", "bias")]  # noqa: E731
    norms = [both(f"{name}.norm", f"{name}.to_scale_and_shift") for name in ("inputs_norm", "attention_norm")]
    last = both("feed_forward_norm.norm", "feed_forward_norm.to_scale_and_shift")
    attention = both(*(f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out", "q_norm", "k_norm")))
    feed_forward = both("feed_forward.linear_in", "feed_forward.linear_out")
    assert list(resampler.state_dict()) == [
        "embeddings",
        "latents",
        *both("project_inputs", "mean_pooled_latents.norm", "mean_pooled_latents.linear"),
        *(f"blocks.0.{name}" for name in [*norms[0], *norms[1], *attention, *last, *feed_forward]),
        *both("project_outputs", "norm"),
    ]


def test_settings():
    resampler = build(ff_dim=7, final_norm=False, activation="swiglu", norm="rms_norm", kv_heads=1, head_dim=5)
    block = resampler.blocks[1]
    assert resampler.norm is None
    assert (block.feed_forward.linear_in.out_features, block.feed_forward.linear_out.in_features) == (14, 7)
    assert (block.attention.to_q.out_features, block.attention.to_k.out_features) == (20, 5)
    assert not [name for name in resampler.state_dict() if name.endswith("bias") and name != "project_inputs.bias"]
    fresh = Resampler(dim=256, num_latent_tokens=256, depth=1)
    assert fresh.latents.std().item() == pytest.approx(0.02, rel=0.02)


def test_projections_written_out():
    """Of inputs even if they are as wide as the latents, and of the result before its norm; all norms have `norm_eps`."""
    resampler = build(kv_dim=12, project_inputs=True, output_dim=7, depth=1, norm_eps=0.5)
    x = array(2, 11, 12)
    inner, outer = resampler.project_inputs, resampler.project_outputs
    tokens = resampler.blocks[0](resampler.latents.expand(2, -1, -1), inner(x), None, None)
    wanted = F.layer_norm(outer(tokens), (7,), resampler.norm.weight, resampler.norm.bias, eps=0.5)
    torch.testing.assert_close(resampler(x), wanted)
    assert {norm.eps for norm in resampler.modules() if isinstance(norm, nn.LayerNorm)} == {0.5}
    assert build(qk_norm=True, norm="rms_norm", norm_eps=0.5).blocks[0].attention.q_norm.eps == 0.5


def test_embeddings_are_added_to_the_inputs():
    resampler, without = build(num_embeddings=4, num_latents_mean_pooled=1), build(num_latents_mean_pooled=1)
    without.load_state_dict({name: t for name, t in resampler.state_dict().items() if name != "embeddings"})
    x, mask, indices = array(2, 11, 10), torch.rand(2, 11) > 0.4, torch.randint(4, (2, 11))
    wanted = without(x + resampler.embeddings[indices], mask)
    assert (wanted - without(x, mask)).abs().max() > 1e-3
    torch.testing.assert_close(resampler(x, mask, indices=indices), wanted)
    hidden = indices.masked_fill(~mask, 99)  # what lies under the mask has no effect
    torch.testing.assert_close(resampler(x.masked_fill(~mask[..., None], torch.nan), mask, indices=hidden), wanted)
    compiled = torch.compile(resampler, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, mask, indices=indices), wanted)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("changes", "indices", "message"),
    [
        ({"num_embeddings": 4}, None, "indices has shape None, but [2, 11] is needed: [B, M], the embedding of each input"),
        ({"num_embeddings": 4}, torch.zeros(2, 1).long(), "indices has shape [2, 1], but [2, 11] is needed"),
        ({"num_embeddings": 4}, torch.zeros(2, 11), "indices is torch.float32 of shape [2, 11], but an integer tensor"),
        ({"num_embeddings": 4}, torch.full((2, 11), 4), "indices has ids from 4 to 4, but num_embeddings=4"),
        ({}, torch.zeros(2, 11).long(), "indices is given, but num_embeddings=None: leave it out, or build with"),
    ],
    ids=range(5),
)
def test_bad_indices(changes, indices, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(**changes)(array(2, 11, 10), indices=indices)


SAVED = {
    "plain": {},
    "idefics2": {"norm": "rms_norm", "activation": "swiglu", "kv_heads": 2, "kv_dim": 12, "norm_eps": 1e-3},
    "everything": {
        "num_embeddings": 3,
        "output_dim": 7,
        "num_latents_mean_pooled": 1,
        "condition_dim": 3,
        "qk_norm": True,
        "bias": True,
        "final_norm": False,
        "project_inputs": True,
        "ff_dim": 9,
        "head_dim": 5,
        "attend_latents": False,
        "ff_dropout": 0.5,
        "attention_dropout": 0.5,
    },
}


@pytest.mark.parametrize("changes", SAVED.values(), ids=SAVED)
def test_saves_and_loads_itself(changes, tmp_path):
    resampler = build(**changes)
    resampler.save_pretrained(tmp_path)
    assert {**resampler.config, **SMALL, **changes} == resampler.config
    given = {"condition": array(2, 3) if "condition_dim" in changes else None}
    given["indices"] = torch.randint(3, (2, 11)) if "num_embeddings" in changes else None
    x = array(2, 11, resampler.kv_dim)
    for again in (Resampler.from_pretrained(tmp_path), from_pretrained(tmp_path)):
        assert isinstance(again, Resampler)
        assert again.config == resampler.config
        torch.testing.assert_close(again(x, **given), resampler(x, **given))
