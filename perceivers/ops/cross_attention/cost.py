"""What a call costs, from static sizes: what "auto" compares and `explain` reports.

Each implementation estimates its own cost, beside its code. Work is counted in FLOPs of a matrix product; exponentials, passes
over scores and calls count by their measured times (benchmarks/LOG.md). Costs order implementations on CPUs in float32;
nothing else has been measured, so other devices, half precision and autocast get `dense`.

Letters: H heads, N queries, M inputs, C channels of an encoded input, K width of queries and keys, V of values.
"""

from dataclasses import dataclass

import torch

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.queries import EncodedQueries


@dataclass(frozen=True)
class Cost:
    """What one sample costs, forward.

    Attributes:
        flops: Multiplications and additions.
        exponentials: One per pair of query and input and head.
        held: Elements held at a time beside inputs, queries and result.
        work: FLOPs of a matrix product that take as long as all of it.
    """

    flops: float
    exponentials: float
    held: float
    work: float


@dataclass(frozen=True)
class Sizes:
    """The sizes that costs are made of.

    Attributes:
        heads: H.
        queries: N.
        inputs: M.
        channels: C.
        k_channels: H * K.
        v_channels: H * V.
        projecting: FLOPs of projecting encoded queries; 0 for queries that are projected already.
        keys_and_values: FLOPs of projecting all inputs to keys and values; 0 if another call has shared them.
    """

    heads: int
    queries: int
    inputs: int
    channels: int
    k_channels: int
    v_channels: int
    projecting: int
    keys_and_values: int

    @classmethod
    def of(cls, call: Call) -> "Sizes":
        """Return the sizes of a call, or typical ones in a graph, which may be used with any number of queries and inputs."""
        queries, inputs = call.num_queries, call.num_inputs
        if torch.compiler.is_compiling():  # choosing by the real numbers would specialise the graph to them
            queries, inputs = 512, 50_176
        projection, projecting = call.projection, 0
        if isinstance(call.queries, EncodedQueries):
            projecting = 2 * queries * call.queries.tokens.num_channels * projection.k_channels
        channels, widths = call.num_channels, (projection.k_channels, projection.v_channels)
        keys_and_values = 2 * sum(widths) * inputs * channels if call.shared.keys_and_values is None else 0
        return cls(call.heads, queries, inputs, channels, *widths, projecting, keys_and_values)

    @property
    def widths(self) -> int:
        """H * (K + V)."""
        return self.k_channels + self.v_channels

    @property
    def pairs(self) -> int:
        """Pairs of a query and an input, in all heads."""
        return self.heads * self.queries * self.inputs


def unmeasured(call: Call) -> str | None:
    """Return why costs do not hold for a call, so that "auto" takes `dense`, or `None` if they do."""
    if call.device.type != "cpu":
        return f"costs were measured on CPUs, and this is {call.device.type}"
    if call.projection.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu"):
        return "costs were measured in float32, and this is half precision"
    return None
