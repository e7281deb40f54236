"""DeepMind's Perceiver IO: the six published files of parameters, and files of other sizes that its code saves.

Such a file is a pickle of Haiku's parameters: arrays by the module that made them, without settings. Widths are read from
shapes; the rest is that of the published model with the same parts if all sizes are its own, and must be given otherwise.
The model computes what DeepMind's code does. The columns of its position features are put in our order.

The published weights are licensed under CC BY 4.0: whoever passes them on must name DeepMind and the licence, and state that
they were converted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceivers._checks import a_list, an_int
from perceivers.checkpoints.feature_order import orders
from perceivers.checkpoints.format import Configuration, Description, Format, Names
from perceivers.checkpoints.source import Source
from perceivers.perceiver_io import PerceiverIO
from perceivers.presets import PRESETS

# Ours: theirs, of one attention layer. Haiku numbers what has no name.
LINEAR = {"attention.to_q": "attention/linear"}
LINEAR |= {"feed_forward.linear_in": "mlp/linear", "feed_forward.linear_out": "mlp/linear_1"}
LINEAR |= {f"attention.to_{name}": f"attention/linear_{n}" for n, name in enumerate(("k", "v", "out"), 1)}
SELF_ATTENTION = {"attention_norm": "layer_norm", "feed_forward_norm": "layer_norm_1", **LINEAR}
CROSS_NORMS = {"attention_norm": "layer_norm", "attention.inputs_norm": "layer_norm_1", "feed_forward_norm": "layer_norm_2"}
CROSS_ATTENTION = {**CROSS_NORMS, **LINEAR}
ENCODERS = ("perceiver_encoder/~/", "encoder/~/")  # the second in the autoencoder of video
POSITIONS = "trainable_position_encoding/pos_embs"
DECODER = "classification_decoder/~/basic_decoder/"
CLASSES = {"outputs.query": f"{DECODER}~/{POSITIONS}", "outputs.head": f"{DECODER}output"}
LEARNED = "image_preprocessor/~_build_network_inputs/"
CONV = "image_preprocessor/~/conv2_d_downsample/~/"
MODALITIES = ("audio", "image", "label")
POSTPROCESSORS = dict(zip(MODALITIES, ("audio", "projection", "classification"), strict=True))

# How many axes arrays have, if not one.
AXES = {"w": (2, 4), "pos_embs": (2,), "embeddings": (2,)}
IMAGE = ("data_shape", "resolution")  # arguments of images that no shape shows
SETTINGS = ("num_blocks", "heads", "cross_heads", "decoder_heads", "decoder_query_residual")


class Head(NamedTuple):
    """The parts of one published model outside of attention layers.

    Attributes:
        preset: Its configuration.
        mark: What a name starts with in it, and in no head before it.
        sizes: Returns the arguments of inputs and outputs that follow from shapes, the width of encoded inputs, and the
            arguments in `unspecified`.
        table: For each of our names, or modules, theirs.
        decoder: What the names of its decoder start with.
        unspecified: Arguments of inputs and outputs that no shape shows.
    """

    preset: str
    mark: str
    sizes: Callable[["Haiku", int, Mapping[str, Any]], dict[str, Any]]
    table: dict[str, str]
    decoder: str = DECODER
    unspecified: tuple[str, ...] = IMAGE


@dataclass(kw_only=True)
class Haiku(Description):
    """Parameters by the names of modules, with the layouts of PyTorch.

    Attributes:
        head: The head of the published model with the same parts.
        encoder: What the names of its encoder start with.
        depth: Number of its self-attentions.
    """

    head: Head
    encoder: str
    depth: int

    def of(self, name: str) -> list[int]:
        """Return the shape of a tensor, with as many axes as its kind has."""
        return self.shape(name, *AXES.get(name.rpartition("/")[2], (1,)))


def recognises(source: Source) -> bool:
    """Return True if these are the names of such a model."""
    return any(f"{top}{encoder}{POSITIONS}" in source.names for top in ("", "params/") for encoder in ENCODERS)


def describe(source: Source) -> Haiku:
    """Return the parameters of a file."""
    weights = source.weights()
    strip = any(name.startswith("params/") for name in weights)
    if strip and (others := {name.split("/")[0] for name in weights} - {"params", "state"}):
        raise ValueError(f"it holds {sorted(others)[:3]} beside params and state: save these two alone")
    theirs = {
        name.partition("/")[2] if strip else name: _laid_out(name, tensor)
        for name, tensor in weights.items()
        if not (name.endswith("/hidden") and f"{name.removesuffix('hidden')}average" in weights)  # used in training alone
    }
    head = next((head for head in HEADS if any(name.startswith(head.mark) for name in theirs)), None)
    if head is None:
        raise ValueError(f"none of its names starts with any of {[head.mark for head in HEADS]}: no head is known")
    encoder = next(encoder for encoder in ENCODERS if encoder + POSITIONS in theirs)
    depth = sum(name.startswith(f"{encoder}self_attention") and name.endswith("/layer_norm/scale") for name in theirs)
    return Haiku(weights=theirs, head=head, encoder=encoder, depth=depth)


def _laid_out(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor as PyTorch lays it out."""
    match name.rpartition("/")[2], tensor.ndim:
        case "w", 4:
            return tensor.permute(3, 2, 0, 1)
        case "w", 2:
            return tensor.mT
        case "counter", _:
            return tensor.long()
    return tensor


