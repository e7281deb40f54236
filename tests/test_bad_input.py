"""Bad input: `ValueError` with the argument's name, its value and the remedy; `TypeError` for unknown names."""

import math
import re

import numpy as np
import pytest
import torch

from perceivers import Perceiver, PerceiverBlock
from perceivers.layers import CrossAttention, FeedForward, LatentTransformer, SelfAttention

GOOD = {"data_shape": [1, 4, 4], "num_latent_tokens": 3, "dim": 8, "heads": 2, "num_bands": 2}
LAYERS = {"layers_indice": [0], "num_latent_transformers_in_layers": [1]}

CONSTRUCTOR = [
    ({"data_shape": [3]}, "data_shape=[3] must be [channels, *axes] with 1 to 4 axes"),
    ({"data_shape": []}, "data_shape=[] must be"),
    ({"data_shape": [1, 2, 2, 2, 2, 2]}, "with 1 to 4 axes"),
    ({"data_shape": 3}, "data_shape=3 must be a list of whole numbers"),
    ({"data_shape": "344"}, "data_shape='344' must be a list"),
    ({"data_shape": [1, 0, 4]}, "data_shape=0 must be a whole number of at least 1"),
    ({"data_shape": [1, 4.0, 4]}, "data_shape=4.0 must be a whole number"),
    ({"num_latent_tokens": 0}, "num_latent_tokens=0 must be a whole number of at least 1"),
    ({"num_latent_tokens": True}, "num_latent_tokens=True must be a whole number"),
    ({"dim": -8}, "dim=-8 must be a whole number of at least 1"),
    ({"heads": 3}, "heads=3 does not divide dim=8: choose one that does, or give head_dim"),
    ({"cross_heads": 3}, "cross_heads=3 does not divide dim=8: choose one that does, or give cross_head_dim"),
    ({"heads": 0}, "heads=0 must be"),
    ({"cross_heads": math.nan}, "cross_heads=nan must be"),
    ({"head_dim": 0}, "head_dim=0 must be"),
    ({"layers_indice": []}, "layers_indice=[] must use each of 0, 1, 2"),
    ({"layers_indice": [0, 2]}, "layers_indice=[0, 2] must use each of 0, 1, 2, ... up to its largest: no gaps"),
    ({"layers_indice": [1, 1]}, "layers_indice=[1, 1] must use each"),
    ({"layers_indice": [-1]}, "layers_indice=-1 must be a whole number of at least 0"),
    ({"layers_indice": [None], "latent_layers_indice": [0]}, "layers_indice=[None] must use each"),
    ({"layers_indice": [0, None]}, "latent_layers_indice=None cannot default to layers_indice=[0, None]"),
    ({"layers_indice": [0, 0], "latent_layers_indice": [0]}, "latent_layers_indice=[0] has 1 entries, layers_indice has 2"),
    ({"latent_layers_indice": [None]}, "latent_layers_indice=None must be a whole number"),
    ({"latent_layers_indice": [1]}, "latent_layers_indice=[1] must use each"),
    ({"num_latent_transformers_in_layers": [1, 1]}, "[1, 1] has 2 entries for 1 unique stacks of layers: give one each"),
    ({"num_latent_transformers_in_layers": [-1]}, "num_latent_transformers_in_layers=-1 must be a whole number of at least 0"),
    ({"num_latent_transformers_in_layers": 2}, "num_latent_transformers_in_layers=2 must be a list"),
    ({"num_bands": -1}, "num_bands=-1 must be a whole number of at least 0"),
    ({"num_bands": 2.5}, "num_bands=2.5 must be"),
    ({"resolution": 0}, "resolution=0 must be a finite number greater than 0"),
    ({"resolution": math.nan}, "resolution=nan must be a finite number"),
    ({"resolution": "224"}, "resolution='224' must be a finite number"),
    ({"resolution": [4]}, "resolution=[4] has 1 entries for 2 axes: give one each"),
    ({"resolution": [4, 3]}, "resolution=3 of axis 1 gives a highest frequency of 1.5, below the lowest of 2"),
    ({"data_shape": [1, 3, 3]}, "resolution=3 of axis 0 gives a highest frequency of 1.5, below the lowest of 2"),
    ({"frequency_base": 0}, "frequency_base=0 must be a finite number greater than 0"),
    ({"frequency_base": math.inf}, "frequency_base=inf must be"),
    ({"pre_norm": 1}, "pre_norm=1 must be True or False"),
    ({"bias": None}, "bias=None must be True or False, or 'out' for the output projection alone"),
    ({"final_norm": "yes"}, "final_norm='yes' must be True or False"),
    ({"ff_dim": 0}, "ff_dim=0 must be"),
    ({"ff_dim_scale": 0.3}, "ff_dim_scale=0.3 times dim=8 must be a whole number: give ff_dim instead"),
    ({"ff_dim_scale": math.nan}, "ff_dim_scale=nan must be"),
    ({"ff_dropout": 1.0}, "ff_dropout=1.0 must be a probability in [0, 1)"),
    ({"ff_dropout": -0.1}, "ff_dropout=-0.1 must be a probability"),
    ({"attention_dropout": math.nan}, "attention_dropout=nan must be a probability"),
    ({"attention_dropout": "0.1"}, "attention_dropout='0.1' must be a probability"),
    ({"cross_kv_dim": 12}, "cross_kv_dim=12 must be 11, the 1 channels of data_shape and 10 of the position features"),
    ({"num_classes": -1}, "num_classes=-1 must be a whole number of at least 0"),
    ({"activation": "silu"}, "activation='silu' must be one of 'gelu', 'gelu_tanh', 'geglu', 'relu'"),
    ({"attention_implementation": "flash"}, "attention_implementation='flash' must be one of 'auto'"),
]


