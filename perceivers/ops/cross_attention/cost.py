"""What each implementation costs, from static sizes: how "auto" chooses.

Costs are per head and pair of query and input, in FLOPs of a matrix product; work that is no matrix product counts by its
measured time (benchmarks/LOG.md). They order implementations on CPUs in float32; nothing else has been measured, so that
other devices, half precision and autocast get `dense`.

Letters: N queries, C channels of an encoded input, U of content, K width of queries and keys, V of values, a head.
"""

import torch

from perceivers.ops.cross_attention import absorbed, separable
from perceivers.ops.cross_attention.call import Call

EXPONENTIAL = 60  # of a fused kernel
PASSES = 200  # of `separable` over a tile in cache
DISPATCH = 12e6  # of `separable`, a sample: a dozen calls of the framework


def choose(call: Call) -> str:
    """Returns the cheapest implementation that can do a call."""
    if call.q_BHNK.device.type != "cpu" or call.w_k.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu"):
        return "dense"
    return min(costs(call).items(), key=lambda item: item[1])[0]


def costs(call: Call) -> dict[str, float]:
    """The cost of each implementation that can do a call."""
    queries, channels = call.q_BHNK.shape[2], call.w_k.shape[1]
    widths = (len(call.w_k) + len(call.w_v)) // call.heads
    result: dict[str, float] = {"dense": 2 * widths + EXPONENTIAL + 2 * channels * widths / queries}
    if absorbed.why_not(call) is None:
        result["absorbed"] = 4 * channels + EXPONENTIAL
    if separable.why_not(call) is None:
        content = max(group.content.shape[1] for group in call.inputs)
        result["separable"] = 4 * content + PASSES
        # A graph may be for any number of inputs, and choosing by it would tie the graph to that number.
        if not torch.compiler.is_compiling():
            pairs = call.heads * queries * sum(group.num_inputs for group in call.inputs)
            result["separable"] += DISPATCH * len(call.inputs) / max(1, pairs)
    return result
