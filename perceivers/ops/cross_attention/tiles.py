"""Tiles of scores: table rows are broadcast to some of the inputs of one sample, and sums over these go back to the rows.

What `separable` and `encoded_queries` have in common; in the latter, the tiles are of encoded queries, and Q counts keys.

Letters: Q queries, M inputs of a tile, U channels of content, A axes, n_a rows of the table of axis a, S rows in all.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TILE = 1 << 18  # scores held at a time, some of them in each of a few buffers: 1 MB each, about a core's cache
PASSES = 200  # work per score of the passes over a tile in PyTorch, exponential included, in FLOPs of a matrix product
GATHER = 165  # the same per axis of an index list, for gather and scatter


class Tile:
    """Some of the inputs of one sample, flattened: broadcasts values of table rows to them, and sums theirs per row."""

    def __init__(self, u_UM: Tensor, rho_M: Tensor, mask_M: Tensor | None, index_MA: Tensor | None, lengths: Sequence[int]):
        self.u_UM, self.rho_M, self.index_MA, self.lengths = u_UM, rho_M, index_MA, lengths
        self.masked_M = None if mask_M is None else ~mask_M

    def scores(self, p_QS: Tensor) -> Tensor:
        """Return T_1[i_1(m)] + ... + T_A[i_A(m)] + p_u . u_m, `[Q, M]`: scores before rho and mask."""
        *tables, p_QU = p_QS.split([*self.lengths, len(self.u_UM)], dim=-1)
        s_QM = p_QU @ self.u_UM
        if self.index_MA is not None:
            for a, t_Qn in enumerate(tables):
                s_QM += t_Qn[:, self.index_MA[:, a]]
            return s_QM
        grid = s_QM.view(-1, *self.lengths) if self.lengths else s_QM
        for a, t_Qn in enumerate(tables):
            grid += t_Qn.view(-1, *(length if axis == a else 1 for axis, length in enumerate(self.lengths)))
        return s_QM

    def sums(self, w_QM: Tensor) -> Tensor:
        """Return per axis a and row i the sum of weights with i_a(m) = i, and the weighted sum of the content, `[Q, S]`."""
        content_QU = w_QM @ self.u_UM.mT
        if self.index_MA is not None:
            zeros = (w_QM.new_zeros(len(w_QM), n) for n in self.lengths)
            marginals = [z_Qn.index_add_(1, self.index_MA[:, a], w_QM) for a, z_Qn in enumerate(zeros)]
        else:
            grid, axes = w_QM.view(-1, *self.lengths) if self.lengths else w_QM, range(len(self.lengths))
            marginals = [grid.sum([1 + axis for axis in axes if axis != a]) for a in axes]
        return torch.cat([*marginals, content_QU], dim=-1)


def split(
    step: int, u_UM: Tensor, rho_M: Tensor, mask_M: Tensor | None, index_MA: Tensor | None, lengths: Sequence[int]
) -> Iterator[tuple[slice, list[slice], Tile]]:
    """Split the inputs of one sample into tiles of `step` rows of the first axis, or of `step` inputs of a list.

    Yields:
        Which inputs, which of the S rows they are made of, and the tile.
    """
    grid = index_MA is None and len(lengths) > 0
    inner = math.prod(lengths[1:]) if grid else 1
    count = len(rho_M) // inner
    for start in range(0, count, step):
        stop = min(start + step, count)
        here, rows, own = slice(start * inner, stop * inner), [slice(None)], lengths
        if grid and stop - start < count:
            rows, own = [slice(start, stop), slice(count, None)], [stop - start, *lengths[1:]]
        mask_m, index_m = (None if x is None else x[here] for x in (mask_M, index_MA))
        yield here, rows, Tile(u_UM[:, here], rho_M[here], mask_m, index_m, own)


def gather_rows(x_QS: Tensor, rows: Sequence[slice]) -> Tensor:
    """Return some of the S rows."""
    return x_QS[:, rows[0]] if len(rows) == 1 else torch.cat([x_QS[:, some] for some in rows], dim=-1)


def add_to_rows(into_QS: Tensor, rows: Sequence[slice], part_QS: Tensor) -> None:
    """Add `part_QS`, which has some of the S rows, to these rows of `into_QS`."""
    start = 0
    for some in rows:
        target = into_QS[:, some]
        target += part_QS[:, start : start + target.shape[1]]
        start += target.shape[1]
