"""krasserm's perceiver-io: image classifiers, masked language models, text classifiers and optical flow.

Its three forms are files with a state_dict, Lightning's checkpoints (names behind `model.`), and folders or repositories of
the hub (names behind `backend_model.`). Tensors show all widths, the grid of the positions and its bands, and which layers
share weights, but neither the heads nor how often layers are applied. The last two forms have these in their settings; for
the first they are arguments, with the names that they have there. What is specified twice must agree.

The models compute what transformers' do, with the exact GELU. Position features follow the content, all coordinates first,
then all sines, then all cosines; columns are put in our order. The features are stored there; they are compared with ours,
which are computed, and dropped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch

from perceivers._checks import a_bool, a_number, an_int
from perceivers.checkpoints.feature_order import columns, columns_of, orders
from perceivers.checkpoints.format import Configuration, Description, Format, Names, numbered
from perceivers.checkpoints.source import Source
from perceivers.inputs.flow import FRAMES, KERNEL
from perceivers.perceiver_io import PerceiverIO
from perceivers.position import FourierFeatures, grid_coordinates

LIGHTNING, HUB = "model.", "backend_model."
LATENTS = "0.latent_provider._query"
ADAPTER = "0.input_adapter."
POSITIONS = f"{ADAPTER}position_encoding.position_encoding"
QUERY, HEAD, BIAS = "1.output_query_provider._query", "1.output_adapter.linear", "1.output_adapter.bias"
# Of a Perceiver AR, in a file and in a folder.
CAUSAL, CAUSAL_TYPE = "input_adapter.frq_pos_encoding.inv_freq", "perceiver-ar-"

# Ours: theirs, of an attention and of the feed-forward behind it.
ATTENTION = {f"attention.to_{name}": f"attention.{name[0]}_proj" for name in ("q", "k", "v", "out")}
CROSS = {"attention_norm": "q_norm", "attention.inputs_norm": "kv_norm", **ATTENTION}
SELF = {"attention_norm": "norm", **ATTENTION}
MLP = {"feed_forward_norm": "1.module.0", "feed_forward.linear_in": "1.module.1", "feed_forward.linear_out": "1.module.3"}
# Settings that tensors do not show, those that they may show, and those that no result depends on.
ENCODER = ("num_cross_attention_heads", "num_self_attention_heads", "num_cross_attention_layers", "num_self_attention_blocks")
DECODER = ("num_cross_attention_heads",)
SHARING = {"first_cross_attention_layer_shared": "0.cross_attn_n.", "first_self_attention_block_shared": "0.self_attn_n."}
OF_TRAINING = ("dropout", "init_scale", "freeze", "params")

Settings = Mapping[str, Any]


@dataclass(kw_only=True)
class Weights(Description):
    """Tensors without prefix and without position features.

    Attributes:
        settings: Those that a checkpoint of Lightning or a folder has.
        grid: Lengths of the axes and number of bands of the position features; `None` for text.
        residual: True if the queries of the decoder are added to what it gathers.
        depth: Number of self-attentions per block.
    """

    settings: dict[str, Any]
    grid: tuple[list[int], int] | None
    residual: bool
    depth: int

    def widths(self, kind: str, layer: str, attention: str) -> dict[str, Any]:
        """Return settings of the widths of a layer, whose attention has this name; `kind` is "cross" or "self"."""
        hidden, dim = self.shape(f"{layer}.1.module.1.weight", 2)
        if hidden % dim:
            raise ValueError(f"{layer}.1.module.1.weight has {hidden} rows, which is not a multiple of its {dim} columns")
        return {
            f"num_{kind}_attention_qk_channels": self.shape(f"{attention}.attention.q_proj.weight", 2)[0],
            f"num_{kind}_attention_v_channels": self.shape(f"{attention}.attention.v_proj.weight", 2)[0],
            f"{kind}_attention_widening_factor": hidden // dim,
        }


class Ends(NamedTuple):
    """What a model reads and what it makes: all that lies outside of its attention layers.

    Attributes:
        inputs: Our input module.
        outputs: Our output module.
        encoder: Settings of the encoder that the tensors show.
        decoder: The same of the decoder.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    encoder: dict[str, Any]
    decoder: dict[str, Any]


def _wrapper(names: Iterable[str]) -> str | None:
    """Return the prefix of the names; `None` if they are not those of such a model, or of a Perceiver AR."""
    return next((w for w in ("", LIGHTNING, HUB) for name in (LATENTS, CAUSAL) if w + name in names), None)


