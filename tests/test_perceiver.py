"""What `Perceiver` and `PerceiverBlock` promise, apart from errors and from running compiled or elsewhere."""

import math

import pytest
import torch
from torch import nn

from accuracy import IMPLEMENTATIONS, assert_varies, draw_parameters
from perceivers import Perceiver, PerceiverBlock
from perceivers.layers import CrossAttentionBlock, LatentTransformer

SMALL = {
    "data_shape": [3, 6, 5],
    "num_latent_tokens": 7,
    "dim": 12,
    "heads": 3,
    "layers_indice": [0, 1, 1],
    "num_latent_transformers_in_layers": [2, 1],
    "num_bands": 4,
    "resolution": 8,
    "num_classes": 5,
}


def build(**changes) -> Perceiver:
    """A small model in float64 with every parameter drawn."""
    return draw_parameters(Perceiver(**{**SMALL, **changes}).double().eval())  # pyright: ignore


def array(*shape) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_defaults_are_those_of_the_original_readme():
    with torch.device("meta"):
        ours = Perceiver(data_shape=[1, 224, 224])
        readme = Perceiver(
            data_shape=[1, 224, 224],
            cross_heads=1,
            num_latent_tokens=1024,
            dim=512,
            heads=16,
            layers_indice=[0] + [1] * 7,
            num_latent_transformers_in_layers=[6] * 2,
            num_bands=64,
            resolution=224,
            frequency_base=2,
            pre_norm=True,
            ff_dim=None,
            ff_dim_scale=4,
            ff_dropout=0.0,
            attention_dropout=0.0,
            cross_kv_dim=None,
            head_dim=None,
        )
    assert ours.config == readme.config
    assert sum(p.numel() for p in ours.parameters()) == 44_140_556
    assert ours.encoder.cross_attentions[0].attention.to_k.weight.shape == (512, 259)


