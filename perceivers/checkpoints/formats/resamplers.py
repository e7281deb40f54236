"""Latent resamplers of larger models, which `perceivers.layers.Resampler` reproduces: nothing else of such a file is read.

- Flamingo's, of flamingo-pytorch and open_flamingo
- IP-Adapter Plus'
- Idefics' and Idefics2's, of transformers

They are found by their names, under any prefix, and every tensor under it must find its place. Linear layers without a bias
there and with one here get a bias of zero.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceivers._checks import an_int
from perceivers.checkpoints.format import Configuration, Description, Format, Names, keys_and_values, numbered
from perceivers.checkpoints.source import Source
from perceivers.layers import Resampler


class Layout(NamedTuple):
    """How one project names the parts of a resampler.

    Attributes:
        sign: A name that only this layout has.
        block: For our names in a block theirs.
        rest: For our other names theirs.
        blocks: What the names in its blocks start with.
        head_dim: The usual width of a head.
        settings: Arguments of `Resampler` that are the same for all.
    """

    sign: str
    block: Mapping[str, str]
    rest: Mapping[str, str] = MappingProxyType({"latents": "latents", "norm": "norm"})
    blocks: str = "layers"
    head_dim: int = 96
    settings: Mapping[str, Any] = MappingProxyType({})


FEED_FORWARD = {"feed_forward_norm.norm": "1.0", "feed_forward.linear_in": "1.1", "feed_forward.linear_out": "1.3"}
ATTENTION = {f"attention.to_{name}": f"0.to_{name}" for name in ("q", "k", "v", "out")}

FLAMINGO = Layout(
    sign="layers.0.0.norm_media.weight",
    block={"inputs_norm.norm": "0.norm_media", "attention_norm.norm": "0.norm_latents", **ATTENTION, **FEED_FORWARD},
    head_dim=64,
)
IP_ADAPTER = Layout(
    sign="layers.0.0.norm1.weight",
    block={"inputs_norm.norm": "0.norm1", "attention_norm.norm": "0.norm2", **ATTENTION, **FEED_FORWARD},
    rest={
        "latents": "latents",
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
    block={
        "inputs_norm.norm": "input_context_norm",
        "attention_norm.norm": "input_latents_norm",
        **{f"attention.to_{name}": f"self_attn.{name}_proj" for name in "qkv"},
        "attention.to_out": "self_attn.o_proj",
        "feed_forward_norm.norm": "post_attention_layernorm",
        "feed_forward.linear_in": "mlp.up_and_gate_proj",
        "feed_forward.linear_out": "mlp.down_proj",
    },
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
    settings={"activation": "relu"},
)
LAYOUTS = (FLAMINGO, IP_ADAPTER, IDEFICS2, IDEFICS)
# Learned embeddings: of IP-Adapter, of images in flamingo-pytorch, of frames or images in open_flamingo.
EMBEDDINGS = ("pos_emb.weight", "media_pos_emb", "frame_embs", "media_time_embs")


@dataclass(kw_only=True)
class Part(Description):
    """The tensors of a resampler: with names k and v, one projection of values and gates, and biases of zero.

    Attributes:
        layout: How they are named.
        prefix: What their names start with.
        depth: Number of blocks.
        config: The configuration of the larger model, if there is one.
    """

    layout: Layout
    prefix: str
    depth: int
    config: dict[str, Any]

    def rows(self, name: str, axis: int = 0) -> int:
        """Return a length of a matrix, by its name without the prefix."""
        return self.shape(self.prefix + name, 2, 3, 4)[axis]


def describe(source: Source) -> Part:
    """Return the resampler of a file or folder; in a folder, files without it are not opened."""
    config = source.config
    settings = config.get("perceiver_config")
    used = config.get("use_resampler") or (isinstance(settings, Mapping) and settings.get("use_resampler"))
    if config.get("model_type") == "idefics" and not used:
        raise ValueError("use_resampler is not set, this model has no resampler")
    weights = source.weights(None if source.is_file else lambda name: "perceiver_resampler." in name)
    found = _found(weights)
    if not found:
        raise ValueError("its weights have no resampler")
    if len(found) > 1:
        raise ValueError(
            f"it has {len(found)} resamplers, under {sorted(prefix for prefix, _ in found)}: give a file with one"
        )
    ((prefix, layout),) = found
    theirs = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    start = f"{prefix}{layout.blocks}."
    depth = numbered(theirs, start)
    for n in range(depth):
        _merge_and_split(theirs, f"{start}{n}.", layout)
    detail = f"the resampler of {config['model_type']}" if config.get("model_type") else ""
    return Part(weights=theirs, detail=detail, layout=layout, prefix=prefix, depth=depth, config=config)


def _found(names: Iterable[str]) -> list[tuple[str, Layout]]:
    """Return the prefix and layout of each resampler."""
    found = [(name.removesuffix(layout.sign), layout) for layout in LAYOUTS for name in names if name.endswith(layout.sign)]
    return [(prefix, layout) for prefix, layout in found if not prefix or prefix.endswith(".")]


def _merge_and_split(theirs: dict[str, Tensor], block: str, layout: Layout) -> None:
    """Give one block the names k and v, one projection of values and gates, and biases of zero."""

    def pop(name: str) -> Tensor:
        if block + name not in theirs:
            raise ValueError(f"{block}{name} is missing")
        return theirs.pop(block + name)

    if layout is IDEFICS2:
        parts = [pop(f"mlp.{name}_proj.weight") for name in ("up", "gate")]
        if parts[0].shape != parts[1].shape:
            raise ValueError(f"up_proj and gate_proj of {block}mlp have different shapes")
        theirs[f"{block}mlp.up_and_gate_proj.weight"] = torch.cat(parts)
        return
    if layout is not IDEFICS:
        both = keys_and_values(f"{block}0.to_kv.weight", pop("0.to_kv.weight"))
        theirs[f"{block}0.to_k.weight"], theirs[f"{block}0.to_v.weight"] = both
    for linear in (layout.block["feed_forward.linear_in"], layout.block["feed_forward.linear_out"]):
        weight = theirs.get(f"{block}{linear}.weight")
        if weight is not None and weight.ndim == 2:
            theirs.setdefault(f"{block}{linear}.bias", weight.new_zeros(len(weight)))


def configure(
    part: Part, *, heads: int | None = None, head_dim: int | None = None, norm_eps: float | None = None
) -> Configuration:
    """Return the configuration of a `Resampler`.

    Args:
        part: The resampler, of a file with it alone or with a larger model.
        heads: Heads of queries, which a file does not specify. Inferred from `head_dim` by default.
        head_dim: Width of a head. Defaults to what is usual there, 64 or, for Idefics, 96.
        norm_eps: What is added to variances in norms. Defaults to 1e-5, or for Idefics2 1e-6.
    """
    layout, prefix, rows = part.layout, part.prefix, part.rows
    first = {ours: f"{layout.blocks}.0.{name}.weight" for ours, name in layout.block.items()}
    heads, head_dim = _heads(heads, head_dim, rows(first["attention.to_q"]), layout.head_dim)
    arguments: dict[str, Any] = {
        "dim": rows("latents", -1),
        "num_latent_tokens": rows("latents", -2),
        "depth": part.depth,
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
        if prefix + pooled in part.weights:
            arguments["num_latents_mean_pooled"] = rows(pooled) // arguments["dim"]
    elif layout is IDEFICS:
        arguments["qk_norm"] = prefix + first["attention.q_norm"] in part.weights
    if embeddings := _embeddings(part):
        arguments["num_embeddings"] = rows(embeddings)
    return Configuration(Resampler, arguments)


def _heads(heads: int | None, head_dim: int | None, inner: int, usual: int) -> tuple[int, int]:
    if heads is not None:
        heads = an_int("heads", heads)
        head_dim = inner // heads if head_dim is None else an_int("head_dim", head_dim)
    else:
        head_dim = usual if head_dim is None else an_int("head_dim", head_dim)
        heads = inner // head_dim
    if heads * head_dim != inner:
        raise ValueError(
            f"its queries are {inner} wide, which is not heads={heads} x head_dim={head_dim}: give the heads that the model"
            " was made with"
        )
    return heads, head_dim


def _embeddings(part: Part) -> str | None:
    """Return the name of the learned embeddings that are added to the inputs, without the prefix."""
    added = [name for name in EMBEDDINGS if part.prefix + name in part.weights]
    if len(added) > 1:
        raise ValueError(f"it has {' and '.join(added)}, but Resampler adds one kind of embeddings: not supported")
    return added[0] if added else None


def names(part: Part, configuration: Configuration) -> Names:
    """Return their names of our tensors."""
    table = {ours: part.prefix + name for ours, name in part.layout.rest.items()}
    if embeddings := _embeddings(part):
        table["embeddings"] = part.prefix + embeddings
    for n in range(part.depth):
        start = f"{part.prefix}{part.layout.blocks}.{n}."
        table |= {f"blocks.{n}.{ours}": start + name for ours, name in part.layout.block.items()}
    return Names(table)


def configure_folder(part: Part) -> Configuration:
    """Return the configuration of a `Resampler` as that of a larger model describes it."""
    settings = part.config.get("perceiver_config") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"perceiver_config={settings!r} is not a configuration")
    more = MODEL_TYPES[part.config["model_type"]](part.config, settings)
    sizes = {"heads": settings.get("resampler_n_heads", 16), "head_dim": settings.get("resampler_head_dim", 96)}
    return configure(part, **sizes, **more)


def _idefics2(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    if (activation := settings.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"hidden_act={activation!r} of perceiver_config must be 'silu'")
    text = config.get("text_config") or {}
    width = text.get("hidden_size", 4096) if isinstance(text, Mapping) else 4096
    if settings.get("hidden_size", 4096) != width:  # then transformers takes width and eps from the text model
        return {"norm_eps": text.get("rms_norm_eps", 1e-6)}
    return {"norm_eps": settings.get("rms_norm_eps", 1e-6)}


# What else the configurations of larger models specify, by their model_type.
MODEL_TYPES = {"idefics": lambda config, settings: {}, "idefics2": _idefics2}

FILE = Format("resamplers", lambda source: bool(_found(source.names)), describe, configure, names)
FOLDER = Format(
    "transformers", lambda source: source.config.get("model_type") in MODEL_TYPES, describe, configure_folder, names
)
