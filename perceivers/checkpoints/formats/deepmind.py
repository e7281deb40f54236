"""DeepMind's Perceiver IO: the six published files of parameters, and files of other sizes that its code saves.

Such a file is a pickle of Haiku's parameters: arrays by the module that made them. It tells no settings. Widths are read from
shapes; the rest is that of the published model with the same parts, where all sizes are its own, and must be given otherwise.
The model computes what DeepMind's code does. Its position features come in another order of columns, which are put in ours.

The published weights are licensed under CC BY 4.0: whoever passes them on must name DeepMind and the licence, and say that
they were converted.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceivers._checks import a_list, an_int
from perceivers.checkpoints.feature_order import orders
from perceivers.checkpoints.state_dict import translated
from perceivers.perceiver_io import PerceiverIO
from perceivers.presets import PRESETS

# Ours: theirs, of one attention layer. Haiku numbers what has no name.
LINEAR = {
    "attention.to_q": "attention/linear",
    "attention.to_k": "attention/linear_1",
    "attention.to_v": "attention/linear_2",
    "attention.to_out": "attention/linear_3",
    "feed_forward.linear_in": "mlp/linear",
    "feed_forward.linear_out": "mlp/linear_1",
}
SELF_ATTENTION = {"attention_norm": "layer_norm", "feed_forward_norm": "layer_norm_1", **LINEAR}
CROSS_ATTENTION = {
    "attention_norm": "layer_norm",
    "attention.inputs_norm": "layer_norm_1",
    "feed_forward_norm": "layer_norm_2",
    **LINEAR,
}
ENCODERS = ("perceiver_encoder/~/", "encoder/~/")  # the latter in the autoencoder of video
POSITIONS = "trainable_position_encoding/pos_embs"
CLASSES = {
    "outputs.query": "classification_decoder/~/basic_decoder/~/trainable_position_encoding/pos_embs",
    "outputs.head": "classification_decoder/~/basic_decoder/output",
}
LEARNED = "image_preprocessor/~_build_network_inputs/"
CONV = "image_preprocessor/~/conv2_d_downsample/~/"
MODALITIES = ("audio", "image", "label")
POSTPROCESSORS = dict(zip(MODALITIES, ("audio", "projection", "classification"), strict=True))

# How many axes arrays have that are not of one.
AXES = {"w": (2, 4), "pos_embs": (2,), "embeddings": (2,)}

# The shape of one of their tensors, by its name.
Shape = Callable[[str], list[int]]
Columns = tuple[int, int, int]


class Head(NamedTuple):
    """How the parts of one published model that are no attention layers look here.

    Attributes:
        preset: Its configuration.
        mark: What a name starts with in it, and in no head before it.
        decoder: Where its decoder lies.
        table: For each of our names, or modules, theirs.
        sizes: Makes the arguments of inputs and outputs that shapes, the width of encoded inputs, and what is untold, decide;
            and the content channels, axes and bands of the encoded inputs, where columns are to be reordered.
        untold: Arguments of inputs and outputs that no shape tells.
    """

    preset: str
    mark: str
    decoder: str
    table: dict[str, str]
    sizes: Callable[[Shape, int, Mapping[str, Any]], tuple[dict[str, Any], Columns | None]]
    untold: tuple[str, ...]


SETTINGS = ("num_blocks", "heads", "cross_heads", "decoder_heads", "decoder_query_residual")


def recognises(weights: Mapping[str, Any]) -> bool:
    """Whether these are the names of such a model."""
    return any(f"{top}{encoder}{POSITIONS}" in weights for top in ("", "params/") for encoder in ENCODERS)


def load(
    weights: Mapping[str, Tensor],
    source: str,
    *,
    num_blocks: int | None = None,
    heads: int | None = None,
    cross_heads: int | None = None,
    decoder_heads: int | None = None,
    decoder_query_residual: bool | None = None,
    data_shape: Sequence[int] | None = None,
    resolution: float | Sequence[float] | None = None,
    num_samples: int | None = None,
) -> nn.Module:
    """Makes our model with such weights. The published files need no arguments.

    Args:
        weights: The arrays of the pickle, by their names.
        source: Where they come from, for messages.
        num_blocks: How often the self-attentions are applied, as there.
        heads: `num_self_attend_heads` there.
        cross_heads: `num_cross_attend_heads` there.
        decoder_heads: `num_heads` of the decoder.
        decoder_query_residual: `use_query_residual` of the decoder.
        data_shape: `[C, H, W]` of pictures, `[C, T, H, W]` of the autoencoder's video.
        resolution: `max_resolution` of the Fourier features of pictures or video.
        num_samples: Samples of the autoencoder's sound, whose `max_resolution` they are.

    Raises:
        ValueError: If an argument is missing or does not fit, or the weights do not.
    """
    theirs = _layout(weights, source)

    def shape(name: str) -> list[int]:
        if name not in theirs:
            raise ValueError(f"{source}: {name} is missing")
        lengths = list(theirs[name].shape)
        if len(lengths) not in AXES.get(name.rpartition("/")[2], (1,)):
            raise ValueError(f"{source}: {name} has shape {lengths}, of {len(lengths)} axes: the file is damaged")
        return lengths

    head = next((head for head in HEADS if any(name.startswith(head.mark) for name in theirs)), None)
    if head is None:
        raise ValueError(f"{source}: none of its names starts with any of {[head.mark for head in HEADS]}: no head is known")
    given: dict[str, Any] = {
        "num_blocks": num_blocks,
        "heads": heads,
        "cross_heads": cross_heads,
        "decoder_heads": decoder_heads,
        "decoder_query_residual": decoder_query_residual,
        "data_shape": data_shape,
        "resolution": resolution,
        "num_samples": num_samples,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if unknown := [name for name in given if name not in (*SETTINGS, *head.untold)]:
        raise ValueError(f"{source}: {unknown} do not belong to {head.preset}: leave them out")

    published = _published(head.preset)
    known = {name: _find(published["inputs"], name) for name in head.untold}
    if data_shape is not None:
        given["data_shape"] = [an_int("data_shape", n) for n in a_list("data_shape", data_shape, "whole numbers")]
        if len(given["data_shape"]) != len(known["data_shape"]):
            raise ValueError(f"data_shape={data_shape!r} must have {len(known['data_shape'])} numbers, channels first")
    for name in ("num_blocks", "num_samples"):
        if name in given:
            given[name] = an_int(name, given[name])
    encoder = next(encoder for encoder in ENCODERS if encoder + POSITIONS in theirs)
    depth = sum(name.startswith(f"{encoder}self_attention") and name.endswith("/layer_norm/scale") for name in theirs)
    width = shape(f"{encoder}cross_attention/layer_norm_1/scale")[0]
    common = _widths(shape, encoder, head.decoder, depth)
    as_published, _ = head.sizes(shape, width, known)
    missing = [name for name in (*SETTINGS, *head.untold) if name not in given]
    if missing and _merged(published, {**common, **as_published}) != published:
        raise ValueError(
            f"{source} has other sizes than {head.preset}, and does not tell {', '.join(missing)}: give what the model was"
            " made with"
        )
    told, content = head.sizes(shape, width, {name: given.get(name, value) for name, value in known.items()})
    arguments = _merged(published, {**common, **told, **{name: given[name] for name in SETTINGS[1:] if name in given}})
    if num_blocks is not None:
        repeated: list[int | None] = [None] * (given["num_blocks"] - 1)
        arguments |= {"layers_indice": [0, *repeated], "latent_layers_indice": [0] * given["num_blocks"]}

    def make() -> PerceiverIO:
        try:
            return PerceiverIO(**arguments)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    table = {**_layers(shape, encoder, head.decoder, depth), **head.table}
    counters = [f"{CONV}batchnorm/~/{name}_ema/counter" for name in ("var", "mean")]
    copies = dict([counters]) if theirs.keys() >= set(counters) else {}
    order = {} if content is None else orders(*content, as_queries=arguments["outputs"]["kind"] == "PerInput")
    return translated(theirs, make, lambda name: _name(table, name), orders=order, copies=copies, source=source)


@cache
def _published(preset: str) -> dict[str, Any]:
    """All arguments of a published model."""
    with torch.device("meta"):
        return PerceiverIO(**{name: value for name, value in PRESETS[preset].items() if name != "model_class"}).config


def _layout(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Their tensors by the names of modules, laid out as PyTorch has them."""
    strip = any(name.startswith("params/") for name in weights)
    if strip and (others := {name.split("/")[0] for name in weights} - {"params", "state"}):
        raise ValueError(f"{source} holds {sorted(others)[:3]} beside params and state: save these two alone")
    theirs = {}
    for name, tensor in weights.items():
        scope, _, leaf = name.rpartition("/")
        if leaf == "hidden" and f"{scope}/average" in weights:
            continue  # what `average` is computed of in training
        if leaf == "w" and tensor.ndim == 4:
            tensor = tensor.permute(3, 2, 0, 1)
        elif leaf == "w" and tensor.ndim == 2:
            tensor = tensor.mT
        elif leaf == "counter":
            tensor = tensor.long()
        theirs[name.partition("/")[2] if strip else name] = tensor
    return theirs


