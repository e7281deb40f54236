"""Published configurations and smaller siblings, as data. Parameter counts, layers and FLOPs of each are pinned by a test.

The published ImageNet models of *Perceiver* (table 7 and appendix E of the paper): 512 latents of width 1024, a
cross-attention of one head as wide as its inputs (261 channels), 48 latent layers in 8 stacks of 6 that share weights.
They differ in how many cross-attentions they have and what is shared.
"""

from typing import Any

_IMAGENET: dict[str, Any] = {
    "data_shape": [3, 224, 224],
    "cross_heads": 1,
    "cross_head_dim": 261,
    "num_latent_tokens": 512,
    "dim": 1024,
    "heads": 8,
    "num_bands": 64,
    "resolution": 224,
    "frequency_base": None,
    "pre_norm": True,
    "ff_dim_scale": 1,
    "bias": True,
    "final_norm": False,
    "num_classes": 1000,
}

PRESETS: dict[str, dict[str, Any]] = {
    # 8 cross-attentions, all but the first shared; 78.0 % top-1 in the paper
    "perceiver_imagenet_fourier": {
        **_IMAGENET,
        "layers_indice": [0] + [1] * 7,
        "latent_layers_indice": [0] * 8,
        "num_latent_transformers_in_layers": [6],
    },
    # one cross-attention at the start; 76.7 % top-1
    "perceiver_imagenet_fourier_1cross": {
        **_IMAGENET,
        "layers_indice": [0] + [None] * 7,
        "latent_layers_indice": [0] * 8,
        "num_latent_transformers_in_layers": [6],
    },
    # nothing shared; 72.9 % top-1
    "perceiver_imagenet_fourier_unshared": {
        **_IMAGENET,
        "layers_indice": list(range(8)),
        "latent_layers_indice": list(range(8)),
        "num_latent_transformers_in_layers": [6] * 8,
    },
    # the same shape of model for pictures of 64 x 64 on a CPU
    "perceiver_imagenet_fourier_small": {
        **_IMAGENET,
        "data_shape": [3, 64, 64],
        "cross_head_dim": 64,
        "num_latent_tokens": 128,
        "dim": 256,
        "num_bands": 16,
        "resolution": 64,
        "layers_indice": [0] + [1] * 3,
        "latent_layers_indice": [0] * 4,
        "num_latent_transformers_in_layers": [3],
    },
    # smaller still: seconds a test
    "perceiver_imagenet_fourier_tiny": {
        **_IMAGENET,
        "data_shape": [3, 32, 32],
        "cross_head_dim": 32,
        "num_latent_tokens": 32,
        "dim": 64,
        "heads": 4,
        "num_bands": 8,
        "resolution": 32,
        "layers_indice": [0, 1],
        "latent_layers_indice": [0, 0],
        "num_latent_transformers_in_layers": [2],
        "num_classes": 10,
    },
}