@pytest.mark.parametrize(("changes", "message"), CONSTRUCTOR, ids=[message[:40] for _, message in CONSTRUCTOR])
def test_constructor(changes, message):
    Perceiver(**{**GOOD, **LAYERS})
    with pytest.raises(ValueError, match=re.escape(message)):
        Perceiver(**{**GOOD, **LAYERS, **changes})


def test_unknown_and_positional_arguments():
    with pytest.raises(TypeError, match="num_latents"):
        Perceiver(**GOOD, num_latents=3)
    with pytest.raises(TypeError, match="positional"):
        Perceiver([1, 4, 4])  # pyright: ignore
    with pytest.raises(TypeError, match="data_shape"):
        Perceiver()  # pyright: ignore


def test_numbers_of_numpy_are_numbers():
    model = Perceiver(**{**GOOD, **LAYERS, "dim": np.int64(8), "data_shape": np.array([1, 4, 4]), "ff_dropout": np.float32(0)})
    assert type(model.config["dim"]) is int
    assert model.config["data_shape"] == [1, 4, 4]


GOOD_X = torch.zeros(2, 1, 4, 4)
CALLS = [
    (GOOD_X[0], None, "x has shape [1, 4, 4], 3 axes, but 4 are needed: [B, 1, 4, 4]"),
    (torch.zeros(2, 3, 4, 4), None, "x has shape [2, 3, 4, 4], 3 channels, but data_shape has 1 (axis 1)"),
    (torch.zeros(2, 1, 4, 0), None, "with an empty axis"),
    (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), None, "x is torch.uint8, not floating point: convert and scale it"),
    (torch.zeros(2, 1, 4, 4, dtype=torch.bool), None, "x is torch.bool, not floating point"),
    (torch.zeros(2, 1, 4, 4, dtype=torch.complex64), None, "x is torch.complex64, not floating point"),
    (GOOD_X.double(), None, "x is torch.float64 but the model is torch.float32: convert one, x.float() or model.double()"),
    (GOOD_X.numpy(), None, "x is a ndarray, not a tensor: convert it, torch.as_tensor(x)"),
    (GOOD_X, torch.ones(2, 1, 4, 4, dtype=torch.bool), "mask has shape [2, 1, 4, 4], but [2, 4, 4] is needed: [B, *axes]"),
    (GOOD_X, torch.ones(1, 4, 4, dtype=torch.bool), "mask has shape [1, 4, 4], but [2, 4, 4] is needed"),
    (GOOD_X, torch.ones(2, 4, 4), "mask is torch.float32, not a bool tensor"),
    (GOOD_X, [[True] * 4] * 4, "mask is list, not a bool tensor"),
]


