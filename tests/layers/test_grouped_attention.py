"""`GroupedCrossAttention` written out: which heads share keys and values, and the norms of queries and keys."""

import pytest
import torch
from torch.nn import functional as F

from accuracy import assert_varies, draw_parameters
from perceivers.layers.grouped_attention import GroupedCrossAttention
from perceivers.ops.tokens import Tokens


@pytest.mark.parametrize("qk_norm", [None, "layer_norm", "rms_norm"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_written_out(kv_heads, qk_norm):
    """Heads 0 and 1 of four read the first of two heads of keys and values, 2 and 3 the second."""
    attention = GroupedCrossAttention(dim=12, kv_dim=9, heads=4, kv_heads=kv_heads, head_dim=5, qk_norm=qk_norm, norm_eps=0.1)
    attention = draw_parameters(attention.double())
    latents, x, mask = torch.randn(2, 7, 12).double(), torch.randn(2, 11, 9).double(), torch.rand(2, 11) > 0.4
    mask[:, :3] = True
    out = attention(latents, [Tokens.of(x, mask)])
    assert_varies(out)

    def norm(y, weights):
        if qk_norm == "rms_norm":
            return y / (y.square().mean(-1, keepdim=True) + 0.1).sqrt() * weights.weight
        return y if qk_norm is None else F.layer_norm(y, (5,), weights.weight, weights.bias, 0.1)

    for i in range(2):
        q, k, v = (
            to(y).chunk(n, -1)
            for to, y, n in (
                (attention.to_q, latents[i], 4),
                *((to, x[i, mask[i]], kv_heads) for to in (attention.to_k, attention.to_v)),
            )
        )
        heads = []
        for head in range(4):
            shared = head // (4 // kv_heads)
            scores = norm(q[head], attention.q_norm) @ norm(k[shared], attention.k_norm).T / 5**0.5
            heads.append(scores.softmax(-1) @ v[shared])
        wanted = attention.to_out(torch.cat(heads, -1))
        torch.testing.assert_close(out[i], wanted, rtol=1e-10, atol=1e-10)
