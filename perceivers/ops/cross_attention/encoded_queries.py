"""The other direction: many encoded queries attend to few inputs, as the dense outputs of Perceiver IO do.

A query is made of a token group too, q_m = W_q norm(x_m) + b_q for each position m of an image, and x_m is a sum of a few rows
(`factored`). So the rows are multiplied by the keys instead: with the norm folded into k~_n = scale W_q^T k_n,

    S_nm = rho_m (T_1[n, i_1(m)] + ... + T_A[n, i_A(m)] + k_u,n . u_m) + c_n          c_n = scale k_n . (W_q beta + b_q)

where c_n differs between keys and stays. Neither encoded queries nor projected ones are made, and half of the products of a
pair are saved; the other half, with the values, remains. It is exact; what has queries and inputs is one operator,
`perceivers::encoded_queries`, with forward and backward written out, which holds a tile of scores at a time.

Letters: B batch, H heads, M queries (on a grid), N inputs, Q = H N, C channels of an encoded query, U of its content, A axes,
S rows of all tables and channels of content, K width of queries and keys, V of values.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from perceivers.ops.cross_attention import tiles
from perceivers.ops.cross_attention.call import Call, FoldedKeys
from perceivers.ops.cross_attention.cost import Cost, Sizes
from perceivers.ops.cross_attention.dense import CALL
from perceivers.ops.cross_attention.factored import inverse_deviations, project
from perceivers.ops.cross_attention.implementation import Implementation
from perceivers.ops.cross_attention.queries import EncodedQueries, OpaqueQueryProjection, QueryProjection
from perceivers.ops.cross_attention.tiles import Tile, add_to_rows, gather_rows, split
from perceivers.ops.operator import operator


def run(call: Call) -> Tensor:
    """Attend from encoded queries to inputs, all of which may be attended to; `[B, H, M, V]`."""
    queries, projection = _known(call)
    k_BHNK, v_BHNV = call.keys_and_values()
    folded = call.shared.folded_keys
    if folded is None or folded.w_q is not projection.w_q:
        folded = call.shared.folded_keys = _fold(projection, k_BHNK, call.scale)
    tokens, dtype = queries.tokens, v_BHNV.dtype
    content = tokens.visible_content().to(dtype)
    rho = inverse_deviations(tokens, content, projection.norm, dtype).expand(len(content), *content.shape[2:])
    p_BQS = project(tokens, folded.k_BQC)
    lengths = [table.shape[-2] for table in tokens.tables]
    return encoded_queries(p_BQS, folded.c_BQ, v_BHNV, content, rho, tokens.index, lengths)[0]


def why_not(call: Call) -> str | None:
    """Refuse projected queries, queries that do not factor, masks, dropout and half precision."""
    if not isinstance(call.queries, EncodedQueries):
        return "the queries are projected already"
    tokens, projection = call.queries.tokens, call.queries.projection
    if isinstance(projection, OpaqueQueryProjection):
        return projection.reason
    if call.mask() is not None:
        return "it attends to all inputs, and some are masked"
    if len(tokens.tables) < 2 or any(table.ndim > 2 for table in tokens.tables):
        return "the queries have no positions of two or more axes, with the same tables for all samples"
    if projection.dtype.itemsize < 4 or torch.is_autocast_enabled(call.device.type):
        return "it is for float32 and float64, and this is half precision"
    return call.why_dropped()


def cost(call: Call) -> Cost | None:
    """Return the cost of a score from tables and content and a product with a value per pair, and of folding the keys.

    `None` in graphs, which may be used with any number of queries: too few do not pay.
    """
    if torch.compiler.is_compiling():
        return None
    (queries, projection), sizes = _known(call), Sizes.of(call)
    tokens = queries.tokens
    channels, content = projection.w_q.shape[1], tokens.content.shape[1]
    width, rows = sizes.k_channels // sizes.heads, content + sum(table.shape[-2] for table in tokens.tables)
    values = 2 * sizes.v_channels * sizes.queries * sizes.inputs
    folding = 2 * sizes.heads * sizes.inputs * channels * (width + rows)
    flops = sizes.keys_and_values + values + 2 * content * sizes.pairs + folding
    passes = tiles.PASSES + (0 if tokens.index is None else tiles.GATHER * len(tokens.tables))
    held = sizes.inputs * (sizes.widths + sizes.heads * (channels + rows))
    return Cost(flops, sizes.pairs, held, work=CALL + flops + passes * sizes.pairs)


def _known(call: Call) -> tuple[EncodedQueries, QueryProjection]:
    assert isinstance(call.queries, EncodedQueries), "why_not refuses projected queries"
    assert isinstance(call.queries.projection, QueryProjection), "why_not refuses opaque projections"
    return call.queries, call.queries.projection


def _fold(projection: QueryProjection, k_BHNK: Tensor, scale: float) -> FoldedKeys:
    """Fold projection, norm's weight and centring, and scale into the keys."""
    norm, w_q, heads = projection.norm, projection.w_q, k_BHNK.shape[1]
    bias_D = w_q.new_zeros(len(w_q)) if projection.b_q is None else projection.b_q
    if norm is not None and norm.bias is not None:
        bias_D = bias_D + w_q @ norm.bias
    k_BHNC = scale * (k_BHNK @ w_q.unflatten(0, (heads, -1)))
    if norm is not None:
        k_BHNC = k_BHNC * norm.weight
        k_BHNC = k_BHNC - k_BHNC.mean(-1, keepdim=True) if norm.centred else k_BHNC
    c_BHN = scale * (k_BHNK @ bias_D.unflatten(0, (heads, -1, 1))).squeeze(-1)
    return FoldedKeys(w_q, k_BHNC.flatten(1, 2), c_BHN.flatten(1, 2))


