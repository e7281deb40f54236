"""Scores of a grid from one short table an axis: no keys, no values, no encoded array, whatever the number of bands.

An encoded input is a sum of rows X (see `factored`), times rho_m, one over its standard deviation, so that scores and sums of
all inputs are made of those of the rows. With the norm folded into the projections (`Call.folded_projections`),

    p = X W_k^T q                       one number a row of a table, T_a = p on axis a, and one a channel of content, p_u
    S_m = rho_m (T_1[i_1(m)] + ... + T_A[i_A(m)] + p_u . u_m) + const
    out = W_v X^T r + b_v s             r: R_a[i] = sum over i_a(m) = i of A_m rho_m, and r_u = sum_m A_m rho_m u_m

There are 451 rows for a picture of 50,176 pixels, and a pair of query and input costs 4 U + 2 A + 6 FLOPs. Rows or queries
are projected, whichever takes fewer products. What has queries and inputs, from p to r, is one operator,
`perceivers::separable_attention`, forward and backward written out, which holds a tile of scores at a time; the rest is plain
PyTorch. Inputs whose positions have fewer than two axes have nothing to factor: their encoded array is the content, and this
is `absorbed`, tiled.

Nothing like it was found published; its relatives are decomposed relative positions (segment-anything-fast), whose row and
column scores are added in the tile while content stays dense, and absorption (see `absorbed`).

Letters: B batch, H heads, N queries, Q = H N, M inputs, U channels of content, A axes, n_a rows of the table of axis a,
L = n_1 + ... + n_A, S = L + U rows in all, K and V width of queries and values.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from perceivers.ops.cross_attention import kernel
from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.factored import collect, factors, inverse_deviations, project
from perceivers.ops.cross_attention.partial import Partial, finite, merge
from perceivers.ops.linear import linear
from perceivers.ops.operator import operator
from perceivers.ops.tokens import Tokens

TILE = 1 << 18  # scores held at a time, some of them in each of a few buffers: 1 MB each, about a core's cache
QUERIES = 256  # of a tile of inputs without tables, whose content is read once a tile
FEW_CHANNELS, SHARING = 4, 64  # of content, and at least so many queries of a tile where there are more


def run(call: Call) -> Tensor:
    """Attends to each group and merges the results."""
    whole, b_v = _attend(call)
    return _finish(call, whole, b_v)


def partial(call: Call) -> Partial:
    """The same as a result that can be merged: divided already, with the logarithm of its sum for a maximum."""
    whole, b_v = _attend(call)
    nothing = whole.sum_BHN == 0
    lse_BHN = whole.max_BHN + whole.sum_BHN.masked_fill(nothing, 1).log() + call.dropped_score()
    return Partial(_finish(call, whole, b_v), lse_BHN, (~nothing).to(lse_BHN.dtype))


def why_not(call: Call) -> str | None:
    """Refuses dropout of attention weights: after it their sum is no longer 1."""
    return f"it cannot drop attention weights, and dropout_p={call.dropout_p}" if call.dropout_p > 0 else None


def _attend(call: Call) -> tuple[Partial, Tensor | None]:
    """All groups together, in float32 at least and without the folded bias of the values, which is returned beside."""
    dtype = torch.promote_types(call.q_BHNK.dtype, torch.float32)
    with torch.autocast(call.q_BHNK.device.type, enabled=False):
        w_k, w_v, b_v = call.once("projections", call.folded_projections)
        w_k, w_v, q_BHNK = w_k.to(dtype), w_v.to(dtype), call.q_BHNK.to(dtype)
        return merge(_attend_to_group(call, q_BHNK, w_k, w_v, g) for g in range(len(call.inputs))), b_v


def _attend_to_group(call: Call, q_BHNK: Tensor, w_k: Tensor, w_v: Tensor, g: int) -> Partial:
    """One group: divided by its sum already, with the log-sum-exp for a maximum."""
    dtype = q_BHNK.dtype
    group = call.once(("factors", g), lambda: factors(call.inputs[g]))
    content = call.once(("content", g), lambda: _content(group, dtype))
    rho = call.once(("rho", g), lambda: inverse_deviations(group, content, call.norm, dtype))
    if queries_first := _queries_first(group, w_k, w_v, call.heads):
        k_HKX, v_HVX = (w.unflatten(0, (call.heads, -1)) for w in (w_k, w_v))  # X: the C channels
    else:
        k_HKX, v_HVX = call.once(  # X: the S rows
            ("rows", g), lambda: [project(group, w).unflatten(-2, (call.heads, -1)) for w in (w_k, w_v)]
        )
    q_BQX = _heads(q_BHNK, k_HKX.mT).flatten(1, 2)
    p_BQS = project(group, q_BQX) if queries_first else q_BQX
    lengths = [table.shape[-2] for table in group.tables]
    r_BQS, lse_BQ = separable_attention(p_BQS, content, rho, group.mask, group.index, lengths)
    lse_BHN = lse_BQ.unflatten(1, q_BHNK.shape[1:3])
    r_BHNX = (collect(group, r_BQS) if queries_first else r_BQS).unflatten(1, q_BHNK.shape[1:3])
    anything_BHN = torch.ones_like(lse_BHN) if group.mask is None else (lse_BHN != -math.inf).to(dtype)
    return Partial(_heads(r_BHNX, v_HVX), lse_BHN, anything_BHN)


def _queries_first(group: Tokens, w_k: Tensor, w_v: Tensor, heads: int) -> bool:
    """Whether X (W^T q) takes fewer products than (X W^T) q, forward and backward, with tables that need no gradients."""
    if torch.compiler.is_compiling():
        return False  # a graph may be for any size, and choosing by it would tie the graph to it
    width, channels, rows = (len(w_k) + len(w_v)) // heads, w_k.shape[1], group.content.shape[1]
    numbers = 0
    for table in group.tables:
        rows += table.shape[-2]
        numbers += table.shape[-2] * table.shape[-1]
    return 3 * width * channels + 4 * numbers <= 3 * width * rows


def _heads(x_BHNC: Tensor, w_HDC: Tensor) -> Tensor:
    """A linear map of each head, `[B, H, N, D]`, by `[H, D, C]`, or `[B, H, D, C]` where samples differ."""
    return linear(x_BHNC, w_HDC.squeeze(0)) if len(w_HDC) == 1 and w_HDC.ndim == 3 else x_BHNC @ w_HDC.mT


def _content(group: Tokens, dtype: torch.dtype) -> Tensor:
    """The visible content in the dtype of the queries; half precision stays, for the operator widens it where it reads."""
    content = group.visible_content()
    return content if content.dtype in kernel.CONTENT_TYPES else content.to(dtype)


def _finish(call: Call, whole: Partial, b_v: Tensor | None) -> Tensor:
    with torch.autocast(call.q_BHNK.device.type, enabled=False):
        s_BHN1 = None if all(group.mask is None for group in call.inputs) else (whole.sum_BHN > 0).unsqueeze(-1)
        divided = len(call.inputs) == 1  # by the operator; the results of several groups are merged with their weights
        return call.with_bias(whole.z_BHNV if divided else whole.finish(), b_v, s_BHN1)


class Inputs:
    """The inputs of one sample, flat, or some of them: how numbers of table rows reach them and come back."""

    def __init__(self, u_UM: Tensor, rho_M: Tensor, mask_M: Tensor | None, index_MA: Tensor | None, lengths: Sequence[int]):
        self.u_UM, self.rho_M, self.index_MA, self.lengths = u_UM, rho_M, index_MA, lengths
        self.masked_M = None if mask_M is None else ~mask_M

    def scores(self, p_QS: Tensor) -> Tensor:
        """T_1[i_1(m)] + ... + T_A[i_A(m)] + p_u . u_m, `[Q, M]`."""
        *tables, p_QU = p_QS.split([*self.lengths, len(self.u_UM)], dim=-1)
        s_QM = p_QU @ self.u_UM
        if self.index_MA is not None:
            for a, t_Qn in enumerate(tables):
                s_QM += t_Qn[:, self.index_MA[:, a]]
            return s_QM
        grid = s_QM.view(-1, *self.lengths) if self.lengths else s_QM
        for a, t_Qn in enumerate(tables):
            grid += t_Qn.view(-1, *(length if axis == a else 1 for axis, length in enumerate(self.lengths)))
        return s_QM

    def sums(self, w_QM: Tensor) -> Tensor:
        """For each axis a and row i the sum of the weights with i_a(m) = i, and the weighted sum of the content, `[Q, S]`."""
        content_QU = w_QM @ self.u_UM.mT
        if self.index_MA is not None:
            zeros = (w_QM.new_zeros(len(w_QM), n) for n in self.lengths)
            marginals = [z_Qn.index_add_(1, self.index_MA[:, a], w_QM) for a, z_Qn in enumerate(zeros)]
        else:
            grid, axes = w_QM.view(-1, *self.lengths) if self.lengths else w_QM, range(len(self.lengths))
            marginals = [grid.sum([1 + axis for axis in axes if axis != a]) for a in axes]
        return torch.cat([*marginals, content_QU], dim=-1)


def slabs(
    step: int, u_UM: Tensor, rho_M: Tensor, mask_M: Tensor | None, index_MA: Tensor | None, lengths: Sequence[int]
) -> Iterator[tuple[slice, list[slice], Inputs]]:
    """The inputs of one sample, `step` rows of the first axis at a time, or single ones of a list.

    Yields:
        Which inputs, which of the S rows they are made of, and their factors.
    """
    grid = index_MA is None and len(lengths) > 0
    inner = math.prod(lengths[1:]) if grid else 1
    count = len(rho_M) // inner
    for start in range(0, count, step):
        stop = min(start + step, count)
        here, rows, own = slice(start * inner, stop * inner), [slice(None)], lengths
        if grid and stop - start < count:
            rows, own = [slice(start, stop), slice(count, None)], [stop - start, *lengths[1:]]
        mask_m, index_m = (None if x is None else x[here] for x in (mask_M, index_MA))
        yield here, rows, Inputs(u_UM[:, here], rho_M[here], mask_m, index_m, own)


def pick(x_QS: Tensor, rows: Sequence[slice]) -> Tensor:
    """Some of the S rows."""
    return x_QS[:, rows[0]] if len(rows) == 1 else torch.cat([x_QS[:, some] for some in rows], dim=-1)


def add(into_QS: Tensor, rows: Sequence[slice], part_QS: Tensor) -> None:
    """Adds what some of the S rows have."""
    start = 0
    for some in rows:
        target = into_QS[:, some]
        target += part_QS[:, start : start + target.shape[1]]
        start += target.shape[1]


def _tiles(
    queries: int, content: Tensor, rho: Tensor, mask: Tensor | None, index: Tensor | None, lengths: Sequence[int]
) -> Iterator[tuple[int, slice, slice, list[slice], Inputs]]:
    """For each tile of scores: its sample, queries, inputs, rows, and the factors of these inputs."""
    inputs, inner = rho[0].numel() if len(rho) else 0, math.prod(lengths[1:]) if index is None else 1
    some = max(1, TILE // max(1, inputs)) if lengths else QUERIES
    if content.shape[1] > FEW_CHANNELS:  # reading the content takes long, so that more queries share it
        some = max(some, SHARING)
    step = max(1, TILE // (some * inner))
    for b in range(len(content)):
        u_UM, rho_M = content[b].flatten(1).to(rho.dtype), rho[b].flatten()
        mask_M, index_MA = None if mask is None else mask[b].flatten(), None if index is None else index[b]
        for here, rows, part in slabs(step, u_UM, rho_M, mask_M, index_MA, lengths):
            for q in range(0, queries, some):
                yield b, slice(q, min(q + some, queries)), here, rows, part


def _fake(p_BQS, content, rho, mask, index, lengths):
    return torch.empty_like(p_BQS), p_BQS.new_empty(p_BQS.shape[:2])


def _fake_backward(p_BQS, content, rho, mask, index, lengths, lse_BQ, offset_BQ, grad_BQS, inputs_too):
    shapes = (content.shape, rho.shape) if inputs_too else ((0,), (0,))
    return torch.empty_like(p_BQS), rho.new_empty(shapes[0]), rho.new_empty(shapes[1])


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.lengths = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, grad_BQS, grad_lse_BQ):
    *tensors, r_BQS, lse_BQ = ctx.saved_tensors
    offset_BQ = grad_lse_BQ - (grad_BQS * r_BQS).sum(-1)
    inputs_too = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    grad_p_BQS, grad_content, grad_rho = separable_attention_backward(
        *tensors, ctx.lengths, lse_BQ, offset_BQ, grad_BQS.contiguous(), inputs_too
    )
    if not inputs_too:
        return grad_p_BQS, None, None, None, None, None
    return grad_p_BQS, grad_content.to(tensors[1].dtype), grad_rho, None, None, None


@operator(_fake, _backward, _setup)
def separable_attention(
    p_BQS: Tensor,
    content: Tensor,
    rho: Tensor,
    mask: Tensor | None,
    index: Tensor | None,
    lengths: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Softmax over scores rho_m (T_1[i_1(m)] + ... + T_A[i_A(m)] + p_u . u_m), and its sums.

    Args:
        p_BQS: T_1, ..., T_A, p_u, one behind another, float32 or float64.
        content: `[B, U, *axes]`, or `[B, U, M]` with an index or without tables; of the same dtype, or half precision.
        rho: `[B, *axes]`, or `[B, M]`, of the same dtype.
        mask: Like `rho`, True where an input may be attended; `None` for everywhere.
        index: `[B, M, A]`, rows of the tables; `None` for the full grid.
        lengths: n_1, ..., n_A; empty for inputs without tables.

    Returns:
        R_1, ..., R_A and sum_m A_m rho_m u_m, `[B, Q, S]`; log-sum-exp of the scores, `[B, Q]`, -inf where nothing may be
        attended, whose sums are zero.
    """
    if kernel.why_not(content, p_BQS.dtype, index) is None:
        return kernel.forward(kernel.Operands(p_BQS, content, rho, mask, lengths))
    r_BQS = torch.zeros_like(p_BQS)
    max_BQ1 = p_BQS.new_full((*p_BQS.shape[:2], 1), -math.inf)
    sum_BQ1 = torch.zeros_like(max_BQ1)
    for b, tile, _, rows, some in _tiles(p_BQS.shape[1], content, rho, mask, index, lengths):
        s_QM = some.scores(pick(p_BQS[b, tile], rows)).mul_(some.rho_M)
        if some.masked_M is not None:
            s_QM.masked_fill_(some.masked_M, -math.inf)
        max_Q1 = torch.maximum(max_BQ1[b, tile], s_QM.amax(-1, keepdim=True))
        factor_Q1 = torch.exp(max_BQ1[b, tile] - finite(max_Q1))
        max_BQ1[b, tile] = max_Q1
        a_QM = s_QM.sub_(finite(max_Q1)).exp_()
        sum_BQ1[b, tile] = sum_BQ1[b, tile] * factor_Q1 + a_QM.sum(-1, keepdim=True)
        r_BQS[b, tile] *= factor_Q1
        add(r_BQS[b, tile], rows, some.sums(a_QM.mul_(some.rho_M)))
    return r_BQS / sum_BQ1.masked_fill(sum_BQ1 == 0, 1), (sum_BQ1.log() + max_BQ1).squeeze(-1)


