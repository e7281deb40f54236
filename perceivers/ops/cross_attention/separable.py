"""Scores of a grid from one short table an axis: no keys, no values, no encoded array, whatever the number of bands.

An encoded input is a concatenation of content u_m and, for each axis a, row i_a(m) of a table P_a. The norm's centring is
moved onto the folded query q~ (see `absorbed`): with q^ = q~ - mean(q~), and q^_u, q^_a its blocks of channels,

    S_m = rho_m (q^_u . u_m + T_1[i_1(m)] + ... + T_A[i_A(m)]) + const           T_a = P_a q^_a, one number a row
    rho_m = (var_m + eps)^(-1/2),   C var_m = sum (u_m - mu_m)^2 + sum_a (s_a[i_a] + C_a (m_a[i_a] - mu_m)^2)

with the mean m_a and centred square sum s_a of each table row: only non-negative terms, so that large content does not cancel.
The result needs marginals only:

    z = centred( [sum_m A_m rho_m u_m,  R_1 P_1, ..., R_A P_A] )                 R_a[i] = sum over i_a(m) = i of A_m rho_m

In this file the small products (q^, T, rho, z) are plain PyTorch; what has queries and inputs is one operator,
`perceivers::separable_attention`, forward and backward written out, which holds a tile of some queries at a time.
Nothing like it was found published; its relatives are decomposed relative positions (segment-anything-fast), whose row and
column scores are added in the tile while content stays dense, and absorption (see `absorbed`).

Letters: B batch, H heads, N queries, Q = H N, M inputs, C channels of an encoded input, U of content, A axes, n_a rows of the
table of axis a, L = n_1 + ... + n_A.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from perceivers.ops.cross_attention import native
from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.reference import Partial, finite, merge
from perceivers.ops.tokens import Positions, Tokens

TILE = 1 << 18  # scores held at a time, some of them in each of a few buffers: 1 MB each, about a core's cache


def run(call: Call) -> Tensor:
    """Attends to each group and merges the results."""
    dtype = torch.promote_types(call.q_BHNK.dtype, torch.float32)
    with torch.autocast(call.q_BHNK.device.type, enabled=False):
        q_BQC = call.folded_queries().to(dtype).flatten(1, 2)
        if call.norm is not None:
            q_BQC = q_BQC - q_BQC.mean(-1, keepdim=True)
        whole = merge(_partial(q_BQC, group, call.norm.eps if call.norm else None) for group in call.inputs)
        z_BQC, s_BQ1 = whole.finish(), (whole.sum_BHN > 0).to(dtype).unsqueeze(-1)
        if call.norm is not None:
            z_BQC = z_BQC - z_BQC.mean(-1, keepdim=True)
        shape = call.q_BHNK.shape[1:3]
        return call.unfolded_values(z_BQC.unflatten(1, shape), s_BQ1.unflatten(1, shape))


def why_not(call: Call) -> str | None:
    """Refuses what does not factor, and dropout of attention weights."""
    if call.dropout_p > 0:
        return f"it cannot drop attention weights, and dropout_p={call.dropout_p}"
    for group in call.inputs:
        axes = 0 if group.positions is None else len(group.positions.tables)
        if axes < 2:
            return f"positions with {axes} axes do not factor, at least 2 are needed"
    return None


def _partial(q_BQC: Tensor, group: Tokens, eps: float | None) -> Partial:
    """Attends to one group: z, `[B, Q, C]`, divided by its sum already and not centred, beside the log-sum-exp."""
    assert group.positions is not None
    content, mask = group.content, group.mask
    if mask is not None:
        content = content.masked_fill(~mask.unsqueeze(1), 0)
    content = content.to(q_BQC.dtype)
    tables = [table.to(q_BQC.dtype) for table in group.positions.tables]
    blocks = q_BQC.split([content.shape[1], *(table.shape[-1] for table in tables)], dim=-1)
    t_BQL = torch.cat([q_BQc @ table.mT for q_BQc, table in zip(blocks[1:], tables, strict=True)], dim=-1)
    rho = _inverse_deviations(content, tables, group.positions, eps)
    lengths = [table.shape[0] for table in tables]
    # The kernel has no gradient of inputs, and forward and backward go one way, or high scores would be rounded differently.
    kernel = not (content.requires_grad or rho.requires_grad)
    u_BQU, r_BQL, lse_BQ = separable_attention(blocks[0], t_BQL, content, rho, mask, group.positions.index, lengths, kernel)
    marginals = r_BQL.split(lengths, dim=-1)
    z_BQC = torch.cat([u_BQU, *(r @ table for r, table in zip(marginals, tables, strict=True))], dim=-1)
    return Partial(z_BQC, lse_BQ, (lse_BQ != -math.inf).to(z_BQC.dtype))


def _inverse_deviations(content: Tensor, tables: Sequence[Tensor], positions: Positions, eps: float | None) -> Tensor:
    """rho, `[B, *axes]`: one over the standard deviation of each encoded input; ones without a norm (`eps` is `None`)."""
    if eps is None:
        return content.new_ones(content.shape[0], *content.shape[2:])

    def spread(a: int, row: Tensor) -> Tensor:
        """Numbers of the rows of table a, `[n_a]`, where its inputs are, `[B, *axes]` or broadcast to it."""
        if positions.index is not None:
            return row[positions.index[..., a]]
        return row.view([-1 if axis == a else 1 for axis in range(len(tables))])

    channels = content.shape[1] + sum(table.shape[-1] for table in tables)
    means = [spread(a, table.mean(-1)) for a, table in enumerate(tables)]
    squares = [spread(a, table.var(-1, correction=0) * table.shape[-1]) for a, table in enumerate(tables)]
    widths = [table.shape[-1] for table in tables]
    mu = (content.sum(1) + sum(c * m for c, m in zip(widths, means, strict=True))) / channels
    total = (content - mu.unsqueeze(1)).square().sum(1)
    for width, mean, square in zip(widths, means, squares, strict=True):
        total = total + square + width * (mean - mu).square()
    return torch.rsqrt(total / channels + eps)


class _Grid:
    """The inputs of one sample, flat: how numbers of table rows reach them (`scores`) and come back (`marginals`)."""

    def __init__(self, content: Tensor, index: Tensor | None, lengths: Sequence[int]) -> None:
        self.lengths, self.index = lengths, index
        self.u_UM = content.flatten(1)

    def scores(self, q_QU: Tensor, t_QL: Tensor, out_QM: Tensor) -> Tensor:
        """q_u . u_m + T_1[i_1(m)] + ... + T_A[i_A(m)], written to `out_QM`."""
        torch.mm(q_QU, self.u_UM, out=out_QM)
        tables = t_QL.split(list(self.lengths), dim=-1)
        if self.index is not None:
            for a, t_Qn in enumerate(tables):
                out_QM += t_Qn[:, self.index[:, a]]
            return out_QM
        grid = out_QM.view(-1, *self.lengths)
        for a, t_Qn in enumerate(tables):
            grid += t_Qn.view(-1, *(length if axis == a else 1 for axis, length in enumerate(self.lengths)))
        return out_QM

    def marginals(self, w_QM: Tensor) -> Tensor:
        """For each axis a and row i, the sum of the weights with i_a(m) = i, `[Q, L]`."""
        if self.index is not None:
            sums = [w_QM.new_zeros(len(w_QM), n).index_add_(1, self.index[:, a], w_QM) for a, n in enumerate(self.lengths)]
            return torch.cat(sums, dim=-1)
        sums, grid = [], w_QM.view(-1, *self.lengths)
        for a in range(len(self.lengths)):
            others = [1 + axis for axis in range(len(self.lengths)) if axis != a]
            sums.append(grid.sum(others))
        return torch.cat(sums, dim=-1)


def _tiles(queries: int, inputs: int) -> Iterator[slice]:
    step = max(1, TILE // max(1, inputs))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


@torch.library.custom_op("perceivers::separable_attention", mutates_args=())
def separable_attention(
    q_BQU: Tensor,
    t_BQL: Tensor,
    content: Tensor,
    rho: Tensor,
    mask: Tensor | None,
    index: Tensor | None,
    lengths: Sequence[int],
    kernel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over scores rho_m (q_u . u_m + sum_a T_a[i_a(m)]), and its sums.

    Args:
        q_BQU: Content block of the folded queries.
        t_BQL: T_1, ..., T_A, one behind another.
        content: `[B, U, *axes]`, or `[B, U, M]` with an index.
        rho: `[B, *axes]`, or `[B, M]`.
        mask: Like `rho`, True where an input may be attended; `None` for everywhere.
        index: `[B, M, A]`, rows of the tables; `None` for the full grid.
        lengths: n_1, ..., n_A.
        kernel: Whether the C kernel may be used, where it can be.

    Returns:
        sum_m A_m rho_m u_m, `[B, Q, U]`; R_1, ..., R_A, `[B, Q, L]`; log-sum-exp of the scores, `[B, Q]`, -inf where nothing
        may be attended, whose sums are zero.
    """
    if kernel and native.why_not(content, q_BQU.dtype, index) is None:
        return native.forward(q_BQU, t_BQL, content, rho, mask, lengths)
    u_BQU, r_BQL, lse_BQ = torch.empty_like(q_BQU), torch.empty_like(t_BQL), q_BQU.new_empty(q_BQU.shape[:2])
    for b, grid, rho_M, masked_M in _samples(content, rho, mask, index, lengths):
        for tile in _tiles(q_BQU.shape[1], len(rho_M)):
            s_QM = q_BQU.new_empty(tile.stop - tile.start, len(rho_M))
            grid.scores(q_BQU[b, tile], t_BQL[b, tile], s_QM).mul_(rho_M)
            if masked_M is not None:
                s_QM.masked_fill_(masked_M, -math.inf)
            max_Q1 = finite(s_QM.amax(-1, keepdim=True))
            a_QM = s_QM.sub_(max_Q1).exp_()
            sum_Q1 = a_QM.sum(-1, keepdim=True)
            lse_BQ[b, tile] = (sum_Q1.log() + max_Q1).squeeze(-1)
            divisor_Q1 = sum_Q1.masked_fill(sum_Q1 == 0, 1)
            a_QM *= rho_M
            u_BQU[b, tile] = a_QM @ grid.u_UM.mT / divisor_Q1
            r_BQL[b, tile] = grid.marginals(a_QM) / divisor_Q1
    return u_BQU, r_BQL, lse_BQ


