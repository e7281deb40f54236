"""The standard algorithm: encode, normalise, project, and call PyTorch's fused attention. The baseline of all ratios.

Letters: B batch, H heads, N queries, M inputs, C channels, K width of queries and keys, V of values.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.cost import Cost, Sizes
from perceivers.ops.cross_attention.implementation import Implementation
from perceivers.ops.linear import linear

FEW_PAIRS = 1 << 21  # of queries and inputs: 8 MB of scores
EXPONENTIAL = 60  # work of one in fused attention, with its running maximum and sum
CALL = 5e6  # work of the small operations, whatever the sizes


def run(call: Call) -> Tensor:
    """Make the whole encoded array, its keys and its values; scores stay inside the fused kernel, unless they are few."""
    q_BHNK = call.q_BHNK
    k_BHMK, v_BHMV = call.keys_and_values()
    return attend(q_BHNK.to(k_BHMK.dtype), k_BHMK, v_BHMV, call.mask(), scale=call.scale, dropout_p=call.dropout_p)[0]


def why_not(call: Call) -> str | None:
    """Return `None`: it computes every call."""
    return None


def cost(call: Call) -> Cost:
    """Return the cost of projecting all inputs, and of two products per pair."""
    sizes = Sizes.of(call)
    flops = sizes.projecting + sizes.keys_and_values + 2 * sizes.widths * sizes.queries * sizes.inputs
    held = sizes.inputs * (sizes.channels + sizes.widths)
    return Cost(flops, sizes.pairs, held, work=CALL + flops + EXPONENTIAL * sizes.pairs)


def attend(
    q_BHNK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, mask_BM: Tensor | None, *, scale: float, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """Compute fused attention; zeros for samples with nothing to attend to.

    Returns:
        `[B, H, N, V]`, and the sum of each sample's weights: `[B, 1, 1, 1]` of ones and zeros, or `None` without a mask.
    """
    width, anything_B111 = v_BHMV.shape[-1], None
    if mask_BM is None and dropout_p == 0 and _few_pairs(q_BHNK, k_BHMK):
        a_NM = linear(scale * q_BHNK[0, 0], k_BHMK[0, 0]).softmax(-1)
        return linear(a_NM, v_BHMV[0, 0].mT)[None, None], None
    if mask_BM is not None:
        # The result of a fully masked row differs between kernels and versions (NaN, zero, mean): attend to all, then clear.
        anything_B111 = mask_BM.any(-1)[:, None, None, None]
        mask_BM = mask_BM[:, None, None, :] | ~anything_B111
    q_BHNK, k_BHMK, v_BHMV = _pad_to_fused(q_BHNK, k_BHMK, v_BHMV)
    out_BHNV = F.scaled_dot_product_attention(q_BHNK, k_BHMK, v_BHMV, attn_mask=mask_BM, dropout_p=dropout_p, scale=scale)[
        ..., :width
    ]
    if anything_B111 is None:
        return out_BHNV, None
    return out_BHNV.masked_fill(~anything_B111, 0), anything_B111.to(out_BHNV.dtype)


def _few_pairs(q_BHNK: Tensor, k_BHMK: Tensor) -> bool:
    """Return True if products and softmax as separate operations are faster: if scores are few, and of one head.

    Fused attention on CPUs computes the gradients of a head in one thread, and does not multiply by oneDNN (see `linear`).
    """
    (samples, heads, queries, _), inputs = q_BHNK.shape, k_BHMK.shape[2]
    wide = q_BHNK.device.type == "cpu" and q_BHNK.dtype.itemsize >= 4  # scores of half precision would lose digits
    return wide and not torch.compiler.is_compiling() and samples * heads == 1 and queries * inputs <= FEW_PAIRS


def _pad_to_fused(*tensors: Tensor) -> list[Tensor]:
    """Zero-pad queries, keys and values to a width that fused kernels accept; otherwise all N x M scores are materialised.

    They need K = V, and on GPUs a multiple of 8. Zeros add nothing to a score, and the padding of the values is cut off.
    """
    width = max(tensor.shape[-1] for tensor in tensors)
    if tensors[0].device.type != "cpu":
        width = -(-width // 8) * 8
    return [F.pad(tensor, (0, width - tensor.shape[-1])) if tensor.shape[-1] < width else tensor for tensor in tensors]


DENSE = Implementation("dense", run, why_not, cost)
