"""perceiver-pytorch: files with the state_dict of its `Perceiver`, `PerceiverIO` or `PerceiverLM`.

Such a file does not tell how positions are encoded and how widths are cut into heads: these are arguments, with the names and
defaults that they have there. Names of older versions become those of 0.11 first. Layers that share weights are stored once
for each use, and are found by being equal.

Its `Perceiver` with `fourier_encode_data=False` reads features, so here it is a `PerceiverIO`, with the mean of the latents as
its output.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perceivers._checks import an_int
from perceivers.checkpoints.state_dict import (
    by_start,
    counterpart,
    differences,
    in_their_order,
    translated,
    write_weights,
)
from perceivers.perceiver import Perceiver
from perceivers.perceiver_io import PerceiverIO

Block = tuple[str, str]  # what the names of an attention and of its feed-forward start with

# Ours: theirs, of one attention and of one feed-forward. Only cross-attentions have `inputs_norm`; k and v are one map there.
ATTENTION = {
    "attention_norm": "norm",
    "attention.inputs_norm": "norm_context",
    "attention.to_q": "fn.to_q",
    "attention.to_k": "fn.to_k",
    "attention.to_v": "fn.to_v",
    "attention.to_out": "fn.to_out",
}
FEED_FORWARD = {"feed_forward_norm": "norm", "feed_forward.linear_in": "fn.net.0", "feed_forward.linear_out": "fn.net.2"}
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


def recognises(weights: Mapping[str, Any]) -> bool:
    """Whether these are the names of such a model."""
    latents = "latents" in weights or f"{LM}latents" in weights
    return latents and any(name.endswith("fn.to_kv.weight") for name in weights)


def load(
    weights: Mapping[str, Tensor],
    source: str,
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
) -> nn.Module:
    """Makes our model with such weights: a `Perceiver`, or a `PerceiverIO` where it is one there or reads features.

    Args:
        weights: The state_dict.
        source: Where it comes from, for messages.
        max_freq: As it was given there; half of it is the highest frequency. A `Perceiver` with Fourier features needs it.
        num_freq_bands: As it was given there; `None` to find it by the width of the inputs.
        input_channels: As there; `None` for 3, or, without Fourier features, for the width of the inputs.
        input_axis: As there.
        data_shape: `[C, *axes]` of the inputs; `None` for 224 on each axis. Other lengths are accepted later.
        cross_heads: As there.
        latent_heads: As there.
        frequency_base: "linear" for frequencies spaced linearly from 1, else the lowest of frequencies spaced geometrically.
            Versions before 0.8 need it, since they differ: 2 (`freq_base` there) up to 0.2.0, 1 up to 0.7.3, "linear" since.
        fourier_encode_data: As there.

    Raises:
        ValueError: If an argument is missing or does not fit, the weights do not, or they are of something that this library
            does not have; the message names it.
    """
    for name in weights:
        for pattern, what in REFUSED.items():
            if re.search(pattern, name):
                raise ValueError(f"{source}: {name} belongs to {what}, which this library does not have")
    state = _renamed(weights, source)
    shape = partial(_shape, state, source)
    is_io, single = any(n.startswith(DECODER[0]) for n in state), any(n.startswith(CROSS[0]) for n in state)
    fourier = fourier_encode_data and not is_io
    told = {"max_freq": max_freq, "num_freq_bands": num_freq_bands, "data_shape": data_shape, "frequency_base": frequency_base}
    if not fourier and (given := sorted(name for name, value in told.items() if value is not None)):
        raise ValueError(f"{source} is read without Fourier features, which {given} are about: leave them out")

    depth, stack = _count(state, "layers.", source), _count(state, "layers.0.self_attns.", source)
    layers = _blocks(single, [depth * stack] if single else [stack] * depth)
    if not layers:
        raise ValueError(f"{source}: it has no layers: the file is not whole")
    latents = [block for _, blocks in layers for block in blocks]
    num_latents, dim = shape("latents")
    width = shape(f"{layers[0][0][0]}fn.to_kv.weight")[1]
    cross_inner = shape(f"{layers[0][0][0]}fn.to_q.weight")[0]
    inner = shape(f"{latents[0][0]}fn.to_q.weight")[0] if latents else an_int("latent_heads", latent_heads)
    for name, heads, size in (("cross_heads", cross_heads, cross_inner), ("latent_heads", latent_heads, inner)):
        if heads < 1 or size % heads:
            raise ValueError(f"{source}: {name}={heads} does not divide {size}: give what the model was made with")
    theirs: dict[str, Any] = {
        "num_latents": num_latents,
        "latent_dim": dim,
        "cross_heads": cross_heads,
        "latent_heads": latent_heads,
        "cross_dim_head": cross_inner // cross_heads,
        "latent_dim_head": inner // latent_heads,
        "fourier_encode_data": fourier,
    }
    kind = "Perceiver"
    if is_io:
        decoder_ff = any(name.startswith(DECODER[1]) for name in state)
        if decoder_ff and not single:
            raise ValueError(
                f"{source}: decoder_ff of versions before 0.7 is not supported: in 0.6.0 it has no residual, in 0.6.2 one"
            )
        kind = "PerceiverLM" if "token_emb.weight" in state else "PerceiverIO"
        theirs |= {"dim": width, "decoder_ff": decoder_ff}
        if kind == "PerceiverLM":
            theirs |= {"num_tokens": shape("token_emb.weight")[0], "max_seq_len": shape("pos_emb.weight")[0]}
        else:
            theirs["queries_dim"] = shape(f"{DECODER[0]}fn.to_q.weight")[1]
            theirs["logits_dim"] = shape("to_logits.weight")[0] if "to_logits.weight" in state else None
    else:
        has_head = "to_logits.2.weight" in state
        theirs |= {
            "num_classes": shape("to_logits.2.weight")[0] if has_head else None,
            "final_classifier_head": has_head,
            "input_channels": width if input_channels is None and not fourier else input_channels,
        }
        if fourier:
            theirs |= _positions(width, max_freq, num_freq_bands, input_channels, input_axis, source)
            if frequency_base is None and any(".to_out.0." in name for name in weights):
                raise ValueError(
                    f"{source}: frequency_base is missing, files of versions before 0.8 do not tell it: give 2 (freq_base"
                    " there) up to 0.2.0, 1 for 0.2.1 to 0.7.3, 'linear' for 0.7.4 and 0.7.5"
                )
        elif theirs["input_channels"] != width:
            raise ValueError(f"{source}: its inputs have {width} channels, but input_channels={input_channels}: correct it")

    ids = iter(_ids(state, latents))
    lists = _lists(_ids(state, [cross for cross, _ in layers]), [[next(ids) for _ in blocks] for _, blocks in layers])
    base = None if frequency_base == "linear" else frequency_base
    make = _maker(kind, theirs, lists, frequency_base=base, data_shape=data_shape)
    for name in [name for name in state if name.endswith("fn.to_kv.weight")]:
        half, rows = shape(name)[0] // 2, state.pop(name)
        state[name.replace("to_kv", "to_k")], state[name.replace("to_kv", "to_v")] = rows[:half], rows[half:]
    table: dict[str, str] = {}
    # What is left of uses of weights that were used before is not read again.
    again = {name for ours, name in _pairs(kind, lists, single, fourier) if table.setdefault(ours, name) != name}
    state = {n: tensor for n, tensor in state.items() if n.rpartition(".")[0] not in again}
    return translated(state, make, partial(counterpart, table), orders=_orders(theirs, lists), source=source)


def constructor(model: Perceiver | PerceiverIO) -> tuple[str, dict[str, Any]]:
    """The name of the class of perceiver-pytorch that can hold the weights of a model, and its arguments.

    Raises:
        ValueError: If perceiver-pytorch has no such model; the message names all that it lacks.
    """
    config, kind, fourier = dict(model.config), "Perceiver", isinstance(model, Perceiver)
    if not fourier:
        kinds = (config["inputs"].get("kind"), config["outputs"].get("kind"))
        if kinds not in KINDS:
            raise ValueError(f"perceiver-pytorch has no model with inputs {kinds[0]} and outputs {kinds[1]}, only {[*KINDS]}")
        kind = KINDS[kinds]
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
        wanted = _maker(kind, theirs, lists, data_shape=config.get("data_shape"))().config
    if isinstance(model, PerceiverIO) and model.decoder is None:
        wanted |= {name: value for name, value in config.items() if name.startswith("decoder_")}
    problems = differences(config, wanted)
    if tied is None:
        shared = "one cross-attention, then layers that" if kind != "Perceiver" else "equal layers, that after the first"
        problems.append(
            f"layers of {', '.join(f'{name}={value}' for name, value in lists.items())}, only {shared} share all or nothing"
        )
    if problems:
        raise ValueError(f"perceiver-pytorch's {kind} cannot express {'; '.join(problems)}")
    return kind, theirs


def save(model: Perceiver | PerceiverIO, path: str | Path) -> dict[str, Any]:
    """Writes the state_dict that a model of perceiver-pytorch 0.11 loads, and then gives the same outputs.

    A model without a head becomes one that returns its latents, which are `model.encode(x)` here. Their `PerceiverIO` has no
    dropout.

    Args:
        model: A `Perceiver`; or a `PerceiverIO` from `Features` to `GivenQueries` or `MeanPool`, or from `TokenIds` to
            `PerToken`.
        path: The file, replaced where it exists: `.safetensors`, or `.pt`, which `torch.save` writes.

    Returns:
        The arguments of their class, which the file does not tell; `constructor` says which class.

    Raises:
        ValueError: If perceiver-pytorch has no such model, the message names all that it lacks; or the suffix is another.
    """
    kind, theirs = constructor(model)
    lists, orders = {name: model.config[name] for name in LAYERS}, _orders(theirs, model.config)
    ours = {name: in_their_order(name, tensor.detach(), orders) for name, tensor in model.state_dict().items()}
    state, used = {}, set()
    for start, their_start in _pairs(kind, lists, kind != "Perceiver", isinstance(model, Perceiver)):
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
    """For each of our channels theirs: they put the sines and cosines of an axis before its coordinate."""
    order, width = list(range(content)), 2 * bands + 1
    for start in range(content, content + axes * width, width):
        order += [start + width - 1, *range(start, start + width - 1)]
    return order


def _renamed(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights with the names of version 0.11, without what those of a language model start with."""
    state = {name.removeprefix(LM): tensor for name, tensor in weights.items()}
    groups = [BEFORE_0_8, IO_BEFORE_0_11 if any(n.startswith("cross_attend_block") for n in state) else BEFORE_0_11]
    if "to_logits.0.weight" in state:
        groups.append(BEFORE_0_7_1)
    for group in groups:
        change = lambda n, group=group: next((re.sub(old, new, n) for old, new in group if re.search(old, n)), n)  # noqa: E731
        state = {change(name): tensor for name, tensor in state.items()}
    if len(state) < len(weights):
        raise ValueError(f"{source} has tensors under the names of two versions: the file is damaged")
    return state


