"""The definition, written out: every key, value and score is made. Slow, obvious, any dtype; truth for all the others.

Letters: B batch, H heads, N queries, M inputs, K width of queries and keys, V of values.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.partial import Partial, finite, merge
from perceivers.ops.tokens import Tokens


def run(call: Call) -> Tensor:
    """Attends to each group and merges."""
    return partial(call).finish()


def partial(call: Call) -> Partial:
    """Attends to each group and merges, without the last division."""
    return merge(_attend(call, group) for group in call.inputs)


def why_not(call: Call) -> str | None:
    """Does everything."""
    return None


def _attend(call: Call, group: Tokens) -> Partial:
    k_BHMK, v_BHMV = call.keys_and_values(group.encoded())
    s_BHNM = call.scale * (call.q_BHNK @ k_BHMK.mT)
    s_BHNM = s_BHNM.masked_fill(~group.flat_mask()[:, None, None, :], -math.inf)
    max_BHN = s_BHNM.detach().amax(-1)  # any shift gives the same result, so no gradient flows through it
    a_BHNM = torch.exp(s_BHNM - finite(max_BHN).unsqueeze(-1))
    z_BHNV = F.dropout(a_BHNM, call.dropout_p).to(v_BHMV.dtype) @ v_BHMV
    return Partial(z_BHNV, max_BHN, a_BHNM.sum(-1))