def configure(
    haiku: Haiku,
    *,
    num_blocks: int | None = None,
    heads: int | None = None,
    cross_heads: int | None = None,
    decoder_heads: int | None = None,
    decoder_query_residual: bool | None = None,
    data_shape: Sequence[int] | None = None,
    resolution: float | Sequence[float] | None = None,
    num_samples: int | None = None,
) -> Configuration:
    """Return our model. The published files need no arguments.

    Args:
        haiku: The parameters.
        num_blocks: How often the self-attentions are applied, as there.
        heads: `num_self_attend_heads` there.
        cross_heads: `num_cross_attend_heads` there.
        decoder_heads: `num_heads` of the decoder.
        decoder_query_residual: `use_query_residual` of the decoder.
        data_shape: `[C, H, W]` of images, `[C, T, H, W]` of the autoencoder's video.
        resolution: `max_resolution` of the Fourier features of images or video.
        num_samples: Samples of the autoencoder's audio, which are also its `max_resolution`.
    """
    given = {name: value for name, value in locals().items() if name != "haiku" and value is not None}
    head = haiku.head
    needed = (*SETTINGS, *head.unspecified)
    if unknown := [name for name in given if name not in needed]:
        raise ValueError(f"{unknown} do not belong to {head.preset}: leave them out")
    published = _published(head.preset)
    known = {name: _find(published["inputs"], name) for name in head.unspecified}
    if data_shape is not None:
        given["data_shape"] = [an_int("data_shape", n) for n in a_list("data_shape", data_shape, "whole numbers")]
        if len(given["data_shape"]) != len(known["data_shape"]):
            raise ValueError(f"data_shape={data_shape!r} must have {len(known['data_shape'])} numbers, channels first")
    for name in ("num_blocks", "num_samples"):
        if name in given:
            given[name] = an_int(name, given[name])
    width = haiku.of(f"{haiku.encoder}cross_attention/layer_norm_1/scale")[0]
    common = _widths(haiku)
    missing = [name for name in needed if name not in given]
    if missing and _merged(published, {**common, **head.sizes(haiku, width, known)}) != published:
        raise ValueError(f"its sizes are not those of {head.preset}, and it does not specify {', '.join(missing)}: give these")
    sizes = head.sizes(haiku, width, {name: given.get(name, value) for name, value in known.items()})
    arguments = _merged(published, {**common, **sizes, **{name: given[name] for name in SETTINGS[1:] if name in given}})
    if num_blocks is not None:
        repeated: list[int | None] = [None] * (given["num_blocks"] - 1)
        arguments |= {"layers_indice": [0, *repeated], "latent_layers_indice": [0] * given["num_blocks"]}
    return Configuration(PerceiverIO, arguments)


def names(haiku: Haiku, configuration: Configuration) -> Names:
    """Return their names of our tensors; a module of theirs that is missing is refused before a model is made."""
    encoder, decoder = haiku.encoder, haiku.head.decoder
    layers = {
        "encoder.cross_attentions.0": (f"{encoder}cross_attention", CROSS_ATTENTION),
        "decoder": (f"{decoder}cross_attention", CROSS_ATTENTION),
    }
    for n in range(haiku.depth):
        layers[f"encoder.latent_transformers.0.{n}"] = (f"{encoder}self_attention{f'_{n}' if n else ''}", SELF_ATTENTION)
    modules = {
        f"{ours}.{part}": f"{theirs}/{name}" for ours, (theirs, parts) in layers.items() for part, name in parts.items()
    }
    table = {"encoder.latents": encoder + POSITIONS, **haiku.head.table}
    for ours, theirs in {**modules, **haiku.head.table}.items():
        weight, bias = ("scale", "offset") if ours.endswith("norm") else ("w", "b")
        table |= {f"{ours}.weight": f"{theirs}/{weight}", f"{ours}.bias": f"{theirs}/{bias}"}
    for ours in modules:
        haiku.of(table[f"{ours}.bias"])
    counters = [f"{CONV}batchnorm/~/{name}_ema/counter" for name in ("var", "mean")]
    copies = dict([counters]) if haiku.weights.keys() >= set(counters) else {}
    return Names(table, orders(configuration.arguments), copies=copies)