@pytest.mark.parametrize("shape", [[2, 9], [1, 4, 6], [3, 2, 5, 4], [1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize("num_classes", [None, 5])
def test_shapes(shape, num_classes):
    model = build(data_shape=shape, num_classes=num_classes)
    x = array(2, *shape)
    assert model(x).shape == (2, num_classes or 12)
    assert model.encode(x).shape == (2, 7, 12)
    assert model.attention_maps(x).shape == (2, 1, 7, *shape[1:])
    assert_varies(model(x))
    assert_varies(model.attention_maps(x))


def test_pooled_latents_are_their_mean():
    model = build(num_classes=None)
    x = array(2, 3, 6, 5)
    torch.testing.assert_close(model(x), model.encode(x).mean(1))


@pytest.mark.parametrize("axes", [(6, 5), (12, 10), (1, 5), (1, 1), (3, 40)], ids=str)
def test_other_axis_lengths(axes):
    """Only the coordinates change: what is constant along an axis gives the same at other lengths of it."""
    model = build(layers_indice=[0], num_latent_transformers_in_layers=[1], num_bands=0)
    assert model(array(2, 3, *axes)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"5 axes, but 4 are needed"):
        model(array(2, 3, *axes, 2))


def test_mask_hides_what_lies_under_it():
    model = build()
    x = array(2, 3, 6, 5)
    mask = torch.rand(2, 6, 5) > 0.4
    out = model(x, mask)
    assert_varies(out)
    assert (out - model(x)).abs().max() > 1e-3
    for rubbish in (0.0, 1e30, math.nan, math.inf):
        dirty = torch.where(mask.unsqueeze(1), x, rubbish).requires_grad_()
        again = model(dirty, mask)
        assert torch.equal(again, out)
        grads = torch.autograd.grad(again.sum(), [dirty, *model.parameters()])
        assert all(grad.isfinite().all() for grad in grads)
        assert (grads[0][(~mask).unsqueeze(1).expand_as(dirty)] == 0).all()


def test_nothing_to_attend_leaves_the_output_bias():
    """The attention is zero before its output projection, so that a fully masked sample sees only that map's bias."""
    model = build(layers_indice=[0], num_latent_transformers_in_layers=[0], num_classes=None)
    block = model.encoder.cross_attentions[0]
    mask = torch.zeros(2, 6, 5, dtype=torch.bool)
    mask[1] = True
    x = array(2, 3, 6, 5)
    latents = model.encoder.latents + block.attention.to_out.bias
    latents = latents + block.feed_forward(block.feed_forward_norm(latents))
    torch.testing.assert_close(model.encode(x, mask)[0], latents)
    torch.testing.assert_close(model.encode(x, mask)[1], model.encode(x)[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_implementations_agree(implementation):
    model, x = build(cross_heads=3), array(2, 3, 6, 5)
    mask = torch.rand(2, 6, 5) > 0.4
    out = model(x, mask)
    model.set_attention_implementation(implementation)
    torch.testing.assert_close(model(x, mask), out, rtol=1e-10, atol=1e-10)
    assert "attention_implementation" not in model.config
    named = Perceiver(**SMALL, attention_implementation=implementation)
    assert named.encoder.cross_attentions[0].attention.attention_implementation == implementation


def test_layers_share_as_the_lists_say():
    model = build(layers_indice=[0, 1, None, 1], latent_layers_indice=[0, 0, 1, 0])
    layers = model.layers
    crosses, stacks = model.encoder.cross_attentions, model.encoder.latent_transformers
    assert [layer.cross_attention for layer in layers] == [crosses[0], crosses[1], None, crosses[1]]
    assert [list(layer.latent_transformers) for layer in layers] == [list(stacks[i]) for i in (0, 0, 1, 0)]
    assert len(crosses) == 2
    assert [len(stack) for stack in stacks] == [2, 1]


def test_layers_are_what_the_model_applies():
    model = build(layers_indice=[0, 1, None, 1], latent_layers_indice=[0, 0, 1, 0])
    x, mask = array(2, 3, 6, 5), torch.rand(2, 6, 5) > 0.4
    latents = model.encoder.latents.expand(2, -1, -1)
    for layer in model.layers:
        latents = layer(latents, [model.tokens(x, mask)])
    torch.testing.assert_close(latents, model.encode(x, mask))


def test_state_dict_keys():
    """The names are a promise: weights of one version load in the next."""
    model = build(layers_indice=[0, 0], num_latent_transformers_in_layers=[1], final_norm=True)
    cross = [
        f"attention.{name}.{part}" for name in ("inputs_norm", "to_q", "to_k", "to_v", "to_out") for part in ("weight", "bias")
    ]
    latent = [f"attention.{name}.{part}" for name in ("to_q", "to_k", "to_v", "to_out") for part in ("weight", "bias")]
    rest = [
        f"{name}.{part}"
        for name in ("feed_forward.linear_in", "feed_forward.linear_out", "attention_norm", "feed_forward_norm")
        for part in ("weight", "bias")
    ]
    assert list(model.state_dict()) == [
        "encoder.latents",
        *(f"encoder.cross_attentions.0.{name}" for name in cross + rest),
        *(f"encoder.latent_transformers.0.0.{name}" for name in latent + rest),
        *("norm.weight", "norm.bias", "head.weight", "head.bias"),
    ]


def test_head_dims():
    widths = lambda model: (  # noqa: E731
        model.encoder.cross_attentions[0].attention.to_q.out_features,
        model.encoder.latent_transformers[0][0].attention.to_q.out_features,
    )
    assert widths(build(cross_heads=2)) == (12, 12)
    assert widths(build(cross_heads=2, head_dim=5)) == (10, 15)
    assert widths(build(cross_heads=2, head_dim=5, cross_head_dim=7)) == (14, 15)
    assert widths(build(cross_heads=2, cross_head_dim=7)) == (14, 12)


def test_bias_is_of_both_attentions():
    model = build(bias=False)
    missing = {name for name in build().state_dict() if name not in model.state_dict()}
    assert {name.rsplit(".", 2)[1] for name in missing} == {"to_q", "to_k", "to_v", "to_out"}
    assert len(missing) == 4 * (2 + 3)
    last = set(build(bias="out").state_dict())
    assert last - model.state_dict().keys() == {name for name in missing if name.endswith("to_out.bias")}


def test_widths_of_the_feed_forward():
    hidden = lambda model: model.encoder.cross_attentions[0].feed_forward.linear_in.out_features  # noqa: E731
    assert hidden(build()) == 48
    assert hidden(build(ff_dim_scale=0.5)) == 6
    assert hidden(build(ff_dim=13, ff_dim_scale=0.123)) == 13
    assert hidden(build(activation="geglu")) == 96


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "geglu", "relu"])
def test_block_written_out(pre_norm, activation):
    """One block against modules of PyTorch with the same weights."""
    block = draw_parameters(LatentTransformer(dim=12, ff_dim=10, heads=3, pre_norm=pre_norm, activation=activation).double())
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    a, f = block.attention, block.feed_forward
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([a.to_q.weight, a.to_k.weight, a.to_v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([a.to_q.bias, a.to_k.bias, a.to_v.bias]))
        theirs.out_proj.load_state_dict(a.to_out.state_dict())

    def feed_forward(x):
        x = x @ f.linear_in.weight.T + f.linear_in.bias
        if activation == "geglu":
            x = x[..., :10] * nn.GELU()(x[..., 10:])
        elif activation == "relu":
            x = x.clamp(min=0)
        else:
            x = nn.GELU("tanh" if activation == "gelu_tanh" else "none")(x)
        return x @ f.linear_out.weight.T + f.linear_out.bias

    n1, n2 = block.attention_norm, block.feed_forward_norm
    x = array(2, 7, 12)
    if pre_norm:
        wanted = x + theirs(n1(x), n1(x), n1(x), need_weights=False)[0]
        wanted = wanted + feed_forward(n2(wanted))
    else:
        wanted = n1(x + theirs(x, x, x, need_weights=False)[0])
        wanted = n2(wanted + feed_forward(wanted))
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_cross_block_written_out(pre_norm):
    block = draw_parameters(CrossAttentionBlock(dim=12, kv_dim=9, ff_dim=10, heads=2, pre_norm=pre_norm).double())
    theirs = nn.MultiheadAttention(12, 2, kdim=9, vdim=9, batch_first=True).double()
    a = block.attention
    with torch.no_grad():
        for name in "qkv":
            getattr(theirs, f"{name}_proj_weight").copy_(getattr(a, f"to_{name}").weight)
        theirs.in_proj_bias.copy_(torch.cat([a.to_q.bias, a.to_k.bias, a.to_v.bias]))
        theirs.out_proj.load_state_dict(a.to_out.state_dict())
    assert (a.inputs_norm is None) == (not pre_norm)
    x, inputs, mask = array(2, 4, 12), array(2, 11, 9), torch.rand(2, 11) > 0.4
    ours = PerceiverBlock(cross_attention=block, latent_transformers=[])(x, inputs, mask)
    n1, n2 = block.attention_norm, block.feed_forward_norm
    kv = a.inputs_norm(inputs) if pre_norm else inputs
    attended = theirs(n1(x) if pre_norm else x, kv, kv, key_padding_mask=~mask, need_weights=False)[0]
    if pre_norm:
        wanted = x + attended
        wanted = wanted + block.feed_forward(n2(wanted))
    else:
        wanted = n1(x + attended)
        wanted = n2(wanted + block.feed_forward(wanted))
    torch.testing.assert_close(ours, wanted)


def test_block_from_dims():
    block = PerceiverBlock.from_dims(cross_kv_dim=9, cross_heads=2, dim=12, heads=3, depth=2, ff_dim_scale=2, bias=False)
    assert len(block.latent_transformers) == 2
    assert block.latent_transformers[0].feed_forward.linear_in.out_features == 24
    assert block(torch.randn(2, 4, 12), torch.randn(2, 11, 9)).shape == (2, 4, 12)
    x, inputs = torch.randn(2, 4, 12), torch.randn(2, 11, 9)
    mask = torch.rand(2, 11) > 0.5
    assert torch.equal(block(x, inputs, mask)[0], block(x, inputs.masked_fill(~mask[..., None], torch.nan), mask)[0])


def test_block_is_trained_like_the_paper_initialises():
    torch.manual_seed(1)
    model = Perceiver(data_shape=[3, 32, 32], num_latent_tokens=256, dim=256, num_classes=10)
    latents = model.encoder.latents
    assert latents.std().item() == pytest.approx(0.02, rel=0.02)
    for block in model.encoder.cross_attentions:
        for linear in (block.attention.to_q, block.attention.to_k, block.feed_forward.linear_in):
            std = linear.in_features**-0.5
            assert linear.weight.std().item() == pytest.approx(std, rel=0.02)
            assert linear.weight.abs().max().item() <= 2 * std / 0.8796 * (1 + 1e-6)
            assert linear.weight.abs().max().item() > 1.9 * std / 0.8796
            assert (linear.bias == 0).all()
    assert (model.head.weight == 0).all()
    assert (model.head.bias == 0).all()


def test_every_parameter_gets_a_gradient():
    model = build(final_norm=True)
    model(array(2, 3, 6, 5)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith("attention.to_k.bias"):
            continue  # cancels in the softmax: its gradient is zero in exact arithmetic
        assert parameter.grad.abs().max() > 1e-6, name


def test_dropouts_act_in_training_only():
    x = array(2, 3, 6, 5)
    for name in ("ff_dropout", "attention_dropout"):
        model = build(**{name: 0.5})
        assert torch.equal(model(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))


def test_feed_forward_drops_after_both_maps():
    block = LatentTransformer(dim=12, ff_dim=10, heads=3, ff_dropout=0.5).train()
    hidden = []
    block.feed_forward.linear_out.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    out = block.feed_forward(torch.randn(50, 12))
    assert 0.4 < (hidden[0] == 0).float().mean() < 0.6
    assert 0.4 < (out == 0).float().mean() < 0.6


class TestAttentionMaps:
    """Where the latents look."""

    def test_sum_to_one_and_follow_the_mask(self):
        model, x = build(cross_heads=2), array(2, 3, 6, 5)
        mask = torch.rand(2, 6, 5) > 0.4
        mask[1] = False
        maps = model.attention_maps(x, mask)
        assert maps.shape == (2, 2, 7, 6, 5)
        torch.testing.assert_close(maps[0].flatten(2).sum(-1), torch.ones(2, 7).double())
        assert (maps[0][:, :, ~mask[0]] == 0).all()
        assert (maps[1] == 0).all()
        assert (model.attention_maps(x, mask, log_scores=True)[1] == -math.inf).all()

    def test_each_layer(self):
        """The map times the values is the attention of that layer."""
        model = build(layers_indice=[0, None, 1, 1], latent_layers_indice=[0, 0, 1, 1])
        x = array(2, 3, 6, 5)
        seen = []
        for block in model.encoder.cross_attentions:
            block.attention.to_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        model(x)
        encoded = model.tokens(x, None).encoded()
        applied = list(seen)
        for layer, block in zip((0, 1, 2), (0, 1, 1), strict=True):
            attention = model.encoder.cross_attentions[block].attention
            values = attention.to_v(attention.inputs_norm(encoded))
            for index in (layer, layer - 3):
                maps = model.attention_maps(x, layer=index).flatten(-2).squeeze(1)
                torch.testing.assert_close(maps @ values, applied[layer])

    def test_some_latents(self):
        model, x = build(), array(2, 3, 6, 5)
        maps = model.attention_maps(x)
        torch.testing.assert_close(model.attention_maps(x, latents=[5, 0, -1]), maps[:, :, [5, 0, 6]])
        torch.testing.assert_close(model.attention_maps(x, latents=[2], log_scores=True).exp(), maps[:, :, [2]])

    def test_holds_only_the_maps(self):
        """At 512 x 512 the encoded array is 268 MB; a few maps of it must not make it."""
        model = Perceiver(
            data_shape=[1, 512, 512],
            num_latent_tokens=8,
            dim=16,
            heads=2,
            layers_indice=[0],
            num_latent_transformers_in_layers=[1],
        )
        with torch.profiler.profile(profile_memory=True) as profile:
            model.attention_maps(torch.randn(1, 1, 512, 512), latents=[3])
        largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
        allocations = [event.cpu_memory_usage for event in profile.events() if event.name == "aten::empty"]
        assert 0 < max(allocations, default=largest) < 64e6
