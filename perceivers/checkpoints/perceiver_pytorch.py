"""perceiver-pytorch's `Perceiver`: a file with its state_dict.

Such a file does not tell how positions are encoded and how widths are cut into heads: these are arguments, with the names and
defaults that they have there. Layers that share weights are stored once for each use, and are found by being equal.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.checkpoints.translate import by_start, translated
from perceivers.perceiver import Perceiver

PARTS = {"norm": "attention_norm", "norm_context": "attention.inputs_norm", "fn.to_out": "attention.to_out"}
FEED_FORWARD = {"norm": "feed_forward_norm", "fn.net.0": "feed_forward.linear_in", "fn.net.2": "feed_forward.linear_out"}
# Names inside a layer: since version 0.9 by name, before by number. (cross-attention, its feed-forward, latent layers)
LAYOUTS = (("cross_attn", "cross_ff", "self_attns"), ("0", "1", "2"))


def recognises(weights: Mapping[str, Any]) -> bool:
    """Whether these are the names of such a model."""
    return "latents" in weights and any(f"layers.0.{cross}.fn.to_q.weight" in weights for cross, *_ in LAYOUTS)


def load(
    weights: Mapping[str, Tensor],
    source: str,
    *,
    max_freq: float | None = None,
    num_freq_bands: int | None = None,
    input_channels: int = 3,
    input_axis: int = 2,
    data_shape: Sequence[int] | None = None,
    cross_heads: int = 1,
    latent_heads: int = 8,
    frequency_base: float | None = None,
) -> nn.Module:
    """Makes our model with such weights.

    Args:
        weights: The state_dict.
        source: Where it comes from, for messages.
        max_freq: As it was given there; half of it is the highest frequency.
        num_freq_bands: As it was given there; `None` to find it by the width of the inputs.
        input_channels: As there.
        input_axis: As there.
        data_shape: `[C, *axes]` of the inputs; `None` for 224 on each axis. Other lengths are accepted later.
        cross_heads: As there.
        latent_heads: As there.
        frequency_base: `None` for frequencies spaced linearly, as since version 0.7.4; before, the base of their logarithms.

    Raises:
        ValueError: If an argument is missing or does not fit, or the weights do not.
    """
    if max_freq is None:
        raise ValueError(f"{source}: max_freq is missing, the file does not tell it: give what the model was made with")
    layout = next(layout for layout in LAYOUTS if f"layers.0.{layout[0]}.fn.to_q.weight" in weights)
    cross, cross_ff, latent = layout
    parts = _numbered(weights, "layers.", source)
    stack = len(_numbered(parts[0], f"{latent}.", source))
    unique, layers = _sharing(parts)
    width = _length(weights, f"layers.0.{cross}.norm_context.weight", 1, source)
    if num_freq_bands is None:
        num_freq_bands = ((width - input_channels) // input_axis - 1) // 2
    if input_channels + input_axis * (2 * num_freq_bands + 1) != width:
        raise ValueError(
            f"{source}: its inputs have {width} channels, but input_channels={input_channels}, input_axis={input_axis} and"
            f" num_freq_bands={num_freq_bands} make {input_channels + input_axis * (2 * num_freq_bands + 1)}: correct them"
        )
    latents = _length(weights, "latents", 2, source)
    dim = weights["latents"].shape[1]
    cross_inner = _length(weights, f"layers.0.{cross}.fn.to_q.weight", 2, source)
    inner = _length(weights, f"layers.0.{latent}.0.0.fn.to_q.weight", 2, source) if stack else dim
    for name, heads, size in (("cross_heads", cross_heads, cross_inner), ("latent_heads", latent_heads, inner)):
        if heads < 1 or size % heads:
            raise ValueError(f"{source}: {name}={heads} does not divide {size}: give what the model was made with")
    has_head = "to_logits.2.weight" in weights
    arguments: dict[str, Any] = {
        "data_shape": list(data_shape or [input_channels] + [224] * input_axis),
        "num_latent_tokens": latents,
        "dim": dim,
        "cross_heads": cross_heads,
        "cross_head_dim": cross_inner // cross_heads,
        "heads": latent_heads,
        "head_dim": inner // latent_heads,
        "layers_indice": layers,
        "num_latent_transformers_in_layers": [stack] * len(unique),
        "num_bands": num_freq_bands,
        "resolution": max_freq,
        "frequency_base": frequency_base,
        "num_classes": _length(weights, "to_logits.2.weight", 2, source) if has_head else None,
        "final_norm": has_head,
        "activation": "geglu",
    }
    split, copies, table = dict(weights), {}, {"encoder.latents": "latents", "norm": "to_logits.1", "head": "to_logits.2"}
    for i, u in enumerate(layers):
        if i != unique[u]:  # a use of weights that were used before
            copies |= {f"layers.{i}.{rest}": f"layers.{unique[u]}.{rest}" for rest in parts[i]}
    for u, i in enumerate(unique):
        attentions = {f"layers.{i}.{cross}.": f"encoder.cross_attentions.{u}."}
        forwards = {f"layers.{i}.{cross_ff}.": f"encoder.cross_attentions.{u}."}
        for j in range(stack):
            attentions[f"layers.{i}.{latent}.{j}.0."] = f"encoder.latent_transformers.{u}.{j}."
            forwards[f"layers.{i}.{latent}.{j}.1."] = f"encoder.latent_transformers.{u}.{j}."
        for theirs, ours in attentions.items():
            _split(split, theirs, source)
            table |= {f"{ours}attention.to_{name}": f"{theirs}{name}" for name in "qkv"}
            table |= {ours + name: theirs + part for part, name in PARTS.items()}
        for theirs, ours in forwards.items():
            table |= {ours + name: theirs + part for part, name in FEED_FORWARD.items()}
    for copy, original in copies.items():
        if original not in weights or not torch.equal(weights[copy], weights[original]):
            raise ValueError(f"{source}: {copy} and {original} belong to shared layers, but differ: the file is damaged")
        split.pop(copy)

    def names(name: str) -> str | None:
        found = by_start(table, name)
        return None if found is None else found[1] + name[len(found[0]) :]

    order = columns(input_channels, input_axis, num_freq_bands)
    met = ("inputs_norm", "to_k.weight", "to_v.weight")
    orders = {f"encoder.cross_attentions.{u}.attention.{name}": order for u in range(len(unique)) for name in met}
    return translated(split, partial(Perceiver, **arguments), names, orders=orders, source=source)


def columns(content: int, axes: int, bands: int) -> list[int]:
    """For each of our channels theirs: they put the sines and cosines of an axis before its coordinate."""
    order, width = list(range(content)), 2 * bands + 1
    for start in range(content, content + axes * width, width):
        order += [start + width - 1, *range(start, start + width - 1)]
    return order


def _numbered(weights: Mapping[str, Tensor], start: str, source: str) -> list[dict[str, Tensor]]:
    """The tensors of each layer under a start of names, by the rest of their names.

    Raises:
        ValueError: If the layers are not numbered 0, 1, 2 and so on.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if name.startswith(start):
            number, _, rest = name.removeprefix(start).partition(".")
            parts.setdefault(number, {})[rest] = tensor
    numbers = [str(i) for i in range(len(parts))]
    if parts.keys() != set(numbers):
        raise ValueError(f"{source}: its {start[:-1]} are numbered {sorted(parts)[:5]}, not 0, 1, 2 and so on: it is damaged")
    return [parts[number] for number in numbers]


