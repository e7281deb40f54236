"""`CrossAttention` and `SelfAttention` written out, one sample and one head at a time."""

import pytest
import torch
from torch import nn

from accuracy import assert_varies, draw_parameters
from perceivers.layers import CrossAttention, SelfAttention
from perceivers.ops.tokens import Tokens


def array(*shape) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def attend(weights, q_ND, x_MC, heads):
    """Return sum_m A_m v_m of each head, side by side, and the weights A, `[heads, N, M]`."""
    project = lambda name, y: (y @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]).chunk(heads, -1)  # noqa: E731
    gathered, maps = [], []
    for q, k, v in zip(project("to_q", q_ND), project("to_k", x_MC), project("to_v", x_MC), strict=True):
        exponentials = (q @ k.T / q.shape[-1] ** 0.5).exp()
        maps.append(exponentials / exponentials.sum(-1, keepdim=True))
        gathered.append(maps[-1] @ v)
    return torch.cat(gathered, -1) @ weights["to_out.weight"].T + weights["to_out.bias"], torch.stack(maps)


@pytest.mark.parametrize("norm_inputs", [True, False])
def test_cross_attention_written_out(norm_inputs):
    """Several groups share one softmax; heads of queries and keys are not as wide as those of values; some are masked."""
    settings = {"qk_channels": 8, "v_channels": 6, "norm_inputs": norm_inputs}
    attention = draw_parameters(CrossAttention(dim=12, kv_dim=9, heads=2, **settings).double())
    latents, x, mask = array(2, 5, 12), array(2, 11, 9), torch.rand(2, 11) > 0.4
    mask[:, :3] = True
    groups, weights = [Tokens.of(x[:, :7], mask[:, :7]), Tokens.of(x[:, 7:], mask[:, 7:])], attention.state_dict()
    out, maps = attention(latents, groups), attention.attention_maps(latents, groups)
    assert_varies(out)
    for i in range(2):
        kept = x[i, mask[i]]
        if norm_inputs:
            centred = kept - kept.mean(-1, keepdim=True)
            kept = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights["inputs_norm.weight"]
            kept = kept + weights["inputs_norm.bias"]
        wanted, wanted_maps = attend(weights, latents[i], kept, 2)
        torch.testing.assert_close(out[i], wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(maps[i][..., mask[i]], wanted_maps, rtol=1e-10, atol=1e-10)
        assert (maps[i][..., ~mask[i]] == 0).all()


def test_self_attention_written_out():
    attention, x = draw_parameters(SelfAttention(dim=12, heads=2, head_dim=5, v_channels=8).double()), array(2, 7, 12)
    wanted = torch.stack([attend(attention.state_dict(), row, row, 2)[0] for row in x])
    assert_varies(wanted)
    torch.testing.assert_close(attention(x), wanted, rtol=1e-10, atol=1e-10)


def test_masked_queries_gather_nothing():
    attention, latents, x = draw_parameters(CrossAttention(dim=12, kv_dim=9).double()), array(2, 5, 12), array(2, 11, 9)
    query_mask = torch.rand(2, 5) > 0.5
    out = attention(latents, [Tokens.of(x)], query_mask_BN=query_mask)
    assert (out[~query_mask] == attention.to_out.bias).all()
    assert torch.equal(out[query_mask], attention(latents, [Tokens.of(x)])[query_mask])


def test_shapes_are_not_read_from_replaced_modules():
    attention, latents, groups = (
        CrossAttention(dim=12, kv_dim=9, heads=2).double(),
        array(2, 5, 12),
        [Tokens.of(array(2, 11, 9))],
    )
    wanted = attention(latents, groups)
    for name in ("to_q", "to_k", "to_v", "to_out"):
        setattr(attention, name, nn.Sequential(getattr(attention, name)))
    attention.check(latents, groups)
    torch.testing.assert_close(attention(latents, groups), wanted)
