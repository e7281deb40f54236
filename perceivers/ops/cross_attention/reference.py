"""The definition, written out: every key, value and score is made. Slow, simple, any dtype; the truth in tests.

Letters: B batch, H heads, N queries, M inputs, K width of queries and keys, V of values.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.implementation import Implementation
from perceivers.ops.cross_attention.merging import Partial, finite, merge
from perceivers.ops.tokens import Tokens


def run(call: Call) -> Tensor:
    """Attend to each group and merge."""
    return partial(call).finish()


def partial(call: Call) -> Partial:
    """Attend to each group and merge, without the final division."""
    q_BHNK = call.q_BHNK
    return merge(_attend(call, q_BHNK, group) for group in call.inputs)


def why_not(call: Call) -> str | None:
    """Return `None`: it computes every call."""
    return None


def _attend(call: Call, q_BHNK: Tensor, group: Tokens) -> Partial:
    k_BHMK, v_BHMV = call.projection.keys_and_values(group.encoded(), call.heads)
    s_BHNM = call.scale * (q_BHNK @ k_BHMK.mT)
    s_BHNM = s_BHNM.masked_fill(~group.flat_mask()[:, None, None, :], -math.inf)
    max_BHN = s_BHNM.detach().amax(-1)  # any shift gives the same result, so no gradient flows through it
    a_BHNM = torch.exp(s_BHNM - finite(max_BHN).unsqueeze(-1))
    z_BHNV = F.dropout(a_BHNM, call.dropout_p).to(v_BHMV.dtype) @ v_BHMV
    return Partial(z_BHNV, max_BHN, a_BHNM.sum(-1))


REFERENCE = Implementation("reference", run, why_not, partial=partial)
