"""perceiver-pytorch: files with the state_dict of its `Perceiver`, `PerceiverIO` or `PerceiverLM`.

Such a file does not specify how positions are encoded and how widths are split into heads: these are arguments, with the names
and defaults that they have there. Names of older versions become those of 0.11 first. Layers that share weights are stored
once for each use, and are found by being equal.

Its `Perceiver` with `fourier_encode_data=False` reads features, so here it is a `PerceiverIO`, with the mean of the latents as
its output.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceivers._checks import an_int
from perceivers.checkpoints.feature_order import of_cross_attentions
from perceivers.checkpoints.format import Configuration, Description, Format, Names, keys_and_values, numbered
from perceivers.checkpoints.source import Source
from perceivers.checkpoints.state_dict import by_start, counterpart_class, differences, in_their_order, write_weights
from perceivers.perceiver import Perceiver
from perceivers.perceiver_io import PerceiverIO

Block = tuple[str, str]  # what the names of an attention and of its feed-forward start with

# Ours: theirs, of one attention and of one feed-forward. Only cross-attentions have `inputs_norm`. `to_k` and `to_v` are one
# projection there.
ATTENTION = {"attention_norm": "norm", "attention.inputs_norm": "norm_context"}
ATTENTION |= {f"attention.to_{name}": f"fn.to_{name}" for name in ("q", "k", "v", "out")}
FEED_FORWARD = {"feed_forward_norm": "norm", "feed_forward.linear_in": "fn.net.0", "feed_forward.linear_out": "fn.net.2"}
HEAD = {"norm": "to_logits.1", "head": "to_logits.2"}
CROSS: Block = ("cross_attend_block.cross_attn.", "cross_attend_block.cross_ff.")
DECODER: Block = ("decoder_cross_attn.", "decoder_ff.")
LM = "perceiver_io."  # what names in a language model start with
LAYERS = ("layers_indice", "latent_layers_indice", "num_latent_transformers_in_layers")

# Names of older versions, and those of 0.11; of each group the first that fits.
BEFORE_0_8 = ((r"\.to_out\.0\.", ".to_out."), (r"\.net\.3\.", ".net.2."))
BEFORE_0_7_1 = ((r"^to_logits\.1\.", "to_logits.2."), (r"^to_logits\.0\.", "to_logits.1."))
BEFORE_0_11 = (
    (r"^layers\.(\d+)\.0\.(?=fn|norm)", r"layers.\1.cross_attn."),
    (r"^layers\.(\d+)\.1\.(?=fn|norm)", r"layers.\1.cross_ff."),
    (r"^layers\.(\d+)\.2\.(?=\d)", r"layers.\1.self_attns."),
    (r"^layers\.(\d+)\.2\.(?=fn|norm)", r"layers.\1.self_attns.0.0."),  # before 0.2
    (r"^layers\.(\d+)\.3\.(?=fn|norm)", r"layers.\1.self_attns.0.1."),
)
IO_BEFORE_0_11 = (
    (r"^cross_attend_blocks\.0\.", CROSS[0]),
    (r"^cross_attend_blocks\.1\.", CROSS[1]),
    (r"^layers\.(\d+)\.([01])\.(?=fn|norm)", r"layers.\1.self_attns.0.\2."),
)

# What this library does not have, by the names that it leaves.
REFUSED = {
    r"\.to_attn_logits\.": "attn_residual=True",
    r"\.gru\.": "gated.Perceiver",
    r"^data_proj\.": "experimental.Perceiver",
    r"^layers\.\d+\.2\.fn\.0\.": "mixed_latents.Perceiver",
    r"^sinu_emb\.": "self_attn_rel_pos=True of versions 0.3 and 0.4",
    r"\.g$": "the norms of versions before 0.1.16",
}

# Their class for the kinds of inputs and outputs of our `PerceiverIO`.
KINDS = {
    ("Features", "MeanPool"): "Perceiver",
    ("Features", "GivenQueries"): "PerceiverIO",
    ("TokenIds", "PerToken"): "PerceiverLM",
}


@dataclass(kw_only=True)
class Stored(Description):
    """A state_dict with the names of version 0.11, with keys and values apart, and how its layers share weights.

    Attributes:
        kind: The class there.
        single: True if there is one cross-attention, and each latent transformer is a layer.
        counts: For each cross-attention how many latent transformers follow.
        lists: Our lists of what layers are made of.
        old: True for a version before 0.8.
    """

    kind: str
    single: bool
    counts: list[int]
    lists: dict[str, Any]
    old: bool


def recognises(source: Source) -> bool:
    """Return True if these are the names of such a model."""
    latents = "latents" in source.names or f"{LM}latents" in source.names
    return latents and any(name.endswith("fn.to_kv.weight") for name in source.names)


def describe(source: Source) -> Stored:
    """Return the tensors of a file, and how its layers share them."""
    weights = source.weights()
    for name in weights:
        for pattern, what in REFUSED.items():
            if re.search(pattern, name):
                raise ValueError(f"{name} belongs to {what}, which this library does not have")
    state = _renamed(weights)
    is_io, single = (any(name.startswith(start) for name in state) for start in (DECODER[0], CROSS[0]))
    if is_io and not single and any(name.startswith(DECODER[1]) for name in state):
        raise ValueError("decoder_ff of versions before 0.7 is not supported: in 0.6.0 it has no residual, in 0.6.2 one")
    depth, stack = numbered(state, "layers."), numbered(state, "layers.0.self_attns.")
    counts = [depth * stack] if single else [stack] * depth
    if not counts:
        raise ValueError("it has no layers: the file is not complete")
    layers = _blocks(single, counts)
    ids = iter(_ids(state, [block for _, blocks in layers for block in blocks]))
    lists = _lists(_ids(state, [cross for cross, _ in layers]), [[next(ids) for _ in blocks] for _, blocks in layers])
    for name in [name for name in state if name.endswith("fn.to_kv.weight")]:
        both = keys_and_values(name, state.pop(name))
        state[name.replace("to_kv", "to_k")], state[name.replace("to_kv", "to_v")] = both
    return Stored(
        weights=state,
        kind=("PerceiverLM" if "token_emb.weight" in state else "PerceiverIO") if is_io else "Perceiver",
        single=single,
        counts=counts,
        lists=lists,
        old=any(".to_out.0." in name for name in weights),
    )


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the names of version 0.11, without the prefix of a language model."""
    state = {name.removeprefix(LM): tensor for name, tensor in weights.items()}
    groups = [BEFORE_0_8, IO_BEFORE_0_11 if any(n.startswith("cross_attend_block") for n in state) else BEFORE_0_11]
    if "to_logits.0.weight" in state:
        groups.append(BEFORE_0_7_1)
    for group in groups:
        change = lambda n, group=group: next((re.sub(old, new, n) for old, new in group if re.search(old, n)), n)  # noqa: E731
        state = {change(name): tensor for name, tensor in state.items()}
    if len(state) < len(weights):
        raise ValueError("it has tensors under the names of two versions: the file is damaged")
    return state


