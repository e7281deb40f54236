"""Scores of a grid from one short table per axis: no keys, no values, no encoded array, whatever the number of bands.

An encoded input is a sum of rows X (see `factored`), times rho_m, its inverse standard deviation, so scores and sums of all
inputs are made of those of the rows. With the norm folded into the projections (`Projections.folded`),

    p = X W_k^T q                       one element per row of a table, T_a = p on axis a, and one per channel of content, p_u
    S_m = rho_m (T_1[i_1(m)] + ... + T_A[i_A(m)] + p_u . u_m) + const
    out = W_v X^T r + b_v s             r: R_a[i] = sum over i_a(m) = i of A_m rho_m, and r_u = sum_m A_m rho_m u_m

There are 451 rows for an image of 50,176 pixels, and a pair of query and input costs 4 U + 2 A + 6 FLOPs. Rows or queries
are projected, whichever takes fewer products. What has queries and inputs, from p to r, is one operator,
`perceivers::separable_attention`, with forward and backward written out, which holds a tile of scores at a time: in C
(`kernel`, kernels/separable.c) or in PyTorch (`tiles`). The rest is plain PyTorch. Inputs whose positions have fewer than two
axes have nothing to factor: their encoded array is the content, and this is `absorbed`, tiled.

We found nothing like it published; its relatives are decomposed relative positions (segment-anything-fast), whose row and
column scores are added in the tile while content stays dense, and absorption (see `absorbed`).

Letters: B batch, H heads, N queries, Q = H N, M inputs, U channels of content, A axes, n_a rows of the table of axis a,
L = n_1 + ... + n_A, S = L + U rows in all, K and V width of queries and values.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from perceivers.ops.cross_attention import kernel, tiles
from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.cost import Cost, Sizes
from perceivers.ops.cross_attention.factored import Factored, collect, project
from perceivers.ops.cross_attention.implementation import Implementation
from perceivers.ops.cross_attention.merging import Partial, finite, merge
from perceivers.ops.cross_attention.tiles import Tile, add_to_rows, gather_rows, split
from perceivers.ops.linear import linear
from perceivers.ops.operator import operator
from perceivers.ops.tokens import Tokens

QUERIES = 256  # of a tile of inputs without tables, whose content is read once per tile
FEW_CHANNELS, SHARING = 4, 64  # of content, and at least so many queries per tile if there are more
CALL = 3e7  # work of the small operations, whatever the sizes
KERNEL_PASSES, KERNEL_CHANNEL = 15, 8  # work per score in the C kernel, and per channel of content beyond its unrolled ones


def run(call: Call) -> Tensor:
    """Attend to each group and merge the results."""
    whole, b_v = _attend(call)
    return _finish(call, whole, b_v)


def partial(call: Call) -> Partial:
    """Return a result that can be merged: already divided, with the log-sum-exp for a maximum."""
    whole, b_v = _attend(call)
    nothing = whole.sum_BHN == 0
    lse_BHN = whole.max_BHN + whole.sum_BHN.masked_fill(nothing, 1).log() + call.dropped_score()
    return Partial(_finish(call, whole, b_v), lse_BHN, (~nothing).to(lse_BHN.dtype))


def why_not(call: Call) -> str | None:
    """Refuse opaque projections, and dropout of attention weights: after it their sum s is no longer 1."""
    return call.why_opaque() or call.why_dropped()


def cost(call: Call) -> Cost:
    """Return the cost of a score from tables and content per pair, and of projecting rows."""
    sizes = Sizes.of(call)
    rows, content, passes = 0, 0, 0.0
    for group in call.inputs:
        factors = len(group.tables) > 1
        channels = group.content.shape[1] if factors else sizes.channels
        rows += channels + (sum(table.shape[-2] for table in group.tables) if factors else 0)
        content = max(content, channels)
        passes = max(passes, _passes(call, group, channels))
    axes = max(len(group.tables) for group in call.inputs)
    products = (4 * content + 2 * axes + 6) * sizes.pairs + 2 * rows * sizes.widths * (sizes.channels + sizes.queries)
    flops, held = sizes.projecting + products, 3 * sizes.heads * sizes.queries * rows + sizes.inputs
    return Cost(flops, sizes.pairs, held, work=CALL + flops + (passes - 2 * axes - 6) * sizes.pairs)


def _passes(call: Call, group: Tokens, channels: int) -> float:
    """Return the work per pair beside the products with its content."""
    in_pytorch = len(group.tables) < 2 or torch.compiler.is_compiling()  # which cannot trace the search for the kernel
    if in_pytorch or kernel.why_not(group.content, call.projection.dtype, group.index) is not None:
        return tiles.PASSES + (0 if group.index is None else tiles.GATHER * len(group.tables))
    return KERNEL_PASSES + (0 if channels <= 3 else KERNEL_CHANNEL * channels) - 4 * min(channels, 3)


def _attend(call: Call) -> tuple[Partial, Tensor | None]:
    """Attend to all groups, in float32 at least and without the folded bias of the values, which is returned too."""
    q_BHNK = call.q_BHNK
    dtype = torch.promote_types(q_BHNK.dtype, torch.float32)
    with torch.autocast(q_BHNK.device.type, enabled=False):
        w_k, w_v, b_v = call.folded()
        w_k, w_v, q_BHNK = w_k.to(dtype), w_v.to(dtype), q_BHNK.to(dtype)
        factored = (call.factored(g, dtype) for g in range(len(call.inputs)))
        return merge(_attend_to_group(q_BHNK, w_k, w_v, group) for group in factored), b_v


def _attend_to_group(q_BHNK: Tensor, w_k: Tensor, w_v: Tensor, factored: Factored) -> Partial:
    """Attend to one group: already divided by its sum, with the log-sum-exp for a maximum."""
    group, heads = factored.group, q_BHNK.shape[1]
    if queries_first := _queries_first(group, w_k, w_v, heads):
        k_HKX, v_HVX = (w.unflatten(0, (heads, -1)) for w in (w_k, w_v))  # X: the C channels
    else:
        if factored.rows is None:
            factored.rows = [project(group, w).unflatten(-2, (heads, -1)) for w in (w_k, w_v)]
        k_HKX, v_HVX = factored.rows  # X: the S rows
    q_BQX = _per_head(q_BHNK, k_HKX.mT).flatten(1, 2)
    p_BQS = project(group, q_BQX) if queries_first else q_BQX
    lengths = [table.shape[-2] for table in group.tables]
    r_BQS, lse_BQ = separable_attention(p_BQS, factored.content, factored.rho, group.mask, group.index, lengths)
    lse_BHN = lse_BQ.unflatten(1, q_BHNK.shape[1:3])
    r_BHNX = (collect(group, r_BQS) if queries_first else r_BQS).unflatten(1, q_BHNK.shape[1:3])
    anything_BHN = torch.ones_like(lse_BHN) if group.mask is None else (lse_BHN != -math.inf).to(q_BHNK.dtype)
    return Partial(_per_head(r_BHNX, v_HVX), lse_BHN, anything_BHN)


def _queries_first(group: Tokens, w_k: Tensor, w_v: Tensor, heads: int) -> bool:
    """Return True if X (W^T q) takes fewer products than (X W^T) q, forward and backward, with tables without gradients."""
    if torch.compiler.is_compiling():
        return False  # a graph may be for any size, and choosing by it would specialise the graph to it
    width, channels, rows = (len(w_k) + len(w_v)) // heads, w_k.shape[1], group.content.shape[1]
    elements = 0
    for table in group.tables:
        rows += table.shape[-2]
        elements += table.shape[-2] * table.shape[-1]
    return 3 * width * channels + 4 * elements <= 3 * width * rows


def _per_head(x_BHNC: Tensor, w_HDC: Tensor) -> Tensor:
    """Project each head, to `[B, H, N, D]`, by `[H, D, C]`, or `[B, H, D, C]` if samples differ."""
    return linear(x_BHNC, w_HDC.squeeze(0)) if len(w_HDC) == 1 and w_HDC.ndim == 3 else x_BHNC @ w_HDC.mT


def _finish(call: Call, whole: Partial, b_v: Tensor | None) -> Tensor:
    with torch.autocast(call.q_BHNK.device.type, enabled=False):
        s_BHN1 = None if all(group.mask is None for group in call.inputs) else (whole.sum_BHN > 0).unsqueeze(-1)
        divided = len(call.inputs) == 1  # by the operator; the results of several groups are merged with their weights
        return call.with_bias(whole.z_BHNV if divided else whole.finish(), b_v, s_BHN1)


def _tiles(
    queries: int, content: Tensor, rho: Tensor, mask: Tensor | None, index: Tensor | None, lengths: Sequence[int]
) -> Iterator[tuple[int, slice, slice, list[slice], Tile]]:
    """For each tile of scores: its sample, queries, inputs, rows, and the tile of inputs."""
    inputs, inner = rho[0].numel() if len(rho) else 0, math.prod(lengths[1:]) if index is None else 1
    some = max(1, tiles.TILE // max(1, inputs)) if lengths else QUERIES
    if content.shape[1] > FEW_CHANNELS:  # reading the content takes long, so more queries share it
        some = max(some, SHARING)
    step = max(1, tiles.TILE // (some * inner))
    for b in range(len(content)):
        u_UM, rho_M = content[b].flatten(1).to(rho.dtype), rho[b].flatten()
        mask_M, index_MA = None if mask is None else mask[b].flatten(), None if index is None else index[b]
        for here, rows, part in split(step, u_UM, rho_M, mask_M, index_MA, lengths):
            for q in range(0, queries, some):
                yield b, slice(q, min(q + some, queries)), here, rows, part


def _fake(p_BQS, content, rho, mask, index, lengths):
    return torch.empty_like(p_BQS), p_BQS.new_empty(p_BQS.shape[:2])


def _fake_backward(p_BQS, content, rho, mask, index, lengths, lse_BQ, offset_BQ, grad_BQS, inputs_too):
    shapes = (content.shape, rho.shape) if inputs_too else ((0,), (0,))
    return torch.empty_like(p_BQS), rho.new_empty(shapes[0]), rho.new_empty(shapes[1])


def _setup(ctx, inputs, output) -> None:
    p_BQS, content, rho, mask, index, ctx.lengths = inputs
    r_BQS, lse_BQ = output
    ctx.save_for_backward(p_BQS, content, rho, mask, index, r_BQS, lse_BQ)


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
    """Compute the softmax over scores rho_m (T_1[i_1(m)] + ... + T_A[i_A(m)] + p_u . u_m), and sums with its weights.

    Args:
        p_BQS: T_1, ..., T_A, p_u, concatenated, float32 or float64.
        content: `[B, U, *axes]`, or `[B, U, M]` with an index or without tables; of the same dtype, or half precision.
        rho: `[B, *axes]`, or `[B, M]`, of the same dtype.
        mask: Like `rho`, True where an input may be attended to; `None` for everywhere.
        index: `[B, M, A]`, rows of the tables; `None` for the full grid.
        lengths: n_1, ..., n_A; empty for inputs without tables.

    Returns:
        R_1, ..., R_A and sum_m A_m rho_m u_m, `[B, Q, S]`; log-sum-exp of the scores, `[B, Q]`, -inf where nothing may be
        attended to, whose sums are zero.
    """
    if kernel.why_not(content, p_BQS.dtype, index) is None:
        return kernel.forward(kernel.Operands(p_BQS, content, rho, mask, lengths))
    r_BQS = torch.zeros_like(p_BQS)
    max_BQ1 = p_BQS.new_full((*p_BQS.shape[:2], 1), -math.inf)
    sum_BQ1 = torch.zeros_like(max_BQ1)
    for b, q, _, rows, tile in _tiles(p_BQS.shape[1], content, rho, mask, index, lengths):
        s_QM = tile.scores(gather_rows(p_BQS[b, q], rows)).mul_(tile.rho_M)
        if tile.masked_M is not None:
            s_QM.masked_fill_(tile.masked_M, -math.inf)
        max_Q1 = torch.maximum(max_BQ1[b, q], s_QM.amax(-1, keepdim=True))
        factor_Q1 = torch.exp(max_BQ1[b, q] - finite(max_Q1))
        max_BQ1[b, q] = max_Q1
        a_QM = s_QM.sub_(finite(max_Q1)).exp_()
        sum_BQ1[b, q] = sum_BQ1[b, q] * factor_Q1 + a_QM.sum(-1, keepdim=True)
        r_BQS[b, q] *= factor_Q1
        add_to_rows(r_BQS[b, q], rows, tile.sums(a_QM.mul_(tile.rho_M)))
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
    """Return gradients of p, and of content and rho if `inputs_too`, in the dtype of rho.

    With dR_a and dr_u the gradients of the sums, dA_m = rho_m (sum_a dR_a[i_a(m)] + dr_u . u_m) has the form of a score, so it
    is made like one, and

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
    for b, q, here, rows, tile in _tiles(p_BQS.shape[1], content, rho, mask, index, lengths):
        raw_QM = tile.scores(gather_rows(p_BQS[b, q], rows))
        a_QM = raw_QM * tile.rho_M
        a_QM.sub_(finite(lse_BQ[b, q]).unsqueeze(-1)).exp_()
        if tile.masked_M is not None:
            a_QM.masked_fill_(tile.masked_M, 0)
        da_QM = tile.scores(gather_rows(grad_BQS[b, q], rows))
        ds_QM = torch.addcmul(offset_BQ[b, q].unsqueeze(-1), da_QM, tile.rho_M).mul_(a_QM)
        if inputs_too:
            grad_rho[b].view(-1)[here].add_(raw_QM.mul_(ds_QM).addcmul_(a_QM, da_QM).sum(0))
            grad_UM = grad_content[b].view(channels, -1)[:, here]
            grad_UM.addmm_(grad_BQS[b, q, -channels:].mT, a_QM.mul_(tile.rho_M))
            grad_UM.addmm_(p_BQS[b, q, -channels:].mT, ds_QM.mul_(tile.rho_M))
        else:
            ds_QM *= tile.rho_M
        add_to_rows(grad_p_BQS[b, q], rows, tile.sums(ds_QM))
    return grad_p_BQS, grad_content, grad_rho


SEPARABLE = Implementation("separable", run, why_not, cost, partial)

for _device in ("cpu", "cuda"):  # under autocast, too, sums and exponentials are float32
    torch.library.register_autocast("perceivers::separable_attention", _device, torch.float32)