def _tiles(
    p_BQS: Tensor, heads: int, content: Tensor, rho: Tensor, index: Tensor | None, lengths: Sequence[int]
) -> Iterator[tuple[int, int, slice, list[slice], Tensor, Tile]]:
    """For each tile of scores its sample, head, queries and table rows, their p, and the tile of queries.

    A tile has all keys of a head, since one softmax is over them, and whole rows of the first axis of the queries.
    """
    keys, inner = p_BQS.shape[1] // heads, math.prod(lengths[1:]) if index is None else 1
    step = max(1, tiles.TILE // max(1, keys * inner))
    for b in range(len(p_BQS)):
        index_MA = None if index is None else index[b]
        for here, rows, tile in split(step, content[b].flatten(1), rho[b].flatten(), None, index_MA, lengths):
            for h in range(heads):
                yield b, h, here, rows, gather_rows(p_BQS[b, h * keys : (h + 1) * keys], rows), tile


def _fake(p_BQS, c_BQ, v_BHNV, content, rho, index, lengths):
    out_BHMV = v_BHNV.new_empty(rho.shape[0], v_BHNV.shape[1], math.prod(rho.shape[1:]), v_BHNV.shape[-1])
    return out_BHMV, v_BHNV.new_empty(out_BHMV.shape[:-1])


def _fake_backward(p_BQS, c_BQ, v_BHNV, content, rho, index, lengths, lse_BHM, offset_BHM, grad_BHMV, queries_too):
    of_queries = (rho.new_empty(x.shape if queries_too else (0,)) for x in (content, rho))
    return *(torch.empty_like(x) for x in (p_BQS, c_BQ, v_BHNV)), *of_queries


def _setup(ctx, inputs, output) -> None:
    p_BQS, c_BQ, v_BHNV, content, rho, index, ctx.lengths = inputs
    out_BHMV, lse_BHM = output
    ctx.save_for_backward(p_BQS, c_BQ, v_BHNV, content, rho, index, out_BHMV, lse_BHM)


def _backward(ctx, grad_BHMV, grad_lse_BHM):
    *tensors, out_BHMV, lse_BHM = ctx.saved_tensors
    offset_BHM = grad_lse_BHM - (grad_BHMV * out_BHMV).sum(-1)
    queries_too = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
    *grads, grad_content, grad_rho = encoded_queries_backward(
        *tensors, ctx.lengths, lse_BHM, offset_BHM, grad_BHMV.contiguous(), queries_too
    )
    return *grads, *((grad_content, grad_rho) if queries_too else (None, None)), None, None


@operator(_fake, _backward, _setup)
def encoded_queries(
    p_BQS: Tensor,
    c_BQ: Tensor,
    v_BHNV: Tensor,
    content: Tensor,
    rho: Tensor,
    index: Tensor | None,
    lengths: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Compute attention over the keys n with scores rho_m (T_1[n, i_1(m)] + ... + T_A[n, i_A(m)] + p_u,n . u_m) + c_n.

    Args:
        p_BQS: T_1, ..., T_A, p_u, concatenated, float32 or float64, as all others.
        c_BQ: c.
        v_BHNV: Values.
        content: `[B, U, *axes]`, or `[B, U, M]` with an index.
        rho: `[B, *axes]`, or `[B, M]`.
        index: `[B, M, A]`, rows of the tables; `None` for the full grid.
        lengths: n_1, ..., n_A, at least one.

    Returns:
        `[B, H, M, V]`; log-sum-exp of the scores, `[B, H, M]`.
    """
    heads, keys = v_BHNV.shape[1:3]
    out_BHMV = v_BHNV.new_empty(len(rho), heads, math.prod(rho.shape[1:]), v_BHNV.shape[-1])
    lse_BHM = v_BHNV.new_empty(out_BHMV.shape[:-1])
    for b, h, here, _, p_NS, tile in _tiles(p_BQS, heads, content, rho, index, lengths):
        s_NM = tile.scores(p_NS).mul_(tile.rho_M).add_(c_BQ[b, h * keys : (h + 1) * keys].unsqueeze(-1))
        max_M = s_NM.amax(0)
        sum_M = s_NM.sub_(max_M).exp_().sum(0)
        torch.mm(s_NM.mT, v_BHNV[b, h], out=out_BHMV[b, h, here])
        out_BHMV[b, h, here].div_(sum_M.unsqueeze(-1))
        lse_BHM[b, h, here] = sum_M.log_().add_(max_M)
    return out_BHMV, lse_BHM


@operator(_fake_backward)
def encoded_queries_backward(
    p_BQS: Tensor,
    c_BQ: Tensor,
    v_BHNV: Tensor,
    content: Tensor,
    rho: Tensor,
    index: Tensor | None,
    lengths: Sequence[int],
    lse_BHM: Tensor,
    offset_BHM: Tensor,
    grad_BHMV: Tensor,
    queries_too: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return gradients of p, c and values, and of content and rho if `queries_too`.

    With A the softmax and dA_nm = v_n . dout_m:

        dS = A (dA - delta + dlse),   delta_m = out_m . dout_m           offset = dlse - delta
        dv_n = sum_m A_nm dout_m      dc_n = sum_m dS_nm                 dp = sums of dS rho
        du_m = rho_m sum_n dS_nm p_u,n                                   drho_m = sum_n dS_nm (T_1 + ... + p_u,n . u_m)
    """
    grad_p_BQS, grad_c_BQ, grad_v_BHNV = (torch.zeros_like(x) for x in (p_BQS, c_BQ, v_BHNV))
    grad_content, grad_rho = (rho.new_zeros(x.shape if queries_too else 0) for x in (content, rho))
    heads, keys, channels = *v_BHNV.shape[1:3], content.shape[1]
    for b, h, here, rows, p_NS, tile in _tiles(p_BQS, heads, content, rho, index, lengths):
        head, dout_MV = slice(h * keys, (h + 1) * keys), grad_BHMV[b, h, here]
        raw_NM = tile.scores(p_NS)
        a_NM = (raw_NM * tile.rho_M).add_(c_BQ[b, head].unsqueeze(-1)).sub_(lse_BHM[b, h, here]).exp_()
        grad_v_BHNV[b, h].addmm_(a_NM, dout_MV)
        ds_NM = (v_BHNV[b, h] @ dout_MV.mT).add_(offset_BHM[b, h, here]).mul_(a_NM)
        grad_c_BQ[b, head] += ds_NM.sum(1)
        if queries_too:
            grad_rho[b].view(-1)[here] += raw_NM.mul_(ds_NM).sum(0)
        sums_NS = tile.sums(ds_NM.mul_(tile.rho_M))
        if queries_too:
            grad_content[b].flatten(1)[:, here].addmm_(p_NS[:, p_NS.shape[1] - channels :].mT, ds_NM)
        add_to_rows(grad_p_BQS[b, head], rows, sums_NS)
    return grad_p_BQS, grad_c_BQ, grad_v_BHNV, grad_content, grad_rho


ENCODED_QUERIES = Implementation("encoded_queries", run, why_not, cost)
