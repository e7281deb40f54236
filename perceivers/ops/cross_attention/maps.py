"""Attention maps on request: which inputs each query looks at.

The map itself, N x M numbers, is the only large thing: scores are written into it piece by piece, from the query folded
with the key projection as in `absorbed`, so that neither keys nor the whole encoded array is made.

Letters: B batch, H heads, N queries, M inputs, C channels, K width of queries and keys.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from perceivers.ops.cross_attention.call import Call, Norm
from perceivers.ops.tokens import Tokens

PIECE = 16_384  # encoded inputs held at a time: 17 MB of a published picture's 261 channels


@torch.no_grad()
def attention_maps(
    q_BHNK: Tensor, inputs: Sequence[Tokens], norm: Norm | None, w_k: Tensor, *, scale: float, log_scores: bool = False
) -> Tensor:
    """Returns the attention weights `[B, H, N, M]`, or their logarithms.

    The bias of the keys adds the same to every score of a query and cancels in the softmax, so it is no argument.
    A query with nothing to attend to has a map of zeros (-inf as logarithm). Gradients are not recorded.
    """
    call = Call(q_BHNK, inputs, norm, w_k, None, w_k, None, scale)
    p_BHNC = q_BHNK @ call.folded_projections()[0].unflatten(0, (call.heads, -1))
    num_inputs = sum(group.num_inputs for group in inputs)
    s_BHNM = p_BHNC.new_empty(*p_BHNC.shape[:-1], num_inputs)
    start = 0
    for piece in (piece for group in inputs for piece in group.pieces(PIECE)):
        x_BMC = piece.encoded()
        if norm is not None:
            x_BMC = norm.plain(x_BMC)
        here = s_BHNM[..., start : start + piece.num_inputs]
        here.copy_(p_BHNC @ x_BMC.to(p_BHNC.dtype).unsqueeze(1).mT)
        if piece.mask is not None:
            here.masked_fill_(~piece.flat_mask()[:, None, None, :], -math.inf)
        start += piece.num_inputs
    for row_M in s_BHNM.flatten(0, -2):
        total = torch.logsumexp(row_M, -1)
        row_M -= total.masked_fill(total == -math.inf, 0)
    return s_BHNM if log_scores else s_BHNM.exp_()
