"""`Pooler` against its formulas written with modules of PyTorch, and what its arguments mean."""

import pytest
import torch
from torch import nn

from accuracy import assert_varies, draw_parameters
from perceivers.layers import CrossAttentionBlock, Pooler
from perceivers.ops.tokens import Tokens


def build(**changes) -> Pooler:
    return draw_parameters(Pooler(**{"dim": 12, "kv_dim": 10, "heads": 3, **changes}).double().eval())  # pyright: ignore


def array(*shape) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("query_residual", [False, True])
@pytest.mark.parametrize("norm_inputs", [False, True])
@pytest.mark.parametrize("num_queries", [None, 1, 4])
def test_written_out(query_residual, norm_inputs, num_queries):
    pooler = build(query_residual=query_residual, norm_inputs=norm_inputs, num_queries=num_queries, ff_dim=7)
    theirs, a = nn.MultiheadAttention(12, 3, kdim=10, vdim=10, batch_first=True).double(), pooler.attention
    with torch.no_grad():
        for name in "qkv":
            getattr(theirs, f"{name}_proj_weight").copy_(getattr(a, f"to_{name}").weight)
        theirs.in_proj_bias.copy_(torch.cat([a.to_q.bias, a.to_k.bias, a.to_v.bias]))
        theirs.out_proj.load_state_dict(a.to_out.state_dict())
    x, mask = array(2, 11, 10), torch.rand(2, 11) > 0.4
    kv = a.inputs_norm(x) if norm_inputs else x
    queries = pooler.queries.expand(2, -1, -1)
    asked = pooler.queries_norm(queries) if query_residual else queries
    wanted = theirs(asked, kv, kv, key_padding_mask=~mask, need_weights=False)[0]
    wanted = wanted + queries if query_residual else wanted
    ff = pooler.feed_forward
    wanted = wanted + ff.linear_out(nn.functional.gelu(ff.linear_in(pooler.feed_forward_norm(wanted))))
    out = pooler(x, mask)
    assert_varies(out)
    assert out.shape == ((2, 12) if num_queries is None else (2, num_queries, 12))
    torch.testing.assert_close(out.view_as(wanted), wanted, rtol=1e-10, atol=1e-10)


def test_with_a_residual_it_is_the_block_of_a_perceiver():
    pooler = build(query_residual=True, num_queries=4, ff_dim=7)
    block = CrossAttentionBlock(dim=12, kv_dim=10, ff_dim=7, heads=3).double()
    weights = {name.replace("queries_norm", "attention_norm"): value for name, value in pooler.state_dict().items()}
    weights.pop("queries")
    block.load_state_dict(weights)
    x, mask = array(2, 11, 10), torch.rand(2, 11) > 0.4
    torch.testing.assert_close(pooler(x, mask), block(pooler.queries.expand(2, -1, -1), [Tokens.of(x, mask)]))


def test_nothing_to_attend_leaves_the_output_bias():
    pooler, mask = build(), torch.ones(2, 11, dtype=torch.bool)
    mask[1] = False
    bias, x = pooler.attention.to_out.bias, array(2, 11, 10)
    torch.testing.assert_close(pooler(x, mask)[1], bias + pooler.feed_forward(pooler.feed_forward_norm(bias)))
    torch.testing.assert_close(pooler(x, mask)[0], pooler(x)[0])


def test_state_dict_keys():
    """The names are a promise: weights of one version load in the next."""
    pooler = build(query_residual=True)
    attention = [f"attention.{name}" for name in ("inputs_norm", "to_q", "to_k", "to_v", "to_out")]
    names = ["queries_norm", *attention, "feed_forward_norm", "feed_forward.linear_in", "feed_forward.linear_out"]
    assert list(pooler.state_dict()) == ["queries", *(f"{name}.{part}" for name in names for part in ("weight", "bias"))]
    assert pooler.feed_forward.linear_in.out_features == 48
