"""`Resampler` against transformers' first Idefics resampler, with the same random weights.

It has layer norms, also of queries and keys. Its feed-forward, whose activation is a ReLU, gets our GELU.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from accuracy import assert_varies, draw_parameters
from perceivers.layers import Resampler

pytestmark = pytest.mark.peer("transformers")


@torch.no_grad()
def copy_weights(theirs, ours: Resampler) -> None:
    ours.latents.copy_(theirs.latents)
    ours.norm.load_state_dict(theirs.layer_norm.state_dict())
    for (attention, mlp), target in zip(theirs.blocks, ours.blocks, strict=True):
        target.inputs_norm.norm.load_state_dict(attention.context_layer_norm.state_dict())
        target.attention_norm.norm.load_state_dict(attention.latents_layer_norm.state_dict())
        for name in "qkv":
            getattr(target.attention, f"to_{name}").load_state_dict(getattr(attention, f"{name}_proj").state_dict())
        target.attention.to_out.load_state_dict(attention.output_proj.state_dict())
        if target.attention.q_norm is not None:
            target.attention.q_norm.load_state_dict(attention.q_layer_norm.state_dict())
            target.attention.k_norm.load_state_dict(attention.k_layer_norm.state_dict())
        target.feed_forward_norm.norm.load_state_dict(mlp.ln.state_dict())
        target.feed_forward.linear_in.weight.copy_(mlp.fc.weight)
        target.feed_forward.linear_out.weight.copy_(mlp.c_proj.weight)
        target.feed_forward.linear_in.bias.zero_()
        target.feed_forward.linear_out.bias.zero_()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_tokens_and_gradients(peer, qk_norm):
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = SimpleNamespace(
        perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=qk_norm), vision_config=SimpleNamespace(embed_dim=24)
    )
    theirs = IdeficsPerceiverResampler(config, embed_dim=24, depth=3, n_heads=4, head_dim=5, n_latents=7)
    for _, mlp in theirs.blocks:
        mlp.act = nn.GELU()
    theirs = draw_parameters(theirs.double().eval())
    ours = Resampler(dim=24, num_latent_tokens=7, depth=3, heads=4, head_dim=5, qk_norm=qk_norm).double().eval()
    copy_weights(theirs, ours)
    x = torch.randn(3, 31, 24, dtype=torch.float64, requires_grad=True)
    wanted, out = theirs(x), ours(x)
    assert_varies(wanted)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    leaves = [x, x], [ours.latents, theirs.latents], [ours.blocks[0].attention.to_k.weight, theirs.blocks[0][0].k_proj.weight]
    for ours_leaf, theirs_leaf in leaves:
        grads = [
            torch.autograd.grad(y.square().sum(), leaf, retain_graph=True)
            for y, leaf in ((out, ours_leaf), (wanted, theirs_leaf))
        ]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)