@pytest.mark.parametrize(("x", "mask", "message"), CALLS, ids=[message[:40] for _, _, message in CALLS])
@pytest.mark.parametrize("method", ["forward", "encode", "attention_maps"])
def test_calls(method, x, mask, message):
    model = Perceiver(**GOOD, **LAYERS)
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(model, method)(x, mask)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layer": 1}, "layer=1 must be a whole number from -1 to 0"),
        ({"layer": -2}, "layer=-2 must be"),
        ({"layer": 0.0}, "layer=0.0 must be"),
        ({"latents": [3]}, "latents=[3] must name at least one latent, each below 3"),
        ({"latents": []}, "latents=[] must name at least one"),
        ({"latents": [-4]}, "latents=-4 must be a whole number of at least -3"),
        ({"latents": 1}, "latents=1 must be a list"),
        ({"log_scores": 1}, "log_scores=1 must be True or False"),
    ],
)
def test_attention_maps(kwargs, message):
    model = Perceiver(**GOOD, **LAYERS)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.attention_maps(GOOD_X, **kwargs)


@pytest.mark.parametrize(
    ("inputs", "mask", "message"),
    [
        (torch.zeros(2, 5, 6, 1), None, "inputs has shape [2, 5, 6, 1], 4 axes, but 3 are needed: [B, M, cross_kv_dim]"),
        (torch.zeros(2, 5, 7), None, "inputs have 7 channels, but kv_dim=6"),
        (torch.zeros(2, 0, 6), None, "no inputs"),
        (torch.zeros(3, 5, 6), None, "inputs have a batch size of 3, latents one of 2"),
        (torch.zeros(2, 5, 6).long(), None, "inputs is torch.int64, not floating point"),
        (torch.zeros(2, 5, 6), torch.ones(2, 6, dtype=torch.bool), "mask has shape [2, 6], but [2, 5] is needed"),
    ],
)
def test_block(inputs, mask, message):
    block = PerceiverBlock.from_dims(cross_kv_dim=6, dim=8, heads=2, depth=1)
    with pytest.raises(ValueError, match=re.escape(message)):
        block(torch.zeros(2, 4, 8), inputs, mask)


def test_block_latents():
    block = PerceiverBlock.from_dims(cross_kv_dim=6, dim=8, heads=2, depth=1)
    with pytest.raises(ValueError, match=re.escape("latents have shape [2, 4, 9], but [B, N, 8] is needed")):
        block(torch.zeros(2, 4, 9), torch.zeros(2, 5, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerceiverBlock.from_dims(cross_kv_dim=6, dim=8, heads=3, depth=1), "heads=3 does not divide dim=8"),
        (lambda: PerceiverBlock.from_dims(cross_kv_dim=0, dim=8, depth=1), "kv_dim=0 must be"),
        (lambda: PerceiverBlock.from_dims(cross_kv_dim=6, dim=8, depth=-1), "depth=-1 must be"),
        (lambda: CrossAttention(dim=8, kv_dim=6, dropout=2), "dropout=2 must be"),
        (lambda: SelfAttention(dim=8, heads=5), "heads=5 does not divide dim=8"),
        (lambda: FeedForward(dim=8, hidden_dim=8, activation="tanh"), "activation='tanh' must be"),
        (lambda: LatentTransformer(dim=8, ff_dim=0), "hidden_dim=0 must be"),
    ],
)
def test_layers(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