def _count(state: Mapping[str, Tensor], start: str, source: str) -> int:
    """How many numbers follow in names that start so, where none may be missing."""
    found = {name[len(start) :].split(".")[0] for name in state if name.startswith(start)}
    if missing := {str(i) for i in range(len(found))} - found:
        raise ValueError(f"{source}: {start}{min(missing)} is missing: the file is not whole")
    return len(found)


def _shape(state: Mapping[str, Tensor], source: str, name: str) -> list[int]:
    """The two lengths of a weight."""
    if name not in state:
        raise ValueError(f"{source}: {name} is missing")
    if state[name].ndim != 2:
        raise ValueError(f"{source}: {name} has shape {list(state[name].shape)}, but two axes are needed")
    return list(state[name].shape)


def _positions(
    width: int, max_freq: float | None, bands: int | None, channels: int | None, axes: int, source: str
) -> dict[str, Any]:
    """Their arguments of Fourier features, if they fit the width of the inputs."""
    if max_freq is None:
        raise ValueError(f"{source}: max_freq is missing, the file does not tell it: give what the model was made with")
    channels = 3 if channels is None else channels
    if bands is None:
        bands = ((width - channels) // an_int("input_axis", axes) - 1) // 2
    if channels + axes * (2 * bands + 1) != width:
        raise ValueError(
            f"{source}: its inputs have {width} channels, but input_channels={channels}, input_axis={axes} and"
            f" num_freq_bands={bands} make {channels + axes * (2 * bands + 1)}: correct them"
        )
    return {"max_freq": max_freq, "num_freq_bands": bands, "input_channels": channels, "input_axis": axes}


def _blocks(single: bool, counts: Sequence[int]) -> list[tuple[Block, list[Block]]]:
    """For each cross-attention its names, and those of the latent transformers behind it, so many of them.

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
    """A number for each block, the same for blocks with equal weights."""
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
    """Our lists of what layers are made of, from the ids of their cross-attentions and latent transformers."""
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
    """For each cross-attention in turn its name here, and those of the latent transformers up to the next."""
    crosses, stacks, depths = (lists[name] for name in LAYERS)
    names: list[tuple[str, list[str]]] = []
    for cross, stack in zip(crosses, stacks, strict=True):
        if cross is not None or not names:
            names.append((f"encoder.cross_attentions.{cross}", []))
        names[-1][1].extend(f"encoder.latent_transformers.{stack}.{j}" for j in range(depths[stack]))
    return names


def _tied(lists: Mapping[str, Any], single: bool) -> bool | None:
    """Their `weight_tie_layers` for such lists; `None` where layers differ or share otherwise."""
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


def _maker(
    kind: str,
    c: Mapping[str, Any],
    lists: Mapping[str, Any],
    *,
    frequency_base: Any = None,
    data_shape: Sequence[int] | None = None,
) -> partial[Perceiver | PerceiverIO]:
    """Makes our model for their class and its arguments `c`, its layers made of what `lists` says."""
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
        return partial(
            Perceiver,
            data_shape=[c["input_channels"]] + [224] * c["input_axis"] if data_shape is None else data_shape,
            num_bands=c["num_freq_bands"],
            resolution=c["max_freq"],
            frequency_base=frequency_base,
            head_dim=c["latent_dim_head"],
            cross_head_dim=c["cross_dim_head"],
            num_classes=c["num_classes"],
            final_norm=c["final_classifier_head"],
            **arguments,
        )
    cross_width = c["cross_heads"] * c["cross_dim_head"]
    arguments |= {"qk_channels": c["latent_heads"] * c["latent_dim_head"], "cross_qk_channels": cross_width}
    if kind == "Perceiver":
        head = {"num_channels": c["num_classes"], "final_norm": c["final_classifier_head"]}
        inputs = {"kind": "Features", "dim": c["input_channels"]}
        return partial(PerceiverIO, inputs=inputs, outputs={"kind": "MeanPool", "dim": c["latent_dim"], **head}, **arguments)
    if kind == "PerceiverIO":
        inputs, width = {"kind": "Features", "dim": c["dim"]}, c["queries_dim"]
        outputs = {"kind": "GivenQueries", "dim": width, "num_channels": c["logits_dim"]}
    else:
        width = c["dim"]
        inputs = {"kind": "TokenIds", "vocab_size": c["num_tokens"], "max_length": c["max_seq_len"], "dim": width}
        outputs = {"kind": "PerToken", "dim": width, "num_channels": c["num_tokens"]}
    return partial(
        PerceiverIO,
        inputs=inputs,
        outputs=outputs,
        decoder_heads=c["cross_heads"],
        decoder_qk_channels=cross_width,
        decoder_query_residual=False,
        decoder_ff_dim=4 * width if c["decoder_ff"] else 0,
        **arguments,
    )


def _pairs(kind: str, lists: Mapping[str, Any], single: bool, fourier: bool) -> list[tuple[str, str]]:
    """What names of ours start with, and those of theirs; what is shared comes once for each use."""
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


HEAD = {"norm": "to_logits.1", "head": "to_logits.2"}


def _orders(c: Mapping[str, Any], lists: Mapping[str, Any]) -> dict[str, list[int]]:
    """For what our names start with, their column for each of ours."""
    if not c.get("fourier_encode_data"):
        return {}
    order = columns(c["input_channels"], c["input_axis"], c["num_freq_bands"])
    met = ("inputs_norm", "to_k.weight", "to_v.weight")
    return {f"{cross}.attention.{part}": order for cross, _ in _names(lists) for part in met}
