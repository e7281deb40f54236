"""Attention to some of the inputs, and how such results merge into attention to all of them.

A softmax over several pieces of the inputs is

    out = sum_g e^(max_g - max) z_g / sum_g e^(max_g - max) sum_g,        max = the largest max_g

so pieces can be attended to one after another, in any order and grouping: files larger than memory, shards of several
processes, several modalities, frames that have not changed.

Letters: B batch, H heads, N queries, V width of values.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention to some of the inputs, with what is needed to merge it.

    Attributes:
        z_BHNV: sum over m of e^(S_m - max) v_m.
        max_BHN: The largest score, or a number near it, such as the logarithm of the sum; -inf where nothing may be attended
            to.
        sum_BHN: sum over m of e^(S_m - max), 0 where nothing may be attended to.
    """

    z_BHNV: Tensor
    max_BHN: Tensor
    sum_BHN: Tensor

    def finish(self) -> Tensor:
        """Divide by the sums: the attention, `[B, H, N, V]`, zero where nothing may be attended to."""
        nothing = self.sum_BHN == 0
        return self.z_BHNV / self.sum_BHN.masked_fill(nothing, 1).unsqueeze(-1)


def merge(partials: Iterable[Partial]) -> Partial:
    """Merge the results of several pieces into that of their union."""
    partials = list(partials)
    if len(partials) == 1:
        return partials[0]
    max_BHN = torch.stack([p.max_BHN for p in partials]).detach().amax(0)
    factors = [torch.exp(p.max_BHN - finite(max_BHN)) for p in partials]
    z_BHNV = torch.stack([f.unsqueeze(-1) * p.z_BHNV for f, p in zip(factors, partials, strict=True)]).sum(0)
    sum_BHN = torch.stack([f * p.sum_BHN for f, p in zip(factors, partials, strict=True)]).sum(0)
    return Partial(z_BHNV, max_BHN, sum_BHN)


def finite(max_BHN: Tensor) -> Tensor:
    """Replace the -inf of rows with nothing to attend to by 0: -inf - -inf would be NaN."""
    return max_BHN.masked_fill(max_BHN == -math.inf, 0)
