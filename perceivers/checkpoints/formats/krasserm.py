"""krasserm's perceiver-io: image classifiers, masked language models, text classifiers and optical flow.

Its three forms are files with a state_dict, Lightning's checkpoints (names behind `model.`), and folders or repositories of
the hub (names behind `backend_model.`). Tensors tell all widths, the grid of the positions and its bands, and which layers
share weights, but neither the heads nor how often layers are applied. The last two forms have these in their settings; for
the first they are arguments, with the names that they have there. What is told twice must agree.

The models compute what transformers' do, with the exact GELU. Position features come behind the content, all coordinates
first, then all sines, then all cosines; columns are put in our order. The features themselves are stored there; they are
compared with ours, which are computed, and left.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceivers._checks import a_bool, a_number, an_int
from perceivers.checkpoints.feature_order import columns
from perceivers.checkpoints.formats.transformers import Plan
from perceivers.checkpoints.state_dict import read_hyper_parameters, translated
from perceivers.inputs.flow import FRAMES, KERNEL
from perceivers.perceiver_io import PerceiverIO
from perceivers.position import FourierFeatures

LIGHTNING, HUB = "model.", "backend_model."
LATENTS = "0.latent_provider._query"
ADAPTER = "0.input_adapter."
POSITIONS = f"{ADAPTER}position_encoding.position_encoding"
QUERY, HEAD, BIAS = "1.output_query_provider._query", "1.output_adapter.linear", "1.output_adapter.bias"
# Of a Perceiver AR, in a file and in a folder.
CAUSAL, CAUSAL_TYPE = "input_adapter.frq_pos_encoding.inv_freq", "perceiver-ar-"
REFUSED = "is a causal model of perceiver-io: this library has no Perceiver AR yet, only Perceiver and Perceiver IO"

# Ours: theirs, of an attention and of the feed-forward behind it.
ATTENTION = {
    "attention.to_q": "attention.q_proj",
    "attention.to_k": "attention.k_proj",
    "attention.to_v": "attention.v_proj",
    "attention.to_out": "attention.o_proj",
}
CROSS = {"attention_norm": "q_norm", "attention.inputs_norm": "kv_norm", **ATTENTION}
SELF = {"attention_norm": "norm", **ATTENTION}
FEED_FORWARD = {
    "feed_forward_norm": "1.module.0",
    "feed_forward.linear_in": "1.module.1",
    "feed_forward.linear_out": "1.module.3",
}
# Settings that tensors do not tell, those that they may tell, and those that no result depends on.
ENCODER = ("num_cross_attention_heads", "num_self_attention_heads", "num_cross_attention_layers", "num_self_attention_blocks")
DECODER = ("num_cross_attention_heads",)
SHARING = {"first_cross_attention_layer_shared": "0.cross_attn_n.", "first_self_attention_block_shared": "0.self_attn_n."}
OF_TRAINING = ("dropout", "init_scale", "freeze", "params")


Settings = Mapping[str, Any]


def recognises(weights: Mapping[str, Any]) -> bool:
    """Whether these are the names of such a model; a Perceiver AR is recognised, to be refused."""
    return _wrapper(weights) is not None


def recognises_folder(config: Mapping[str, Any], source: str) -> bool:
    """Whether this is the configuration of such a model.

    Raises:
        ValueError: If it is that of a Perceiver AR.
    """
    kind = str(config.get("model_type"))
    if kind.startswith(CAUSAL_TYPE):
        raise ValueError(f"{source}, model_type={kind!r}, {REFUSED}")
    return kind.startswith("perceiver-io-")


def load(
    weights: Mapping[str, Tensor],
    source: str,
    *,
    encoder: Settings | None = None,
    decoder: Settings | None = None,
    num_latents: int | None = None,
    num_latent_channels: int | None = None,
) -> nn.Module:
    """Makes our model with such weights.

    Args:
        weights: The state_dict; the prefix of Lightning or of the hub may stand before its names.
        source: Where it comes from: for messages, and to read the settings where it is a checkpoint of Lightning.
        encoder: Settings of the encoder, as there. A state_dict needs `num_cross_attention_heads`,
            `num_self_attention_heads`, `num_cross_attention_layers` and `num_self_attention_blocks`.
        decoder: Settings of the decoder, as there. A state_dict needs `num_cross_attention_heads`, and that of optical flow
            `rescale_factor`.
        num_latents: As there; compared with the file, as are all settings that it tells.
        num_latent_channels: As there.

    Raises:
        ValueError: If it is a Perceiver AR, a setting is missing, unknown, not supported or contradicts the weights, or the
            weights do not fit.
    """
    wrapper = _wrapper(weights) or ""
    file = File({name.removeprefix(wrapper): tensor for name, tensor in weights.items()}, source)
    if CAUSAL in file.weights:
        raise ValueError(f"{source} {REFUSED}")
    told: dict[str, Any] = {"encoder": encoder, "decoder": decoder}
    told |= {"num_latents": num_latents, "num_latent_channels": num_latent_channels}
    if wrapper == LIGHTNING:
        stored = read_hyper_parameters(source)
        for name, value in told.items():
            if isinstance(stored.get(name), Mapping) and isinstance(value, Mapping | None):
                told[name] = {**stored[name], **(value or {})}
            elif value is None:
                told[name] = stored.get(name)
    for part in ("encoder", "decoder"):
        if not isinstance(told[part], Mapping | None):
            raise ValueError(f"{source}: {part}={told[part]!r} must be a mapping, such as {{{DECODER[0]!r}: 1}}")
    latents, dim = file.shape(LATENTS, 2)
    file.agree("", {"num_latents": latents, "num_latent_channels": dim}, told)
    plan = _plan(file, told["encoder"] or {}, told["decoder"] or {})
    file.weights.pop(POSITIONS, None)
    return translated(file.weights, partial(PerceiverIO, **plan.arguments), plan.name, orders=plan.orders, source=source)


def load_folder(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Makes the model of a folder or repository of the hub.

    Raises:
        ValueError: As `load`.
    """
    settings = config.get("model_config")
    if not isinstance(settings, Mapping):
        raise ValueError(f"{source}: model_config={settings!r} must be a mapping: copy or download it again")
    names = ("encoder", "decoder", "num_latents", "num_latent_channels")
    return load(weights, source, **{name: settings.get(name) for name in names})