def describe(source: Source) -> Weights:
    """Return the tensors and settings of a file, folder or repository."""
    kind = str(source.config.get("model_type", ""))
    weights = source.weights() if not kind.startswith(CAUSAL_TYPE) else {}
    wrapper = _wrapper(weights) or ""
    weights = {name.removeprefix(wrapper): tensor for name, tensor in weights.items()}
    if kind.startswith(CAUSAL_TYPE) or CAUSAL in weights:
        raise ValueError("it is a causal model: this library has no Perceiver AR yet, only Perceiver and Perceiver IO")
    settings = source.config.get("model_config") if kind else source.settings if wrapper == LIGHTNING else {}
    if not isinstance(settings, dict):
        raise ValueError(f"model_config={settings!r} must be a mapping: copy or download it again")
    text = f"{ADAPTER}txt_embedding.weight" in weights
    return Weights(
        weights={name: tensor for name, tensor in weights.items() if name != POSITIONS},
        detail=kind,
        settings=settings,
        grid=None if text else _grid(Description(weights=weights)),
        residual="1.cross_attn.0.module.q_norm.weight" in weights,
        depth=numbered(weights, "0.self_attn_1."),
    )


def _grid(file: Description) -> tuple[list[int], int]:
    """Return lengths of the axes and bands of the stored position features, which must be those that we compute."""
    rows, width = file.shape(POSITIONS, 2)
    stored = file.weights[POSITIONS].float()
    for axes in range(1, 5):
        bands, rest = divmod(width - axes, 2 * axes)
        lengths = [len(stored[:, axis].unique()) for axis in range(axes)] if rest == 0 else [0]
        if min(lengths) < 2 or prod(lengths) != rows:
            continue
        places = torch.cartesian_prod(*map(grid_coordinates, lengths)).reshape(rows, axes).unbind(-1)
        ours = torch.cat(FourierFeatures.of(bands, None, None, lengths).tables_at(places, dtype=torch.float32), dim=-1)
        # Half precision has errors of 0.004; another grid has some of more than 1.
        if torch.allclose(stored[:, columns(0, axes, bands)], ours, rtol=0, atol=0.01):
            return lengths, bands
    raise ValueError(f"{POSITIONS} are not Fourier features of a grid from -1 to 1: other positions are refused")


def configure(
    file: Weights,
    *,
    encoder: Settings | None = None,
    decoder: Settings | None = None,
    num_latents: int | None = None,
    num_latent_channels: int | None = None,
) -> Configuration:
    """Return our model.

    Args:
        file: The tensors, and the settings beside them, which arguments replace.
        encoder: Settings of the encoder, as there. A state_dict needs `num_cross_attention_heads`,
            `num_self_attention_heads`, `num_cross_attention_layers` and `num_self_attention_blocks`.
        decoder: Settings of the decoder, as there. A state_dict needs `num_cross_attention_heads`, and that of optical flow
            `rescale_factor`.
        num_latents: As there; compared with the tensors, as are all settings that they show.
        num_latent_channels: As there.
    """
    given = {name: value for name, value in locals().items() if name != "file"}
    stated: dict[str, Any] = {name: _both(file.settings.get(name), value) for name, value in given.items()}
    for part in ("encoder", "decoder"):
        if not isinstance(stated[part], Mapping | None):
            raise ValueError(f"{part}={stated[part]!r} must be a mapping, such as {{{DECODER[0]!r}: 1}}")
    latents, dim = file.shape(LATENTS, 2)
    _agree("", {"num_latents": latents, "num_latent_channels": dim}, stated)
    of_encoder, of_decoder = stated["encoder"] or {}, stated["decoder"] or {}
    ends = _text(file, of_decoder) if file.grid is None else _array(file, *file.grid)
    scaled = ends.outputs["kind"] == "PerInput"
    shown = {
        **ends.encoder,
        **file.widths("cross", "0.cross_attn_1", "0.cross_attn_1.0.module"),
        **file.widths("self", "0.self_attn_1.0", "0.self_attn_1.0.0.module"),
        "num_self_attention_layers_per_block": file.depth,
    }
    e = {**of_encoder, **_settings("encoder", shown, ENCODER, of_encoder)}
    query = "1.cross_attn.0.module" if file.residual else "1.cross_attn.0"
    shown = {**ends.decoder, **file.widths("cross", "1.cross_attn", query), "cross_attention_residual": file.residual}
    d = _settings("decoder", shown, (*DECODER, "rescale_factor") if scaled else DECODER, of_decoder)
    factor, other = e["cross_attention_widening_factor"], e["self_attention_widening_factor"]
    if factor != other:
        raise ValueError(
            f"cross_attention_widening_factor={factor} and self_attention_widening_factor={other} of the encoder differ: not"
            " supported"
        )
    layers = _layers(file.weights, e)
    arguments = {
        "inputs": ends.inputs,
        "outputs": {**ends.outputs, "divisor": d["rescale_factor"]} if scaled else ends.outputs,
        "num_latent_tokens": latents,
        "dim": dim,
        "heads": e["num_self_attention_heads"],
        "cross_heads": e["num_cross_attention_heads"],
        **layers,
        "num_latent_transformers_in_layers": [file.depth] * len(set(layers["latent_layers_indice"])),
        "qk_channels": e["num_self_attention_qk_channels"],
        "v_channels": e["num_self_attention_v_channels"],
        "cross_qk_channels": e["num_cross_attention_qk_channels"],
        "cross_v_channels": e["num_cross_attention_v_channels"],
        "ff_dim_scale": factor,
        "decoder_heads": d["num_cross_attention_heads"],
        "decoder_qk_channels": d["num_cross_attention_qk_channels"],
        "decoder_v_channels": d["num_cross_attention_v_channels"],
        "decoder_query_residual": file.residual,
        "decoder_ff_dim_scale": d["cross_attention_widening_factor"],
    }
    return Configuration(PerceiverIO, arguments)


