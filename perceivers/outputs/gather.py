"""Gather some inputs of a token group by their index, for queries that are made of the inputs."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from perceivers.ops.tokens import Tokens


def unravel(rows: Tensor, axes: Sequence[int]) -> list[Tensor]:
    """Return the index along each axis of elements given by their flat, row-major index."""
    index = []
    for length in reversed(axes):
        above = rows // length
        index.append(rows - above * length)  # ONNX cannot export a remainder by a symbolic length
        rows = above
    return index[::-1]


def gather_tokens(tokens: Tokens, rows: Tensor) -> Tokens:
    """Return the inputs with the flat indices `rows`, `[O]` or `[B, O]`, as a group with one axis.

    Only the gathered inputs are copied.
    """
    rows = rows.expand(tokens.content.shape[0], -1)
    index = unravel(rows, tokens.content.shape[2:])
    batch = torch.arange(rows.shape[0], device=rows.device).unsqueeze(1)
    positions = tokens.positions
    if positions is not None:
        chosen = torch.stack(index, dim=-1) if positions.index is None else positions.index[batch, rows]
        positions = replace(positions, index=chosen)
    content_BOU = tokens.content[(batch, slice(None), *index)]
    mask_BO = None if tokens.mask is None else tokens.mask[(batch, *index)]
    return replace(tokens, content=content_BOU.transpose(1, 2), positions=positions, mask=mask_BO)