class File(NamedTuple):
    """Tensors, and what they tell.

    Attributes:
        weights: By their names, without prefix.
        source: Where they come from, for messages.
    """

    weights: dict[str, Tensor]
    source: str

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, with so many axes."""
        if name not in self.weights:
            raise ValueError(f"{self.source}: {name} is missing")
        shape = tuple(self.weights[name].shape)
        if len(shape) != ndim or 0 in shape:
            raise ValueError(f"{self.source}: {name} has shape {list(shape)}, but {ndim} axes, none empty, are needed")
        return shape

    def widths(self, kind: str, layer: str, attention: str) -> dict[str, Any]:
        """Settings of the widths of a layer, whose attention has this name; `kind` is "cross" or "self"."""
        hidden, dim = self.shape(f"{layer}.1.module.1.weight", 2)
        if hidden % dim:
            raise ValueError(f"{self.source}: {layer}.1.module.1.weight has {hidden} rows, no multiple of its {dim} columns")
        return {
            f"num_{kind}_attention_qk_channels": self.shape(f"{attention}.attention.q_proj.weight", 2)[0],
            f"num_{kind}_attention_v_channels": self.shape(f"{attention}.attention.v_proj.weight", 2)[0],
            f"{kind}_attention_widening_factor": hidden // dim,
        }

    def agree(self, prefix: str, found: Settings, told: Settings) -> None:
        """Raises `ValueError` where the tensors show a setting other than it is told."""
        for name, value in found.items():
            other = tuple(told[name]) if isinstance(told.get(name), list) else told.get(name)
            if other is not None and other != value:
                raise ValueError(f"{self.source}: {prefix}{name}={other!r}, but the weights show {value!r}: correct it")

    def settings(self, part: str, found: Settings, untold: Sequence[str], told: Settings) -> dict[str, Any]:
        """All settings of a part, the encoder or the decoder: those that the tensors show and those that are told.

        Raises:
            ValueError: If one is missing or unknown, has no value that it may have, or contradicts the tensors.
        """
        if missing := [name for name in untold if told.get(name) is None]:
            raise ValueError(
                f"{self.source}: {part} lacks {', '.join(missing)}, which the weights do not tell: give what the model was"
                f" made with, {part}={{{', '.join(f'{name!r}: ...' for name in missing)}}}"
            )
        known = {*found, *untold, *(SHARING if part == "encoder" else ())}
        if unknown := told.keys() - known - {*OF_TRAINING}:
            raise ValueError(f"{self.source}: {part} has unknown settings {sorted(map(str, unknown))}: it has {sorted(known)}")
        self.agree(f"{part}.", found, told)
        checks = {name: an_int if name.startswith("num_") else a_number for name in untold}
        settings = {**found, **{name: check(f"{part}.{name}", told[name]) for name, check in checks.items()}}
        for kind in ("cross", "self"):
            heads = settings.get(name := f"num_{kind}_attention_heads", 1)
            for width in ("qk", "v"):
                if settings.get(f"num_{kind}_attention_{width}_channels", 0) % heads:
                    size = settings[f"num_{kind}_attention_{width}_channels"]
                    raise ValueError(
                        f"{self.source}: {part}.{name}={heads} does not divide its {size} channels: give what the model was"
                        " made with"
                    )
        return settings


class Ends(NamedTuple):
    """What a model reads and what it makes: all that lies outside of its attention layers.

    Attributes:
        inputs: Our input module.
        outputs: Our output module.
        encoder: Settings of the encoder that the tensors show.
        decoder: The same of the decoder.
        table: For what our names start with, theirs.
        content: Content channels, axes and bands of encoded inputs, where their columns are to be reordered.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    table: dict[str, str]
    content: tuple[int, int, int] | None = None


