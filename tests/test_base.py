"""What both models have in common, by the names that timm and transformers use."""

import copy
import re

import pytest
import torch

from accuracy import assert_varies, draw_parameters
from perceivers import Perceiver, PerceiverIO, create_model, inputs, outputs
from perceivers.inputs import InputModule
from perceivers.ops.tokens import Tokens

SIZES = {
    "num_latent_tokens": 5,
    "dim": 12,
    "heads": 2,
    "layers_indice": [0, 1, None, 1],
    "latent_layers_indice": [0, 1, 1, 0],
    "num_latent_transformers_in_layers": [1, 2],
}


def perceiver(**changes) -> Perceiver:
    return Perceiver(**{"data_shape": [2, 4, 6], "num_bands": 2, "num_classes": 3, "final_norm": True, **SIZES, **changes})


def learned(**changes) -> PerceiverIO:
    pixels = inputs.LearnedPixels(data_shape=[2, 4, 6], embed_dim=3, position_channels=4, position_dim=5)
    return PerceiverIO(**{"inputs": pixels, "outputs": outputs.LearnedQueries(dim=8, num_channels=3), **SIZES, **changes})


def pooled(**changes) -> PerceiverIO:
    pixels = inputs.Pixels(data_shape=[2, 4, 6], num_bands=2)
    return PerceiverIO(inputs=pixels, outputs=outputs.MeanPool(dim=12, num_channels=3, final_norm=True), **SIZES, **changes)


MAKERS = [perceiver, learned, pooled]
models = pytest.mark.parametrize("make", MAKERS)


def build(make, **changes):
    return draw_parameters(make(**changes).double().eval())


def array() -> torch.Tensor:
    return torch.randn(2, 2, 4, 6, dtype=torch.float64)


@models
def test_forward_is_features_then_head(make):
    model, x, mask = build(make), array(), torch.rand(2, 4, 6) > 0.4
    features = model.forward_features(x, mask)
    assert features.shape == (2, 5, model.num_features)
    assert_varies(features)
    assert (features - model.forward_features(x)).abs().max() > 1e-3
    assert torch.equal(features, model.encode(x, mask))
    torch.testing.assert_close(model.forward_head(features), model(x, mask))


@models
def test_before_the_logits(make):
    """The classifier maps what is returned with `pre_logits` to what is returned without."""
    model = build(make)
    features = model.forward_features(array())
    before, head = model.forward_head(features, pre_logits=True), model.head if make is perceiver else model.outputs.head
    assert before.shape == (2, 8 if make is learned else 12)
    assert_varies(before)
    torch.testing.assert_close(head(before), model.forward_head(features))
    assert model.num_classes == 3
    model.reset_classifier(0)
    torch.testing.assert_close(model.forward_head(features), before)


@models
def test_the_classifier_is_replaced(make):
    model, x = build(make), array()
    before = {name: p for name, p in model.named_parameters() if "head." not in name}
    for classes in (7, 0, 4):
        model.reset_classifier(classes)
        assert model.num_classes == classes
        assert model(x).shape == (2, classes or (8 if make is learned else 12))
        assert all(p.dtype == torch.float64 for p in model.parameters())
        kept = dict(model.named_parameters())
        assert all(kept[name] is p for name, p in before.items())
        again = type(model)(**model.config).double()
        again.load_state_dict(model.state_dict())
        torch.testing.assert_close(again.eval()(x), model(x))
    assert len(kept) == len(before) + 2
    fresh = make().double()
    fresh.reset_classifier(4)  # initialised as the constructor does
    assert (fresh(x) == 0).all() == (make is not learned)
    for wrong in (-1, 2.5, None):
        with pytest.raises(ValueError, match=re.escape(f"num_classes={wrong!r} must be a whole number of at least 0")):
            model.reset_classifier(wrong)


def test_no_classes_are_zero_or_none():
    for classes in (0, None):
        model = perceiver(num_classes=classes)
        assert (model.num_classes, model.config["num_classes"], model.head) == (0, None, None)
        assert create_model("perceiver_io_imagenet_fourier_tiny", num_classes=classes).num_classes == 0


