"""A group of inputs by its factors: rows of tables and channels of content, never the encoded array.

An encoded input is a sum of a few of S rows, of which all inputs of a grid are made (see `Tokens`):

    x_m = P_1[i_1(m)] + ... + P_A[i_A(m)] + sum_c u_m[c] E[:, c]          S = n_1 + ... + n_A + U

so a linear projection of all inputs is one of the rows (`project`), 451 of them for an image of 50,176 pixels, and a weighted
sum of all inputs is one of the rows (`collect`). What remains per input is the inverse standard deviation of its channels,
rho_m = (var_m + eps)^(-1/2).

For a concatenation the variance is a sum of non-negative terms, so large content does not cancel. Blocks of c_1 and c_2
channels with means m_1, m_2 and centred square sums s_1, s_2 are together a block with

    m = (c_1 m_1 + c_2 m_2) / (c_1 + c_2)          s = s_1 + s_2 + c_1 c_2 / (c_1 + c_2) (m_1 - m_2)^2

In general it comes from products of the centred rows, in float64. RMS normalisation is the same without centring.

Letters: B batch, M inputs, C channels of an encoded input, U of content, A axes, n_a rows of table a, S rows in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.cross_attention.projections import Norm
from perceivers.ops.linear import linear
from perceivers.ops.tokens import Tokens

HALF = (torch.bfloat16, torch.float16)


@dataclass(eq=False)
class Factored:
    """What `separable` needs of a group of inputs and does not depend on the queries.

    Attributes:
        group: The group; if its positions have fewer than two axes, which factor nothing, its encoded array as content.
        content: Its visible content in the dtype of the queries. Half precision stays: the operator widens it when it reads.
        rho: Inverse standard deviations, `[B, *axes]`.
        rows: All rows projected to keys and values, `[(B), H, K, S]` and `[(B), H, V, S]`; `None` until they are needed.
    """

    group: Tokens
    content: Tensor
    rho: Tensor
    rows: Sequence[Tensor] | None = None

    @classmethod
    def of(cls, group: Tokens, norm: Norm | None, dtype: torch.dtype) -> "Factored":
        """Factor a group."""
        if len(group.tables) < 2:
            group = Tokens.of(group.encoded(), None if group.mask is None else group.flat_mask())
        content = group.visible_content()
        content = content if content.dtype in HALF else content.to(dtype)
        return cls(group, content, inverse_deviations(group, content, norm, dtype))


def project(group: Tokens, w_DC: Tensor) -> Tensor:
    """Project all rows by `[D, C]` to `[D, S]`, or to `[B, D, S]` if projections or tables differ between samples.

    Tables first, then content.
    """
    widths = [table.shape[-1] for table in group.tables]
    if group.is_concatenation:
        content_DU, *blocks = w_DC.split([group.content_width, *widths], dim=-1)  # one operation, also for its gradient
    else:
        content_DU, *blocks = (
            w_DC[..., a : a + b] for a, b in zip([0, *group.starts], [group.content_width, *widths], strict=True)
        )
    rows = [_times(block, table.to(w_DC.dtype)) for block, table in zip(blocks, group.tables, strict=True)]
    if group.constant is not None:  # every input has one row of the first table
        rows[0] = rows[0] + (w_DC[..., : len(group.constant)] @ group.constant.to(w_DC.dtype)).unsqueeze(-1)
    if group.embedding is not None:
        content_DU = content_DU @ group.embedding.to(w_DC.dtype)
    rows.append(content_DU)
    if any(row.ndim > w_DC.ndim for row in rows):  # some tables differ between samples
        rows = [row.expand(group.content.shape[0], -1, -1) for row in rows]
    return torch.cat(rows, dim=-1)


def collect(group: Tokens, r_BQS: Tensor) -> Tensor:
    """Return sums of encoded inputs, `[B, Q, C]`, given the sums for each of the S rows: the transpose of `project`."""
    *parts, r_BQU = r_BQS.split([*(table.shape[-2] for table in group.tables), group.content.shape[1]], dim=-1)
    blocks = [r_BQU if group.embedding is None else linear(r_BQU, group.embedding.to(r_BQU.dtype))]
    blocks += [_times(part, table.to(part.dtype).mT) for part, table in zip(parts, group.tables, strict=True)]
    if group.is_concatenation:
        return torch.cat(blocks, dim=-1)
    starts = [0, *group.starts]
    if group.constant is not None:
        blocks.append(parts[0].sum(-1, keepdim=True) * group.constant.to(r_BQS.dtype))
        starts.append(0)
    channels = group.num_channels
    return torch.stack(
        [F.pad(x, (start, channels - start - x.shape[-1])) for start, x in zip(starts, blocks, strict=True)]
    ).sum(0)


def _times(x_QC: Tensor, table_nC: Tensor) -> Tensor:
    """Return the product of x and the transposed table; either may differ between samples."""
    return linear(x_QC, table_nC) if table_nC.ndim == 2 else x_QC @ table_nC.mT


def inverse_deviations(group: Tokens, content: Tensor, norm: Norm | None, dtype: torch.dtype) -> Tensor:
    """Return rho, `[B, *axes]`, for the visible content of a group; ones without a norm."""
    content = content.to(dtype)
    if norm is None:
        return content.new_ones(content.shape[0], *content.shape[2:])
    if not group.is_concatenation:
        square_sum = _general(group, content, norm.centred)
    else:
        square_sum = (_centred if norm.centred else _plain)(group, content)
    return torch.rsqrt(square_sum / group.num_channels + norm.eps).to(dtype)


def _plain(group: Tokens, content: Tensor) -> Tensor:
    """Return the sum of squares of the channels of a concatenation, `[B, *axes]`."""
    total = content.square().sum(1)
    for a, table in enumerate(group.tables):
        total = total + group.spread(a, table.to(content.dtype).square().sum(-1))
    return total


def _centred(group: Tokens, content: Tensor) -> Tensor:
    """Return the sum of squares of the centred channels of a concatenation, `[B, *axes]`."""
    count, mean, square = 0, 0.0, 0.0
    for a, table in enumerate(group.tables):  # of the tables alone: the same for all samples
        table = table.to(content.dtype)
        width, means = table.shape[-1], table.mean(-1, keepdim=True)
        squares = group.spread(a, (table - means).square().sum(-1))
        means = group.spread(a, means.squeeze(-1))
        if count == 0:
            count, mean, square = width, means, squares
            continue
        square = square + squares + (count * width / (count + width)) * (means - mean).square()
        mean = (count * mean + width * means) / (count + width)
        count += width
    width = content.shape[1]
    if width == 0:  # positions alone
        return torch.as_tensor(square)
    means = content.mean(1)
    squares = (content - means.unsqueeze(1)).square().sum(1)
    return squares if count == 0 else squares + square + (count * width / (count + width)) * (means - mean).square()


def _general(group: Tokens, content: Tensor, centred: bool) -> Tensor:
    """Return either sum for any group."""
    channels = group.num_channels

    def rows(block: Tensor, start: int = 0) -> Tensor:
        block = F.pad(block.double(), (start, channels - start - block.shape[-1]))
        return block - block.mean(-1, keepdim=True) if centred else block

    identity = torch.eye(content.shape[1], dtype=torch.float64, device=content.device)
    e_UC = rows(identity if group.embedding is None else group.embedding.mT)
    tables = [rows(table, start) for start, table in zip(group.starts, group.tables, strict=True)]
    if group.constant is not None:
        tables[0] = tables[0] + rows(group.constant)
    u_BMU = content.double().movedim(1, -1)
    linear, total = u_BMU @ (e_UC @ e_UC.mT), 0.0
    for a, table in enumerate(tables):
        linear = linear + 2 * group.spread(a, table @ e_UC.mT)
        total = total + group.spread(a, table.square().sum(-1))
        for b in range(a):
            total = total + 2 * _spread_pair(group, b, a, tables[b] @ table.mT)
    return (total + (linear * u_BMU).sum(-1)).clamp_min(0)


def _spread_pair(group: Tokens, b: int, a: int, products: Tensor) -> Tensor:
    """Broadcast values per pair of rows of tables b < a, `[(B), n_b, n_a]`, to all inputs."""
    if group.index is None:
        lengths = [n if axis in (a, b) else 1 for axis, n in enumerate(group.content.shape[2:])]
        return products.reshape(-1, *lengths)
    i_b, i_a = group.index[..., b], group.index[..., a]
    if products.ndim == 2:
        return products[i_b, i_a]
    return products[torch.arange(len(products), device=products.device).unsqueeze(1), i_b, i_a]
