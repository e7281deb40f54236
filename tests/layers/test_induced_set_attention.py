"""`InducedSetAttention` against the equations of the Set Transformer, and what its arguments mean."""

import pytest
import torch
from torch.nn import functional as F

from accuracy import assert_varies, draw_parameters
from perceivers.layers import InducedSetAttention


def build(**changes) -> InducedSetAttention:
    settings = {"dim": 12, "num_latent_tokens": 5, "heads": 3, **changes}
    return draw_parameters(InducedSetAttention(**settings).double().eval())  # pyright: ignore


def written_out(weights, x, heads, norm_first):
    """ISAB(X) = MAB(X, MAB(I, X)), MAB(X, Y) = norm(H + rFF(H)), H = norm(X + Multihead(X, Y, Y)); one set `[M, D]`."""

    def linear(name, y):
        return y @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, y):
        return F.layer_norm(y, y.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def multihead(name, x, y):
        q, k, v = linear(f"{name}.to_q", x), linear(f"{name}.to_k", y), linear(f"{name}.to_v", y)
        parts = zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
        return linear(f"{name}.to_out", torch.cat([(q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in parts], -1))

    def feed_forward(name, y):
        return linear(f"{name}.linear_out", F.gelu(linear(f"{name}.linear_in", y)))

    def block(name, x, y):
        first, second = f"{name}.attention_norm", f"{name}.feed_forward_norm"
        if norm_first:
            h = x + multihead(f"{name}.attention", norm(first, x), norm(f"{name}.attention.inputs_norm", y))
            return h + feed_forward(f"{name}.feed_forward", norm(second, h))
        h = norm(first, x + multihead(f"{name}.attention", x, y))
        return norm(second, h + feed_forward(f"{name}.feed_forward", h))

    return block("write", x, block("read", weights["latents"], x))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_written_out(pre_norm):
    block = build(pre_norm=pre_norm)
    x, mask = torch.randn(2, 11, 12, dtype=torch.float64), torch.rand(2, 11) > 0.4
    out, weights = block(x, mask), block.state_dict()
    assert_varies(out)
    assert (out[~mask] == 0).all()
    for i in range(2):
        wanted = written_out(weights, x[i, mask[i]], 3, pre_norm)
        torch.testing.assert_close(out[i, mask[i]], wanted, rtol=1e-10, atol=1e-10)


def test_settings():
    block = InducedSetAttention(dim=12, num_latent_tokens=5)
    assert block.read.attention.inputs_norm is None  # norms after the residuals, as published
    assert block.write.feed_forward.linear_in.out_features == 12
    assert build(ff_dim=7).read.feed_forward.linear_in.out_features == 7
    assert build(head_dim=5).write.attention.to_q.out_features == 15
    assert {name.split(".")[0] for name in block.state_dict()} == {"latents", "read", "write"}