def _length(weights: Mapping[str, Tensor], name: str, axes: int, source: str) -> int:
    """The length of the first axis of a tensor, if it is there with so many axes."""
    if name not in weights or weights[name].ndim != axes:
        found = f"has shape {list(weights[name].shape)}" if name in weights else "is missing"
        raise ValueError(f"{source}: {name} {found}, {axes} axes are needed")
    return len(weights[name])


def _sharing(parts: Sequence[Mapping[str, Tensor]]) -> tuple[list[int], list[int]]:
    """The layers with weights of their own, and for each layer which of them it uses."""
    unique: dict[bytes, int] = {}
    first: list[int] = []
    layers: list[int] = []
    for i, part in enumerate(parts):
        digest = hashlib.sha256()
        for name, tensor in sorted(part.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        u = unique.setdefault(digest.digest(), len(first))
        if u == len(first):
            first.append(i)
        layers.append(u)
    return first, layers


def _split(weights: dict[str, Tensor], theirs: str, source: str) -> None:
    """Gives one attention the names q, k and v, and the biases of zero that it does not have there."""
    try:
        to_q, to_kv = weights.pop(f"{theirs}fn.to_q.weight"), weights.pop(f"{theirs}fn.to_kv.weight")
    except KeyError as error:
        raise ValueError(f"{source}: {error.args[0]} is missing") from error
    if to_kv.ndim != 2 or len(to_kv) % 2:
        raise ValueError(f"{source}: {theirs}fn.to_kv.weight has shape {list(to_kv.shape)}, keys and values are needed")
    for name, weight in zip("qkv", (to_q, *to_kv.chunk(2)), strict=True):
        weights[f"{theirs}{name}.weight"] = weight
        weights[f"{theirs}{name}.bias"] = weight.new_zeros(len(weight))
