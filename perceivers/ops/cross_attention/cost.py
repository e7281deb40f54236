"""What each implementation costs, from static sizes: how "auto" chooses, and `explain` tells why.

Work is counted in FLOPs of a matrix product; exponentials, passes over scores and calls count by their measured times
(benchmarks/LOG.md). They order implementations on CPUs in float32; nothing else has been measured, so that other devices,
half precision and autocast get `dense`.

Letters: H heads, N queries, M inputs, C channels of an encoded input, U of content, A axes, S rows of tables and content,
K width of queries and keys, V of values, a head.
"""

from dataclasses import dataclass

import torch

from perceivers.ops.cross_attention import absorbed, kernel, separable
from perceivers.ops.cross_attention.call import Call
from perceivers.ops.tokens import Tokens

EXPONENTIAL = 60  # of a fused kernel, with its running maximum and sum
PASSES, GATHER = 200, 165  # of a tile in PyTorch, its exponential included; and an axis of an index list
KERNEL_PASSES, KERNEL_CHANNEL = 15, 8  # of the C kernel, and of a channel of content beyond its unrolled ones
CALL = {"dense": 5e6, "absorbed": 1e7, "separable": 3e7}  # small operations, whatever the sizes


@dataclass(frozen=True)
class Cost:
    """What one sample costs, forward.

    Attributes:
        flops: Multiplications and additions.
        exponentials: One for each pair of query and input and head.
        held: Numbers held at a time beside inputs, queries and result.
        work: FLOPs of a matrix product that take as long as all of it.
    """

    flops: float
    exponentials: float
    held: float
    work: float


def choose(call: Call) -> str:
    """Returns the cheapest implementation that can do a call."""
    if unmeasured(call) is not None:
        return "dense"
    cheapest, lowest = "dense", float("inf")
    for name, cost in costs(call).items():  # written out: the compiler does not trace min with a key
        if cost.work < lowest:
            cheapest, lowest = name, cost.work
    return cheapest


def unmeasured(call: Call) -> str | None:
    """Says why "auto" takes `dense` without looking at costs, or `None` where it looks."""
    if call.q_BHNK.device.type != "cpu":
        return f"costs were measured on CPUs, and this is {call.q_BHNK.device.type}"
    if call.w_k.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu"):
        return "costs were measured in float32, and this is half precision"
    return None


def costs(call: Call) -> dict[str, Cost]:
    """The cost of each implementation that can do a call."""
    heads, channels, widths = call.heads, call.w_k.shape[1], len(call.w_k) + len(call.w_v)
    queries, inputs = call.q_BHNK.shape[2], call.num_inputs
    if torch.compiler.is_compiling():
        queries, inputs = 512, 50_176  # a graph may be for any number of them, and choosing by it would tie the graph to it
    pairs = heads * queries * inputs
    result: dict[str, Cost] = {}

    def add(name: str, flops: float, held: float, more_work: float) -> None:
        result[name] = Cost(flops, pairs, held, CALL[name] + flops + more_work)

    add(
        "dense",
        flops=2 * widths * (inputs * channels + queries * inputs),
        held=inputs * (channels + widths),
        more_work=EXPONENTIAL * pairs,
    )
    if absorbed.why_not(call) is None:
        add(
            "absorbed",
            flops=4 * channels * pairs + 2 * queries * channels * widths,
            held=2 * inputs * channels,
            more_work=EXPONENTIAL * pairs,
        )
    if separable.why_not(call) is None:
        rows, content, passes = 0, 0, 0.0
        for group in call.inputs:
            factors = len(group.tables) > 1
            channel_count = group.content.shape[1] if factors else channels
            rows += channel_count + (sum(table.shape[-2] for table in group.tables) if factors else 0)
            content = max(content, channel_count)
            passes = max(passes, _passes(call, group, channel_count))
        axes = max(len(group.tables) for group in call.inputs)
        add(
            "separable",
            flops=(4 * content + 2 * axes + 6) * pairs + 2 * rows * widths * (channels + queries),
            held=3 * heads * queries * rows + inputs,
            more_work=(passes - 2 * axes - 6) * pairs,
        )
    return result


def _passes(call: Call, group: Tokens, channels: int) -> float:
    """Work of a pair beside the products with its content."""
    in_pytorch = (
        len(group.tables) < 2 or torch.compiler.is_compiling()
    )  # the compiler does not trace the search for the kernel
    if in_pytorch or kernel.why_not(group.content, call.w_k.dtype, group.index) is not None:
        return PASSES + (0 if group.index is None else GATHER * len(group.tables))
    return KERNEL_PASSES + (0 if channels <= 3 else KERNEL_CHANNEL * channels) - 4 * min(channels, 3)