def _wrapper(weights: Iterable[str]) -> str | None:
    """What stands before the names; `None` where they are not those of such a model."""
    return next((w for w in ("", LIGHTNING, HUB) for name in (LATENTS, CAUSAL) if w + name in weights), None)


def _plan(file: File, encoder: Settings, decoder: Settings) -> Plan:
    """How the model looks here, with such settings; rows of its weights are put in our order where that is needed."""
    if f"{ADAPTER}txt_embedding.weight" in file.weights:
        ends = _text(file, decoder)
    else:
        ends = _flow(file) if f"{ADAPTER}linear.weight" in file.weights else _image(file)
    residual = "1.cross_attn.0.module.q_norm.weight" in file.weights
    query = "1.cross_attn.0" + ".module" * residual
    depth = len({name.split(".")[2] for name in file.weights if name.startswith("0.self_attn_1.")})
    found = {
        **ends.encoder,
        **file.widths("cross", "0.cross_attn_1", "0.cross_attn_1.0.module"),
        **file.widths("self", "0.self_attn_1.0", "0.self_attn_1.0.0.module"),
        "num_self_attention_layers_per_block": depth,
    }
    e = {**encoder, **file.settings("encoder", found, ENCODER, encoder)}
    found = {**ends.decoder, **file.widths("cross", "1.cross_attn", query), "cross_attention_residual": residual}
    scaled = ends.outputs["kind"] == "PerInput"
    d = file.settings("decoder", found, (*DECODER, "rescale_factor") if scaled else DECODER, decoder)
    factor, other = e["cross_attention_widening_factor"], e["self_attention_widening_factor"]
    if factor != other:
        raise ValueError(
            f"{file.source}: cross_attention_widening_factor={factor} and self_attention_widening_factor={other} of the"
            " encoder differ: not supported"
        )
    latents, dim = file.shape(LATENTS, 2)
    layers = _layers(file, e)
    arguments = {
        "inputs": ends.inputs,
        "outputs": {**ends.outputs, "divisor": d["rescale_factor"]} if scaled else ends.outputs,
        "num_latent_tokens": latents,
        "dim": dim,
        "heads": e["num_self_attention_heads"],
        "cross_heads": e["num_cross_attention_heads"],
        **layers,
        "num_latent_transformers_in_layers": [depth] * len(set(layers["latent_layers_indice"])),
        "qk_channels": e["num_self_attention_qk_channels"],
        "v_channels": e["num_self_attention_v_channels"],
        "cross_qk_channels": e["num_cross_attention_qk_channels"],
        "cross_v_channels": e["num_cross_attention_v_channels"],
        "ff_dim_scale": factor,
        "decoder_heads": d["num_cross_attention_heads"],
        "decoder_qk_channels": d["num_cross_attention_qk_channels"],
        "decoder_v_channels": d["num_cross_attention_v_channels"],
        "decoder_query_residual": residual,
        "decoder_ff_dim_scale": d["cross_attention_widening_factor"],
    }
    table = {"encoder.latents": LATENTS, **ends.table}
    for u, use in enumerate("1n"):
        table |= _layer(f"encoder.cross_attentions.{u}.", f"0.cross_attn_{use}.", CROSS)
        for j in range(depth):
            table |= _layer(f"encoder.latent_transformers.{u}.{j}.", f"0.self_attn_{use}.{j}.", SELF)
    table |= _layer("decoder.", "1.cross_attn.", CROSS, residual)
    return Plan(arguments, table, {} if ends.content is None else _orders(file, columns(*ends.content), scaled, residual))


