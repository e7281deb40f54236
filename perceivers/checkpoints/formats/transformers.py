"""transformers' Perceiver: a folder or hub repository with `config.json` and the weights of one of its seven heads.

The model is that of transformers, with its exact GELU, its padding of convolutions and its decoders, not DeepMind's where they
differ (see `perceivers.perceiver_io`). Its position features come with all coordinates first, then all sines, then all
cosines; columns are put in our order.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceivers._checks import a_bool, an_int, one_of
from perceivers.checkpoints import processors
from perceivers.checkpoints.feature_order import orders
from perceivers.checkpoints.state_dict import counterpart, differences, in_their_order, translated, write_folder
from perceivers.inputs import InputModule
from perceivers.perceiver_io import PerceiverIO
from perceivers.pretrained import CONFIG, without_storage

# What a configuration that does not say so means.
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
MOST_BLOCKS = 1024  # the published models have 1 and 8; no weights tell how often the blocks are used
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
QUERY = "perceiver.decoder.decoder.output_position_encodings.position_embeddings"
CLASSES = {"outputs.query": QUERY, "outputs.head": "perceiver.decoder.decoder.final_layer"}
TEXT = {
    "inputs.embeddings": "perceiver.input_preprocessor.embeddings",
    "inputs.positions.embeddings": "perceiver.input_preprocessor.position_embeddings.weight",
}
MODALITIES = ("audio", "image", "label")


class Plan(NamedTuple):
    """How one of their heads looks here.

    Attributes:
        arguments: Of `PerceiverIO`.
        table: For each of our names, or what it starts with, theirs.
        orders: For what our names start with, their column for each of ours.
    """

    arguments: dict[str, Any]
    table: dict[str, str]
    orders: Mapping[str, Sequence[int]]

    def name(self, ours: str) -> str | None:
        """Their name for one of ours."""
        return counterpart(self.table, ours)

    @classmethod
    def of(cls, head: str, settings: Mapping[str, Any], labels: int, source: str) -> "Plan":
        """Makes the plan of a head with its settings.

        Raises:
            ValueError: If a setting is not supported.
        """
        arguments, rest, decoder, content = HEADS[head](settings, labels)
        arguments = {**_common(settings, source), **arguments}
        layers = {"encoder.cross_attentions.0": "perceiver.encoder.cross_attention"}
        for n in range(settings["num_self_attends_per_block"]):
            layers[f"encoder.latent_transformers.0.{n}"] = f"perceiver.encoder.self_attends.{n}"
        layers["decoder"] = f"perceiver.{decoder}decoding_cross_attention"
        table = {f"{ours}.{part}": f"{theirs}.{LAYER[part]}" for ours, theirs in layers.items() for part in LAYER}
        if settings["qk_channels"] is None:
            make = partial(InputModule.create, arguments["inputs"])
            arguments["cross_qk_channels"] = without_storage(make, len(table), source).num_channels
        order = {} if content is None else orders(*content, as_queries=head == "PerceiverForOpticalFlow")
        return cls(arguments, {"encoder.latents": "perceiver.embeddings.latents", **table, **rest}, order)


def load(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Makes the model that a configuration and weights of transformers describe.

    Raises:
        ValueError: If the head is none of the seven, a setting is not supported, or the weights do not fit.
    """
    heads = config.get("architectures")
    if not isinstance(heads, list) or len(heads) != 1 or not isinstance(heads[0], str) or heads[0] not in HEADS:
        raise ValueError(f"{source}: architectures={heads!r} is none of {sorted(HEADS)}")
    settings = {**DEFAULTS, **{key: value for key, value in config.items() if key in DEFAULTS}}
    try:
        _check(settings, len(weights))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    plan = Plan.of(heads[0], settings, len(processors.labels_of(config, source)), source)
    # The rows of the embedding are also the map to logits; older versions store them twice.
    copies = {copy: original for copy, original in TIED.items() if copy in weights}
    make = partial(PerceiverIO, **plan.arguments)
    return translated(weights, make, plan.name, orders=plan.orders, copies=copies, source=source)


def _check(settings: Mapping[str, Any], tensors: int) -> None:
    """Refuses settings of a wrong type, and numbers of layers that these weights cannot have, before anything is made."""
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
            raise ValueError(f"{name}={settings[name]} is more than {most}")


