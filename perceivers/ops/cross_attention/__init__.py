"""Cross-attention from queries to encoded inputs: one operation, several implementations.

    x_m = an encoded input, as `Tokens` describes it
    k_m = W_k norm(x_m) + b_k        S_m = scale q . k_m        A = softmax(S)
    v_m = W_v norm(x_m) + b_v        out = sum_m A_m v_m

README.md beside this file compares the implementations: what each makes, costs, and when it wins.

The boundary lies before the norm and before the projections, and takes a sequence of token groups that share one softmax:
only so can an implementation avoid keys, values and the encoded array. Every implementation takes the same arguments and
gives the same result up to rounding; none has parameters of its own, so the choice is never part of a checkpoint.

Letters: B batch, H heads, N queries, M inputs, C channels of an encoded input, K width of queries and keys, V of values.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from perceivers._checks import one_of
from perceivers.ops.cross_attention import absorbed, dense, encoded_queries, reference, separable
from perceivers.ops.cross_attention import explain as explanation
from perceivers.ops.cross_attention.call import Call, Implementation, Norm
from perceivers.ops.cross_attention.cost import choose
from perceivers.ops.cross_attention.encoded_queries import EncodedQueries
from perceivers.ops.cross_attention.partial import Partial, merge
from perceivers.ops.tokens import Tokens

__all__ = [
    "CHOICES",
    "IMPLEMENTATIONS",
    "EncodedQueries",
    "Norm",
    "Partial",
    "cross_attention",
    "explain",
    "merge",
    "partial",
]

IMPLEMENTATIONS = {
    "reference": Implementation(reference.run, reference.why_not, reference.partial),
    "dense": Implementation(dense.run, dense.why_not),
    "absorbed": Implementation(absorbed.run, absorbed.why_not),
    "separable": Implementation(separable.run, separable.why_not, separable.partial),
}
CHOICES = ("auto", *IMPLEMENTATIONS)


def cross_attention(
    q_BHNK: Tensor | EncodedQueries,
    inputs: Sequence[Tokens],
    norm: Norm | None,
    w_k: Tensor,
    b_k: Tensor | None,
    w_v: Tensor,
    b_v: Tensor | None,
    *,
    scale: float,
    dropout_p: float = 0.0,
    implementation: str = "auto",
    cache: dict[Hashable, Any] | None = None,
) -> Tensor:
    """Attends from queries to encoded inputs.

    Args:
        q_BHNK: Queries, already projected; or encoded ones, such as positions of a picture to be made, which "auto" does not
            project where that is cheaper (`encoded_queries`).
        inputs: Token groups that share one softmax, each with C channels when encoded.
        norm: Normalisation of the encoded inputs, or `None`.
        w_k: Projection to keys, `[H * K, C]`.
        b_k: Its bias, `[H * K]`, or `None`.
        w_v: Projection to values, `[H * V, C]`.
        b_v: Its bias, `[H * V]`, or `None`.
        scale: Factor of the scores, usually K ** -0.5.
        dropout_p: Probability of dropping an attention weight.
        implementation: A name of `IMPLEMENTATIONS`, which runs or raises, or "auto", which chooses.
        cache: A dict shared by calls with the same inputs, norm and projections, such as layers that share weights: what
            does not depend on the queries is kept there and made once.

    Returns:
        `[B, H, N, V]`. A sample with nothing to attend to gets zeros.

    Raises:
        ValueError: If the named implementation is unknown or cannot do this call; the message says why.
    """
    cache = {} if cache is None else cache
    if isinstance(q_BHNK, EncodedQueries):
        queries, sizes = q_BHNK, (q_BHNK.tokens.content.shape[0], q_BHNK.heads, 0, len(q_BHNK.w_q) // q_BHNK.heads)
        call = Call(queries.w_q.new_empty(sizes), inputs, norm, w_k, b_k, w_v, b_v, scale, dropout_p, cache)
        if implementation == "auto" and encoded_queries.pays(queries, call):
            return encoded_queries.run(queries, call)
        q_BHNK = queries.projected()
    call = Call(q_BHNK, inputs, norm, w_k, b_k, w_v, b_v, scale, dropout_p, cache)
    return _implementation(call, implementation).run(call).to(q_BHNK.dtype)


def partial(
    q_BHNK: Tensor,
    inputs: Sequence[Tokens],
    norm: Norm | None,
    w_k: Tensor,
    b_k: Tensor | None,
    w_v: Tensor,
    b_v: Tensor | None,
    *,
    scale: float,
    implementation: str = "separable",
) -> Partial:
    """Attends to some of the inputs, to be merged with the rest of them.

    ```python
    pieces = [partial(q, [piece], norm, w_k, b_k, w_v, b_v, scale=scale) for piece in tokens.pieces(1_000_000)]
    out = merge(pieces).finish()  # what cross_attention gives for all of them
    ```

    Args:
        q_BHNK: As in `cross_attention`, and so are the others.
        inputs: The token groups of this piece.
        norm: See `cross_attention`.
        w_k: See `cross_attention`.
        b_k: See `cross_attention`.
        w_v: See `cross_attention`.
        b_v: See `cross_attention`.
        scale: See `cross_attention`.
        implementation: "separable" or "reference"; the others know no sum of exponentials.

    Returns:
        A `Partial`: float32, or float64 where the queries are.

    Raises:
        ValueError: If the implementation is unknown or cannot do this.
    """
    call = Call(q_BHNK, inputs, norm, w_k, b_k, w_v, b_v, scale)
    run = _implementation(call, implementation, [name for name, i in IMPLEMENTATIONS.items() if i.partial]).partial
    assert run is not None
    return run(call)


def explain(
    q_BHNK: Tensor,
    inputs: Sequence[Tokens],
    norm: Norm | None,
    w_k: Tensor,
    b_k: Tensor | None,
    w_v: Tensor,
    b_v: Tensor | None,
    *,
    scale: float,
    dropout_p: float = 0.0,
    implementation: str = "auto",
) -> str:
    """Tells how `cross_attention` would compute this call, and why: a table of what each implementation costs.

    The arguments are those of `cross_attention`; nothing is computed.
    """
    one_of("implementation", implementation, CHOICES)
    call = Call(q_BHNK, inputs, norm, w_k, b_k, w_v, b_v, scale, dropout_p)
    return explanation.explain(call, IMPLEMENTATIONS, implementation)


def _implementation(call: Call, name: str, choices: Sequence[str] = CHOICES) -> Implementation:
    one_of("implementation", name, choices)
    chosen = IMPLEMENTATIONS[choose(call) if name == "auto" else name]
    if reason := chosen.why_not(call):
        raise ValueError(f"implementation={name!r} cannot do this: {reason}; use 'auto'")
    return chosen