def test_other_outputs_are_not_classifiers():
    model = learned(outputs=outputs.Grid(axes=[2, 2], num_channels=3, num_bands=1))
    assert model.num_classes == 0
    message = "outputs is a Grid, not a classifier: build the model with outputs.LearnedQueries or outputs.MeanPool"
    for call in (lambda: model.reset_classifier(3), lambda: model.forward_head(torch.zeros(1, 5, 12), pre_logits=True)):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


@models
def test_hidden_states_by_layer(make):
    model, x, mask = build(make), array(), torch.rand(2, 4, 6) > 0.4
    latents, states = model.forward_intermediates(x, mask)
    assert [state.shape for state in states] == [(2, 5, 12)] * 4
    assert torch.equal(latents, model.forward_features(x, mask))
    assert torch.equal(states[3], latents)
    for i in range(3):  # each is what a model that ends there returns
        layers = {name: SIZES[name][: i + 1] for name in ("layers_indice", "latent_layers_indice")}
        depths = SIZES["num_latent_transformers_in_layers"][: max(layers["latent_layers_indice"]) + 1]
        shorter = make(**layers, num_latent_transformers_in_layers=depths).double().eval() if make is not pooled else None
        if shorter is not None:
            shorter.load_state_dict({name: t for name, t in model.state_dict().items() if name in shorter.state_dict()})
            torch.testing.assert_close(shorter.forward_features(x, mask), states[i])