def save(model: PerceiverIO, folder: str | Path, labels: Sequence[str] | None = None) -> None:
    """Writes a model as a folder that the class of transformers named in its `config.json` loads, with the same outputs.

    Args:
        model: A `PerceiverIO` with the inputs and outputs of one of the seven heads.
        folder: The folder, made if missing; what is there is replaced file by file.
        labels: Names of the classes; `None` for those that the model knows by its preprocessing, else their numbers.

    Raises:
        ValueError: If transformers has no such model; the message names what it lacks.
    """
    config = model.config
    kinds = (config["inputs"].get("kind"), config["outputs"].get("kind"))
    if kinds not in KINDS:
        raise ValueError(f"transformers has no Perceiver with inputs {kinds[0]} and outputs {kinds[1]}, only {sorted(KINDS)}")
    head, settings = KINDS[kinds], _settings(config)
    outputs = config["outputs"]
    count = outputs["modalities"]["label"] if head == "PerceiverForMultimodalAutoencoding" else outputs
    classes = count["num_channels"] if count["kind"] == "LearnedQueries" else 2
    plan = Plan.of(head, settings, classes, type(model).__name__)
    with torch.device("meta"):
        wanted = PerceiverIO(**plan.arguments).config
    if differing := differences(config, wanted):
        raise ValueError(f"transformers' {head} cannot express {'; '.join(differing)}")
    known = model.preprocessing or {}
    if labels is None and len(known.get("labels", ())) == classes:
        labels = known["labels"]
    if labels is not None and len(labels) != classes:
        raise ValueError(f"labels has {len(labels)} names, but the model has {classes} classes: give one each")
    names = [f"LABEL_{i}" for i in range(classes)] if labels is None else list(labels)
    state = {}
    for name, tensor in model.state_dict().items():
        theirs = plan.name(name)
        assert theirs is not None, f"{name} is in no table"
        value = in_their_order(name, tensor.detach(), plan.orders)
        if theirs.endswith(CONVOLUTION):
            value = value[..., None, None]
        elif ".padding." in theirs or ".mask." in theirs:
            value = value[None]
        state[theirs] = value.contiguous()
    written = {
        "architectures": [head],
        "model_type": "perceiver",
        **settings,
        "attention_probs_dropout_prob": config["attention_dropout"],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if known.get("task") in processors.TASKS.values():
        written["problem_type"] = next(theirs for theirs, ours in processors.TASKS.items() if ours == known["task"])
    files = {CONFIG: written}
    if known and (processor := processors.write(known)):
        files[processors.PROCESSOR] = processor
    write_folder(folder, files, state)


CONVOLUTION = "convnet_1x1.weight"  # a linear map here
TIED = {"embedding_decoder.decoder.weight": "perceiver.input_preprocessor.embeddings.weight"}


def _settings(c: Mapping[str, Any]) -> dict[str, Any]:
    """What their configuration says where it can express ours; whether it can is compared afterwards."""
    inputs, outputs = c["inputs"], c["outputs"]
    activation = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}.get(c["activation"], c["activation"])
    settings = {
        **DEFAULTS,
        "num_latents": c["num_latent_tokens"],
        "d_latents": c["dim"],
        "num_blocks": len(c["layers_indice"]),
        "num_self_attends_per_block": c["num_latent_transformers_in_layers"][0],
        "num_self_attention_heads": c["heads"],
        "num_cross_attention_heads": c["cross_heads"],
        "hidden_act": activation,
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
            sound, video = inputs["modalities"]["audio"], inputs["modalities"]["image"]
            frames = video["data_shape"][1]
            settings |= {
                "image_size": video["data_shape"][-1],
                "num_frames": frames,
                "audio_samples_per_frame": sound["num_samples"] // frames,
                "samples_per_patch": sound["samples_per_patch"],
                "output_shape": [1, *outputs["modalities"]["image"]["axes"]],
                "output_num_channels": outputs["decoded_channels"],
                "_label_trainable_num_channels": outputs["modalities"]["label"]["dim"],
            }
    return settings


def _common(c: Mapping[str, Any], source: str) -> dict[str, Any]:
    if c["hidden_act"] not in ACTIVATIONS:  # one of ours, on the way back
        raise ValueError(f"{source}: hidden_act={c['hidden_act']!r} is none of {sorted(ACTIVATIONS)}")
    if c["self_attention_widening_factor"] != c["cross_attention_widening_factor"]:
        raise ValueError(f"{source}: self_attention_widening_factor and cross_attention_widening_factor differ: not supported")
    blocks = c["num_blocks"]
    return {
        "num_latent_tokens": c["num_latents"],
        "dim": c["d_latents"],
        "heads": c["num_self_attention_heads"],
        "cross_heads": c["num_cross_attention_heads"],
        "layers_indice": [0] + [None] * (blocks - 1),
        "latent_layers_indice": [0] * blocks,
        "num_latent_transformers_in_layers": [c["num_self_attends_per_block"]],
        "qk_channels": c["qk_channels"],
        "v_channels": c["v_channels"],
        "ff_dim_scale": c["cross_attention_widening_factor"],
        "query_residual": c["use_query_residual"],
        "activation": ACTIVATIONS[c["hidden_act"]],
    }


# Each head: our arguments, our names and theirs of what is not an attention layer, where its decoder lies, and the content
# channels, axes and bands of its encoded inputs, where their columns are to be reordered.
Head = tuple[dict[str, Any], dict[str, str], str, tuple[int, int, int] | None]
DECODER = "decoder.decoder."


def _classes(c: Mapping[str, Any], labels: int) -> dict[str, Any]:
    return {
        "outputs": {"kind": "LearnedQueries", "dim": c["d_latents"], "num_channels": labels},
        "decoder_qk_channels": c["d_latents"],
    }


def _text(c: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {"vocab_size": c["vocab_size"], "max_length": c["max_position_embeddings"], "dim": c["d_model"]}
    return {"kind": "TokenIds", **sizes}


def _masked_lm(c: Mapping[str, Any], labels: int) -> Head:
    arguments = {
        "inputs": _text(c),
        "outputs": {**_text(c), "kind": "TokenLogits"},
        "decoder_heads": 8,
        "decoder_qk_channels": 256,
        "decoder_v_channels": c["d_model"],
        "decoder_query_residual": False,
    }
    query = "perceiver.decoder.output_position_encodings.position_embeddings"
    return arguments, {**TEXT, "outputs.query": query, "outputs.bias": "embedding_decoder.bias"}, "decoder.", None


def _sequence(c: Mapping[str, Any], labels: int) -> Head:
    return {"inputs": _text(c), **_classes(c, labels)}, {**TEXT, **CLASSES}, DECODER, None


def _learned(c: Mapping[str, Any], labels: int) -> Head:
    side = c["image_size"]
    rest = {
        "inputs.linear": "perceiver.input_preprocessor.convnet_1x1",
        "inputs.positions.embeddings": "perceiver.input_preprocessor.position_embeddings.position_embeddings",
        "inputs.position_linear": "perceiver.input_preprocessor.positions_projection",
        **CLASSES,
    }
    return {"inputs": {"kind": "LearnedPixels", "data_shape": [3, side, side]}, **_classes(c, labels)}, rest, DECODER, None


def _fourier(c: Mapping[str, Any], labels: int) -> Head:
    inputs = {"kind": "Pixels", "data_shape": [3, 224, 224], "num_bands": 64, "resolution": 224}
    return {"inputs": inputs, **_classes(c, labels)}, CLASSES, DECODER, (3, 2, 64)


def _conv(c: Mapping[str, Any], labels: int) -> Head:
    inputs = {"kind": "ConvStem", "data_shape": [3, 224, 224], "padding": "symmetric", "num_bands": 64, "resolution": 56}
    rest = {
        "inputs.conv": "perceiver.input_preprocessor.convnet.conv",
        "inputs.norm": "perceiver.input_preprocessor.convnet.batchnorm",
        **CLASSES,
    }
    return {"inputs": inputs, **_classes(c, labels)}, rest, DECODER, (64, 2, 64)


def _flow(c: Mapping[str, Any], labels: int) -> Head:
    arguments = {
        "inputs": {"kind": "FramePairs", "data_shape": [3, *c["train_size"]], "embed_dim": 64, "num_bands": 64},
        "outputs": {"kind": "PerInput", "dim": 322, "num_channels": 2, "divisor": 100},
        "decoder_query_residual": False,
        "decoder_qk_channels": c["d_latents"],
    }
    rest = {
        "inputs.linear": "perceiver.input_preprocessor.conv_after_patches",
        "outputs.head": "perceiver.decoder.decoder.final_layer",
    }
    return arguments, rest, DECODER, (64, 2, 64)


def _multimodal(c: Mapping[str, Any], labels: int) -> Head:
    samples, patch = c["num_frames"] * c["audio_samples_per_frame"], c["samples_per_patch"]
    side, width = c["image_size"], c["output_num_channels"]
    sound = {"num_bands": 192, "resolution": samples}
    video = {"num_bands": 32, "resolution": [c["num_frames"], side, side], "feature_order": "kinds"}
    decoded = {"decoded_channels": width}
    sampled = {"sampled_positions": "left_aligned", **decoded}
    inputs = {
        "audio": {"kind": "Waveform", "num_samples": samples, "samples_per_patch": patch, **sound},
        "image": {"kind": "Patches", "data_shape": [3, c["num_frames"], side, side], "patch_size": [1, 4, 4], **video},
        "label": {"kind": "Labels", "num_classes": labels},
    }
    outputs = {
        "audio": {"kind": "Grid", "axes": [samples // patch], "patch": [patch], "num_channels": 1, **sound, **sampled},
        "image": {"kind": "Grid", "axes": list(c["output_shape"][1:]), "num_channels": 3, **video, **sampled},
        "label": {"kind": "LearnedQueries", "dim": c["_label_trainable_num_channels"], "num_channels": labels, **decoded},
    }
    arguments = {
        "inputs": {
            "kind": "Multimodal",
            "modalities": inputs,
            "min_padding_size": 4,
            "mask_probs": {"audio": 0.0, "image": 0.0, "label": 1.0},
        },
        "outputs": {"kind": "Multimodal", "modalities": outputs, "min_padding_size": 2, **decoded},
        "decoder_query_residual": False,
        "decoder_qk_channels": c["d_latents"],
    }
    rest = {
        **{f"inputs.padding.{m}": f"perceiver.input_preprocessor.padding.{m}" for m in MODALITIES},
        **{f"inputs.mask_tokens.{m}": f"perceiver.input_preprocessor.mask.{m}" for m in MODALITIES},
        **{f"outputs.padding.{m}": f"perceiver.decoder.padding.{m}" for m in MODALITIES},
        **{f"outputs.modalities.{m}.head": f"perceiver.output_postprocessor.modalities.{m}.classifier" for m in MODALITIES},
        "outputs.modalities.label.query": "perceiver.decoder.modalities.label.decoder.output_position_encodings"
        ".position_embeddings",
        "outputs.projection": "perceiver.decoder.decoder.final_layer",
    }
    return arguments, rest, DECODER, None


HEADS = {
    "PerceiverForMaskedLM": _masked_lm,
    "PerceiverForSequenceClassification": _sequence,
    "PerceiverForImageClassificationLearned": _learned,
    "PerceiverForImageClassificationFourier": _fourier,
    "PerceiverForImageClassificationConvProcessing": _conv,
    "PerceiverForOpticalFlow": _flow,
    "PerceiverForMultimodalAutoencoding": _multimodal,
}

# The kinds of our inputs and outputs that each head has.
KINDS = {
    ("TokenIds", "TokenLogits"): "PerceiverForMaskedLM",
    ("TokenIds", "LearnedQueries"): "PerceiverForSequenceClassification",
    ("LearnedPixels", "LearnedQueries"): "PerceiverForImageClassificationLearned",
    ("Pixels", "LearnedQueries"): "PerceiverForImageClassificationFourier",
    ("ConvStem", "LearnedQueries"): "PerceiverForImageClassificationConvProcessing",
    ("FramePairs", "PerInput"): "PerceiverForOpticalFlow",
    ("Multimodal", "Multimodal"): "PerceiverForMultimodalAutoencoding",
}
