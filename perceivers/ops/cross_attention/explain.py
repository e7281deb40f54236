"""How a call of the cross-attention is computed, and why, in words and numbers."""

from collections.abc import Mapping

from perceivers.ops.cross_attention import kernel
from perceivers.ops.cross_attention.call import Call, Implementation
from perceivers.ops.cross_attention.cost import choose, costs, unmeasured


def explain(call: Call, implementations: Mapping[str, Implementation], implementation: str = "auto") -> str:
    """Returns a table of the implementations: what each costs one sample, or why it cannot do the call.

    Args:
        call: The call.
        implementations: Those there are.
        implementation: The name that was asked for.
    """
    chosen = choose(call) if implementation == "auto" else implementation
    known = costs(call)
    itemsize = call.w_k.dtype.itemsize
    lines = [f"{'':2}{'implementation':16}{'GFLOPs':>10}{'exponentials':>15}{'MB held':>10}{'work':>8}"]
    for name, entry in implementations.items():
        mark = "> " if name == chosen else "  "
        if reason := entry.why_not(call):
            lines.append(f"{mark}{name:16}refuses: {reason}")
        elif name in known:
            cost = known[name]
            relative = cost.work / known["dense"].work
            numbers = f"{cost.flops / 1e9:10.3f}{cost.exponentials:15,.0f}{cost.held * itemsize / 1e6:10.1f}{relative:8.3f}"
            lines.append(f"{mark}{name:16}{numbers}")
        else:
            lines.append(f"{mark}{name:16}the definition: makes all scores, for tests")
    if implementation != "auto":
        why = f"{implementation!r} was asked for by name"
    else:
        why = unmeasured(call) or "the least work, in matrix product FLOPs, relative to dense"
    lines.append(f"> {chosen}: {why}")
    if chosen == "separable":
        lines.append(f"  {_path(call)}")
    return "\n".join(lines)


def _path(call: Call) -> str:
    reasons = [kernel.why_not(group.content, call.w_k.dtype, group.index) for group in call.inputs if len(group.tables) > 1]
    if not reasons:
        return "no group has positions of two or more axes: their encoded arrays are read in tiles"
    return next((f"in PyTorch: {reason}" for reason in reasons if reason), kernel.description())