def configure(
    stored: Stored,
    *,
    max_freq: float | None = None,
    num_freq_bands: int | None = None,
    input_channels: int | None = None,
    input_axis: int = 2,
    data_shape: Sequence[int] | None = None,
    cross_heads: int = 1,
    latent_heads: int = 8,
    frequency_base: float | str | None = None,
    fourier_encode_data: bool = True,
) -> Configuration:
    """Return our model: a `Perceiver`, or a `PerceiverIO` if it is one there or reads features.

    Args:
        stored: The state_dict.
        max_freq: As it was given there; half of it is the highest frequency. A `Perceiver` with Fourier features needs it.
        num_freq_bands: As it was given there. Inferred from the width of the inputs by default.
        input_channels: As there. Defaults to 3, or, without Fourier features, to the width of the inputs.
        input_axis: As there.
        data_shape: `[C, *axes]` of the inputs. Defaults to 224 per axis. Other lengths are accepted later.
        cross_heads: As there.
        latent_heads: As there.
        frequency_base: "linear" for frequencies spaced linearly from 1, else the lowest of frequencies spaced geometrically.
            Versions before 0.8 need it, since they differ: 2 (`freq_base` there) up to 0.2.0, 1 up to 0.7.3, "linear" since.
        fourier_encode_data: As there.
    """
    kind, state = stored.kind, stored.weights
    fourier = fourier_encode_data and kind == "Perceiver"
    of_fourier = {"max_freq": max_freq, "num_freq_bands": num_freq_bands}
    of_fourier |= {"data_shape": data_shape, "frequency_base": frequency_base}
    if not fourier and (given := sorted(name for name, value in of_fourier.items() if value is not None)):
        raise ValueError(f"it is read without Fourier features, which {given} are about: leave them out")
    shape = lambda name: stored.shape(name, 2)  # noqa: E731
    cross, latents = _blocks(stored.single, stored.counts)[0]
    num_latents, dim = shape("latents")
    width = shape(f"{cross[0]}fn.to_k.weight")[1]
    cross_inner = shape(f"{cross[0]}fn.to_q.weight")[0]
    inner = shape(f"{latents[0][0]}fn.to_q.weight")[0] if latents else an_int("latent_heads", latent_heads)
    for name, heads, size in (("cross_heads", cross_heads, cross_inner), ("latent_heads", latent_heads, inner)):
        if heads < 1 or size % heads:
            raise ValueError(f"{name}={heads} does not divide {size}: give what the model was made with")
    theirs: dict[str, Any] = {
        "num_latents": num_latents,
        "latent_dim": dim,
        "cross_heads": cross_heads,
        "latent_heads": latent_heads,
        "cross_dim_head": cross_inner // cross_heads,
        "latent_dim_head": inner // latent_heads,
        "fourier_encode_data": fourier,
    }
    if kind == "Perceiver":
        classes = shape("to_logits.2.weight")[0] if "to_logits.2.weight" in state else None
        theirs |= {"num_classes": classes, "final_classifier_head": classes is not None, "input_channels": width}
    else:
        theirs |= {"dim": width, "decoder_ff": any(name.startswith(DECODER[1]) for name in state)}
    if kind == "PerceiverLM":
        theirs |= {"num_tokens": shape("token_emb.weight")[0], "max_seq_len": shape("pos_emb.weight")[0]}
    elif kind == "PerceiverIO":
        theirs["queries_dim"] = shape(f"{DECODER[0]}fn.to_q.weight")[1]
        theirs["logits_dim"] = shape("to_logits.weight")[0] if "to_logits.weight" in state else None
    elif fourier:
        theirs |= _positions(width, max_freq, num_freq_bands, input_channels, input_axis)
        if frequency_base is None and stored.old:
            raise ValueError(
                "frequency_base is missing, files of versions before 0.8 do not specify it: give 2 (freq_base there) up to"
                " 0.2.0, 1 for 0.2.1 to 0.7.3, 'linear' for 0.7.4 and 0.7.5"
            )
    elif input_channels not in (None, width):
        raise ValueError(f"its inputs have {width} channels, but input_channels={input_channels}: correct it")
    base = None if frequency_base == "linear" else frequency_base
    return _configuration(kind, theirs, stored.lists, frequency_base=base, data_shape=data_shape)


