"""Projections absorbed into queries and results: no keys, no values, attention to the normalised inputs themselves.

With x^ = (x - mean) / std, so that norm(x) = gamma x^ + beta, and one head's query q:

    S_m = scale q . (W_k norm(x_m) + b_k) = q~ . x^_m + const        q~ = gamma * (scale W_k^T q)
    out = W_v (gamma * z + beta s) + b_v s                           z = sum_m A_m x^_m,  s = sum_m A_m

A pair of query and input costs 4 C FLOPs a head, and no input is projected; dense costs 2 (K + V) a pair and head, and
2 C (K + V) an input and head. Known from multi-head latent attention (DeepSeek-V2, section 2.1).

Letters: B batch, H heads, N queries, Q = H N, M inputs, C channels.
"""

from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.dense import attend


def run(call: Call) -> Tensor:
    """Makes the encoded array and normalises it; the result is key and value of all heads."""
    x_BMC = call.encoded()
    if call.norm is not None:
        x_BMC = F.layer_norm(x_BMC, x_BMC.shape[-1:], eps=call.norm.eps)
    q_BHNC = call.folded_queries()
    x_B1MC = x_BMC.to(q_BHNC.dtype).unsqueeze(1)
    # All heads read the same keys, so they are one head with Q = H N queries.
    z_B1QC, s_B111 = attend(q_BHNC.flatten(1, 2).unsqueeze(1), x_B1MC, x_B1MC, call.mask(), scale=1.0)
    return call.unfolded_values(z_B1QC.squeeze(1).unflatten(1, q_BHNC.shape[1:3]), s_B111)


def why_not(call: Call) -> str | None:
    """Refuses dropout of attention weights: after it their sum s is no longer 1."""
    return f"it cannot drop attention weights, and dropout_p={call.dropout_p}" if call.dropout_p > 0 else None
