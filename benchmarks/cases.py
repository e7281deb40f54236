"""Whole models to compare, as data: a configuration of ours, and the library that computes the same from the same weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perceivers import Perceiver
from perceivers.presets import PRESETS


@dataclass(frozen=True)
class Comparison:
    """A model to compare.

    Attributes:
        config: Arguments of `Perceiver`.
        peer: Name of the other library, a file of `benchmarks.peers`.
        bench: Whether `make bench` includes it; `make bench-full` includes all.
        others: Variants of our model to time as well.
        unbiased: Whether the peer has no biases for queries, keys and values, so that ours must be zero.
    """

    config: dict[str, Any]
    peer: str
    bench: bool = False
    others: tuple[str, ...] = ()
    unbiased: bool = False


def _arguments(name: str) -> dict[str, Any]:
    """Return the arguments of `Perceiver` for a published model."""
    return {key: value for key, value in PRESETS[name].items() if key != "model_class"}


# The published models, from images to latents. Both peers derive the highest frequency from the image size.
_FOURIER = {**_arguments("perceiver_imagenet_fourier"), "resolution": None, "num_classes": None}
_FOURIER_1CROSS = {**_arguments("perceiver_imagenet_fourier_1cross"), "resolution": None, "num_classes": None}
# As in perceiver-pytorch, from images to logits.
_GEGLU = {
    "latent_layers_indice": None,
    "frequency_base": None,
    "activation": "geglu",
    "final_norm": True,
    "num_classes": 1000,
}

COMPARISONS = {
    "fourier_1cross": Comparison(_FOURIER_1CROSS, "transformers", bench=True),
    "fourier": Comparison(_FOURIER, "krasserm", bench=True, others=("latent_transformers", "checkpointing")),
    # The example of perceiver-pytorch's README, without shared weights.
    "perceiver_pytorch_readme": Comparison(
        {
            **_GEGLU,
            "data_shape": [3, 224, 224],
            "num_latent_tokens": 256,
            "dim": 512,
            "heads": 8,
            "cross_head_dim": 64,
            "head_dim": 64,
            "layers_indice": list(range(6)),
            "num_latent_transformers_in_layers": [2] * 6,
            "num_bands": 6,
            "resolution": 10,
        },
        "perceiver_pytorch",
        bench=True,
        unbiased=True,
    ),
    # The published sizes, with feed-forwards as wide as those of perceiver-pytorch.
    "fourier_geglu": Comparison(
        {
            **_arguments("perceiver_imagenet_fourier"),
            **_GEGLU,
            "ff_dim_scale": 4,
            "num_latent_transformers_in_layers": [6, 6],
        },
        "perceiver_pytorch",
        unbiased=True,
    ),
    # Few narrow latents and a large image, so that nearly all time is spent on the cross-attention.
    **{
        f"1024x1024_N{latents}_D256": Comparison(
            {**_FOURIER_1CROSS, "data_shape": [3, 1024, 1024], "num_latent_tokens": latents, "dim": 256}, "transformers"
        )
        for latents in (64, 256)
    },
}

QUICK = {"data_shape": [3, 12, 10], "num_bands": 4, "num_latent_tokens": 8, "dim": 16, "heads": 2, "cross_head_dim": 21}


def write(path: Path, config: dict[str, Any], *, unbiased: bool = False, **more: Any) -> None:
    """Write the case that a subject's `build` takes: the resolved configuration, random weights and one random input.

    Every parameter is random, including those initialised to zeros or ones. The queries of the cross-attention are large, so
    that attention is far from uniform; in an average of all inputs, a wrong order of channels would hardly be noticed.
    """
    torch.manual_seed(0)
    model = Perceiver(**config)
    weights = {}
    for name, parameter in model.state_dict().items():
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.3 * torch.randn_like(parameter)
        else:
            weights[name] = torch.randn_like(parameter) * (parameter.shape[-1] if parameter.ndim > 1 else 4) ** -0.5
        if ".cross_attentions." in name and name.endswith("to_q.weight"):
            weights[name] *= 4
        if unbiased and name.endswith(("to_q.bias", "to_k.bias", "to_v.bias")):
            weights[name].zero_()
    x = torch.randn(1, *model.config["data_shape"])
    torch.save({"config": model.config, "weights": weights, "x": x, **more}, path)
