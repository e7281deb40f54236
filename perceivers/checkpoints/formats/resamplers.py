"""Latent resamplers of larger models, which `perceivers.layers.Resampler` reproduces: of such a file only they are read.

- Flamingo's, of flamingo-pytorch and open_flamingo
- IP-Adapter Plus'
- Idefics' and Idefics2's, of transformers

They are found by their names, under any prefix, and every tensor under it must find its place. Linear maps that have no bias
there and one here get a bias of zero.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceivers._checks import an_int
from perceivers.checkpoints.state_dict import counterpart, translated
from perceivers.layers import Resampler


class Layout(NamedTuple):
    """How one project names the parts of a resampler.

    Attributes:
        sign: A name that only this layout has.
        blocks: What the names in its blocks start with.
        block: For our names in a block theirs.
        rest: For our other names theirs.
        head_dim: Width of a head that is usual there.
        settings: Arguments of `Resampler` that are always so.
    """

    sign: str
    blocks: str
    block: dict[str, str]
    rest: dict[str, str]
    head_dim: int
    settings: dict[str, Any]


FEED_FORWARD = {"feed_forward_norm.norm": "1.0", "feed_forward.linear_in": "1.1", "feed_forward.linear_out": "1.3"}
ATTENTION = {f"attention.to_{name}": f"0.to_{name}" for name in ("q", "k", "v", "out")}

FLAMINGO = Layout(
    sign="layers.0.0.norm_media.weight",
    blocks="layers",
    block={"inputs_norm.norm": "0.norm_media", "attention_norm.norm": "0.norm_latents", **ATTENTION, **FEED_FORWARD},
    rest={"latents": "latents", "norm": "norm"},
    head_dim=64,
    settings={},
)
IP_ADAPTER = Layout(
    sign="layers.0.0.norm1.weight",
    blocks="layers",
    block={"inputs_norm.norm": "0.norm1", "attention_norm.norm": "0.norm2", **ATTENTION, **FEED_FORWARD},
    rest={
        "latents": "latents",
        "embeddings": "pos_emb.weight",
        "project_inputs": "proj_in",
        "project_outputs": "proj_out",
        "norm": "norm_out",
        "mean_pooled_latents.norm": "to_latents_from_mean_pooled_seq.0",
        "mean_pooled_latents.linear": "to_latents_from_mean_pooled_seq.1",
    },
    head_dim=64,
    settings={"project_inputs": True},
)
IDEFICS2 = Layout(
    sign="layers.0.input_context_norm.weight",
    blocks="layers",
    block={
        "inputs_norm.norm": "input_context_norm",
        "attention_norm.norm": "input_latents_norm",
        **{f"attention.to_{name}": f"self_attn.{name}_proj" for name in "qkv"},
        "attention.to_out": "self_attn.o_proj",
        "feed_forward_norm.norm": "post_attention_layernorm",
        "feed_forward.linear_in": "mlp.up_and_gate_proj",
        "feed_forward.linear_out": "mlp.down_proj",
    },
    rest={"latents": "latents", "norm": "norm"},
    head_dim=96,
    settings={"norm": "rms_norm", "activation": "swiglu"},
)
IDEFICS = Layout(
    sign="blocks.0.0.context_layer_norm.weight",
    blocks="blocks",
    block={
        "inputs_norm.norm": "0.context_layer_norm",
        "attention_norm.norm": "0.latents_layer_norm",
        **{f"attention.to_{name}": f"0.{name}_proj" for name in "qkv"},
        **{f"attention.{name}_norm": f"0.{name}_layer_norm" for name in "qk"},
        "attention.to_out": "0.output_proj",
        "feed_forward_norm.norm": "1.ln",
        "feed_forward.linear_in": "1.fc",
        "feed_forward.linear_out": "1.c_proj",
    },
    rest={"latents": "latents", "norm": "layer_norm"},
    head_dim=96,
    settings={"activation": "relu"},
)
LAYOUTS = (FLAMINGO, IP_ADAPTER, IDEFICS2, IDEFICS)
# Learned embeddings of Flamingo: of a picture in flamingo-pytorch, of a frame or a picture in open_flamingo.
EMBEDDINGS = ("media_pos_emb", "frame_embs", "media_time_embs")


def recognises(weights: Mapping[str, Any]) -> bool:
    """Whether there are names of such a resampler."""
    return bool(_found(weights))


def load(
    weights: Mapping[str, Tensor],
    source: str,
    *,
    heads: int | None = None,
    head_dim: int | None = None,
    norm_eps: float | None = None,
) -> nn.Module:
    """Makes a `Resampler` with the resampler's part of such weights.

    Args:
        weights: The state_dict, of the resampler alone or of a larger model.
        source: Where it comes from, for messages.
        heads: Heads of queries, which a file does not tell; `None` to find them by `head_dim`.
        head_dim: Width of a head; `None` for what is usual there, 64 or, of Idefics, 96.
        norm_eps: What is added to variances in norms; `None` for 1e-5, or of Idefics2 1e-6.

    Raises:
        ValueError: If there is not one resampler, an argument does not fit, or the weights do not; the message names what.
    """
    found = _found(weights)
    if len(found) != 1:
        starts = sorted(prefix for prefix, _ in found)
        raise ValueError(f"{source} has {len(found)} resamplers, under {starts}: give a file with one")
    ((prefix, layout),) = found
    theirs = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    start = f"{prefix}{layout.blocks}."
    numbers = {name.removeprefix(start).split(".")[0] for name in theirs if name.startswith(start)}
    if numbers != {str(i) for i in range(len(numbers))}:
        raise ValueError(f"{source}: {start}* are numbered {sorted(numbers)}, not 0 to {len(numbers) - 1}")
    for number in numbers:
        _merge_and_split(theirs, f"{start}{number}.", layout, source)

    def rows(name: str, axis: int = 0) -> int:
        tensor = theirs.get(prefix + name)
        if tensor is None or tensor.ndim < 2:
            raise ValueError(f"{source}: {prefix}{name} is missing, or is no matrix")
        return tensor.shape[axis]

    first = {ours: f"{layout.blocks}.0.{name}.weight" for ours, name in layout.block.items()}
    dim, inner = rows("latents", -1), rows(first["attention.to_q"])
    heads, head_dim = _heads(heads, head_dim, inner, layout.head_dim, source)
    table = {ours: prefix + name for ours, name in layout.rest.items()}
    arguments: dict[str, Any] = {
        "dim": dim,
        "num_latent_tokens": rows("latents", -2),
        "depth": len(numbers),
        "heads": heads,
        "kv_heads": max(1, rows(first["attention.to_k"]) // head_dim),
        "head_dim": head_dim,
        "ff_dim": rows(first["feed_forward.linear_out"], 1),
        "norm_eps": norm_eps,
        **layout.settings,
    }
    if layout is IP_ADAPTER:
        arguments |= {"kv_dim": rows("proj_in.weight", 1), "output_dim": rows("proj_out.weight")}
        pooled = "to_latents_from_mean_pooled_seq.1.weight"
        if prefix + pooled in theirs:
            arguments["num_latents_mean_pooled"] = rows(pooled) // dim
    elif layout is IDEFICS:
        arguments["qk_norm"] = prefix + first["attention.q_norm"] in theirs
    elif layout is FLAMINGO:
        added = [name for name in EMBEDDINGS if prefix + name in theirs]
        if len(added) > 1:
            raise ValueError(f"{source} has {' and '.join(added)}, but Resampler adds one kind of embeddings: not supported")
        if added:
            table["embeddings"] = prefix + added[0]
    if table.get("embeddings") in theirs:
        arguments["num_embeddings"] = rows(table["embeddings"].removeprefix(prefix))
    for number in numbers:
        table |= {f"blocks.{number}.{ours}": f"{start}{number}.{name}" for ours, name in layout.block.items()}

    return translated(theirs, partial(Resampler, **arguments), partial(counterpart, table), source=source)


def load_part(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Makes a `Resampler` as the configuration of a larger model of transformers, one of `MODEL_TYPES`, describes it.

    Raises:
        ValueError: If the model has no resampler, a setting is not supported, or the weights do not fit.
    """
    settings = config.get("perceiver_config") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"{source}: perceiver_config={settings!r} is not a configuration")
    arguments = MODEL_TYPES[config["model_type"]](config, settings, source)
    if not recognises(weights):
        raise ValueError(f"{source}: its weights have no resampler")
    return load(
        weights,
        source,
        heads=settings.get("resampler_n_heads", 16),
        head_dim=settings.get("resampler_head_dim", 96),
        **arguments,
    )


