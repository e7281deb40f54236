"""What an implementation of the cross-attention is, and how "auto" chooses one.

Letters: B batch, H heads, N queries, V width of values.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.cost import Cost, unmeasured
from perceivers.ops.cross_attention.merging import Partial


@dataclass(frozen=True)
class Implementation:
    """One way to compute the operation: a row of the table of implementations.

    Attributes:
        name: What users select it by.
        run: Computes a call, `[B, H, N, V]`.
        why_not: Returns why it cannot compute a call, in words that complete "it cannot do this: ...", or `None` if it can.
        cost: Returns what a call costs, for the choice of "auto"; `None` instead of a function, or as its result, for an
            implementation that is used only if selected by name.
        partial: Computes a call for some of the inputs, to be merged; `None` if it cannot.
        devices: Types of devices that it runs on, such as ("cpu",); `None` for all.
    """

    name: str
    run: Callable[[Call], Tensor]
    why_not: Callable[[Call], str | None]
    cost: Callable[[Call], Cost | None] | None = None
    partial: Callable[[Call], Partial] | None = None
    devices: tuple[str, ...] | None = None

    def refusal(self, call: Call) -> str | None:
        """Return why it cannot compute a call, also because of the device, or `None` if it can."""
        if self.devices is not None and call.device.type not in self.devices:
            return f"it runs on {', '.join(self.devices)}, and this is {call.device.type}"
        return self.why_not(call)


def choose(call: Call, implementations: Iterable[Implementation]) -> Implementation:
    """Return the cheapest implementation that can compute a call, the first of several; `dense` if nothing was measured."""
    only_dense = unmeasured(call) is not None
    found: dict[str, Implementation] = {}
    work: dict[str, float] = {}
    for row in implementations:
        if row.cost is None or (only_dense and row.name != "dense"):
            continue
        if row.refusal(call) is None and (cost := row.cost(call)) is not None:
            found[row.name], work[row.name] = row, cost.work
    return found[cheapest(work)]


def cheapest(work: Mapping[str, float]) -> str:
    """Return the name of the implementation with the least work, the first of several.

    Encoded queries come in chunks, which share keys and values. For one small chunk `absorbed` may cost less than making them,
    but not for all chunks; so only those that make them are compared, if encoded queries are cheaper than `dense`.
    """
    skipped = ("absorbed", "separable") if "encoded_queries" in work and work["encoded_queries"] < work["dense"] else ()
    name, least = "dense", float("inf")
    for other in work:  # written out: the compiler does not trace min with a key
        if other not in skipped and work[other] < least:
            name, least = other, work[other]
    return name