def _positions(width: int, max_freq: float | None, bands: int | None, channels: int | None, axes: int) -> dict[str, Any]:
    """Return their arguments of Fourier features, if they fit the width of the inputs."""
    if max_freq is None:
        raise ValueError("max_freq is missing, the file does not specify it: give what the model was made with")
    channels = 3 if channels is None else channels
    if bands is None:
        bands = ((width - channels) // an_int("input_axis", axes) - 1) // 2
    if channels + axes * (2 * bands + 1) != width:
        raise ValueError(
            f"its inputs have {width} channels, but input_channels={channels}, input_axis={axes} and num_freq_bands={bands}"
            f" make {channels + axes * (2 * bands + 1)}: correct them"
        )
    return {"max_freq": max_freq, "num_freq_bands": bands, "input_channels": channels, "input_axis": axes}


def names(stored: Stored, configuration: Configuration) -> Names:
    """Return their names of our tensors; further uses of the same weights are copies of the first."""
    pairs = _pairs(stored.kind, stored.lists, stored.single, configuration.model is Perceiver)
    table = dict(reversed(pairs))  # the first use
    first = {theirs: table[ours] for ours, theirs in pairs if table[ours] != theirs}
    found = {name: by_start(first, name) for name in stored.weights}
    copies = {name: pair[1] + name[len(pair[0]) :] for name, pair in found.items() if pair}
    return Names(table, _orders(configuration.arguments), copies=copies)


def constructor(model: Perceiver | PerceiverIO) -> tuple[str, dict[str, Any]]:
    """Return the name of the class of perceiver-pytorch that can hold the weights of a model, and its arguments.

    Raises:
        ValueError: If perceiver-pytorch has no such model; the message names all that it lacks.
    """
    config, kind = dict(model.config), "Perceiver"
    if not (fourier := "data_shape" in config):
        kind = counterpart_class(model, KINDS, "perceiver-pytorch")
    lists = {name: config[name] for name in LAYERS}
    tied = _tied(lists, kind != "Perceiver")
    names = _names(lists)
    theirs: dict[str, Any] = {
        "num_latents": config["num_latent_tokens"],
        "latent_dim": config["dim"],
        "cross_heads": config["cross_heads"],
        "latent_heads": config["heads"],
        "cross_dim_head": config["cross_head_dim"] if fourier else config["cross_qk_channels"] // config["cross_heads"],
        "latent_dim_head": config["head_dim"] if fourier else config["qk_channels"] // config["heads"],
        "weight_tie_layers": tied,
    }
    if kind == "Perceiver":
        classes = config["num_classes"] if fourier else config["outputs"]["num_channels"]
        channels, *axes = config["data_shape"] if fourier else (config["inputs"]["dim"], 0)
        theirs |= {
            "depth": len(names),
            "self_per_cross_attn": len(names[0][1]),
            "num_freq_bands": config["num_bands"] if fourier else 0,
            "max_freq": config["resolution"][0] if fourier else 1,
            "input_channels": channels,
            "input_axis": len(axes),
            "fourier_encode_data": fourier,
            "num_classes": classes,
            "final_classifier_head": classes is not None,
            "attn_dropout": config["attention_dropout"],
            "ff_dropout": config["ff_dropout"],
        }
    else:
        theirs |= {"depth": len(names[0][1]), "dim": config["inputs"]["dim"], "decoder_ff": config["decoder_ff_dim"] != 0}
    if kind == "PerceiverIO":
        theirs |= {"queries_dim": config["outputs"]["dim"], "logits_dim": config["outputs"]["num_channels"]}
    elif kind == "PerceiverLM":
        theirs |= {"num_tokens": config["inputs"]["vocab_size"], "max_seq_len": config["inputs"]["max_length"]}
    with torch.device("meta"):
        make, arguments = _configuration(kind, theirs, lists, data_shape=config.get("data_shape"))
        wanted: dict[str, Any] = make(**arguments).config
    if kind == "Perceiver" and not fourier:  # no decoder
        wanted |= {name: value for name, value in config.items() if name.startswith("decoder_")}
    problems = list(differences(config, wanted))
    if tied is None:
        shared = "one cross-attention, then layers that" if kind != "Perceiver" else "equal layers, that after the first"
        problems.append(
            f"layers of {', '.join(f'{name}={value}' for name, value in lists.items())}, only {shared} share all or nothing"
        )
    if problems:
        raise ValueError(f"perceiver-pytorch's {kind} cannot express {'; '.join(problems)}")
    return kind, theirs


def save(model: Perceiver | PerceiverIO, path: str | Path) -> dict[str, Any]:
    """Write the state_dict that a model of perceiver-pytorch 0.11 loads, and then gives the same outputs.

    A model without a head becomes one that returns its latents, which are `model.encode(x)` here. Their `PerceiverIO` has no
    dropout.

    Args:
        model: A `Perceiver`; or a `PerceiverIO` from `Features` to `GivenQueries` or `MeanPool`, or from `TokenIds` to
            `PerToken`.
        path: The file, replaced if it exists: `.safetensors`, or `.pt` for `torch.save`.

    Returns:
        The arguments of their class, which the file does not specify; `constructor` also returns the class.

    Raises:
        ValueError: If perceiver-pytorch has no such model, the message names all that it lacks; or for another suffix.
    """
    kind, theirs = constructor(model)
    lists, orders = {name: model.config[name] for name in LAYERS}, _orders(model.config)
    ours = {name: in_their_order(name, tensor.detach(), orders) for name, tensor in model.state_dict().items()}
    state, used = {}, set()
    for start, their_start in _pairs(kind, lists, kind != "Perceiver", "data_shape" in model.config):
        for name in {start, f"{start}.weight", f"{start}.bias"} & ours.keys():
            state[their_start + name[len(start) :]] = ours[name].clone()
            used.add(name)
    assert used == ours.keys(), f"{ours.keys() - used} are in no table"
    for name in [name for name in state if name.endswith("fn.to_k.weight")]:
        rows = [state.pop(name), state.pop(name.replace("to_k", "to_v"))]
        state[name.replace("to_k", "to_kv")] = torch.cat(rows)
    if kind == "PerceiverLM":
        state = {name if name.startswith(("token_emb", "pos_emb")) else LM + name: w for name, w in state.items()}
    write_weights(path, state)
    return theirs


def columns(content: int, axes: int, bands: int) -> list[int]:
    """Return their channel for each of ours: the sines and cosines of an axis come before its coordinate there."""
    order, width = list(range(content)), 2 * bands + 1
    for start in range(content, content + axes * width, width):
        order += [start + width - 1, *range(start, start + width - 1)]
    return order


def _blocks(single: bool, counts: Sequence[int]) -> list[tuple[Block, list[Block]]]:
    """Return the names of each cross-attention, and those of the latent transformers that follow it, with these counts.

    With a `single` cross-attention each latent transformer is a layer there.
    """
    latent = lambda i, j: (f"layers.{i}.self_attns.{j}.0.", f"layers.{i}.self_attns.{j}.1.")  # noqa: E731
    if single:
        return [(CROSS, [latent(i, 0) for i in range(counts[0])])]
    return [
        ((f"layers.{i}.cross_attn.", f"layers.{i}.cross_ff."), [latent(i, j) for j in range(count)])
        for i, count in enumerate(counts)
    ]


def _ids(state: Mapping[str, Tensor], blocks: Sequence[Block]) -> list[int]:
    """Return a number for each block, the same for blocks with equal weights."""
    places = {start.removesuffix("."): (b, half) for b, block in enumerate(blocks) for half, start in enumerate(block)}
    digests = [hashlib.sha256() for _ in blocks]
    for name in sorted(state):
        found = by_start(places, name)
        if found is not None:
            start, (b, half) = found
            tensor = state[name]
            digests[b].update(f"{half} {name[len(start) :]} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digests[b].update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    unique: dict[bytes, int] = {}
    return [unique.setdefault(digest.digest(), len(unique)) for digest in digests]


def _lists(crosses: Sequence[int], latents: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return our lists of what layers are made of, from the ids of their cross-attentions and latent transformers."""
    stacks: dict[tuple[int, ...], int] = {}
    uses = [stacks.setdefault(tuple(ids), len(stacks)) for ids in latents]
    if sum(map(len, stacks)) == len({i for stack in stacks for i in stack}):
        lists = crosses, uses, [len(stack) for stack in stacks]
    else:  # shared inside a stack: each latent transformer is a layer
        alone = [cross for first, ids in zip(crosses, latents, strict=True) for cross in (first, *[None] * (len(ids) - 1))]
        flat = [i for ids in latents for i in ids]
        lists = alone, flat, [1] * (max(flat) + 1)
    return dict(zip(LAYERS, lists, strict=True))


def _names(lists: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the name here of each cross-attention in turn, and those of the latent transformers up to the next."""
    crosses, stacks, depths = (lists[name] for name in LAYERS)
    names: list[tuple[str, list[str]]] = []
    for cross, stack in zip(crosses, stacks, strict=True):
        if cross is not None or not names:
            names.append((f"encoder.cross_attentions.{cross}", []))
        names[-1][1].extend(f"encoder.latent_transformers.{stack}.{j}" for j in range(depths[stack]))
    return names


def _tied(lists: Mapping[str, Any], single: bool) -> bool | None:
    """Return their `weight_tie_layers` for such lists; `None` if layers differ or share otherwise."""
    names = _names(lists)
    counts = [len(latents) for _, latents in names]
    if lists["layers_indice"][0] is None or len(set(counts)) > 1 or (single and len(names) > 1):
        return None
    first_uses = lambda uses: [uses.index(use) for use in uses]  # noqa: E731
    ours = first_uses([name for cross, latents in names for name in (cross, *latents)])
    for tied in (False, True):
        if single:
            uses = [None, *((0 if tied else i) for i in range(counts[0]))]
        else:  # all but the first layer are one
            uses = [(min(i, 1) if tied else i, j) for i, count in enumerate(counts) for j in range(1 + count)]
        if first_uses(uses) == ours:
            return tied
    return None


def _configuration(
    kind: str,
    c: Mapping[str, Any],
    lists: Mapping[str, Any],
    *,
    frequency_base: Any = None,
    data_shape: Sequence[int] | None = None,
) -> Configuration:
    """Return our model for their class and its arguments `c`, and our lists of what layers are made of."""
    arguments: dict[str, Any] = {
        "num_latent_tokens": c["num_latents"],
        "dim": c["latent_dim"],
        "cross_heads": c["cross_heads"],
        "heads": c["latent_heads"],
        **lists,
        "ff_dim_scale": 4,
        "bias": "out",
        "activation": "geglu",
    }
    if c.get("fourier_encode_data"):
        arguments |= {
            "data_shape": [c["input_channels"]] + [224] * c["input_axis"] if data_shape is None else data_shape,
            "num_bands": c["num_freq_bands"],
            "resolution": c["max_freq"],
            "frequency_base": frequency_base,
            "head_dim": c["latent_dim_head"],
            "cross_head_dim": c["cross_dim_head"],
            "num_classes": c["num_classes"],
            "final_norm": c["final_classifier_head"],
        }
        return Configuration(Perceiver, arguments)
    cross_width = c["cross_heads"] * c["cross_dim_head"]
    arguments |= {"qk_channels": c["latent_heads"] * c["latent_dim_head"], "cross_qk_channels": cross_width}
    if kind == "Perceiver":
        head = {"num_channels": c["num_classes"], "final_norm": c["final_classifier_head"]}
        inputs = {"kind": "Features", "dim": c["input_channels"]}
        outputs = {"kind": "MeanPool", "dim": c["latent_dim"], **head}
        return Configuration(PerceiverIO, {"inputs": inputs, "outputs": outputs, **arguments})
    if kind == "PerceiverIO":
        inputs, width = {"kind": "Features", "dim": c["dim"]}, c["queries_dim"]
        outputs = {"kind": "GivenQueries", "dim": width, "num_channels": c["logits_dim"]}
    else:
        width = c["dim"]
        inputs = {"kind": "TokenIds", "vocab_size": c["num_tokens"], "max_length": c["max_seq_len"], "dim": width}
        outputs = {"kind": "PerToken", "dim": width, "num_channels": c["num_tokens"]}
    decoder = {
        "decoder_heads": c["cross_heads"],
        "decoder_qk_channels": cross_width,
        "decoder_query_residual": False,
        "decoder_ff_dim": 4 * width if c["decoder_ff"] else 0,
    }
    return Configuration(PerceiverIO, {"inputs": inputs, "outputs": outputs, **decoder, **arguments})


def _pairs(kind: str, lists: Mapping[str, Any], single: bool, fourier: bool) -> list[tuple[str, str]]:
    """Return what names of ours start with, and those of theirs; shared weights come once for each use."""
    names = _names(lists)
    uses = [] if kind == "Perceiver" else [(DECODER, "decoder")]
    for (cross, latents), (our_cross, our_latents) in zip(
        _blocks(single, [len(latents) for _, latents in names]), names, strict=True
    ):
        uses += [(cross, our_cross), *zip(latents, our_latents, strict=True)]
    pairs = [
        (f"{ours}.{part}", start + name)
        for block, ours in uses
        for start, table in zip(block, (ATTENTION, FEED_FORWARD), strict=True)
        for part, name in table.items()
    ]
    pairs.append(("encoder.latents", "latents"))
    if kind == "Perceiver":
        return [*pairs, *((part if fourier else f"outputs.{part}", name) for part, name in HEAD.items())]
    pairs.append(("outputs.head", "to_logits"))
    if kind == "PerceiverLM":
        pairs += [("inputs.embeddings", "token_emb"), ("inputs.positions.embeddings", "pos_emb.weight")]
    return pairs


def _orders(config: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """Return their column for each of ours, for what our names start with."""
    if "num_bands" not in config:  # without Fourier features
        return {}
    channels, *axes = config["data_shape"]
    return of_cross_attentions(config["layers_indice"], columns(channels, len(axes), config["num_bands"]))


FORMAT = Format("perceiver-pytorch", recognises, describe, configure, names)