def _both(stored: Any, given: Any) -> Any:
    """Return a setting: what is given, or stored; of two mappings the entries of both, the given first."""
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        return {**stored, **given}
    return stored if given is None else given


def _agree(prefix: str, shown: Settings, stated: Settings) -> None:
    """Raise `ValueError` if the tensors show another setting than is stated."""
    for name, value in shown.items():
        other = tuple(stated[name]) if isinstance(stated.get(name), list) else stated.get(name)
        if other is not None and other != value:
            raise ValueError(f"{prefix}{name}={other!r}, but the weights show {value!r}: correct it")


def _settings(part: str, shown: Settings, needed: Sequence[str], stated: Settings) -> dict[str, Any]:
    """Return the settings of the encoder or decoder that the tensors show, and those of the rest that are needed.

    Raises:
        ValueError: If one is missing or unknown, has a value that is not allowed, or contradicts the tensors.
    """
    if missing := [name for name in needed if stated.get(name) is None]:
        raise ValueError(
            f"{part} lacks {', '.join(missing)}, which the weights do not show: give what the model was made with,"
            f" {part}={{{', '.join(f'{name!r}: ...' for name in missing)}}}"
        )
    known = {*shown, *needed, *(SHARING if part == "encoder" else ())}
    if unknown := stated.keys() - known - {*OF_TRAINING}:
        raise ValueError(f"{part} has unknown settings {sorted(map(str, unknown))}: it has {sorted(known)}")
    _agree(f"{part}.", shown, stated)
    checks = {name: an_int if name.startswith("num_") else a_number for name in needed}
    settings = {**shown, **{name: check(f"{part}.{name}", stated[name]) for name, check in checks.items()}}
    for kind in ("cross", "self"):
        heads = settings.get(name := f"num_{kind}_attention_heads", 1)
        for width in ("qk", "v"):
            if (size := settings.get(f"num_{kind}_attention_{width}_channels", 0)) % heads:
                raise ValueError(
                    f"{part}.{name}={heads} does not divide its {size} channels: give what the model was made with"
                )
    return settings


def _layers(weights: Iterable[str], settings: Settings) -> dict[str, Any]:
    """Return which of the unique cross-attentions and stacks each layer uses."""
    reads, blocks = settings["num_cross_attention_layers"], settings["num_self_attention_blocks"]
    if reads > blocks:
        raise ValueError(f"num_cross_attention_layers={reads} must be at most num_self_attention_blocks={blocks}")
    later = []
    for name, prefix in SHARING.items():
        stated = settings.get(name)
        shared = not any(key.startswith(prefix) for key in weights) if stated is None else a_bool(f"encoder.{name}", stated)
        later.append(0 if shared else 1)
    cross, stack = later
    return {
        "layers_indice": [0] + [cross if block < reads else None for block in range(1, blocks)],
        "latent_layers_indice": [0] + [stack] * (blocks - 1),
    }


def _array(file: Weights, axes: list[int], bands: int) -> Ends:
    """Return the ends of an image classifier or of optical flow."""
    if f"{ADAPTER}linear.weight" in file.weights:
        return _flow(file, axes, bands)
    width = file.shape("0.cross_attn_1.0.module.kv_norm.weight", 1)[0]
    channels = width - len(axes) * (1 + 2 * bands)
    inputs = {"kind": "Pixels", "data_shape": [channels, *axes], "num_bands": bands}
    outputs, decoder = _classes(file)
    return Ends(inputs, outputs, {"image_shape": (*axes, channels), "num_frequency_bands": bands}, decoder)


