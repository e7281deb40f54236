"""Multimodal: order, padding, masks, and dropping of inputs and modalities."""

import json
import math
from collections import Counter

import pytest
import torch
from inputs.cases import B, attention, multimodal, multimodal_data

from accuracy import IMPLEMENTATIONS, draw_parameters
from perceivers._registry import describe
from perceivers.inputs import InputModule, Labels, Located, Multimodal, Pixels, TimeSeries
from perceivers.inputs.multimodal import replace_inputs

NAMES = ["audio", "image", "label"]


def encoded(groups):
    return torch.cat([group.encoded() for group in groups], dim=1)


def test_written_out():
    module, x = draw_parameters(multimodal(min_padding_size=3)), multimodal_data()
    groups = module(x)
    assert module.num_channels == 19 + 3
    for name, group in zip(NAMES, groups, strict=True):
        alone = module.module(name)(x[name])[0].encoded()
        padding = module.padding[name].expand(B, alone.shape[1], -1)
        torch.testing.assert_close(group.encoded(), torch.cat([alone, padding], -1))


@pytest.mark.parametrize("order", ["sorted", "given"])
def test_order(order):
    module = multimodal(order=order)
    assert module.names == (NAMES if order == "sorted" else ["image", "audio", "label"])
    assert list(module.by_modality(multimodal_data())) == module.names


def test_config():
    module = multimodal(min_padding_size=3, order="given", mask_probs={"image": 0.5}, drop_probs={"audio": 0.3})
    same = InputModule.create(json.loads(json.dumps(describe(module))))
    assert same.config == module.config
    same.load_state_dict(module.state_dict())
    assert {name: p.shape for name, p in module.named_parameters() if "." in name and "modalities" not in name} == {
        "padding.audio": (11,),
        "padding.image": (3,),
        "padding.label": (17,),
        "mask_tokens.image": (22,),
    }


def test_no_padding_for_the_widest():
    module = Multimodal(modalities={"a": Labels(num_classes=3), "b": Labels(num_classes=5)}, min_padding_size=0)
    assert module.num_channels == 5
    groups = module({"a": torch.tensor([0, 1]), "b": torch.tensor([4, 0])})
    assert encoded(groups)[0, 1].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_masked_inputs_are_the_mask_vector(p, implementation):
    """The output and all gradients equal those of arrays in which the inputs are replaced, in every implementation."""
    module = draw_parameters(multimodal(mask_probs={"image": p, "label": 0.0, "audio": p})).double().eval()
    x = {name: v.double() if v.is_floating_point() else v for name, v in multimodal_data().items()}
    plain = module.by_modality(x)
    probabilities, module.mask_probs = module.mask_probs, {}
    without = module.by_modality(x)
    module.mask_probs = probabilities
    replaced = {}
    for name in NAMES:
        same = (plain[name][0].encoded() == without[name][0].encoded()).all(-1)
        replaced[name] = torch.zeros_like(same) if module.mask_probs.get(name, 0) == 0 else plain[name][0].index[..., 0] == 1
        assert torch.equal(~same, replaced[name]) if name != "label" else same.all()
    assert 0 < sum(r.sum() for r in replaced.values()) or p == 0
    latents, results = torch.randn(B, 3, 8, dtype=torch.float64), []
    for ours in (True, False):
        module.zero_grad()
        groups = []
        module.mask_probs = {}
        for name, [group] in module.by_modality(x).items():
            vector = module.mask_tokens[name]
            if ours:
                groups.append(replace_inputs(group, vector, replaced[name].reshape(B, *group.content.shape[2:])))
            else:
                whole = torch.where(replaced[name].unsqueeze(-1), vector, group.encoded())
                groups.append(type(group).of(whole, group.mask))
        module.mask_probs = probabilities
        out = attention(module, implementation if ours else "reference").double()(latents, groups)
        out.square().sum().backward()
        gradients = [torch.zeros_like(q) if q.grad is None else q.grad for q in module.parameters()]
        results.append([out, *gradients])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-10)


def test_masking_counts():
    """Inputs are masked in evaluation, too, unless `mask_when` is "training"."""
    module, x = multimodal(mask_probs={"image": 0.3}), multimodal_data()
    x["image"] = torch.randn(500, 3, 6, 8)
    x |= {"audio": torch.randn(500, 1, 24), "label": torch.zeros(500, dtype=torch.long)}
    for mode in (module.train(), module.eval()):
        index = mode.by_modality(x)["image"][0].index
        assert (index[..., 0] == 1).double().mean().item() == pytest.approx(0.3, abs=0.03)
    module = multimodal(mask_probs={"image": 0.3}, mask_when="training")
    assert module.train().by_modality(x)["image"][0].index is not None
    assert module.eval().by_modality(x)["image"][0].index is None