def _widths(shape: Shape, encoder: str, decoder: str, depth: int) -> dict[str, Any]:
    """The arguments that are told by the shapes of attention layers."""
    num_latent_tokens, dim = shape(encoder + POSITIONS)
    widths: dict[str, Any] = {
        "num_latent_tokens": num_latent_tokens,
        "dim": dim,
        "num_latent_transformers_in_layers": [depth],
        "ff_dim": shape(f"{encoder}cross_attention/mlp/linear/w")[0],
        "decoder_ff_dim": shape(f"{decoder}cross_attention/mlp/linear/w")[0],
    }
    layers = {"": f"{encoder}self_attention", "cross_": f"{encoder}cross_attention", "decoder_": f"{decoder}cross_attention"}
    for prefix, layer in layers.items():
        widths[f"{prefix}qk_channels"] = shape(f"{layer}/attention/linear/w")[0]
        widths[f"{prefix}v_channels"] = shape(f"{layer}/attention/linear_2/w")[0]
    return widths


def _layers(shape: Shape, encoder: str, decoder: str, depth: int) -> dict[str, str]:
    """For the latents, and each of our modules in attention layers, theirs, which must be there before a model is made."""
    layers = {
        "encoder.cross_attentions.0": (f"{encoder}cross_attention", CROSS_ATTENTION),
        "decoder": (f"{decoder}cross_attention", CROSS_ATTENTION),
    }
    for n in range(depth):
        layers[f"encoder.latent_transformers.0.{n}"] = (f"{encoder}self_attention{f'_{n}' if n else ''}", SELF_ATTENTION)
    table = {f"{ours}.{part}": f"{theirs}/{name}" for ours, (theirs, parts) in layers.items() for part, name in parts.items()}
    for ours in table:
        shape(str(_name(table, f"{ours}.bias")))
    return {"encoder.latents": encoder + POSITIONS, **table}


