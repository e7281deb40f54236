"""Position features in the order of DeepMind's code, which others kept: all coordinates, all sines, all cosines."""

from collections.abc import Mapping, Sequence
from typing import Any


def orders(arguments: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """Return their column for each of ours, for what the names of our tensors that meet encoded inputs start with.

    Args:
        arguments: Of a `PerceiverIO`. Inputs that encode no grid, or in another order, need no change.
    """
    order = columns_of(arguments["inputs"])
    if order is None:
        return {}
    found = of_cross_attentions(arguments["layers_indice"], order)
    if arguments["outputs"]["kind"] == "PerInput":  # queries are encoded inputs
        found |= dict.fromkeys(("decoder.attention_norm", "decoder.attention.to_q.weight"), order)
    return found


def of_cross_attentions(layers_indice: Sequence[int | None], order: Sequence[int]) -> dict[str, Sequence[int]]:
    """Return this order for what meets encoded inputs in the cross-attentions of the encoder."""
    parts = ("inputs_norm", "to_k.weight", "to_v.weight")
    uses = {use for use in layers_indice if use is not None}
    return {f"encoder.cross_attentions.{use}.attention.{part}": order for use in uses for part in parts}


def columns_of(inputs: Mapping[str, Any]) -> list[int] | None:
    """Return their column for each of ours of encoded inputs; `None` if they are the same."""
    match inputs["kind"]:
        case "Pixels":
            content = inputs["data_shape"][0]
        case "ConvStem":
            content = inputs.get("stem_channels", 64)
        case "FramePairs":
            content = inputs["embed_dim"]
        case _:
            return None
    return columns(content, len(inputs["data_shape"]) - 1, inputs["num_bands"])


def columns(content: int, axes: int, bands: int) -> list[int]:
    """Return their column for each of ours.

    Args:
        content: Channels in front of the position features.
        axes: Number of axes.
        bands: Frequencies per axis.
    """
    order = list(range(content))
    for a in range(axes):
        sines = content + axes + a * bands
        order += [content + a, *range(sines, sines + bands), *range(sines + axes * bands, sines + (axes + 1) * bands)]
    return order
