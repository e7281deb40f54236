"""Some of the inputs of a token group, by their number: what queries that hold input features are made of."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from perceivers.ops.tokens import Tokens


def unravel(rows: Tensor, axes: Sequence[int]) -> list[Tensor]:
    """Takes numbers of a grid's elements, in row-major order, to their index on each axis."""
    index = []
    for length in reversed(axes):
        above = rows // length
        index.append(rows - above * length)  # ONNX has no remainder by a length that is not fixed
        rows = above
    return index[::-1]


def take(tokens: Tokens, rows: Tensor) -> Tokens:
    """Returns the inputs with the numbers `rows`, `[O]` or `[B, O]`, as a group on one axis; the whole is not copied."""
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
