"""What each implementation costs, from static sizes: how "auto" chooses.

Costs are per head and pair of query and input, in FLOPs of a matrix product; work that is no matrix product counts by its
measured time (benchmarks/LOG.md). They order implementations on CPUs in float32; nothing else has been measured, so that
other devices, half precision and autocast get `dense`.

Letters: N queries, C channels of an encoded input, U of content, K width of queries and keys, V of values, a head.
"""

import torch

from perceivers.ops.cross_attention import absorbed, native, separable
from perceivers.ops.cross_attention.call import Call

EXPONENTIAL = 60  # of a fused kernel
# Of `separable`, in plain PyTorch and with its C kernel: passes over a tile in cache, and what a sample costs once.
PASSES, SAMPLE = 200, 12e6
KERNEL_PASSES, KERNEL_SAMPLE = 40, 2e6


def choose(call: Call) -> str:
    """Returns the cheapest implementation that can do a call."""
    if call.q_BHNK.device.type != "cpu" or call.w_k.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu"):
        return "dense"
    cheapest, lowest = "dense", float("inf")
    for name, cost in costs(call).items():  # written out: the compiler does not trace min with a key
        if cost < lowest:
            cheapest, lowest = name, cost
    return cheapest


def costs(call: Call) -> dict[str, float]:
    """The cost of each implementation that can do a call."""
    queries, channels = call.q_BHNK.shape[2], call.w_k.shape[1]
    widths = (len(call.w_k) + len(call.w_v)) // call.heads
    result: dict[str, float] = {"dense": 2 * widths + EXPONENTIAL + 2 * channels * widths / queries}
    if absorbed.why_not(call) is None:
        result["absorbed"] = 4 * channels + EXPONENTIAL
    if separable.why_not(call) is None:
        result["separable"] = 4 * max(group.content.shape[1] for group in call.inputs) + PASSES
        # A graph may be for any number of inputs, and choosing by it would tie the graph to that number.
        if not torch.compiler.is_compiling():
            kernel = all(native.why_not(group.content, call.w_k.dtype, group.index) is None for group in call.inputs)
            pairs = max(1, call.heads * queries * sum(group.num_inputs for group in call.inputs))
            result["separable"] += KERNEL_PASSES - PASSES + KERNEL_SAMPLE / pairs if kernel else SAMPLE / pairs
    return result