@operator(_fake_backward)
def separable_attention_backward(
    p_BQS: Tensor,
    content: Tensor,
    rho: Tensor,
    mask: Tensor | None,
    index: Tensor | None,
    lengths: Sequence[int],
    lse_BQ: Tensor,
    offset_BQ: Tensor,
    grad_BQS: Tensor,
    inputs_too: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of p, and of content and rho where `inputs_too`, in the dtype of rho.

    With dR_a and dr_u the gradients of the sums, dA_m = rho_m (sum_a dR_a[i_a(m)] + dr_u . u_m) has the form of a score, so
    that it is made like one, and

        dS = A (dA - delta + dlse),   delta = dr . r                     offset = dlse - delta
        dp = sums of dS rho, as r is of A rho                            du_m = rho_m sum_q (dS p_u + A dr_u)
        drho_m = sum_q (dS S + A dA) / rho_m
    """
    if kernel.why_not(content, p_BQS.dtype, index) is None:
        operands = kernel.Operands(p_BQS, content, rho, mask, lengths)
        return kernel.backward(operands, lse_BQ, offset_BQ, grad_BQS, inputs_too)
    grad_p_BQS, channels = torch.zeros_like(p_BQS), content.shape[1]
    grad_content = rho.new_zeros(content.shape if inputs_too else 0)
    grad_rho = rho.new_zeros(rho.shape if inputs_too else 0)
    for b, tile, here, rows, some in _tiles(p_BQS.shape[1], content, rho, mask, index, lengths):
        raw_QM = some.scores(pick(p_BQS[b, tile], rows))
        a_QM = raw_QM * some.rho_M
        a_QM.sub_(finite(lse_BQ[b, tile]).unsqueeze(-1)).exp_()
        if some.masked_M is not None:
            a_QM.masked_fill_(some.masked_M, 0)
        da_QM = some.scores(pick(grad_BQS[b, tile], rows))
        ds_QM = torch.addcmul(offset_BQ[b, tile].unsqueeze(-1), da_QM, some.rho_M).mul_(a_QM)
        if inputs_too:
            grad_rho[b].view(-1)[here].add_(raw_QM.mul_(ds_QM).addcmul_(a_QM, da_QM).sum(0))
            grad_UM = grad_content[b].view(channels, -1)[:, here]
            grad_UM.addmm_(grad_BQS[b, tile, -channels:].mT, a_QM.mul_(some.rho_M))
            grad_UM.addmm_(p_BQS[b, tile, -channels:].mT, ds_QM.mul_(some.rho_M))
        else:
            ds_QM *= some.rho_M
        add(grad_p_BQS[b, tile], rows, some.sums(ds_QM))
    return grad_p_BQS, grad_content, grad_rho


for _device in ("cpu", "cuda"):  # under autocast, too, sums and exponentials are float32
    torch.library.register_autocast("perceivers::separable_attention", _device, torch.float32)