def test_some_hidden_states():
    model, x, applied = build(perceiver), array(), []
    states = model.forward_intermediates(x)[1]
    same = lambda ours, wanted: [torch.equal(a, states[i]) for a, i in zip(ours, wanted, strict=True)]  # noqa: E731
    assert all(same(model.forward_intermediates(x, indices=2)[1], [2, 3]))
    assert all(same(model.forward_intermediates(x, indices=[-1, 1])[1], [1, 3]))
    model.encoder.latent_transformers[0].register_forward_hook(lambda *_: applied.append(0))
    model.encoder.latent_transformers[1].register_forward_hook(lambda *_: applied.append(1))
    assert all(same(model.forward_intermediates(x, indices=[1], intermediates_only=True), [1]))
    assert applied == [0, 1]  # no layer after the last that was asked for


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (0, "indices=0 must be a whole number of at least 1"),
        (5, "indices=-5 must be a whole number of at least -4"),
        ([4], "indices=[4] must name at least one layer, each below 4"),
        ([], "indices=[] must name at least one layer"),
        (1.5, "indices=1.5 must be a list of indices of layers"),
    ],
)
def test_wrong_indices(indices, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        perceiver().forward_intermediates(torch.zeros(1, 2, 4, 6), indices=indices)


@models
def test_what_weight_decay_leaves_alone(make):
    """All but the weights of linear layers: latents, learned queries, position tables, norms and biases."""
    model = make()
    names = model.no_weight_decay()
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert names == dict(model.named_parameters()).keys() - linear
    assert "encoder.latents" in names
    assert "encoder.cross_attentions.0.attention.to_k.bias" in names
    assert "encoder.cross_attentions.0.attention_norm.weight" in names
    if make is learned:
        assert {"outputs.query", "inputs.positions.embeddings"} <= names
        assert {"inputs.linear.weight", "outputs.head.weight"} <= linear


def test_what_weight_decay_leaves_alone_of_published_models():
    """Of each kind of input: embeddings, and paddings and mask vectors, but not convolutions."""
    text = create_model("perceiver_io_mlm_bytes_tiny").no_weight_decay()
    assert {"inputs.embeddings.weight", "inputs.positions.embeddings", "outputs.query", "outputs.bias"} <= text
    several = create_model("perceiver_io_multimodal_kinetics_tiny").no_weight_decay()
    assert {"inputs.padding.image", "inputs.mask_tokens.label", "outputs.padding.audio"} <= several
    conv = PerceiverIO(
        inputs={"kind": "ConvStem", "data_shape": [2, 16, 16], "stem_channels": 4, "num_bands": 2},
        outputs={"kind": "MeanPool", "dim": 12},
        **SIZES,
    )
    assert {"inputs.conv.weight", "inputs.norm.weight"} - conv.no_weight_decay() == {"inputs.conv.weight"}


@models
def test_depths(make):
    model = make()
    depths = model.parameter_depths()
    assert list(depths) == [name for name, _ in model.named_parameters()]
    wanted = {
        "encoder.latents": 0,
        "inputs.": 0,
        "encoder.cross_attentions.0.": 1,
        "encoder.latent_transformers.0.": 1,
        "encoder.cross_attentions.1.": 2,  # also of layer 3: the first counts
        "encoder.latent_transformers.1.": 2,
        "decoder.": 5,
        "outputs.": 5,
        "norm.": 5,
        "head.": 5,
    }
    for name, depth in depths.items():
        assert depth == next(d for start, d in wanted.items() if name.startswith(start)), name
    assert set(depths.values()) == {0, 1, 2, 5}


@models
def test_flops_leave_the_model_as_it_is(make):
    model = make(ff_dropout=0.5).train()
    state, seed, seen = copy.deepcopy(model.state_dict()), torch.get_rng_state(), id(model.encoder.latents)
    count = model.flops()
    x = torch.zeros(1, 2, 4, 6)
    assert count == model.flops(x) > 0
    assert count < model.flops(x.expand(3, -1, -1, -1)) <= 3 * count  # learned positions are projected once
    if make is not learned:  # positions for other sizes
        assert model.flops(torch.zeros(1, 2, 9, 7)) > count
    assert model.training
    assert model.attention_implementation == "auto"
    assert id(model.encoder.latents) == seen
    assert model.encoder.latents.requires_grad
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_flops_without_a_size():
    model = learned(inputs=inputs.Features(dim=5))
    with pytest.raises(ValueError, match="x is missing: Features was not made for a fixed size; give a sample"):
        model.flops()
    assert model.flops(torch.zeros(1, 9, 5)) < model.flops(torch.zeros(1, 10, 5))


@models
def test_maps_are_one_per_token_group(make):
    model, x = build(make), array()
    maps = model.attention_maps(x)
    grids = [group.content.shape[2:] for group in model.tokens(x)]
    assert [m.shape for m in maps] == [(2, 1, 5, *grid) for grid in grids]
    torch.testing.assert_close(sum(m.flatten(3).sum(-1) for m in maps), torch.ones(2, 1, 5).double())


@models
def test_explain_names_what_is_chosen(make):
    model = make()
    assert re.search(r"^> \w+", model.explain(torch.zeros(1, 2, 4, 6)), re.MULTILINE)


@models
def test_float64_needs_a_model_of_float64(make):
    with pytest.raises(ValueError, match=r"x is torch.float64 but the model is torch.float32: convert one, x.float\(\)"):
        make()(array())


def test_checkpointing_is_on_unless_it_is_turned_off():
    model = perceiver()
    model.set_grad_checkpointing()
    assert model.encoder.grad_checkpointing
    model.set_grad_checkpointing(False)
    assert not model.encoder.grad_checkpointing


def test_a_perceiver_takes_what_its_input_module_takes():
    """Arrays of different lengths in a list, as `Pixels` pads and masks them."""
    model, x = build(perceiver), array()
    alone = [model(part[None]) for part in (x[0, :, :3], x[1])]
    torch.testing.assert_close(model([x[0, :, :3], x[1]]), torch.cat(alone))
    assert isinstance(model.inputs, inputs.Pixels)
    assert not model.inputs.state_dict()


class Doubled(InputModule):
    """An input module of a user's own."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.num_channels, self.config = dim, {"dim": dim}

    def forward(self, x, mask=None):
        return [Tokens.of(2 * x, mask)]


def test_an_input_module_of_ones_own_is_saved_and_loaded(tmp_path):
    model = build(learned, inputs=Doubled(dim=5))
    model.save_pretrained(tmp_path)
    again = PerceiverIO.from_pretrained(tmp_path)
    assert isinstance(again.inputs, Doubled)
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(again(x), model(x))
