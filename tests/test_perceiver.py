"""What `Perceiver` promises, apart from errors and from running compiled or elsewhere."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from accuracy import IMPLEMENTATIONS, assert_varies, draw_parameters
from perceivers import Perceiver
from perceivers.ops.tokens import Tokens

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
    (maps,) = model.attention_maps(x)
    assert maps.shape == (2, 1, 7, *shape[1:])
    assert_varies(model(x))
    assert_varies(maps)


def test_pooled_latents_are_their_mean():
    model = build(num_classes=None)
    x = array(2, 3, 6, 5)
    torch.testing.assert_close(model(x), model.encode(x).mean(1))


@pytest.mark.parametrize("axes", [(6, 5), (12, 10), (1, 5), (1, 1), (3, 40)], ids=str)
def test_other_axis_lengths(axes):
    """Coordinates span -1 to 1 whatever the length, and are 0 on an axis of length 1; nothing else depends on it."""
    model = build(num_bands=0)
    x = array(2, 3, *axes)
    spans = [torch.linspace(-1, 1, n, dtype=torch.float64) * (n > 1) for n in axes]
    coordinates = torch.stack(torch.meshgrid(*spans, indexing="ij")).expand(2, -1, *axes)
    encoded = torch.cat([x, coordinates], dim=1).flatten(2).transpose(1, 2)
    out = model(x)
    assert_varies(out)
    torch.testing.assert_close(out, model.forward_head(model.encoder([Tokens.of(encoded)])))
    with pytest.raises(ValueError, match=r"5 axes, but 4 are needed"):
        model(array(2, 3, *axes, 2))


def test_masked_values_have_no_effect():
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
    """The attention is zero before its output projection, so that only that projection's bias reaches a masked sample."""
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


class TestAttentionMaps:
    """The attention weights from latents to inputs."""

    def test_sum_to_one_and_follow_the_mask(self):
        model, x = build(cross_heads=2), array(2, 3, 6, 5)
        mask = torch.rand(2, 6, 5) > 0.4
        mask[1] = False
        (maps,) = model.attention_maps(x, mask)
        assert maps.shape == (2, 2, 7, 6, 5)
        torch.testing.assert_close(maps[0].flatten(2).sum(-1), torch.ones(2, 7).double())
        assert (maps[0][:, :, ~mask[0]] == 0).all()
        assert (maps[1] == 0).all()
        assert (model.attention_maps(x, mask, log_scores=True)[0][1] == -math.inf).all()

    def test_each_layer(self):
        """The map times the values is the attention of that layer."""
        model = build(layers_indice=[0, None, 1, 1], latent_layers_indice=[0, 0, 1, 1])
        x = array(2, 3, 6, 5)
        seen = []
        for block in model.encoder.cross_attentions:
            block.attention.to_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        model(x)
        encoded = model.tokens(x)[0].encoded()
        applied = list(seen)
        for layer, block in zip((0, 1, 2), (0, 1, 1), strict=True):
            attention = model.encoder.cross_attentions[block].attention
            values = attention.to_v(attention.inputs_norm(encoded))
            for index in (layer, layer - 3):
                maps = model.attention_maps(x, layer=index)[0].flatten(-2).squeeze(1)
                torch.testing.assert_close(maps @ values, applied[layer])

    def test_some_latents(self):
        model, x = build(), array(2, 3, 6, 5)
        (maps,) = model.attention_maps(x)
        torch.testing.assert_close(model.attention_maps(x, latents=[5, 0, -1])[0], maps[:, :, [5, 0, 6]])
        torch.testing.assert_close(model.attention_maps(x, latents=[2], log_scores=True)[0].exp(), maps[:, :, [2]])

    def test_holds_only_the_maps(self):
        """At 512 x 512 the encoded array takes 272 MB; the maps of one latent, 1 MB each, are made without it."""
        model = Perceiver(
            data_shape=[1, 512, 512],
            num_latent_tokens=8,
            dim=16,
            heads=2,
            layers_indice=[0],
            num_latent_transformers_in_layers=[1],
        )
        with Largest() as mode:
            model.attention_maps(torch.randn(1, 1, 512, 512), latents=[3])
        assert 512 * 512 * 4 <= mode.largest < 64e6


class Largest(TorchDispatchMode):
    """Watches the sizes of the storages that operations return, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.untyped_storage().nbytes())
        return out
