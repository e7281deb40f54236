"""Batches of arrays of different lengths: padded and masked, or packed to the inputs that are not masked.

Letters: B batch, M inputs, U channels of content, A axes of the positions.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.tokens import Tokens, check_mask


def pad_ragged(
    arrays: Sequence[Tensor], masks: Sequence[Tensor] | None = None, *, channel_axes: int = 1, axes: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Stack arrays of different lengths: pad the shorter ones with zeros and mask the padding.

    Args:
        arrays: B arrays, `[C, *axes]`, or `[*axes]` without channels.
        masks: One mask `[*axes]`, bool, per array; `None` for True everywhere.
        channel_axes: Number of leading axes, whose lengths are equal in all arrays.
        axes: Number of axes whose lengths differ.

    Returns:
        The padded arrays `[B, C, *axes]`, their mask `[B, *axes]`, and the lengths before padding `[B, axes]`.

    Raises:
        ValueError: If an entry is not a tensor, is empty, or differs in number of axes, channels or dtype.
    """
    for i, array in enumerate(arrays):
        if not isinstance(array, Tensor) or array.ndim != channel_axes + axes:
            got = f"has shape {list(array.shape)}" if isinstance(array, Tensor) else f"is a {type(array).__name__}"
            shape = "[C, *axes]" if channel_axes else "[*axes]"
            raise ValueError(
                f"x[{i}] {got}, but x must be a list of tensors {shape} with {channel_axes + axes} axes, one per sample"
            )
        if array.shape[:channel_axes] != arrays[0].shape[:channel_axes] or array.dtype != arrays[0].dtype:
            raise ValueError(
                f"x[{i}] has shape {list(array.shape)} and {array.dtype}, x[0] has {list(arrays[0].shape)} and"
                f" {arrays[0].dtype}: channels and dtype must be equal"
            )
        if 0 in array.shape:
            raise ValueError(f"x[{i}] has shape {list(array.shape)} with an empty axis: omit it, or give one masked element")
    if not arrays:
        raise ValueError("x is an empty list: give at least one array")
    if masks is not None and (not isinstance(masks, list | tuple) or len(masks) != len(arrays)):
        raise ValueError(
            f"mask is a {type(masks).__name__}, but x is a list: give a list of {len(arrays)} masks, one per array"
        )
    for i, mask in enumerate(masks or ()):
        check_mask(mask, arrays[i].shape[channel_axes:], f"the shape of x[{i}]")
    lengths = torch.tensor([list(array.shape[channel_axes:]) for array in arrays])
    longest = lengths.amax(0).tolist()

    def pad(array: Tensor) -> Tensor:
        missing = [most - n for most, n in zip(longest, array.shape[array.ndim - axes :], strict=True)]
        return F.pad(array, [edge for count in reversed(missing) for edge in (0, count)])

    own = masks or [array.new_ones(array.shape[channel_axes:], dtype=torch.bool) for array in arrays]
    return torch.stack([pad(array) for array in arrays]), torch.stack([pad(mask) for mask in own]), lengths


def packed(group: Tokens) -> Tokens:
    """Return a token group without its masked inputs: a list of the others, with an index into the position tables.

    Attention to it gives the same result as attention to `group`, at a cost proportional to the longest list in the batch.
    This pays for images of many shapes in one batch, or if most inputs are masked. The number of inputs depends on the
    values of the mask, so this cannot be part of a compiled graph.

    Args:
        group: Any token group.

    Returns:
        A group with content `[B, U, M']`, where M' is the largest number of unmasked inputs of a sample, at least 1. Shorter
        lists are padded and masked.
    """
    if group.mask is None:
        return group
    mask_BM = group.flat_mask()
    longest = max(1, int(mask_BM.sum(1).max()))
    order_BM = mask_BM.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    content = group.content.flatten(2)
    positions = group.positions
    if positions is not None:
        index = index_of(group)
        positions = replace(positions, index=index.gather(1, order_BM.unsqueeze(-1).expand(-1, -1, index.shape[-1])))
    return replace(
        group,
        content=content.gather(2, order_BM.unsqueeze(1).expand(-1, content.shape[1], -1)),
        positions=positions,
        mask=mask_BM.gather(1, order_BM),
    )


def index_of(group: Tokens) -> Tensor:
    """Return the index list of a group, `[B, M, A]`; for a full grid, which has none, it is computed."""
    if group.index is not None:
        return group.index
    batch, device = group.content.shape[0], group.content.device
    if not group.tables:
        return torch.zeros(batch, group.num_inputs, 0, dtype=torch.long, device=device)
    steps = [torch.arange(table.shape[-2], device=device) for table in group.tables]
    return torch.cartesian_prod(*steps).reshape(1, -1, len(steps)).expand(batch, -1, -1)
