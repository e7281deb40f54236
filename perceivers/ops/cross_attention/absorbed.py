"""Projections absorbed into queries and results: no keys, no values, attention to the normalised inputs themselves.

With x^ the normalised input before weight and bias, and the norm folded into the projections (`Projections.folded`):

    S_m = q . (W_k x^_m) + const = (W_k^T q) . x^_m          out = W_v z + b_v s,    z = sum_m A_m x^_m,  s = sum_m A_m

A pair of query and input costs 4 C FLOPs per head, and no input is projected; dense costs 2 (K + V) per pair and head, and
2 C (K + V) per input and head. Known from multi-head latent attention (DeepSeek-V2, section 2.1).

Letters: B batch, H heads, N queries, Q = H N, M inputs, C channels.
"""

from torch import Tensor

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.cost import Cost, Sizes
from perceivers.ops.cross_attention.dense import EXPONENTIAL, attend
from perceivers.ops.cross_attention.implementation import Implementation

CALL = 1e7  # work of the small operations, whatever the sizes


def run(call: Call) -> Tensor:
    """Make the encoded array and normalise it; the result is key and value of all heads."""
    q_BHNK, x_BMC = call.q_BHNK, call.normalised()
    w_k, w_v, b_v = call.folded()
    q_BHNC = q_BHNK.to(w_k.dtype) @ w_k.unflatten(0, (call.heads, -1))
    x_B1MC = x_BMC.to(q_BHNC.dtype).unsqueeze(1)
    # All heads read the same keys, so they are one head with Q = H N queries.
    z_B1QC, s_B111 = attend(q_BHNC.flatten(1, 2).unsqueeze(1), x_B1MC, x_B1MC, call.mask(), scale=1.0)
    z_BHNC = z_B1QC.squeeze(1).unflatten(1, q_BHNC.shape[1:3])
    return call.with_bias(z_BHNC @ w_v.unflatten(0, (call.heads, -1)).mT, b_v, s_B111)


def why_not(call: Call) -> str | None:
    """Refuse opaque projections, and dropout of attention weights: after it their sum s is no longer 1."""
    return call.why_opaque() or call.why_dropped()


def cost(call: Call) -> Cost:
    """Return the cost of two products with C channels per pair, and of projecting queries and results."""
    sizes = Sizes.of(call)
    products = 4 * sizes.channels * sizes.pairs + 2 * sizes.queries * sizes.channels * sizes.widths
    flops, held = sizes.projecting + products, 2 * sizes.inputs * sizes.channels
    return Cost(flops, sizes.pairs, held, work=CALL + flops + EXPONENTIAL * sizes.pairs)


ABSORBED = Implementation("absorbed", run, why_not, cost)