def _name(table: Mapping[str, str], ours: str) -> str | None:
    """Their name for one of ours."""
    if ours in table:
        return table[ours]
    module, _, leaf = ours.rpartition(".")
    if module not in table or leaf not in ("weight", "bias"):
        return None
    weight, bias = ("scale", "offset") if module.endswith("norm") else ("w", "b")
    return f"{table[module]}/{weight if leaf == 'weight' else bias}"


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `change`, dict by dict."""
    merged = dict(base)
    for key, value in change.items():
        merged[key] = _merged(base[key], value) if isinstance(value, Mapping) else value
    return merged


def _find(inputs: Mapping[str, Any], name: str) -> Any:
    """An argument of inputs, or of one of their modalities: of the sound, `num_samples`; of the video, the others."""
    if "modalities" in inputs:
        inputs = inputs["modalities"]["audio" if name == "num_samples" else "image"]
    return inputs[name]


def _classes(shape: Shape) -> dict[str, Any]:
    return {"dim": shape(CLASSES["outputs.query"])[1], "num_channels": shape(f"{CLASSES['outputs.head']}/b")[0]}


def _language(shape: Shape, width: int, known: Mapping[str, Any]) -> tuple[dict[str, Any], Columns | None]:
    vocab_size, dim = shape("embed/embeddings")
    sizes = {"vocab_size": vocab_size, "dim": dim, "max_length": shape(POSITIONS)[0]}
    return {"inputs": sizes, "outputs": sizes}, None


def _learned(shape: Shape, width: int, known: Mapping[str, Any]) -> tuple[dict[str, Any], Columns | None]:
    inputs = {
        "data_shape": list(known["data_shape"]),
        "embed_dim": shape("image_preprocessor/~/conv2_d/b")[0],
        "position_channels": shape(LEARNED + POSITIONS)[1],
        "position_dim": shape(f"{LEARNED}position_encoding_projector/linear/b")[0],
    }
    return {"inputs": inputs, "outputs": _classes(shape)}, None


def _picture(width: int, content: int, known: Mapping[str, Any]) -> tuple[dict[str, Any], Columns]:
    """Of a picture with Fourier features behind so many channels of content."""
    bands = max(width - content - 2, 0) // 4
    return {**known, "num_bands": bands}, (content, 2, bands)


def _pixels(shape: Shape, width: int, known: Mapping[str, Any]) -> tuple[dict[str, Any], Columns | None]:
    inputs, columns = _picture(width, known["data_shape"][0], known)
    return {"inputs": inputs, "outputs": _classes(shape)}, columns


def _conv(shape: Shape, width: int, known: Mapping[str, Any]) -> tuple[dict[str, Any], Columns | None]:
    channels = shape(f"{CONV}conv/w")[0]
    inputs, columns = _picture(width, channels, known)
    return {"inputs": {**inputs, "stem_channels": channels}, "outputs": _classes(shape)}, columns


def _flow(shape: Shape, width: int, known: Mapping[str, Any]) -> tuple[dict[str, Any], Columns | None]:
    channels = shape("image_preprocessor/patches_linear/b")[0]
    inputs, columns = _picture(width, channels, known)
    outputs = {"dim": width, "num_channels": shape("flow_decoder/~/basic_decoder/output/b")[0]}
    return {"inputs": {**inputs, "embed_dim": channels}, "outputs": outputs}, columns


def _multimodal(shape: Shape, width: int, known: Mapping[str, Any]) -> tuple[dict[str, Any], Columns | None]:
    inner = {m: shape(f"multimodal_preprocessor/{m}_padding/pos_embs")[1] for m in MODALITIES}
    outer = {m: shape(f"multimodal_decoder/~decoder_query/{m}_padding/pos_embs")[1] for m in MODALITIES}
    results = {m: shape(f"{name}_postprocessor/linear/b")[0] for m, name in POSTPROCESSORS.items()}
    query = shape("multimodal_decoder/~/basic_decoder/cross_attention/layer_norm/scale")[0]
    decoded = shape("multimodal_decoder/~/basic_decoder/output/b")[0]
    # Widths are the common ones less the padding; queries of sound and video are positions alone.
    sound_positions, video_positions = query - outer["audio"], query - outer["image"]
    channels, *axes = known["data_shape"]
    patch = isqrt(max(width - inner["image"] - video_positions, 0) // channels)
    sound = {"num_bands": (sound_positions - 1) // 2, "resolution": known["num_samples"]}
    video = {"num_bands": (video_positions - 3) // 6, "resolution": known["resolution"]}
    samples = {"num_samples": known["num_samples"], "samples_per_patch": results["audio"]}
    inputs = {
        "audio": {**samples, **sound},
        "image": {"data_shape": [channels, *axes], "patch_size": [1, patch, patch], **video},
        "label": {"num_classes": results["label"]},
    }
    outputs = {
        "audio": {"axes": [known["num_samples"] // results["audio"]], "patch": [results["audio"]], **sound},
        "image": {"axes": axes, "num_channels": results["image"], **video},
        "label": {"dim": query - outer["label"], "num_channels": results["label"]},
    }
    outputs["audio"]["resolution"] = [known["num_samples"]]
    for output in outputs.values():
        output["decoded_channels"] = decoded
    sizes = {
        "inputs": {"modalities": inputs, "min_padding_size": min(inner.values())},
        "outputs": {"modalities": outputs, "min_padding_size": min(outer.values()), "decoded_channels": decoded},
    }
    return sizes, None


DECODER = "classification_decoder/~/basic_decoder/"
QUERIES = "multimodal_decoder/~decoder_query/"
PICTURE = ("data_shape", "resolution")
HEADS = (
    Head(
        "perceiver_io_mlm_bytes",
        "embed/",
        "basic_decoder/",
        {
            "inputs.embeddings.weight": "embed/embeddings",
            "inputs.positions.embeddings": POSITIONS,
            "outputs.query": "basic_decoder/~/trainable_position_encoding/pos_embs",
            "outputs.bias": "embedding_decoder/bias",
        },
        _language,
        (),
    ),
    Head(
        "perceiver_io_multimodal_kinetics",
        "multimodal_decoder/",
        "multimodal_decoder/~/basic_decoder/",
        {
            **{f"inputs.padding.{m}": f"multimodal_preprocessor/{m}_padding/pos_embs" for m in MODALITIES},
            **{f"inputs.mask_tokens.{m}": f"multimodal_preprocessor/{m}_mask_token/pos_embs" for m in MODALITIES},
            **{f"outputs.padding.{m}": f"{QUERIES}{m}_padding/pos_embs" for m in MODALITIES},
            **{f"outputs.modalities.{m}.head": f"{name}_postprocessor/linear" for m, name in POSTPROCESSORS.items()},
            "outputs.modalities.label.query": CLASSES["outputs.query"],
            "outputs.projection": "multimodal_decoder/~/basic_decoder/output",
        },
        _multimodal,
        (*PICTURE, "num_samples"),
    ),
    Head(
        "perceiver_io_optical_flow",
        "flow_decoder/",
        "flow_decoder/~/basic_decoder/",
        {"inputs.linear": "image_preprocessor/patches_linear", "outputs.head": "flow_decoder/~/basic_decoder/output"},
        _flow,
        PICTURE,
    ),
    Head(
        "perceiver_io_imagenet_conv",
        CONV,
        DECODER,
        {
            "inputs.conv": f"{CONV}conv",
            "inputs.norm": f"{CONV}batchnorm",
            "inputs.norm.running_mean": f"{CONV}batchnorm/~/mean_ema/average",
            "inputs.norm.running_var": f"{CONV}batchnorm/~/var_ema/average",
            "inputs.norm.num_batches_tracked": f"{CONV}batchnorm/~/mean_ema/counter",
            **CLASSES,
        },
        _conv,
        PICTURE,
    ),
    Head(
        "perceiver_io_imagenet_learned",
        "image_preprocessor/~/conv2_d/",
        DECODER,
        {
            "inputs.linear": "image_preprocessor/~/conv2_d",
            "inputs.positions.embeddings": LEARNED + POSITIONS,
            "inputs.position_linear": f"{LEARNED}position_encoding_projector/linear",
            **CLASSES,
        },
        _learned,
        ("data_shape",),
    ),
    Head("perceiver_io_imagenet_fourier", "classification_decoder/", DECODER, CLASSES, _pixels, PICTURE),
)
