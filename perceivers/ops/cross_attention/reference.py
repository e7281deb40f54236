"""The definition, written out: every key, value and score is made. Slow, obvious, any dtype; truth for all the others.

Its inner step, `partial`, attends to one token group and returns an unnormalised result; `merge` joins such results
exactly, in any order and grouping, because a softmax over several groups is

    out = sum_g e^(max_g - max) z_g / sum_g e^(max_g - max) sum_g,        max = the largest max_g

Letters: B batch, H heads, N queries, M inputs, K width of queries and keys, V of values.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention to some of the inputs, not yet divided by its sum.

    Attributes:
        z_BHNV: sum over m of e^(S_m - max) v_m.
        max_BHN: The largest score, or another number near it; -inf where nothing may be attended.
        sum_BHN: sum over m of e^(S_m - max), 0 where nothing may be attended.
    """

    z_BHNV: Tensor
    max_BHN: Tensor
    sum_BHN: Tensor

    def finish(self) -> Tensor:
        """Divides: `[B, H, N, V]`, zero where nothing may be attended."""
        nothing = self.sum_BHN == 0
        return self.z_BHNV / self.sum_BHN.masked_fill(nothing, 1).unsqueeze(-1)


def partial(call: Call, group: Tokens) -> Partial:
    """Attends to one of the token groups."""
    k_BHMK, v_BHMV = call.keys_and_values(group.encoded())
    s_BHNM = call.scale * (call.q_BHNK @ k_BHMK.mT)
    s_BHNM = s_BHNM.masked_fill(~group.flat_mask()[:, None, None, :], -math.inf)
    max_BHN = s_BHNM.detach().amax(-1)  # any shift gives the same result, so no gradient flows through it
    a_BHNM = torch.exp(s_BHNM - finite(max_BHN).unsqueeze(-1))
    z_BHNV = F.dropout(a_BHNM, call.dropout_p).to(v_BHMV.dtype) @ v_BHMV
    return Partial(z_BHNV, max_BHN, a_BHNM.sum(-1))


def merge(partials: Iterable[Partial]) -> Partial:
    """Joins the results of several groups into that of their union."""
    partials = list(partials)
    max_BHN = torch.stack([p.max_BHN for p in partials]).detach().amax(0)
    factors = [torch.exp(p.max_BHN - finite(max_BHN)) for p in partials]
    z_BHNV = torch.stack([f.unsqueeze(-1) * p.z_BHNV for f, p in zip(factors, partials, strict=True)]).sum(0)
    sum_BHN = torch.stack([f * p.sum_BHN for f, p in zip(factors, partials, strict=True)]).sum(0)
    return Partial(z_BHNV, max_BHN, sum_BHN)


def run(call: Call) -> Tensor:
    """Attends to each group and merges."""
    return merge(partial(call, group) for group in call.inputs).finish()


def why_not(call: Call) -> str | None:
    """Does everything."""
    return None


def finite(max_BHN: Tensor) -> Tensor:
    """Replaces the -inf of rows with nothing to attend: -inf - -inf would be NaN."""
    return max_BHN.masked_fill(max_BHN == -math.inf, 0)