def test_mask_vectors_stay_in_the_graph():
    module = multimodal(mask_probs={"image": 0.0, "label": 1.0})
    out = attention(module)(torch.randn(B, 3, 8), module(multimodal_data()))
    out.sum().backward()
    assert module.mask_tokens["image"].grad.abs().max() == 0
    assert module.mask_tokens["label"].grad.abs().max() > 0


def test_dropping_inputs():
    module, x = multimodal(drop_probs={"image": 0.3}), multimodal_data()
    x["image"] = torch.randn(B, 3, 6 * 20, 8 * 20)
    groups = module.train().by_modality(x)
    assert groups["image"][0].mask.double().mean().item() == pytest.approx(0.7, abs=0.03)
    assert groups["audio"][0].mask is None
    assert module.eval().by_modality(x)["image"][0].mask is None


def test_dropping_modalities():
    """Modalities are dropped independently, but never all of a sample."""
    module = multimodal(drop_modality_probs={"image": 0.5, "audio": 0.5, "label": 0.5}).train()
    x = {"image": torch.randn(2000, 3, 6, 8), "audio": torch.randn(2000, 1, 24), "label": torch.zeros(2000, dtype=torch.long)}
    groups = module.by_modality(x)
    kept = torch.stack([groups[name][0].flat_mask().any(1) for name in NAMES], 1)
    assert all(torch.equal(groups[n][0].flat_mask().all(1), groups[n][0].flat_mask().any(1)) for n in NAMES)
    counts = Counter(map(tuple, kept.tolist()))
    assert (False, False, False) not in counts
    assert counts.pop((True, True, True)) == pytest.approx(
        500, abs=80
    )  # including samples that would have lost all modalities
    assert len(counts) == 6
    assert all(count == pytest.approx(250, abs=60) for count in counts.values())
    assert module.eval().by_modality(x)["image"][0].mask is None


def test_missing_modalities_have_no_effect():
    module = draw_parameters(multimodal()).eval()
    latents, x = torch.randn(B, 3, 8), multimodal_data()
    present = torch.tensor([True, False])
    mask = {"image": present, "label": present}
    x["image"][1], x["label"][1] = math.nan, -1
    out = attention(module)(latents, module(x, mask))
    alone = {name: x[name][1:] for name in ["audio"]} | {"image": torch.zeros(1, 3, 6, 8), "label": torch.tensor([0])}
    groups = module.by_modality(alone)
    wanted = attention(module)(latents[1:], groups["audio"])
    torch.testing.assert_close(out[1:], wanted, rtol=1e-5, atol=1e-6)
    first = {name: value[:1] for name, value in x.items()}
    torch.testing.assert_close(out[:1], attention(module)(latents[:1], module(first)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("times", [torch.rand(5), torch.rand(B, 5)], ids=["shared", "own"])
def test_missing_series(times):
    series = TimeSeries(num_variables=2, start=0, stop=1, resolution=4, variable_channels=3, num_bands=2)
    module = Multimodal(modalities={"sensors": series, "label": Labels(num_classes=3)})
    x = {"sensors": Located(torch.randn(B, 2, 5), times), "label": torch.tensor([0, 1])}
    groups = module.by_modality(x, {"sensors": torch.tensor([False, True])})
    assert groups["sensors"][0].flat_mask().tolist() == [[False] * 10, [True] * 10]
    wanted = module.by_modality(x)["sensors"][0].encoded()[1]
    assert torch.equal(groups["sensors"][0].encoded()[1], wanted)


def test_masks_of_one_modality():
    module, x = multimodal(), multimodal_data()
    mask = torch.ones(B, 24, dtype=torch.bool)
    mask[:, :8] = False
    groups = module.by_modality(x, {"audio": mask})
    assert groups["audio"][0].mask[0].tolist() == [False, False, True, True, True, True]


def test_modalities_with_several_groups():
    series = TimeSeries(num_variables=[2, 1], start=0, stop=1, resolution=4, variable_channels=3, num_bands=2)
    module = Multimodal(modalities={"sensors": series, "image": Pixels(data_shape=[1, 4, 4], num_bands=1)})
    sensors = [Located(torch.randn(B, 2, 3), torch.rand(3)), Located(torch.randn(B, 1, 5), torch.rand(5))]
    groups = module({"sensors": sensors, "image": torch.randn(B, 1, 4, 4)})
    assert encoded(groups).shape == (B, 16 + 6 + 5, module.num_channels)


def test_compiles_as_one_graph():
    torch.compiler.reset()
    module, x = multimodal(mask_probs={"image": 0.5}, drop_probs={"audio": 0.3}).train(), multimodal_data()
    compiled = torch.compile(lambda x: encoded(module(x)), fullgraph=True, backend="aot_eager")
    assert compiled(x).shape == (B, 15, module.num_channels)
