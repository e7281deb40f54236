"""Cross-attention from queries to encoded inputs: one operation, several implementations.

    x_m = an encoded input, as `Tokens` describes it
    k_m = W_k norm(x_m) + b_k        S_m = scale q . k_m        A = softmax(S)
    v_m = W_v norm(x_m) + b_v        out = sum_m A_m v_m

README.md in this folder compares the implementations: what each makes, costs, and when it wins. Each is one file, whose `run`
computes it, and one row of `IMPLEMENTATIONS`. The default for images is separable.py, whose scores are made by tiles.py in
PyTorch and by kernels/separable.c in C.

The boundary lies before the norm and before the projections, and takes a sequence of token groups that share one softmax:
only so can an implementation avoid keys, values and the encoded array. Every implementation takes the same arguments and
gives the same result up to rounding; none has parameters, so the choice is never part of a checkpoint.

Letters: B batch, H heads, N queries, M inputs, C channels of an encoded input, K width of queries and keys, V of values.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from perceivers._checks import one_of
from perceivers.ops.cross_attention.absorbed import ABSORBED
from perceivers.ops.cross_attention.call import Call, Shared
from perceivers.ops.cross_attention.cost import Cost
from perceivers.ops.cross_attention.dense import DENSE
from perceivers.ops.cross_attention.encoded_queries import ENCODED_QUERIES
from perceivers.ops.cross_attention.implementation import Implementation, choose
from perceivers.ops.cross_attention.merging import Partial, merge
from perceivers.ops.cross_attention.projections import Norm, OpaqueProjections
from perceivers.ops.cross_attention.queries import EncodedQueries, OpaqueQueryProjection, QueryProjection
from perceivers.ops.cross_attention.reference import REFERENCE
from perceivers.ops.cross_attention.report import report
from perceivers.ops.cross_attention.separable import SEPARABLE
from perceivers.ops.tokens import Tokens

__all__ = [
    "IMPLEMENTATIONS",
    "Call",
    "Cost",
    "EncodedQueries",
    "Implementation",
    "Norm",
    "OpaqueProjections",
    "OpaqueQueryProjection",
    "Partial",
    "QueryProjection",
    "Shared",
    "choices",
    "cross_attention",
    "explain",
    "merge",
    "partial",
    "register_implementation",
]

# The table. "auto" takes the first of the cheapest; names of the rows are also in perceivers/kernels/__init__.py.
IMPLEMENTATIONS: dict[str, Implementation] = {
    row.name: row for row in (REFERENCE, DENSE, ABSORBED, SEPARABLE, ENCODED_QUERIES)
}


def choices() -> tuple[str, ...]:
    """Return what `implementation` may be: "auto" and the names of all rows, registered ones included."""
    return "auto", *IMPLEMENTATIONS


def register_implementation(row: Implementation) -> None:
    """Add an implementation to the table, for `implementation=` and `set_attention_implementation`.

    If the row has a cost, "auto" chooses it when it is cheapest.

    Raises:
        ValueError: If the name is taken.
    """
    if row.name in choices():
        raise ValueError(f"an implementation called {row.name!r} exists: choose another name than {', '.join(choices())}")
    IMPLEMENTATIONS[row.name] = row


def cross_attention(
    q_BHNK: Tensor | EncodedQueries,
    inputs: Sequence[Tokens],
    norm: Norm | None,
    w_k: Tensor | None,
    b_k: Tensor | None,
    w_v: Tensor | None,
    b_v: Tensor | None,
    *,
    scale: float,
    dropout_p: float = 0.0,
    implementation: str = "auto",
    shared: Shared | None = None,
    project: OpaqueProjections | None = None,
) -> Tensor:
    """Attend from queries to encoded inputs.

    Args:
        q_BHNK: Projected queries; or encoded ones, such as positions of an image to be made, which are projected only if the
            implementation needs it (`encoded_queries` does not).
        inputs: Token groups that share one softmax, each with C channels when encoded.
        norm: Normalisation of the encoded inputs, or `None`.
        w_k: Projection to keys, `[H * K, C]`.
        b_k: Its bias, `[H * K]`, or `None`.
        w_v: Projection to values, `[H * V, C]`.
        b_v: Its bias, `[H * V]`, or `None`.
        scale: Factor of the scores, usually K ** -0.5.
        dropout_p: Probability of dropping an attention weight.
        implementation: A name of `IMPLEMENTATIONS`, which runs or raises, or "auto", which chooses.
        shared: Passed to all calls with the same inputs, norm and projections, such as those of layers that share weights:
            what does not depend on the queries is made once.
        project: Makes keys and values if their weights are not known; norm, weights and biases are then `None`.

    Returns:
        `[B, H, N, V]`. A sample with nothing to attend to gets zeros.

    Raises:
        ValueError: If the named implementation is unknown or cannot compute this call; the message gives the reason.
    """
    call = Call.of(q_BHNK, inputs, norm, w_k, b_k, w_v, b_v, scale=scale, dropout_p=dropout_p, shared=shared, project=project)
    if implementation == "auto":
        out = choose(call, IMPLEMENTATIONS.values()).run(call)
    else:
        out = _named(call, implementation, choices()).run(call)
    return out if call.projected is None else out.to(call.projected.dtype)


def partial(*arguments: Any, implementation: str = "separable", **keywords: Any) -> Partial:
    """Attend to some of the inputs; the result can be merged with that of the others.

    ```python
    pieces = [partial(q, [piece], norm, w_k, b_k, w_v, b_v, scale=scale) for piece in tokens.pieces(1_000_000)]
    out = merge(pieces).finish()  # what cross_attention gives for all of them
    ```

    Args:
        *arguments: Those of `cross_attention`, with the token groups of this piece as inputs.
        implementation: An implementation with `partial`, such as "separable" or "reference"; the others do not return the sum
            of exponentials.
        **keywords: Those of `cross_attention`.

    Returns:
        A `Partial`: float32, or float64 if the queries are.

    Raises:
        ValueError: If the implementation is unknown or cannot compute this call.
    """
    call = Call.of(*arguments, **keywords)
    run = _named(call, implementation, [name for name, row in IMPLEMENTATIONS.items() if row.partial]).partial
    assert run is not None
    return run(call)


def explain(*arguments: Any, implementation: str = "auto", **keywords: Any) -> str:
    """Return how `cross_attention` would compute this call, and why: a table of what each implementation costs.

    The arguments are those of `cross_attention`; nothing is computed.
    """
    one_of("implementation", implementation, choices())
    return report(Call.of(*arguments, **keywords), IMPLEMENTATIONS.values(), implementation)


def _named(call: Call, name: str, names: Sequence[str]) -> Implementation:
    row = IMPLEMENTATIONS[one_of("implementation", name, names)]
    if (reason := row.refusal(call)) is not None:
        raise ValueError(f"implementation={name!r} cannot do this: {reason}; use 'auto'")
    return row