def _orders(file: File, order: list[int], flow: bool, residual: bool) -> dict[str, list[int]]:
    """For what our names start with, their column for each of ours; rows that need it are moved in the file's weights."""
    met = ("inputs_norm", "to_k.weight", "to_v.weight")
    ours = [f"encoder.cross_attentions.{u}.attention.{name}" for u in range(2) for name in met]
    if flow:  # queries are encoded inputs
        ours += ["decoder.attention_norm", "decoder.attention.to_q.weight"]
    if flow and residual:  # and so are decoded ones
        ours += ["decoder.feed_forward_norm", "decoder.feed_forward.linear_in.weight", "outputs.head.weight"]
        for linear in ("1.cross_attn.0.module.attention.o_proj", "1.cross_attn.1.module.3"):
            for name, ndim in ((f"{linear}.weight", 2), (f"{linear}.bias", 1)):
                if file.shape(name, ndim)[0] == len(order):  # else the shape is refused later
                    file.weights[name] = file.weights[name][order]
    return dict.fromkeys(ours, order)


def _layer(ours: str, theirs: str, attention: Mapping[str, str], residual: bool = True) -> dict[str, str]:
    """The names of one attention layer; one whose queries are not added to what they gather has shorter ones."""
    start = f"{theirs}0.module." if residual else f"{theirs}0."
    return {
        **{ours + name: start + part for name, part in attention.items()},
        **{ours + name: theirs + part for name, part in FEED_FORWARD.items()},
    }


def _layers(file: File, settings: Settings) -> dict[str, Any]:
    """Which of the unique cross-attentions and stacks each layer uses."""
    reads, blocks = settings["num_cross_attention_layers"], settings["num_self_attention_blocks"]
    if reads > blocks:
        raise ValueError(
            f"{file.source}: num_cross_attention_layers={reads} must be at most num_self_attention_blocks={blocks}"
        )
    later = []
    for name, prefix in SHARING.items():
        unshared = any(key.startswith(prefix) for key in file.weights)
        told = settings.get(name)
        shared = not unshared if told is None else a_bool(f"encoder.{name}", told)
        later.append(0 if shared else 1)
    cross, stack = later
    return {
        "layers_indice": [0] + [cross if block < reads else None for block in range(1, blocks)],
        "latent_layers_indice": [0] + [stack] * (blocks - 1),
    }


def _image(file: File) -> Ends:
    axes, bands = _grid(file)
    width = file.shape("0.cross_attn_1.0.module.kv_norm.weight", 1)[0]
    channels = width - len(axes) * (1 + 2 * bands)
    inputs = {"kind": "Pixels", "data_shape": [channels, *axes], "num_bands": bands}
    outputs, decoder = _classes(file)
    encoder = {"image_shape": (*axes, channels), "num_frequency_bands": bands}
    table = {"outputs.query": QUERY, "outputs.head": HEAD}
    return Ends(inputs, outputs, encoder, decoder, table, (channels, len(axes), bands))


