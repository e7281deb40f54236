"""Attention maps on request: how much each query attends to each input.

The map itself, N x M elements, is the only large array: scores are written into it piece by piece, from the query multiplied
by the key projection as in `absorbed`, so neither keys nor the whole encoded array is made.

Letters: B batch, H heads, N queries, M inputs, C channels, K width of queries and keys.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.tokens import Tokens

PIECE = 16_384  # encoded inputs held at a time: 17 MB for an image with the 261 channels of a published model


@torch.no_grad()
def attention_maps(*arguments: Any, log_scores: bool = False, **keywords: Any) -> Tensor:
    """Return the attention weights `[B, H, N, M]`, or their logarithms.

    A query with nothing to attend to has a map of zeros (-inf as logarithm). Gradients are not recorded.
    The arguments are those of `cross_attention`.
    """
    call = Call.of(*arguments, **keywords)
    scores = _scores_by_keys if call.why_opaque() else _scores_by_folded_queries
    pieces = [piece for group in call.inputs for piece in group.pieces(PIECE)]
    s_BHNM, start = None, 0
    for piece, piece_BHNM in zip(pieces, scores(call, pieces), strict=True):
        if s_BHNM is None:
            s_BHNM = piece_BHNM.new_empty(*piece_BHNM.shape[:-1], call.num_inputs)
        here = s_BHNM[..., start : start + piece.num_inputs]
        here.copy_(piece_BHNM)
        if piece.mask is not None:
            here.masked_fill_(~piece.flat_mask()[:, None, None, :], -math.inf)
        start += piece.num_inputs
    assert s_BHNM is not None, "there is at least one input"
    for row_M in s_BHNM.flatten(0, -2):
        total = torch.logsumexp(row_M, -1)
        row_M -= total.masked_fill(total == -math.inf, 0)
    return s_BHNM if log_scores else s_BHNM.exp_()


def _scores_by_folded_queries(call: Call, pieces: Sequence[Tokens]) -> Iterator[Tensor]:
    """Yield the scores of each piece, without what is the same for all inputs and cancels in the softmax."""
    p_BHNC = call.q_BHNK @ call.folded()[0].unflatten(0, (call.heads, -1))
    for piece in pieces:
        x_BMC = piece.encoded()
        x_BMC = x_BMC if call.norm is None else call.norm.plain(x_BMC)
        yield p_BHNC @ x_BMC.to(p_BHNC.dtype).unsqueeze(1).mT


def _scores_by_keys(call: Call, pieces: Sequence[Tokens]) -> Iterator[Tensor]:
    """Yield the scores of each piece from its keys, which opaque projections make."""
    for piece in pieces:
        k_BHMK, _ = call.projection.keys_and_values(piece.encoded(), call.heads)
        yield call.scale * (call.q_BHNK.to(k_BHMK.dtype) @ k_BHMK.mT)
