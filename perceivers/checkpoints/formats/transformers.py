"""transformers' Perceiver: a folder or hub repository with `config.json` and the weights of one of its seven heads.

The model is that of transformers, with its exact GELU, its padding of convolutions and its decoders, not DeepMind's, which
differs (see `perceivers.perceiver_io`). Position features have all coordinates first, then all sines, then all cosines; their
columns are put in our order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from perceivers._checks import a_bool, an_int, one_of
from perceivers.checkpoints import processors
from perceivers.checkpoints.feature_order import orders
from perceivers.checkpoints.format import Configuration, Description, Format, Names
from perceivers.checkpoints.source import Source
from perceivers.checkpoints.state_dict import counterpart, counterpart_class, differences, in_their_order, write_folder
from perceivers.perceiver_io import PerceiverIO
from perceivers.pretrained import CONFIG

# What a configuration without the key means.
DEFAULTS: dict[str, Any] = {
    "num_latents": 256,
    "d_latents": 1280,
    "d_model": 768,
    "num_blocks": 1,
    "num_self_attends_per_block": 26,
    "num_self_attention_heads": 8,
    "num_cross_attention_heads": 8,
    "qk_channels": None,
    "v_channels": None,
    "cross_attention_shape_for_attention": "kv",
    "self_attention_widening_factor": 1,
    "cross_attention_widening_factor": 1,
    "hidden_act": "gelu",
    "use_query_residual": True,
    "vocab_size": 262,
    "max_position_embeddings": 2048,
    "image_size": 56,
    "train_size": [368, 496],
    "num_frames": 16,
    "audio_samples_per_frame": 1920,
    "samples_per_patch": 16,
    "output_shape": [1, 16, 224, 224],
    "output_num_channels": 512,
    "_label_trainable_num_channels": 1024,
}
MOST_BLOCKS = 1024  # the published models have 1 and 8; no weights show how often the blocks are used
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# Ours: theirs, of one attention layer. Only cross-attentions have `inputs_norm`.
LAYER = {
    "attention_norm": "attention.self.layernorm1",
    "attention.inputs_norm": "attention.self.layernorm2",
    "attention.to_q": "attention.self.query",
    "attention.to_k": "attention.self.key",
    "attention.to_v": "attention.self.value",
    "attention.to_out": "attention.output.dense",
    "feed_forward_norm": "layernorm",
    "feed_forward.linear_in": "mlp.dense1",
    "feed_forward.linear_out": "mlp.dense2",
}
CROSS = "perceiver.encoder.cross_attention"
EMBEDDINGS = "perceiver.input_preprocessor.embeddings"
# The rows of the embedding are also the projection to logits; older versions store them twice.
TIED = {"embedding_decoder.decoder.weight": f"{EMBEDDINGS}.weight"}
CONVOLUTION = "convnet_1x1.weight"  # a linear layer here
MODALITIES = ("audio", "image", "label")


@dataclass(kw_only=True)
class Folder(Description):
    """A folder or repository.

    Attributes:
        head: The name of its class.
        settings: Its configuration, with defaults.
        labels: The names of its classes.
        config: Its configuration.
        processor: Its `preprocessor_config.json`, or `None`.
    """

    head: str
    settings: dict[str, Any]
    labels: list[str]
    config: dict[str, Any]
    processor: dict[str, Any] | None


def describe(source: Source) -> Folder:
    """Return the settings and weights of a folder."""
    config = source.config
    heads = config.get("architectures")
    if not isinstance(heads, list) or len(heads) != 1 or not isinstance(heads[0], str) or heads[0] not in HEADS:
        raise ValueError(f"architectures={heads!r} must be a list with one of {sorted(HEADS)}")
    weights = source.weights()
    settings = {**DEFAULTS, **{key: value for key, value in config.items() if key in DEFAULTS}}
    _check(settings, len(weights))
    return Folder(
        weights=weights,
        detail=heads[0],
        head=heads[0],
        settings=settings,
        labels=processors.labels_of(config),
        config=config,
        processor=source.json(processors.PROCESSOR),
    )


def _check(settings: Mapping[str, Any], tensors: int) -> None:
    """Refuse settings of a wrong type, and numbers of layers that so many tensors cannot have."""
    for name, value in settings.items():
        default = DEFAULTS[name]
        if isinstance(default, list):
            if not isinstance(value, list) or len(value) != len(default):
                raise ValueError(f"{name}={value!r} must be a list of {len(default)} whole numbers")
            for n in value:
                an_int(name, n)
        elif isinstance(default, bool):
            a_bool(name, value)
        elif isinstance(default, str):
            one_of(name, value, ACTIVATIONS if name == "hidden_act" else ("kv",))
        elif value is not None or default is not None:
            an_int(name, value)
    for name, most in (("num_blocks", MOST_BLOCKS), ("num_self_attends_per_block", tensors)):
        if settings[name] > most:
            raise ValueError(f"{name}={settings[name]} must be at most {most}")


def configure(folder: Folder) -> Configuration:
    """Return our model for a head with its settings."""
    (width,) = folder.shape(f"{CROSS}.attention.self.layernorm2.weight", 1)
    return _configure(folder.head, folder.settings, len(folder.labels), width)


def _configure(head: str, c: Mapping[str, Any], labels: int, width: int) -> Configuration:
    """Return our model for settings, a number of classes, and the width of encoded inputs."""
    if c["hidden_act"] not in ACTIVATIONS:  # one of ours, when saving
        raise ValueError(f"hidden_act={c['hidden_act']!r} must be one of {sorted(ACTIVATIONS)}")
    if c["self_attention_widening_factor"] != c["cross_attention_widening_factor"]:
        raise ValueError("self_attention_widening_factor and cross_attention_widening_factor differ: not supported")
    arguments = {
        "num_latent_tokens": c["num_latents"],
        "dim": c["d_latents"],
        "heads": c["num_self_attention_heads"],
        "cross_heads": c["num_cross_attention_heads"],
        "layers_indice": [0] + [None] * (c["num_blocks"] - 1),
        "latent_layers_indice": [0] * c["num_blocks"],
        "num_latent_transformers_in_layers": [c["num_self_attends_per_block"]],
        "qk_channels": c["qk_channels"],
        "v_channels": c["v_channels"],
        "ff_dim_scale": c["cross_attention_widening_factor"],
        "query_residual": c["use_query_residual"],
        "activation": ACTIVATIONS[c["hidden_act"]],
    }
    if c["qk_channels"] is None:
        arguments["cross_qk_channels"] = width
    return Configuration(PerceiverIO, {**arguments, **HEADS[head].arguments(c, labels)})


def names(folder: Folder, configuration: Configuration) -> Names:
    """Return their names of our tensors."""
    copies = {copy: original for copy, original in TIED.items() if copy in folder.weights}
    return replace(_names(folder.head, configuration.arguments), copies=copies)


def _names(name: str, arguments: Mapping[str, Any]) -> Names:
    head = HEADS[name]
    layers = {"encoder.cross_attentions.0": CROSS, "decoder": f"perceiver.{head.decoder}decoding_cross_attention"}
    for n in range(arguments["num_latent_transformers_in_layers"][0]):
        layers[f"encoder.latent_transformers.0.{n}"] = f"perceiver.encoder.self_attends.{n}"
    table = {f"{ours}.{part}": f"{theirs}.{LAYER[part]}" for ours, theirs in layers.items() for part in LAYER}
    return Names({"encoder.latents": "perceiver.embeddings.latents", **table, **head.table}, orders(arguments))


def save(model: PerceiverIO, folder: str | Path, labels: Sequence[str] | None = None) -> None:
    """Write a model as a folder that the class of transformers named in its `config.json` loads, with the same outputs.

    Args:
        model: A `PerceiverIO` with the inputs and outputs of one of the seven heads.
        folder: The folder, made if missing; files in it are replaced.
        labels: Names of the classes. Defaults to those in the model's preprocessing, or to their numbers.

    Raises:
        ValueError: If transformers has no such model; the message names what it lacks.
    """
    head = counterpart_class(model, {head.kinds: name for name, head in HEADS.items()}, "transformers")
    config, settings, outputs = model.config, _settings(model.config), model.config["outputs"]
    last = outputs["modalities"]["label"] if head == "PerceiverForMultimodalAutoencoding" else outputs
    classes = last["num_channels"] if last["kind"] == "LearnedQueries" else 2
    wanted = _configure(head, settings, classes, model.inputs.num_channels)
    with torch.device("meta"):
        differing = list(differences(config, PerceiverIO(**wanted.arguments).config))
    if differing:
        raise ValueError(f"transformers' {head} cannot express {'; '.join(differing)}")
    known = model.preprocessing or {}
    if labels is None and len(known.get("labels", ())) == classes:
        labels = known["labels"]
    if labels is not None and len(labels) != classes:
        raise ValueError(f"labels has {len(labels)} names, but the model has {classes} classes: give one for each")
    theirs, state = _names(head, wanted.arguments), {}
    for ours, tensor in model.state_dict().items():
        name = counterpart(theirs.table, ours)
        assert name is not None, f"{ours} is in no table"
        value = in_their_order(ours, tensor.detach(), theirs.orders)
        if name.endswith(CONVOLUTION):
            value = value[..., None, None]
        elif ".padding." in name or ".mask." in name:
            value = value[None]
        state[name] = value.contiguous()
    shown = [f"LABEL_{i}" for i in range(classes)] if labels is None else list(labels)
    written = {
        "architectures": [head],
        "model_type": "perceiver",
        **settings,
        "attention_probs_dropout_prob": config["attention_dropout"],
        "id2label": {str(i): name for i, name in enumerate(shown)},
        "label2id": {name: i for i, name in enumerate(shown)},
    }
    if known.get("task") in processors.TASKS.values():
        written["problem_type"] = next(theirs for theirs, ours in processors.TASKS.items() if ours == known["task"])
    files = {CONFIG: written}
    if known and (processor := processors.write(known)):
        files[processors.PROCESSOR] = processor
    write_folder(folder, files, state)


def _settings(c: Mapping[str, Any]) -> dict[str, Any]:
    """Return their configuration of ours, as far as it can express ours; the two are compared afterwards."""
    inputs, outputs = c["inputs"], c["outputs"]
    settings = {
        **DEFAULTS,
        "num_latents": c["num_latent_tokens"],
        "d_latents": c["dim"],
        "num_blocks": len(c["layers_indice"]),
        "num_self_attends_per_block": c["num_latent_transformers_in_layers"][0],
        "num_self_attention_heads": c["heads"],
        "num_cross_attention_heads": c["cross_heads"],
        "hidden_act": "gelu_pytorch_tanh" if c["activation"] == "gelu_tanh" else c["activation"],
        "use_query_residual": c["query_residual"],
        "self_attention_widening_factor": c["ff_dim"] // c["dim"],
        "cross_attention_widening_factor": c["ff_dim"] // c["dim"],
    }
    if c["qk_channels"] != c["dim"] or c["v_channels"] != c["dim"] or c["cross_qk_channels"] == c["qk_channels"]:
        settings |= {"qk_channels": c["qk_channels"], "v_channels": c["v_channels"]}
    match inputs["kind"]:
        case "TokenIds":
            sizes = {"vocab_size": "vocab_size", "max_position_embeddings": "max_length", "d_model": "dim"}
            settings |= {theirs: inputs[ours] for theirs, ours in sizes.items()}
        case "LearnedPixels":
            settings["image_size"] = inputs["data_shape"][-1]
        case "FramePairs":
            settings["train_size"] = inputs["data_shape"][1:]
        case "Multimodal" if set(inputs["modalities"]) == set(outputs.get("modalities", ())) == set(MODALITIES):
            audio, video = inputs["modalities"]["audio"], inputs["modalities"]["image"]
            frames = video["data_shape"][1]
            settings |= {
                "image_size": video["data_shape"][-1],
                "num_frames": frames,
                "audio_samples_per_frame": audio["num_samples"] // frames,
                "samples_per_patch": audio["samples_per_patch"],
                "output_shape": [1, *outputs["modalities"]["image"]["axes"]],
                "output_num_channels": outputs["decoded_channels"],
                "_label_trainable_num_channels": outputs["modalities"]["label"]["dim"],
            }
    return settings


class Head(NamedTuple):
    """One of the seven classes.

    Attributes:
        kinds: Our inputs and outputs.
        arguments: Our arguments for its settings and number of classes.
        table: For our names outside of attention layers, or what they start with, theirs.
        decoder: What the names of its decoder start with.
    """

    kinds: tuple[str, str]
    arguments: Callable[[Mapping[str, Any], int], dict[str, Any]]
    table: dict[str, str]
    decoder: str = "decoder.decoder."


def _classifier(inputs: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[Mapping[str, Any], int], dict[str, Any]]:
    """Return the function for a head with these inputs."""
    return lambda c, labels: {
        "inputs": inputs(c),
        "outputs": {"kind": "LearnedQueries", "dim": c["d_latents"], "num_channels": labels},
        "decoder_qk_channels": c["d_latents"],
    }


def _text(c: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {"vocab_size": c["vocab_size"], "max_length": c["max_position_embeddings"], "dim": c["d_model"]}
    return {"kind": "TokenIds", **sizes}


IMAGE = {"data_shape": [3, 224, 224], "num_bands": 64}


def _masked_lm(c: Mapping[str, Any], labels: int) -> dict[str, Any]:
    return {
        "inputs": _text(c),
        "outputs": {**_text(c), "kind": "TokenLogits"},
        "decoder_heads": 8,
        "decoder_qk_channels": 256,
        "decoder_v_channels": c["d_model"],
        "decoder_query_residual": False,
    }


def _flow(c: Mapping[str, Any], labels: int) -> dict[str, Any]:
    return {
        "inputs": {"kind": "FramePairs", "data_shape": [3, *c["train_size"]], "embed_dim": 64, "num_bands": 64},
        "outputs": {"kind": "PerInput", "dim": 322, "num_channels": 2, "divisor": 100},
        "decoder_query_residual": False,
        "decoder_qk_channels": c["d_latents"],
    }


def _multimodal(c: Mapping[str, Any], labels: int) -> dict[str, Any]:
    samples, patch = c["num_frames"] * c["audio_samples_per_frame"], c["samples_per_patch"]
    side = c["image_size"]
    audio = {"num_bands": 192, "resolution": samples}
    video = {"num_bands": 32, "resolution": [c["num_frames"], side, side], "feature_order": "kinds"}
    decoded = {"decoded_channels": c["output_num_channels"]}
    sampled = {"sampled_positions": "left_aligned", **decoded}
    inputs = {
        "audio": {"kind": "Waveform", "num_samples": samples, "samples_per_patch": patch, **audio},
        "image": {"kind": "Patches", "data_shape": [3, c["num_frames"], side, side], "patch_size": [1, 4, 4], **video},
        "label": {"kind": "Labels", "num_classes": labels},
    }
    outputs = {
        "audio": {"kind": "Grid", "axes": [samples // patch], "patch": [patch], "num_channels": 1, **audio, **sampled},
        "image": {"kind": "Grid", "axes": list(c["output_shape"][1:]), "num_channels": 3, **video, **sampled},
        "label": {"kind": "LearnedQueries", "dim": c["_label_trainable_num_channels"], "num_channels": labels, **decoded},
    }
    masked = {"audio": 0.0, "image": 0.0, "label": 1.0}
    return {
        "inputs": {"kind": "Multimodal", "modalities": inputs, "min_padding_size": 4, "mask_probs": masked},
        "outputs": {"kind": "Multimodal", "modalities": outputs, "min_padding_size": 2, **decoded},
        "decoder_query_residual": False,
        "decoder_qk_channels": c["d_latents"],
    }


POSITIONS = "output_position_encodings.position_embeddings"
FINAL = "perceiver.decoder.decoder.final_layer"
CLASSES = {"outputs.query": f"perceiver.decoder.decoder.{POSITIONS}", "outputs.head": FINAL}
TEXT = {
    "inputs.embeddings": EMBEDDINGS,
    "inputs.positions.embeddings": "perceiver.input_preprocessor.position_embeddings.weight",
}
HEADS = {
    "PerceiverForMaskedLM": Head(
        ("TokenIds", "TokenLogits"),
        _masked_lm,
        {**TEXT, "outputs.query": f"perceiver.decoder.{POSITIONS}", "outputs.bias": "embedding_decoder.bias"},
        "decoder.",
    ),
    "PerceiverForSequenceClassification": Head(("TokenIds", "LearnedQueries"), _classifier(_text), {**TEXT, **CLASSES}),
    "PerceiverForImageClassificationLearned": Head(
        ("LearnedPixels", "LearnedQueries"),
        _classifier(lambda c: {"kind": "LearnedPixels", "data_shape": [3, c["image_size"], c["image_size"]]}),
        {
            "inputs.linear": "perceiver.input_preprocessor.convnet_1x1",
            "inputs.positions.embeddings": "perceiver.input_preprocessor.position_embeddings.position_embeddings",
            "inputs.position_linear": "perceiver.input_preprocessor.positions_projection",
            **CLASSES,
        },
    ),
    "PerceiverForImageClassificationFourier": Head(
        ("Pixels", "LearnedQueries"), _classifier(lambda c: {"kind": "Pixels", **IMAGE, "resolution": 224}), CLASSES
    ),
    "PerceiverForImageClassificationConvProcessing": Head(
        ("ConvStem", "LearnedQueries"),
        _classifier(lambda c: {"kind": "ConvStem", **IMAGE, "padding": "symmetric", "resolution": 56}),
        {
            "inputs.conv": "perceiver.input_preprocessor.convnet.conv",
            "inputs.norm": "perceiver.input_preprocessor.convnet.batchnorm",
            **CLASSES,
        },
    ),
    "PerceiverForOpticalFlow": Head(
        ("FramePairs", "PerInput"),
        _flow,
        {"inputs.linear": "perceiver.input_preprocessor.conv_after_patches", "outputs.head": FINAL},
    ),
    "PerceiverForMultimodalAutoencoding": Head(
        ("Multimodal", "Multimodal"),
        _multimodal,
        {
            **{f"inputs.padding.{m}": f"perceiver.input_preprocessor.padding.{m}" for m in MODALITIES},
            **{f"inputs.mask_tokens.{m}": f"perceiver.input_preprocessor.mask.{m}" for m in MODALITIES},
            **{f"outputs.padding.{m}": f"perceiver.decoder.padding.{m}" for m in MODALITIES},
            **{
                f"outputs.modalities.{m}.head": f"perceiver.output_postprocessor.modalities.{m}.classifier" for m in MODALITIES
            },
            "outputs.modalities.label.query": f"perceiver.decoder.modalities.label.decoder.{POSITIONS}",
            "outputs.projection": FINAL,
        },
    ),
}

FORMAT = Format(
    "transformers",
    recognises=lambda source: source.config.get("model_type") == "perceiver",
    describe=describe,
    configure=configure,
    names=names,
    preprocessing=lambda folder, source: processors.read(folder.config, folder.labels, folder.processor, source),
)
