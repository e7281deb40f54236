"""Each configuration is pinned to its parameters, the layers it applies, and its FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceivers import create_model, list_models, losses
from perceivers.factory import example_inputs
from perceivers.layers import CrossAttentionBlock, LatentTransformer

# name: (parameters, cross-attentions applied, latent layers applied, GFLOPs)
PINNED = {
    "perceiver_imagenet_fourier": (44_912_254, 8, 48, 706.3),
    "perceiver_imagenet_fourier_1cross": (42_135_859, 1, 48, 404.0),
    "perceiver_imagenet_fourier_unshared": (326_241_856, 8, 48, 706.3),
    "perceiver_imagenet_fourier_small": (1_826_684, 4, 12, 2.4),
    "perceiver_imagenet_fourier_tiny": (83_678, 2, 4, 0.0),
    # Of Perceiver IO, cross-attentions to the inputs. The paper gives 369 and 407 GFLOPs for images with a convolution and
    # with Fourier features, and 241 for the large language model, but 113 for the smaller one.
    "perceiver_io_imagenet_fourier": (48_440_627, 1, 48, 406.1),
    "perceiver_io_imagenet_conv": (48_646_522, 1, 48, 369.4),
    "perceiver_io_imagenet_learned": (62_255_848, 1, 48, 478.0),
    "perceiver_io_imagenet_fourier_tiny": (100_372, 1, 4, 0.0),
    "perceiver_io_mlm_bytes": (201_108_230, 1, 26, 120.9),
    "perceiver_io_mlm_bytes_large": (425_607_430, 1, 40, 240.9),
    "perceiver_io_mlm_bytes_small": (2_328_326, 1, 6, 0.4),
    "perceiver_io_mlm_bytes_tiny": (75_270, 1, 2, 0.0),
    "perceiver_io_optical_flow": (41_057_134, 1, 24, 1888.0),
    "perceiver_io_optical_flow_tiny": (94_014, 1, 2, 0.0),
    "perceiver_io_multimodal_kinetics": (19_858_855, 1, 8, 7472.1),
    "perceiver_io_multimodal_kinetics_tiny": (153_791, 1, 2, 0.1),
}


def test_all_are_pinned():
    assert list_models() == sorted(PINNED)


def shapes(out):
    """The shapes of a result."""
    return {name: shapes(part) for name, part in out.items()} if isinstance(out, dict) else list(out.shape)


# Results for two samples of the published size; those of the other models are logits.
RESULTS = {
    "perceiver_io_mlm_bytes": [2, 2048, 262],
    "perceiver_io_mlm_bytes_large": [2, 2048, 262],
    "perceiver_io_mlm_bytes_small": [2, 512, 262],
    "perceiver_io_mlm_bytes_tiny": [2, 64, 262],
    "perceiver_io_optical_flow": [2, 2, 368, 496],
    "perceiver_io_optical_flow_tiny": [2, 2, 24, 32],
    "perceiver_io_multimodal_kinetics": {"audio": [2, 1, 30_720], "image": [2, 3, 16, 224, 224], "label": [2, 700]},
    "perceiver_io_multimodal_kinetics_tiny": {"audio": [2, 1, 512], "image": [2, 3, 2, 16, 16], "label": [2, 10]},
}


@pytest.mark.parametrize("name", PINNED)
def test_pinned(name):
    parameters, crosses, latents, gigaflops = PINNED[name]
    with torch.device("meta"):
        model = create_model(name)
        two = example_inputs(name, 2)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert round(model.flops() / 1e9, 1) == gigaflops
    assert model.attention_implementation == "auto"
    applied = {CrossAttentionBlock: 0, LatentTransformer: 0}
    for module in model.encoder.modules():
        if type(module) in applied:
            module.register_forward_hook(lambda m, *_: applied.__setitem__(type(m), applied[type(m)] + 1))
    assert shapes(model(two)) == RESULTS.get(name, [2, model.num_classes])
    assert list(applied.values()) == [crosses, latents]
    assert model.model_name == name
    with torch.device("meta"):
        assert type(model)(**model.config).config == model.config


def test_published_widths():
    """What the counts alone could hide: keys and values of the cross-attentions, and paddings of the modalities."""
    widths = {
        "perceiver_io_imagenet_fourier": (261, 261, 1024, 1024, 1),
        "perceiver_io_mlm_bytes": (256, 1280, 256, 768, 8),
        "perceiver_io_optical_flow": (322, 322, 512, 512, 1),
        "perceiver_io_multimodal_kinetics": (704, 704, 512, 512, 1),
    }
    for name, wanted in widths.items():
        with torch.device("meta"):
            model = create_model(name)
        config, decoder = model.config, model.decoder.attention
        assert (config["cross_qk_channels"], config["cross_v_channels"]) == wanted[:2]
        assert (decoder.to_k.out_features, decoder.to_v.out_features, decoder.heads) == wanted[2:]
    paddings = [{name: len(p) for name, p in part.padding.items()} for part in (model.inputs, model.outputs)]
    assert paddings == [{"audio": 303, "image": 461, "label": 4}, {"audio": 641, "image": 831, "label": 2}]


def test_flops_at_other_sizes():
    with torch.device("meta"):
        model = create_model("perceiver_imagenet_fourier_tiny", attention_implementation="reference")
        x = torch.empty(1, 3, 17, 40)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert model.flops(x) == counter.get_total_flops()


def test_siblings_learn():
    """One step of the small siblings lowers the loss of its batch."""
    for name in list_models("perceiver_imagenet*_tiny") + list_models("perceiver_imagenet*_small"):
        model = create_model(name)
        x, y = torch.randn(4, *model.config["data_shape"]), torch.arange(4)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(3):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[2] < losses[1] < losses[0]


def image_task():
    return torch.randn(4, 3, 32, 32), lambda out: losses.classification(out, torch.arange(4), label_smoothing=0.1)


def language_task():
    ids, masked = torch.randint(6, 262, (4, 64)), torch.rand(4, 64) < 0.3
    return ids.masked_fill(masked, 3), lambda out: losses.masked_tokens(out, ids, masked)


def flow_task():
    return torch.randn(4, 3, 2, 24, 32), lambda out: losses.end_point_error(out, torch.full((4, 2, 24, 32), 0.1))


def autoencoding_task():
    x = {"audio": torch.randn(4, 1, 512), "image": torch.randn(4, 3, 2, 16, 16), "label": torch.arange(4)}
    return x, lambda out: losses.autoencoding(out, x)


TASKS = {
    "perceiver_io_imagenet_fourier_tiny": image_task,
    "perceiver_io_mlm_bytes_tiny": language_task,
    "perceiver_io_optical_flow_tiny": flow_task,
    "perceiver_io_multimodal_kinetics_tiny": autoencoding_task,
}


@pytest.mark.parametrize("name", TASKS)
def test_published_losses_fall(name):
    """Two steps with the loss of the paper lower it, and move every parameter."""
    assert list_models("perceiver_io*_tiny") == sorted(TASKS)
    model = create_model(name)
    if "multimodal" in name:  # as in training; with the published 1 and 0 some parameters are never used
        inputs = model.config["inputs"]
        inputs["mask_probs"] = dict.fromkeys(inputs["mask_probs"], 0.5)
        model = create_model(name, inputs=inputs)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    x, loss_of = TASKS[name]()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses_seen = []
    for _ in range(3):
        torch.manual_seed(0)  # the same inputs are masked
        loss = loss_of(model(x))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses_seen.append(loss.item())
    assert losses_seen[2] < losses_seen[1] < losses_seen[0]
    still = {key for key, parameter in model.named_parameters() if torch.equal(parameter, before[key])}
    assert not {key for key in still if not key.endswith("to_k.bias")}  # it cancels in the softmax
