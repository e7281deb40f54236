"""Our weights under a peer's names.

A peer's file has tables of names, theirs to ours, and chooses the order of the channels of its position features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def renamed(weights: Mapping[str, Tensor], theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return weights and biases under their names: `{ours}{names[name]}.weight` as `{theirs}{name}.weight`."""
    return {
        f"{theirs}{name}.{kind}": weights[f"{ours}{our_name}.{kind}"]
        for name, our_name in names.items()
        for kind in ("weight", "bias")
        if f"{ours}{our_name}.{kind}" in weights
    }


def reordered(weights: Mapping[str, Tensor], columns: list[int]) -> dict[str, Tensor]:
    """Return our state dict for inputs with a peer's order of channels; `columns[i]` is their index of our channel i."""
    order = torch.tensor(columns).argsort()
    per_channel = ("inputs_norm.weight", "inputs_norm.bias", "to_k.weight", "to_v.weight")
    return {
        name: weight[..., order] if name.startswith("encoder.cross_attentions.") and name.endswith(per_channel) else weight
        for name, weight in weights.items()
    }


def coordinates_sines_cosines(content: int, axes: int, bands: int) -> list[int]:
    """Return their index of each of our channels, for the order: all coordinates, the sines of all axes, the cosines."""
    columns = list(range(content))
    for a in range(axes):
        sines = content + axes + a * bands
        columns += [content + a, *range(sines, sines + bands), *range(sines + axes * bands, sines + (axes + 1) * bands)]
    return columns


def sines_cosines_coordinate(content: int, axes: int, bands: int) -> list[int]:
    """Return their index of each of our channels, for the order, per axis: sines, cosines, coordinate."""
    columns, width = list(range(content)), 2 * bands + 1
    for start in range(content, content + axes * width, width):
        columns += [start + width - 1, *range(start, start + width - 1)]
    return columns
