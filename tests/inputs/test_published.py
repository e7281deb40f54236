"""Published input modules: channels of an encoded input, and the exact number of parameters."""

import pytest
import torch

from perceivers.inputs import ConvStem, FramePairs, LearnedPixels, Multimodal, Pixels, Points, TokenIds

PUBLISHED = {  # class, arguments, channels of an encoded input, parameters
    "imagenet_fourier": (Pixels, {"data_shape": [3, 224, 224]}, 261, 0),
    # 3 x 256 + 256, 50,176 x 256, 256 x 256 + 256
    "imagenet_learned": (LearnedPixels, {"data_shape": [3, 224, 224]}, 512, 12_911_872),
    "imagenet_conv": (ConvStem, {"data_shape": [3, 224, 224]}, 322, 9_536),  # 7 x 7 x 3 x 64, 2 x 64
    "language": (TokenIds, {}, 768, 1_774_080),  # (262 + 2,048) x 768
    "flow": (FramePairs, {}, 322, 3_520),  # 54 x 64 + 64
    "kinetics": (
        Multimodal,
        {
            "modalities": {
                "audio": {"kind": "Waveform", "num_samples": 30_720, "samples_per_patch": 16, "num_bands": 192},
                "image": {"kind": "Patches", "data_shape": [3, 16, 224, 224], "patch_size": [1, 4, 4], "num_bands": 32},
                "label": {"kind": "Labels", "num_classes": 700},
            },
            "min_padding_size": 4,
            "mask_probs": {"audio": 0.0, "image": 0.0, "label": 1.0},
        },
        704,
        303 + 461 + 4 + 3 * 704,
    ),
    "modelnet40": (Points, {"resolution": 2240}, 387, 0),
}


@pytest.mark.parametrize(("kind", "kwargs", "channels", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_sizes(kind, kwargs, channels, parameters):
    with torch.device("meta"):
        module = kind(**kwargs)
    assert module.num_channels == channels
    assert sum(p.numel() for p in module.parameters()) == parameters
