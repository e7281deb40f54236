"""Our weights under a peer's names.

A peer's file has tables of names, theirs to ours, and says in which order the channels of its position features come.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def renamed(weights: Mapping[str, Tensor], theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Entries of our state dict under their names: `{theirs}{name}.weight` for `{ours}{names[name]}.weight`, and biases."""
    return {
        f"{theirs}{name}.{kind}": weights[f"{ours}{our_name}.{kind}"]
        for name, our_name in names.items()
        for kind in ("weight", "bias")
        if f"{ours}{our_name}.{kind}" in weights
    }


def reordered(weights: Mapping[str, Tensor], columns: list[int]) -> dict[str, Tensor]:
    """Our state dict for inputs whose channels come in a peer's order; `columns` has, for each channel of ours, theirs."""
    order = torch.tensor(columns).argsort()
    per_channel = ("inputs_norm.weight", "inputs_norm.bias", "to_k.weight", "to_v.weight")
    return {
        name: weight[..., order] if name.startswith("encoder.cross_attentions.") and name.endswith(per_channel) else weight
        for name, weight in weights.items()
    }


def coordinates_sines_cosines(content: int, axes: int, bands: int) -> list[int]:
    """For each channel of ours, theirs where all coordinates come first, then the sines of all axes, then the cosines."""
    columns = list(range(content))
    for a in range(axes):
        sines = content + axes + a * bands
        columns += [content + a, *range(sines, sines + bands), *range(sines + axes * bands, sines + (axes + 1) * bands)]
    return columns


def sines_cosines_coordinate(content: int, axes: int, bands: int) -> list[int]:
    """For each channel of ours, theirs where each axis has its sines, then its cosines, then its coordinate."""
    columns, width = list(range(content)), 2 * bands + 1
    for start in range(content, content + axes * width, width):
        columns += [start + width - 1, *range(start, start + width - 1)]
    return columns