@separable_attention.register_fake
def _(q_BQU, t_BQL, content, rho, mask, index, lengths, kernel):
    return torch.empty_like(q_BQU), torch.empty_like(t_BQL), q_BQU.new_empty(q_BQU.shape[:2])


@torch.library.custom_op("perceivers::separable_attention_backward", mutates_args=())
def separable_attention_backward(
    q_BQU: Tensor,
    t_BQL: Tensor,
    content: Tensor,
    rho: Tensor,
    mask: Tensor | None,
    index: Tensor | None,
    lengths: Sequence[int],
    kernel: bool,
    lse_BQ: Tensor,
    offset_BQ: Tensor,
    grad_u_BQU: Tensor,
    grad_r_BQL: Tensor,
    inputs_too: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries and tables, and of content and rho where `inputs_too`.

    dA_m = rho_m (dU . u_m + sum_a dR_a[i_a(m)]) has the form of a score, so that it is made like one, and

        dS = A (dA - delta + dlse),  delta = dU . U + sum_a dR_a . R_a        offset = dlse - delta
        dq_u = sum_m dS_m rho_m u_m     dT_a = marginals of dS rho     du_m = rho_m sum_q (dS q_u + A dU)
        drho_m = sum_q (dS S + A dA) / rho_m
    """
    if kernel and native.why_not(content, q_BQU.dtype, index) is None:
        arguments = (q_BQU, t_BQL, content, rho, mask, lengths, lse_BQ, offset_BQ, grad_u_BQU, grad_r_BQL)
        return *native.backward(*arguments), content.new_empty(0), rho.new_empty(0)
    grad_q_BQU, grad_t_BQL = torch.empty_like(q_BQU), torch.empty_like(t_BQL)
    grad_content = content.new_zeros(content.shape if inputs_too else 0)
    grad_rho = rho.new_zeros(rho.shape if inputs_too else 0)
    for b, grid, rho_M, masked_M in _samples(content, rho, mask, index, lengths):
        for tile in _tiles(q_BQU.shape[1], len(rho_M)):
            s_QM = q_BQU.new_empty(tile.stop - tile.start, len(rho_M))
            raw_QM = grid.scores(q_BQU[b, tile], t_BQL[b, tile], s_QM)
            a_QM = raw_QM * rho_M
            a_QM.sub_(finite(lse_BQ[b, tile]).unsqueeze(-1)).exp_()
            if masked_M is not None:
                a_QM.masked_fill_(masked_M, 0)
            da_QM = grid.scores(grad_u_BQU[b, tile], grad_r_BQL[b, tile], torch.empty_like(s_QM))
            ds_QM = torch.addcmul(offset_BQ[b, tile].unsqueeze(-1), da_QM, rho_M).mul_(a_QM)
            if inputs_too:
                grad_rho[b].view(-1).add_(raw_QM.mul_(ds_QM).addcmul_(a_QM, da_QM).sum(0))
                grad_UM = grad_content[b].view(content.shape[1], -1)
                grad_UM.addmm_(grad_u_BQU[b, tile].mT, a_QM.mul_(rho_M))
                grad_UM.addmm_(q_BQU[b, tile].mT, ds_QM.mul_(rho_M))
            else:
                ds_QM *= rho_M
            grad_q_BQU[b, tile] = ds_QM @ grid.u_UM.mT
            grad_t_BQL[b, tile] = grid.marginals(ds_QM)
    return grad_q_BQU, grad_t_BQL, grad_content, grad_rho


@separable_attention_backward.register_fake
def _(q_BQU, t_BQL, content, rho, mask, index, lengths, kernel, lse_BQ, offset_BQ, grad_u_BQU, grad_r_BQL, inputs_too):
    shapes = (content.shape, rho.shape) if inputs_too else ((0,), (0,))
    return torch.empty_like(q_BQU), torch.empty_like(t_BQL), content.new_empty(shapes[0]), rho.new_empty(shapes[1])


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.lengths, ctx.kernel = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, grad_u_BQU, grad_r_BQL, grad_lse_BQ):
    *tensors, u_BQU, r_BQL, lse_BQ = ctx.saved_tensors
    offset_BQ = grad_lse_BQ - (grad_u_BQU * u_BQU).sum(-1) - (grad_r_BQL * r_BQL).sum(-1)
    inputs_too = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
    gradients = separable_attention_backward(
        *tensors, ctx.lengths, ctx.kernel, lse_BQ, offset_BQ, grad_u_BQU.contiguous(), grad_r_BQL.contiguous(), inputs_too
    )
    grad_q_BQU, grad_t_BQL, grad_content, grad_rho = gradients
    if not inputs_too:
        grad_content = grad_rho = None
    return grad_q_BQU, grad_t_BQL, grad_content, grad_rho, None, None, None, None


separable_attention.register_autograd(_backward, setup_context=_setup)


def _samples(
    content: Tensor, rho: Tensor, mask: Tensor | None, index: Tensor | None, lengths: Sequence[int]
) -> Iterator[tuple[int, _Grid, Tensor, Tensor | None]]:
    """For each sample: its number, its inputs, rho and what is masked, flat."""
    for b in range(len(content)):
        grid = _Grid(content[b], None if index is None else index[b], lengths)
        yield b, grid, rho[b].flatten(), None if mask is None else ~mask[b].flatten()
