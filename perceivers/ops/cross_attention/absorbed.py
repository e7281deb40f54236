"""Projections absorbed into queries and results: no keys, no values, attention to the normalised inputs themselves.

With x^ the normalised input before weight and bias, and the norm folded into the projections (`Call.folded_projections`):

    S_m = q . (W_k x^_m) + const = (W_k^T q) . x^_m          out = W_v z + b_v s,    z = sum_m A_m x^_m,  s = sum_m A_m

A pair of query and input costs 4 C FLOPs a head, and no input is projected; dense costs 2 (K + V) a pair and head, and
2 C (K + V) an input and head. Known from multi-head latent attention (DeepSeek-V2, section 2.1).

Letters: B batch, H heads, N queries, Q = H N, M inputs, C channels.
"""

from torch import Tensor

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.dense import attend


def run(call: Call) -> Tensor:
    """Makes the encoded array and normalises it; the result is key and value of all heads."""
    x_BMC = call.once("normalised", lambda: _normalised(call))
    w_k, w_v, b_v = call.once("projections", call.folded_projections)
    q_BHNC = call.q_BHNK.to(w_k.dtype) @ w_k.unflatten(0, (call.heads, -1))
    x_B1MC = x_BMC.to(q_BHNC.dtype).unsqueeze(1)
    # All heads read the same keys, so they are one head with Q = H N queries.
    z_B1QC, s_B111 = attend(q_BHNC.flatten(1, 2).unsqueeze(1), x_B1MC, x_B1MC, call.mask(), scale=1.0)
    z_BHNC = z_B1QC.squeeze(1).unflatten(1, q_BHNC.shape[1:3])
    return call.with_bias(z_BHNC @ w_v.unflatten(0, (call.heads, -1)).mT, b_v, s_B111)


def _normalised(call: Call) -> Tensor:
    x_BMC = call.encoded()
    return x_BMC if call.norm is None else call.norm.plain(x_BMC)


def why_not(call: Call) -> str | None:
    """Refuses dropout of attention weights: after it their sum s is no longer 1."""
    return f"it cannot drop attention weights, and dropout_p={call.dropout_p}" if call.dropout_p > 0 else None
