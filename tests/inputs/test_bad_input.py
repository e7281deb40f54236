"""Bad input of input modules: `ValueError` with the argument's name, its value and the remedy."""

import re

import pytest
import torch
from inputs.cases import CASES, B, multimodal, multimodal_data

from perceivers.inputs import (
    ByteTokenizer,
    ConvStem,
    Events,
    Features,
    FramePairs,
    InputModule,
    Labels,
    LearnedPixels,
    Located,
    LogMel,
    Multimodal,
    Patches,
    Pixels,
    Points,
    Tabular,
    TimeSeries,
    TokenIds,
    Waveform,
)

SHAPE = [3, 6, 8]
SERIES = {"num_variables": 3, "start": 0, "stop": 10, "resolution": 20}
MEL = {"num_samples": 400, "sample_rate": 1600, "num_mels": 6, "fft_length": 64, "hop_length": 40}
MIXED = {"modalities": {"a": Labels(num_classes=3), "b": Labels(num_classes=2)}}

CONSTRUCTORS = [
    (Pixels, {"data_shape": [3]}, "data_shape=[3] must be [channels, *axes] with 1 to 4 axes"),
    (Pixels, {"data_shape": [3, 0]}, "data_shape=0 must be a whole number of at least 1"),
    (Pixels, {"data_shape": 3}, "data_shape=3 must be a list of whole numbers"),
    (Pixels, {"data_shape": SHAPE, "num_bands": -1}, "num_bands=-1 must be a whole number of at least 0"),
    (Pixels, {"data_shape": SHAPE, "resolution": [4]}, "resolution=[4] has 1 entries for 2 axes: give one each"),
    (Pixels, {"data_shape": SHAPE, "resolution": "6"}, "resolution='6' must be a finite number greater than 0"),
    (Pixels, {"data_shape": [3, 1, 8]}, "resolution=1 of axis 0 gives a highest frequency of 0.5, below the lowest of 1"),
    (Pixels, {"data_shape": SHAPE, "frequency_base": 0}, "frequency_base=0 must be a finite number greater than 0"),
    (LearnedPixels, {"data_shape": SHAPE, "embed_dim": 0}, "embed_dim=0 must be a whole number"),
    (LearnedPixels, {"data_shape": SHAPE, "position_channels": 0}, "num_channels=0 must be a whole number"),
    (LearnedPixels, {"data_shape": SHAPE, "position_dim": 2.5}, "position_dim=2.5 must be a whole number"),
    (LearnedPixels, {"data_shape": SHAPE, "resample": True}, "resample=True must be one of 'none', 'cubic'"),
    (LearnedPixels, {"data_shape": [1, 2, 2, 2, 2], "resample": "cubic"}, "resample='cubic' takes 1 to 3 axes, not 4"),
    (ConvStem, {"data_shape": [3, 6]}, "data_shape=[3, 6] must be [channels, *axes] with 2 axes"),
    (ConvStem, {"data_shape": SHAPE, "padding": "valid"}, "padding='valid' must be one of 'same', 'symmetric'"),
    (ConvStem, {"data_shape": [3, 64, 64], "stem_channels": 0}, "stem_channels=0 must be"),
    (
        Patches,
        {"data_shape": SHAPE, "patch_size": 4},
        "data_shape has length 6 on axis 0, which is not a multiple of patch_size=4: crop",
    ),
    (Patches, {"data_shape": SHAPE, "patch_size": [2]}, "patch_size=[2] has 1 entries for 2 axes: give one each"),
    (Patches, {"data_shape": SHAPE, "patch_size": 0}, "patch_size=0 must be a whole number"),
    (Patches, {"data_shape": SHAPE, "patch_size": "22"}, "patch_size='22' must be a whole number"),
    (Patches, {"data_shape": SHAPE, "patch_size": 2, "embed_dim": 0}, "embed_dim=0 must be"),
    (FramePairs, {"data_shape": [3, 2, 6, 8]}, "data_shape=[3, 2, 6, 8] must be [channels, *axes] with 2 axes"),
    (Features, {"dim": 0}, "dim=0 must be a whole number of at least 1"),
    (FramePairs, {"embed_dim": -1}, "embed_dim=-1 must be"),
    (
        Waveform,
        {"num_samples": 10, "samples_per_patch": 4},
        "which is not a multiple of patch_size=4: crop it to 8 or pad it to 12",
    ),
    (Waveform, {"num_samples": 0}, "num_samples=0 must be"),
    (Waveform, {"num_samples": 16, "audio_channels": 0}, "audio_channels=0 must be"),
    (LogMel, {**MEL, "highest": 900}, "highest=900 must be greater than lowest=20 and at most 800.0, half of sample_rate"),
    (LogMel, {**MEL, "lowest": 800}, "highest=800 must be greater than lowest=800"),
    (LogMel, {**MEL, "patch_size": [1, 4]}, "not a multiple of patch_size=4"),
    (LogMel, {**MEL, "patch_size": [12, 1]}, "num_samples=400 gives fewer frames than patch_size=[12, 1]: give more samples"),
    (TokenIds, {"vocab_size": 0}, "vocab_size=0 must be"),
    (TokenIds, {"max_length": 0}, "max_length=0 must be"),
    (TokenIds, {"dim": "768"}, "dim='768' must be"),
    (Labels, {"num_classes": 0}, "num_classes=0 must be"),
    (ByteTokenizer, {"cls_sep": 1}, "cls_sep=1 must be True or False"),
    (Points, {"resolution": [2, 2]}, "resolution=[2, 2] has 2 entries for 3 axes"),
    (Points, {"resolution": 9, "num_axes": 0}, "num_axes=0 must be"),
    (Points, {"resolution": 9, "num_values": -1}, "num_values=-1 must be"),
    (Points, {"resolution": 1}, "resolution=1 of axis 0 gives a highest frequency of 0.5"),
    (Events, {"data_shape": [0, 4, 4]}, "data_shape=0 must be"),
    (TimeSeries, {**SERIES, "stop": 0}, "stop - start=0.0 must be a finite number greater than 0"),
    (TimeSeries, {**SERIES, "num_variables": [2, 0]}, "num_variables=0 must be"),
    (TimeSeries, {**SERIES, "num_variables": []}, "num_variables=[] must have at least one entry"),
    (TimeSeries, {**SERIES, "variable_channels": 0}, "variable_channels=0 must be"),
    (Tabular, {}, "num_numeric=0 and categories=[] make a table without columns: give at least one"),
    (Tabular, {"categories": [0]}, "categories=0 must be"),
    (Tabular, {"num_numeric": 2, "missing": "zero"}, "missing='zero' must be one of 'mask', 'token'"),
    (Multimodal, {"modalities": {}}, "modalities={} must be a dict with at least one name and input module"),
    (
        Multimodal,
        {"modalities": {"a.b": Labels(num_classes=3)}},
        "modalities has the name 'a.b': names must be strings without dots",
    ),
    (Multimodal, {"modalities": {"keys": Labels(num_classes=3)}}, "modalities has the name 'keys': names must be strings"),
    (Multimodal, {"modalities": {"a": {"kind": "Lables"}}}, "inputs: kind='Lables' is not one of ['ConvStem'"),
    (
        Multimodal,
        {"modalities": {"a": torch.nn.Linear(2, 2)}},
        "modality 'a' is a Linear, not an input module: derive it from perceivers.inputs.InputModule",
    ),
    (Multimodal, {**MIXED, "min_padding_size": -1}, "min_padding_size=-1 must be a whole number of at least 0"),
    (Multimodal, {**MIXED, "order": "random"}, "order='random' must be one of 'sorted', 'given'"),
    (Multimodal, {**MIXED, "mask_when": "eval"}, "mask_when='eval' must be one of 'always', 'training'"),
    (Multimodal, {**MIXED, "mask_probs": {"c": 0.5}}, "mask_probs has the unknown modality 'c': names are ['a', 'b']"),
    (Multimodal, {**MIXED, "mask_probs": {"a": 1.5}}, "mask_probs['a']=1.5 must be a probability from 0 to 1"),
    (Multimodal, {**MIXED, "drop_probs": {"a": True}}, "drop_probs['a']=True must be a probability"),
    (Multimodal, {**MIXED, "drop_modality_probs": 0.1}, "drop_modality_probs=0.1 must be a dict from names to probabilities"),
]


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"), CONSTRUCTORS, ids=[f"{k.__name__}-{m[:30]}" for k, _, m in CONSTRUCTORS]
)
def test_constructors(kind, kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**kwargs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_only_keywords(case):
    kind = type(case.module())
    with pytest.raises(TypeError, match="positional"):
        kind(3)
    with pytest.raises(TypeError, match="num_band"):
        kind(**case.module().config, num_band=3)


def z(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


def ids(*shape):
    return z(*shape, dtype=torch.long)


CALLS = [
    ("image", z(3, 5, 7), None, "x has shape [3, 5, 7], 3 axes, but 4 are needed: [B, 3, 5, 7]"),
    ("image", z(B, 1, 5, 7), None, "x has shape [2, 1, 5, 7], 1 channels"),
    ("image", z(B, 3, 5, 0), None, "with an empty axis"),
    ("image", z(B, 3, 5, 7, dtype=torch.uint8), None, "x is torch.uint8, not floating point"),
    ("image", z(B, 3, 5, 7).numpy(), None, "x is a ndarray, not a tensor"),
    ("image", z(B, 3, 5, 7), z(B, 5, 7), "mask is torch.float32, not a bool tensor"),
    ("image", z(B, 3, 5, 7), z(B, 5, 0).bool(), "mask has shape [2, 5, 0], but [2, 5, 7] is needed: [B, *axes]"),
    ("image", Located(z(B, 3, 5, 7), [z(5)]), None, "coordinates has 1 entries for 2 axes: give one tensor per axis"),
    ("image", Located(z(B, 3, 5, 7), [z(5), z(5)]), None, "coordinates of axis 1 have shape [5], but [7] or [B, 7]"),
    (
        "image",
        Located(z(B, 3, 5, 7), [z(5), [0.0] * 7]),
        None,
        "coordinates of axis 1 are a list, but [7] or [B, 7] is needed",
    ),
    ("image", Located(z(B, 3, 5, 7), 3), None, "coordinates=3 must be a list of tensors, one per axis"),
    ("image", [], None, "x is an empty list: give at least one array"),
    ("image", [z(B, 3, 5, 7)], None, "x[0] has shape [2, 3, 5, 7], but x must be a list of tensors [C, *axes] with 3 axes"),
    ("image", [[z(3, 5, 7)]], None, "x[0] is a list, but x must be a list of tensors [C, *axes] with 3 axes, one per sample"),
    ("image", [z(3, 5, 7), z(1, 5, 7)], None, "x[1] has shape [1, 5, 7] and torch.float32, x[0] has [3, 5, 7]"),
    (
        "image",
        [z(3, 5, 7), z(3, 5, 7).double()],
        None,
        "torch.float64, x[0] has [3, 5, 7] and torch.float32: channels and dtype must be equal",
    ),
    ("image", [z(3, 5, 0)], None, "x[0] has shape [3, 5, 0] with an empty axis"),
    ("image", [z(3, 5, 7)], z(1, 5, 7).bool(), "mask is a Tensor, but x is a list: give a list of 1 masks, one per array"),
    ("image", [z(3, 5, 7)], [z(5, 6).bool()], "mask has shape [5, 6], but [5, 7] is needed: the shape of x[0]"),
    ("learned", z(B, 3, 5, 5), None, "learned positions have axes=[4, 5], but the inputs have axes [5, 5]: resize"),
    ("learned", [z(3, 4, 5)], None, "x is a list, not a tensor: learned positions need one array"),
    ("learned", z(B, 3, 4, 5).double(), None, "x is torch.float64 but the model is torch.float32: convert one"),
    ("conv", [z(3, 17, 22)], None, "x is a list, not a tensor: a convolution needs one array"),
    ("conv_symmetric", z(B, 3, 4, 22), None, "padding='symmetric' needs a height and width of at least 5"),
    (
        "patches",
        z(B, 3, 6, 7),
        None,
        "x has length 7 on axis 1, which is not a multiple of patch_size=2: crop it to 6 or pad it to 8",
    ),
    ("patches", [z(3, 6, 8), z(3, 6, 7)], None, "x has length 7 on axis 1, which is not a multiple of patch_size=2"),
    (
        "video_patches",
        z(B, 2, 5, 6, 4),
        None,
        "x has length 5 on axis 0, which is not a multiple of patch_size=2: crop it to 4 or pad",
    ),
    ("frame_pairs", z(B, 3, 3, 4, 5), None, "x has shape [2, 3, 3, 4, 5], but [B, 3, 2, H, W] is needed: stack both frames"),
    ("frame_pairs", [z(3, 2, 4, 5)], None, "x is a list, but [B, 3, 2, H, W] is needed"),
    ("frame_pairs", z(B, 3, 2, 4, 5), z(B, 2, 4, 5).bool(), "mask has shape [2, 2, 4, 5], but [2, 4, 5] is needed: [B, H, W]"),
    (
        "waveform",
        z(B, 1, 22),
        None,
        "x has length 22 on axis 0, which is not a multiple of patch_size=4: crop it to 20 or pad it to 24",
    ),
    ("waveform", z(B, 24), None, "x has shape [2, 24], 2 axes, but 3 are needed: [B, 1, 24]"),
    ("log_mel_frames", z(B, 1, 30), None, "x has shape [2, 1, 30], fewer frames than patch_size=[2, 6]: give more samples"),
    ("log_mel", [z(1, 400)], None, "x is a list, not a tensor: a spectrogram needs one array"),
    ("ids", z(B, 7), None, "x is torch.float32 of shape [2, 7], but an integer tensor [B, M] is needed: convert it"),
    ("ids", ids(7), None, "x is torch.int64 of shape [7], but an integer tensor [B, M] is needed"),
    ("ids", z(B, 7).bool(), None, "x is torch.bool of shape [2, 7]"),
    ("ids", [[1, 2], [3]], None, "x[0] is a list, but x must be a list of tensors [*axes] with 1 axes, one per sample"),
    ("ids", ids(B, 7) + 11, None, "x has ids from 11 to 11, but vocab_size=11: ids are 0 to 10"),
    ("ids", ids(B, 7) - 1, None, "x has ids from -1 to -1, but vocab_size=11"),
    ("ids", ids(B, 10), None, "x has shape [2, 10], but max_length=9: truncate it to 1 to 9 ids"),
    ("ids", ids(B, 0), None, "x has shape [2, 0], but max_length=9: truncate it to 1 to 9 ids"),
    ("labels", ids(B, 1), None, "x is torch.int64 of shape [2, 1], but an integer tensor [B] is needed"),
    ("labels", z(B, 4), None, "x has shape [2, 4], but [B, 5] is needed: one value per class"),
    ("labels", torch.tensor([0, 5]), None, "x has ids from 0 to 5, but num_classes=5"),
    ("labels", z(B, 5), z(B, 1).bool(), "mask has shape [2, 1], but [2] is needed"),
    ("points", z(B, 2, 6), None, "coordinates have shape [2, 2, 6], but num_axes=3 (axis 1)"),
    ("points", Located(None, z(B, 3, 6)), None, "x is a Located, but coordinates is needed"),
    ("points", ids(B, 3, 6), None, "coordinates is torch.int64, not floating point"),
    ("points", [Located(None, z(3, 6))], None, "x[0] is a Located, but coordinates is needed"),
    ("points_with_values", z(B, 2, 6), None, "x is a Tensor, but Located(values, coordinates) is needed"),
    ("points_with_values", Located(z(B, 3, 5), z(B, 2, 6)), None, "values have shape [2, 3, 5], but [2, 3, 6] is"),
    ("events", Located(z(B, 2, 7), ids(B, 3, 7)), None, "coordinates have shape [2, 3, 7], but [B, 2, M] is needed"),
    ("events", Located(z(B, 2, 7), z(B, 2, 7)), None, "coordinates[:, 0] is torch.float32 of shape [2, 7], but an integer"),
    ("events", Located(z(B, 2, 7), ids(B, 2, 7) + 4), None, "coordinates[:, 0] has ids from 4 to 4, but data_shape[1]=4"),
    ("features", z(B, 6), None, "x has shape [2, 6], 2 axes, but 3 are needed: [B, M, 5]"),
    ("features", z(B, 5, 6), None, "x has shape [2, 5, 6], 6 channels, but dim=5 (axis 2)"),
    ("features", [z(6, 5)], None, "x is a list, not a tensor"),
    ("features", z(B, 6, 5), z(B, 5).bool(), "mask has shape [2, 5], but [2, 6] is needed: [B, M]"),
    ("time_series", z(B, 3, 5), None, "x is a Tensor, but Located(values, times) is needed, or a list of 1, one per series"),
    ("time_series", [Located(z(B, 3, 5), z(5))] * 2, None, "x is 2 entries, but Located(values, times) is needed"),
    ("time_series", Located(z(B, 2, 5), z(5)), None, "values have shape [2, 2, 5], but num_variables=3 (axis 1)"),
    ("time_series", Located(z(B, 3, 5), z(4)), None, "times have shape [4], but [5] or [2, 5] is needed: one time per value"),
    (
        "time_series",
        [Located(z(B, 3, 5), z(5))],
        z(B, 5).bool(),
        "mask is a Tensor, but a list of 1 is needed, one mask per series",
    ),
    ("tabular", z(B, 3), None, "x is a Tensor, but a dict with exactly the keys ['numeric', 'categorical'] is needed"),
    ("tabular", {"numeric": z(B, 3)}, None, "x has ['numeric'], but a dict with exactly the keys ['numeric', 'categorical']"),
    ("tabular", {"numeric": z(B, 2), "categorical": ids(B, 2)}, None, "x['numeric'] has shape [2, 2], but [2, 3] is needed"),
    ("tabular", {"numeric": z(B, 3), "categorical": z(B, 2)}, None, "x['categorical'][:, 0] is torch.float32"),
    ("tabular", {"numeric": z(B, 3), "categorical": ids(B, 2) + 2}, None, "has ids from 2 to 2, but categories[1]=2"),
]


@pytest.mark.parametrize(("name", "x", "mask", "message"), CALLS, ids=[f"{n}-{m[:40]}" for n, _, _, m in CALLS])
def test_calls(name, x, mask, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CASES[name].module()(x, mask)


@pytest.mark.parametrize(
    ("change", "mask", "message"),
    [
        (lambda x: z(B, 3), None, "x is a Tensor, not a dict with the modalities ['audio', 'image', 'label']"),
        (lambda x: {**x, "speech": 1}, None, "x has the unknown modalities ['speech']: names are ['audio', 'image', 'label']"),
        (lambda x: {"audio": x["audio"]}, None, "x lacks the modalities ['image', 'label']: give all of"),
        (lambda x: x, {"speech": None}, "mask has the unknown modalities ['speech']"),
        (lambda x: x, z(B).bool(), "mask is a Tensor, not a dict with the modalities"),
        (lambda x: {**x, "label": ids(3)}, None, "x has different batch sizes, {'audio': 2, 'image': 2, 'label': 3}"),
        (lambda x: x, {"image": z(3).bool()}, "mask has shape [3], but x has 2 samples: give one entry per sample"),
        (lambda x: {**x, "audio": z(B, 1, 23)}, None, "x has length 23 on axis 0, which is not a multiple of patch_size=4"),
    ],
)
def test_multimodal(change, mask, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        multimodal()(change(multimodal_data()), mask)


def test_create():
    with pytest.raises(ValueError, match="inputs=3 must be a module"):
        InputModule.create(3)
    with pytest.raises(ValueError, match=re.escape("inputs: unexpected keys ['num_bands'] for Labels")):
        InputModule.create({"kind": "Labels", "num_classes": 3, "num_bands": 2})


def test_tokenizer():
    tokenizer = ByteTokenizer()
    for texts, length, message in [
        ("ab", None, "texts='ab' must be a list of strings"),
        ([b"ab"], None, "text is a bytes, not a string"),
        (["abc"], 2, "length=2 is too short for a text of 3 ids: truncate"),
        ([], None, "texts=[] must have at least one text"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            tokenizer(texts, length)
    with pytest.raises(ValueError, match="ids has values from 3 to 262: ids are 0 to 261"):
        tokenizer.decode([3, 262])
