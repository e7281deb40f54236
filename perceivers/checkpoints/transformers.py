"""transformers' Perceiver: a folder or hub repository with `config.json` and the weights of one of its seven heads.

The model is that of transformers, with its exact GELU, its padding of convolutions and its decoders, not DeepMind's where they
differ (see `perceivers.perceiver_io`). Its position features come with all coordinates first, then all sines, then all
cosines; columns are put in our order.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from perceivers.checkpoints.translate import translated
from perceivers.inputs import InputModule
from perceivers.perceiver_io import PerceiverIO

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


def load(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Makes the model that a configuration and weights of transformers describe.

    Raises:
        ValueError: If the head is none of the seven, a setting is not supported, or the weights do not fit.
    """
    (head,) = config.get("architectures") or [None]
    if head not in HEADS:
        raise ValueError(f"{source}: architectures={head!r} is none of {sorted(HEADS)}")
    settings = {**DEFAULTS, **{key: value for key, value in config.items() if key in DEFAULTS}}
    labels = len(config.get("id2label") or (0, 1))
    arguments, rest, decoder, content = HEADS[head](settings, labels)
    arguments = {**_common(settings, source), **arguments}
    if "cross_qk_channels" not in arguments and settings["qk_channels"] is None:
        arguments["cross_qk_channels"] = InputModule.create(arguments["inputs"]).num_channels
    layers = {
        "encoder.cross_attentions.0": "perceiver.encoder.cross_attention",
        **{
            f"encoder.latent_transformers.0.{n}": f"perceiver.encoder.self_attends.{n}"
            for n in range(settings["num_self_attends_per_block"])
        },
        "decoder": f"perceiver.{decoder}decoding_cross_attention",
    }
    table = {f"{ours}.{part}": f"{theirs}.{LAYER[part]}" for ours, theirs in layers.items() for part in LAYER}
    table = {"encoder.latents": "perceiver.embeddings.latents", **table, **rest}

    def names(name: str) -> str | None:
        start = next((start for start in table if name == start or name.startswith(start + ".")), None)
        return None if start is None else table[start] + name[len(start) :]

    orders: dict[str, list[int]] = {}
    if content is not None:
        order = columns(*content)
        met = [
            "encoder.cross_attentions.0.attention.inputs_norm",
            *(f"encoder.cross_attentions.0.attention.to_{m}.weight" for m in "kv"),
        ]
        if head == "PerceiverForOpticalFlow":  # its queries are the encoded inputs
            met += ["decoder.attention_norm", "decoder.attention.to_q.weight"]
        orders = dict.fromkeys(met, order)
    # The rows of the embedding are also the map to logits; older versions store them twice.
    tied = {"embedding_decoder.decoder.weight": TEXT["inputs.embeddings"] + ".weight"}
    copies = {copy: original for copy, original in tied.items() if copy in weights}
    return translated(weights, partial(PerceiverIO, **arguments), names, orders=orders, copies=copies, source=source)


def columns(content: int, axes: int, bands: int) -> list[int]:
    """For each of our channels theirs: they have all coordinates, then all sines, then all cosines."""
    order = list(range(content))
    for a in range(axes):
        sines = content + axes + a * bands
        order += [content + a, *range(sines, sines + bands), *range(sines + axes * bands, sines + (axes + 1) * bands)]
    return order


def _common(c: Mapping[str, Any], source: str) -> dict[str, Any]:
    if c["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"{source}: hidden_act={c['hidden_act']!r} is none of {sorted(ACTIVATIONS)}")
    if c["self_attention_widening_factor"] != c["cross_attention_widening_factor"]:
        raise ValueError(f"{source}: self_attention_widening_factor and cross_attention_widening_factor differ: not supported")
    if c["cross_attention_shape_for_attention"] != "kv":
        raise ValueError(
            f"{source}: cross_attention_shape_for_attention={c['cross_attention_shape_for_attention']!r} must be 'kv'"
        )
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