def _idefics(config: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    if not (settings.get("use_resampler") or config.get("use_resampler")):
        raise ValueError(f"{source}: use_resampler is not set, this model has no resampler")
    return {}


def _idefics2(config: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    if (activation := settings.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"{source}: hidden_act={activation!r} of perceiver_config must be 'silu'")
    text = config.get("text_config") or {}
    width = text.get("hidden_size", 4096) if isinstance(text, Mapping) else 4096
    if settings.get("hidden_size", 4096) != width:  # then transformers takes width and eps from the text model
        return {"norm_eps": text.get("rms_norm_eps", 1e-6)}
    return {"norm_eps": settings.get("rms_norm_eps", 1e-6)}


# What else the configurations of larger models say, by their model_type.
MODEL_TYPES = {"idefics": _idefics, "idefics2": _idefics2}


def is_part(name: str) -> bool:
    """Whether a tensor of such a larger model belongs to its resampler."""
    return "perceiver_resampler." in name


def _found(weights: Mapping[str, Any]) -> list[tuple[str, Layout]]:
    """The prefix and layout of each resampler in these weights."""
    found = [(name.removesuffix(layout.sign), layout) for layout in LAYOUTS for name in weights if name.endswith(layout.sign)]
    return [(prefix, layout) for prefix, layout in found if not prefix or prefix.endswith(".")]


def _heads(heads: int | None, head_dim: int | None, inner: int, usual: int, source: str) -> tuple[int, int]:
    if heads is not None:
        heads = an_int("heads", heads)
        head_dim = inner // heads if head_dim is None else an_int("head_dim", head_dim)
    else:
        head_dim = usual if head_dim is None else an_int("head_dim", head_dim)
        heads = inner // head_dim
    if heads * head_dim != inner or not inner:
        raise ValueError(
            f"{source}: its queries are {inner} wide, which heads={heads} of head_dim={head_dim} do not make: give heads, as"
            " the model was made with"
        )
    return heads, head_dim


def _merge_and_split(theirs: dict[str, Tensor], block: str, layout: Layout, source: str) -> None:
    """Gives one block the names k and v, values and gates in one map, and the biases of zero that it does not have there."""
    if layout is IDEFICS2:
        try:
            parts = [theirs.pop(f"{block}mlp.{name}_proj.weight") for name in ("up", "gate")]
        except KeyError as error:
            raise ValueError(f"{source}: {error.args[0]} is missing") from error
        if parts[0].shape != parts[1].shape:
            raise ValueError(f"{source}: up_proj and gate_proj of {block}mlp have different shapes")
        theirs[f"{block}mlp.up_and_gate_proj.weight"] = torch.cat(parts)
        return
    if layout is not IDEFICS:
        if f"{block}0.to_kv.weight" not in theirs:
            raise ValueError(f"{source}: {block}0.to_kv.weight is missing")
        keys_and_values = theirs.pop(f"{block}0.to_kv.weight")
        if keys_and_values.ndim != 2 or len(keys_and_values) % 2:
            raise ValueError(f"{source}: {block}0.to_kv.weight has shape {list(keys_and_values.shape)}: not keys and values")
        theirs[f"{block}0.to_k.weight"], theirs[f"{block}0.to_v.weight"] = keys_and_values.chunk(2)
    for linear in (layout.block["feed_forward.linear_in"], layout.block["feed_forward.linear_out"]):
        weight = theirs.get(f"{block}{linear}.weight")
        if weight is not None and weight.ndim == 2:
            theirs.setdefault(f"{block}{linear}.bias", weight.new_zeros(len(weight)))
