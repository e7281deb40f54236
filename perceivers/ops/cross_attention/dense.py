"""The usual way, done well: encode, normalise, project, and call the framework's fused attention. The baseline of all ratios.

Letters: B batch, H heads, N queries, M inputs, C channels, K width of queries and keys, V of values.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.cross_attention.call import Call


def run(call: Call) -> Tensor:
    """Makes the whole encoded array, its keys and its values; scores stay inside the fused kernel."""
    k_BHMK, v_BHMV = call.keys_and_values(torch.cat([group.encoded() for group in call.inputs], dim=1))
    mask_B11M, anything_B111 = None, None
    if any(group.mask is not None for group in call.inputs):
        mask_B11M = torch.cat([group.flat_mask() for group in call.inputs], dim=1)[:, None, None, :]
        # What a fully masked row gives differs between kernels and versions (NaN, zero, mean): attend to all, then clear.
        anything_B111 = mask_B11M.any(-1, keepdim=True)
        mask_B11M = mask_B11M | ~anything_B111
    width = v_BHMV.shape[-1]
    q_BHNK, k_BHMK, v_BHMV = _pad_to_fused(call.q_BHNK.to(k_BHMK.dtype), k_BHMK, v_BHMV)
    out_BHNV = F.scaled_dot_product_attention(
        q_BHNK, k_BHMK, v_BHMV, attn_mask=mask_B11M, dropout_p=call.dropout_p, scale=call.scale
    )[..., :width]
    return out_BHNV if anything_B111 is None else out_BHNV.masked_fill(~anything_B111, 0)


def why_not(call: Call) -> str | None:
    """Does everything."""
    return None


def _pad_to_fused(*tensors: Tensor) -> list[Tensor]:
    """Zero-pads queries, keys and values to a width that fused kernels take; otherwise they materialise all N x M scores.

    They want K = V, and on GPUs a multiple of 8. Zeros add nothing to a score, and the padding of the values is cut off.
    """
    width = max(tensor.shape[-1] for tensor in tensors)
    if tensors[0].device.type != "cpu":
        width = -(-width // 8) * 8
    return [F.pad(tensor, (0, width - tensor.shape[-1])) if tensor.shape[-1] < width else tensor for tensor in tensors]