def _text(file: File, told: Settings) -> Ends:
    vocabulary, dim = file.shape(f"{ADAPTER}txt_embedding.weight", 2)
    longest = file.shape(f"{ADAPTER}pos_embedding.weight", 2)[0]
    encoder = {"vocab_size": vocabulary, "max_seq_len": longest, "num_input_channels": dim}
    inputs = {"kind": "TokenIds", "vocab_size": vocabulary, "max_length": longest, "dim": dim}
    table = {
        "inputs.embeddings": f"{ADAPTER}txt_embedding",
        "inputs.positions.embeddings": f"{ADAPTER}pos_embedding.weight",
        "outputs.query": QUERY,
    }
    tied = BIAS in file.weights
    outputs, decoder = _classes(file) if not tied else ({}, {})
    # A language model with a head of its own is told from a classifier by its settings, or by giving a result for each id.
    if tied or "vocab_size" in told or ("num_classes" not in told and decoder["num_classes"] == vocabulary):
        queries, width = file.shape(QUERY, 2)
        count = file.shape(BIAS, 1)[0] if tied else decoder["num_classes"]
        outputs = {"kind": "TokenLogits", "max_length": queries, "dim": width, "vocab_size": count}
        decoder = {"max_seq_len": queries, "num_output_query_channels": width, "vocab_size": count}
        if not tied:
            outputs["tied_to"] = None
    return Ends(inputs, outputs, encoder, decoder, table | ({"outputs.bias": BIAS} if tied else {"outputs.head": HEAD}))


def _classes(file: File) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our output module of a classifier, and its settings there."""
    queries, width = file.shape(QUERY, 2)
    classes = file.shape(f"{HEAD}.weight", 2)[0]
    outputs = {"kind": "LearnedQueries", "dim": width, "num_channels": classes}
    if queries > 1:
        outputs["num_queries"] = queries
    return outputs, {"num_output_queries": queries, "num_output_query_channels": width, "num_classes": classes}


def _flow(file: File) -> Ends:
    axes, bands = _grid(file)
    if len(axes) != 2:
        raise ValueError(f"{file.source}: {POSITIONS} has {len(axes)} axes, not the 2 of optical flow")
    hidden, channels = file.shape(f"{ADAPTER}linear.weight", 2)
    if channels % (FRAMES * KERNEL**2):
        raise ValueError(f"{file.source}: num_patch_input_channels={channels / 2:g} is no multiple of 9, those of 3x3 patches")
    inputs = {"kind": "FramePairs", "data_shape": [channels // (FRAMES * KERNEL**2), *axes], "embed_dim": hidden}
    outputs = {"kind": "PerInput", "dim": hidden + 2 * (1 + 2 * bands), "num_channels": file.shape(f"{HEAD}.weight", 2)[0]}
    encoder = {
        "image_shape": tuple(axes),
        "num_patch_input_channels": channels // FRAMES,
        "num_patch_hidden_channels": hidden,
        "num_frequency_bands": bands,
    }
    table = {"inputs.linear": f"{ADAPTER}linear", "outputs.head": HEAD}
    return Ends({**inputs, "num_bands": bands}, outputs, encoder, {"image_shape": tuple(axes)}, table, (hidden, 2, bands))


def _grid(file: File) -> tuple[list[int], int]:
    """Lengths of the axes and number of bands of the stored position features, which must be those that we compute."""
    rows, width = file.shape(POSITIONS, 2)
    stored = file.weights[POSITIONS].float()
    for axes in range(1, 5):
        bands, rest = divmod(width - axes, 2 * axes)
        lengths = [len(stored[:, axis].unique()) for axis in range(axes)] if rest == 0 else []
        if lengths and prod(lengths) == rows and min(lengths) > 1 and _is_grid(stored, lengths, bands):
            return lengths, bands
    raise ValueError(f"{file.source}: {POSITIONS} are no Fourier features of a grid from -1 to 1: other positions are refused")


def _is_grid(stored: Tensor, lengths: Sequence[int], bands: int) -> bool:
    tables = FourierFeatures.of(bands, None, None, lengths).tables(lengths, dtype=torch.float32, device=stored.device)
    order = torch.tensor(columns(0, len(lengths), bands)).chunk(len(lengths))
    for axis, table in enumerate(tables):
        own = [1] * len(lengths)
        own[axis] = lengths[axis]
        features = stored[:, order[axis]].unflatten(0, list(lengths))
        # Half precision has errors of 0.004; another grid has some of more than 1.
        if not torch.allclose(features, table.reshape(*own, -1), rtol=0, atol=0.01):
            return False
    return True