@cache
def _published(preset: str) -> dict[str, Any]:
    """Return all arguments of a published model."""
    with torch.device("meta"):
        return PerceiverIO(**{name: value for name, value in PRESETS[preset].items() if name != "model_class"}).config


def _widths(haiku: Haiku) -> dict[str, Any]:
    """Return the arguments that follow from the shapes of attention layers."""
    shape, encoder, decoder = haiku.of, haiku.encoder, haiku.head.decoder
    num_latent_tokens, dim = shape(encoder + POSITIONS)
    widths: dict[str, Any] = {
        "num_latent_tokens": num_latent_tokens,
        "dim": dim,
        "num_latent_transformers_in_layers": [haiku.depth],
        "ff_dim": shape(f"{encoder}cross_attention/mlp/linear/w")[0],
        "decoder_ff_dim": shape(f"{decoder}cross_attention/mlp/linear/w")[0],
    }
    layers = {"": f"{encoder}self_attention", "cross_": f"{encoder}cross_attention", "decoder_": f"{decoder}cross_attention"}
    for prefix, layer in layers.items():
        widths[f"{prefix}qk_channels"] = shape(f"{layer}/attention/linear/w")[0]
        widths[f"{prefix}v_channels"] = shape(f"{layer}/attention/linear_2/w")[0]
    return widths


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the entries of `change`, dict by dict."""
    merged = dict(base)
    for key, value in change.items():
        merged[key] = _merged(base[key], value) if isinstance(value, Mapping) else value
    return merged


def _find(inputs: Mapping[str, Any], name: str) -> Any:
    """Return an argument of inputs, or of one of their modalities: `num_samples` of the audio, others of the video."""
    if "modalities" in inputs:
        inputs = inputs["modalities"]["audio" if name == "num_samples" else "image"]
    return inputs[name]


def _fourier(width: int, known: Mapping[str, Any], content: int) -> dict[str, Any]:
    """Return what is known of images, and the bands of the Fourier features behind so many channels of content."""
    return {**known, "num_bands": max(width - content - 2, 0) // 4}


def _classes(haiku: Haiku) -> dict[str, Any]:
    return {"dim": haiku.of(CLASSES["outputs.query"])[1], "num_channels": haiku.of(f"{CLASSES['outputs.head']}/b")[0]}


def _language(haiku: Haiku, width: int, known: Mapping[str, Any]) -> dict[str, Any]:
    vocab_size, dim = haiku.of("embed/embeddings")
    sizes = {"vocab_size": vocab_size, "dim": dim, "max_length": haiku.of(POSITIONS)[0]}
    return {"inputs": sizes, "outputs": sizes}


def _learned(haiku: Haiku, width: int, known: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {
        "data_shape": list(known["data_shape"]),
        "embed_dim": haiku.of("image_preprocessor/~/conv2_d/b")[0],
        "position_channels": haiku.of(LEARNED + POSITIONS)[1],
        "position_dim": haiku.of(f"{LEARNED}position_encoding_projector/linear/b")[0],
    }
    return {"inputs": inputs, "outputs": _classes(haiku)}


def _pixels(haiku: Haiku, width: int, known: Mapping[str, Any]) -> dict[str, Any]:
    return {"inputs": _fourier(width, known, known["data_shape"][0]), "outputs": _classes(haiku)}


def _conv(haiku: Haiku, width: int, known: Mapping[str, Any]) -> dict[str, Any]:
    channels = haiku.of(f"{CONV}conv/w")[0]
    return {"inputs": {**_fourier(width, known, channels), "stem_channels": channels}, "outputs": _classes(haiku)}


def _flow(haiku: Haiku, width: int, known: Mapping[str, Any]) -> dict[str, Any]:
    channels = haiku.of("image_preprocessor/patches_linear/b")[0]
    outputs = {"dim": width, "num_channels": haiku.of("flow_decoder/~/basic_decoder/output/b")[0]}
    return {"inputs": {**_fourier(width, known, channels), "embed_dim": channels}, "outputs": outputs}


def _multimodal(haiku: Haiku, width: int, known: Mapping[str, Any]) -> dict[str, Any]:
    inner = {m: haiku.of(f"multimodal_preprocessor/{m}_padding/pos_embs")[1] for m in MODALITIES}
    outer = {m: haiku.of(f"multimodal_decoder/~decoder_query/{m}_padding/pos_embs")[1] for m in MODALITIES}
    results = {m: haiku.of(f"{name}_postprocessor/linear/b")[0] for m, name in POSTPROCESSORS.items()}
    query = haiku.of("multimodal_decoder/~/basic_decoder/cross_attention/layer_norm/scale")[0]
    decoded = haiku.of("multimodal_decoder/~/basic_decoder/output/b")[0]
    # Widths are the common ones less the padding; queries of audio and video are positions alone.
    audio_positions, video_positions = query - outer["audio"], query - outer["image"]
    channels, *axes = known["data_shape"]
    patch = isqrt(max(width - inner["image"] - video_positions, 0) // channels)
    audio = {"num_bands": (audio_positions - 1) // 2, "resolution": known["num_samples"]}
    video = {"num_bands": (video_positions - 3) // 6, "resolution": known["resolution"]}
    samples = {"num_samples": known["num_samples"], "samples_per_patch": results["audio"]}
    inputs = {
        "audio": {**samples, **audio},
        "image": {"data_shape": [channels, *axes], "patch_size": [1, patch, patch], **video},
        "label": {"num_classes": results["label"]},
    }
    outputs = {
        "audio": {"axes": [known["num_samples"] // results["audio"]], "patch": [results["audio"]], **audio},
        "image": {"axes": axes, "num_channels": results["image"], **video},
        "label": {"dim": query - outer["label"], "num_channels": results["label"]},
    }
    outputs["audio"]["resolution"] = [known["num_samples"]]
    outputs = {name: {**output, "decoded_channels": decoded} for name, output in outputs.items()}
    return {
        "inputs": {"modalities": inputs, "min_padding_size": min(inner.values())},
        "outputs": {"modalities": outputs, "min_padding_size": min(outer.values()), "decoded_channels": decoded},
    }


QUERIES = "multimodal_decoder/~decoder_query/"
HEADS = (
    Head(
        "perceiver_io_mlm_bytes",
        "embed/",
        _language,
        {
            "inputs.embeddings.weight": "embed/embeddings",
            "inputs.positions.embeddings": POSITIONS,
            "outputs.query": f"basic_decoder/~/{POSITIONS}",
            "outputs.bias": "embedding_decoder/bias",
        },
        "basic_decoder/",
        (),
    ),
    Head(
        "perceiver_io_multimodal_kinetics",
        "multimodal_decoder/",
        _multimodal,
        {
            **{f"inputs.padding.{m}": f"multimodal_preprocessor/{m}_padding/pos_embs" for m in MODALITIES},
            **{f"inputs.mask_tokens.{m}": f"multimodal_preprocessor/{m}_mask_token/pos_embs" for m in MODALITIES},
            **{f"outputs.padding.{m}": f"{QUERIES}{m}_padding/pos_embs" for m in MODALITIES},
            **{f"outputs.modalities.{m}.head": f"{name}_postprocessor/linear" for m, name in POSTPROCESSORS.items()},
            "outputs.modalities.label.query": CLASSES["outputs.query"],
            "outputs.projection": "multimodal_decoder/~/basic_decoder/output",
        },
        "multimodal_decoder/~/basic_decoder/",
        (*IMAGE, "num_samples"),
    ),
    Head(
        "perceiver_io_optical_flow",
        "flow_decoder/",
        _flow,
        {"inputs.linear": "image_preprocessor/patches_linear", "outputs.head": "flow_decoder/~/basic_decoder/output"},
        "flow_decoder/~/basic_decoder/",
    ),
    Head(
        "perceiver_io_imagenet_conv",
        CONV,
        _conv,
        {
            "inputs.conv": f"{CONV}conv",
            "inputs.norm": f"{CONV}batchnorm",
            "inputs.norm.running_mean": f"{CONV}batchnorm/~/mean_ema/average",
            "inputs.norm.running_var": f"{CONV}batchnorm/~/var_ema/average",
            "inputs.norm.num_batches_tracked": f"{CONV}batchnorm/~/mean_ema/counter",
            **CLASSES,
        },
    ),
    Head(
        "perceiver_io_imagenet_learned",
        "image_preprocessor/~/conv2_d/",
        _learned,
        {
            "inputs.linear": "image_preprocessor/~/conv2_d",
            "inputs.positions.embeddings": LEARNED + POSITIONS,
            "inputs.position_linear": f"{LEARNED}position_encoding_projector/linear",
            **CLASSES,
        },
        unspecified=("data_shape",),
    ),
    Head("perceiver_io_imagenet_fourier", "classification_decoder/", _pixels, CLASSES),
)

FORMAT = Format("deepmind", recognises, describe, configure, names)
