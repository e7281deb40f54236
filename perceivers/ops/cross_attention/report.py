"""How a call of the cross-attention is computed, and why, as a table."""

from collections.abc import Iterable

from perceivers.ops.cross_attention import kernel
from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.cost import unmeasured
from perceivers.ops.cross_attention.implementation import Implementation, cheapest


def report(call: Call, implementations: Iterable[Implementation], selected: str) -> str:
    """Return a table of the implementations: what each costs for one sample, or why it cannot compute the call.

    Args:
        call: The call.
        implementations: The rows of the table.
        selected: A name, or "auto".
    """
    rows = list(implementations)
    reasons = {row.name: row.refusal(call) for row in rows}
    costs = {row.name: None if row.cost is None or reasons[row.name] is not None else row.cost(call) for row in rows}
    chosen, why = selected, f"{selected!r} was selected by name"
    if selected == "auto":
        why = unmeasured(call)
        chosen = "dense" if why else cheapest({name: cost.work for name, cost in costs.items() if cost is not None})
        why = why or "the least work, in FLOPs of a matrix product, relative to dense"

    itemsize, dense = call.projection.dtype.itemsize, costs["dense"]
    lines = [f"{'':2}{'implementation':16}{'GFLOPs':>10}{'exponentials':>15}{'MB held':>10}{'work':>8}"]
    for name, reason in reasons.items():
        cost, text = costs[name], "no cost: used only if selected by name"
        if reason is not None:
            text = f"refuses: {reason}"
        elif cost is not None:
            work = f"{cost.work / dense.work:8.3f}" if dense is not None else ""
            text = f"{cost.flops / 1e9:10.3f}{cost.exponentials:15,.0f}{cost.held * itemsize / 1e6:10.1f}{work}"
        lines.append(f"{'>' if name == chosen else ' '} {name:16}{text}")
    lines.append(f"> {chosen}: {why}")
    if chosen == "separable" and reasons[chosen] is None:
        lines.append(f"  {_path(call)}")
    return "\n".join(lines)


def _path(call: Call) -> str:
    dtype = call.projection.dtype
    reasons = [kernel.why_not(group.content, dtype, group.index) for group in call.inputs if len(group.tables) > 1]
    if not reasons:
        return "no group has positions of two or more axes: their encoded arrays are read in tiles"
    return next((f"in PyTorch: {reason}" for reason in reasons if reason), kernel.description())