def _flow(file: Weights, axes: list[int], bands: int) -> Ends:
    if len(axes) != 2:
        raise ValueError(f"{POSITIONS} has {len(axes)} axes, not the 2 of optical flow")
    hidden, channels = file.shape(f"{ADAPTER}linear.weight", 2)
    if channels % (FRAMES * KERNEL**2):
        raise ValueError(f"num_patch_input_channels={channels / 2:g} is not a multiple of 9, those of 3x3 patches")
    sizes = {"data_shape": [channels // (FRAMES * KERNEL**2), *axes], "embed_dim": hidden, "num_bands": bands}
    outputs = {"dim": hidden + 2 * (1 + 2 * bands), "num_channels": file.shape(f"{HEAD}.weight", 2)[0]}
    encoder = {
        "image_shape": tuple(axes),
        "num_patch_input_channels": channels // FRAMES,
        "num_patch_hidden_channels": hidden,
        "num_frequency_bands": bands,
    }
    return Ends({"kind": "FramePairs", **sizes}, {"kind": "PerInput", **outputs}, encoder, {"image_shape": tuple(axes)})


def _text(file: Weights, stated: Settings) -> Ends:
    vocabulary, dim = file.shape(f"{ADAPTER}txt_embedding.weight", 2)
    longest = file.shape(f"{ADAPTER}pos_embedding.weight", 2)[0]
    encoder = {"vocab_size": vocabulary, "max_seq_len": longest, "num_input_channels": dim}
    inputs = {"kind": "TokenIds", "vocab_size": vocabulary, "max_length": longest, "dim": dim}
    tied = BIAS in file.weights
    outputs, decoder = ({}, {}) if tied else _classes(file)
    # A language model with its own head differs from a classifier in its settings, or has an output for each id.
    if tied or "vocab_size" in stated or ("num_classes" not in stated and decoder["num_classes"] == vocabulary):
        queries, width = file.shape(QUERY, 2)
        count = file.shape(BIAS, 1)[0] if tied else decoder["num_classes"]
        outputs = {"kind": "TokenLogits", "max_length": queries, "dim": width, "vocab_size": count}
        decoder = {"max_seq_len": queries, "num_output_query_channels": width, "vocab_size": count}
        if not tied:
            outputs["tied_to"] = None
    return Ends(inputs, outputs, encoder, decoder)


def _classes(file: Weights) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return our output module of a classifier, and its settings there."""
    queries, width = file.shape(QUERY, 2)
    classes = file.shape(f"{HEAD}.weight", 2)[0]
    outputs = {"kind": "LearnedQueries", "dim": width, "num_channels": classes}
    if queries > 1:
        outputs["num_queries"] = queries
    return outputs, {"num_output_queries": queries, "num_output_query_channels": width, "num_classes": classes}


def names(file: Weights, configuration: Configuration) -> Names:
    """Return their names of our tensors."""
    arguments, residual = configuration.arguments, file.residual
    table = {
        "encoder.latents": LATENTS,
        "inputs.embeddings": f"{ADAPTER}txt_embedding",
        "inputs.positions.embeddings": f"{ADAPTER}pos_embedding.weight",
        "inputs.linear": f"{ADAPTER}linear",
        "outputs.query": QUERY,
        "outputs.head": HEAD,
        "outputs.bias": BIAS,
        **_layer("decoder.", "1.cross_attn.", CROSS, residual),
    }
    for u, use in enumerate("1n"):
        table |= _layer(f"encoder.cross_attentions.{u}.", f"0.cross_attn_{use}.", CROSS)
        for j in range(file.depth):
            table |= _layer(f"encoder.latent_transformers.{u}.{j}.", f"0.self_attn_{use}.{j}.", SELF)
    rows: dict[str, Sequence[int]] = {}
    order = orders(arguments)
    if residual and arguments["outputs"]["kind"] == "PerInput":  # queries are encoded inputs, and so are decoded ones
        own = columns_of(arguments["inputs"]) or []
        order |= dict.fromkeys(
            ("decoder.feed_forward_norm", "decoder.feed_forward.linear_in.weight", "outputs.head.weight"), own
        )
        rows |= dict.fromkeys(("decoder.attention.to_out", "decoder.feed_forward.linear_out"), own)
    return Names(table, order, rows)


def _layer(ours: str, theirs: str, attention: Mapping[str, str], residual: bool = True) -> dict[str, str]:
    """Return the names of one attention layer; one without a query residual has shorter names."""
    start = f"{theirs}0.module." if residual else f"{theirs}0."
    return {
        **{ours + name: start + part for name, part in attention.items()},
        **{ours + name: theirs + part for name, part in MLP.items()},
    }


FILE = Format("krasserm", lambda source: _wrapper(source.names) is not None, describe, configure, names)
FOLDER = Format(
    "perceiver-io",
    lambda source: str(source.config.get("model_type")).startswith(("perceiver-io-", CAUSAL_TYPE)),
    describe,
    lambda file: configure(file),
    names,
)
