"""The blocks written out with modules of PyTorch, and their settings."""

import re
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import nn

from accuracy import draw_parameters
from perceivers import PerceiverBlock
from perceivers.layers import CrossAttentionBlock, LatentTransformer
from perceivers.layers.block import BlockConfig


def array(*shape) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_block_written_out(pre_norm):
    """One block against modules of PyTorch with the same weights."""
    block = draw_parameters(LatentTransformer(dim=12, ff_dim=10, heads=3, pre_norm=pre_norm).double())
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    a, feed_forward = block.attention, block.feed_forward
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([a.to_q.weight, a.to_k.weight, a.to_v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([a.to_q.bias, a.to_k.bias, a.to_v.bias]))
        theirs.out_proj.load_state_dict(a.to_out.state_dict())

    n1, n2 = block.attention_norm, block.feed_forward_norm
    x = array(2, 7, 12)
    if pre_norm:
        wanted = x + theirs(n1(x), n1(x), n1(x), need_weights=False)[0]
        wanted = wanted + feed_forward(n2(wanted))
    else:
        wanted = n1(x + theirs(x, x, x, need_weights=False)[0])
        wanted = n2(wanted + feed_forward(wanted))
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_cross_block_written_out(pre_norm):
    block = draw_parameters(CrossAttentionBlock(dim=12, kv_dim=9, ff_dim=10, heads=2, pre_norm=pre_norm).double())
    theirs = nn.MultiheadAttention(12, 2, kdim=9, vdim=9, batch_first=True).double()
    a = block.attention
    with torch.no_grad():
        for name in "qkv":
            getattr(theirs, f"{name}_proj_weight").copy_(getattr(a, f"to_{name}").weight)
        theirs.in_proj_bias.copy_(torch.cat([a.to_q.bias, a.to_k.bias, a.to_v.bias]))
        theirs.out_proj.load_state_dict(a.to_out.state_dict())
    assert (a.inputs_norm is None) == (not pre_norm)
    x, inputs, mask = array(2, 4, 12), array(2, 11, 9), torch.rand(2, 11) > 0.4
    ours = PerceiverBlock(cross_attention=block, latent_transformers=[])(x, inputs, mask)
    n1, n2 = block.attention_norm, block.feed_forward_norm
    kv = a.inputs_norm(inputs) if pre_norm else inputs
    attended = theirs(n1(x) if pre_norm else x, kv, kv, key_padding_mask=~mask, need_weights=False)[0]
    if pre_norm:
        wanted = x + attended
        wanted = wanted + block.feed_forward(n2(wanted))
    else:
        wanted = n1(x + attended)
        wanted = n2(wanted + block.feed_forward(wanted))
    torch.testing.assert_close(ours, wanted)


def test_block_from_dims():
    block = PerceiverBlock.from_dims(cross_kv_dim=9, cross_heads=2, dim=12, heads=3, depth=2, ff_dim_scale=2, bias=False)
    assert len(block.latent_transformers) == 2
    assert block.latent_transformers[0].feed_forward.linear_in.out_features == 24
    assert block(torch.randn(2, 4, 12), torch.randn(2, 11, 9)).shape == (2, 4, 12)
    x, inputs = torch.randn(2, 4, 12), torch.randn(2, 11, 9)
    mask = torch.rand(2, 11) > 0.5
    assert torch.equal(block(x, inputs, mask)[0], block(x, inputs.masked_fill(~mask[..., None], torch.nan), mask)[0])


CONFIG = BlockConfig(dim=12, heads=3, ff_dim_scale=2, bias="out", pre_norm=False, activation="geglu", ff_dropout=0.1)


def test_a_configuration_is_its_keyword_arguments():
    """Handed down whole or written out, a block is the same; keyword arguments change a configuration."""
    settings = {"dim": 12, "heads": 3, "ff_dim": 24, "bias": "out", "pre_norm": False}
    settings |= {"activation": "geglu", "ff_dropout": 0.1}
    for make in (LatentTransformer, lambda *config, **settings: CrossAttentionBlock(*config, kv_dim=9, **settings)):
        torch.manual_seed(1)
        ours = make(CONFIG)
        torch.manual_seed(1)
        written = make(**settings)
        assert str(ours) == str(written)
        assert ours.state_dict().keys() == written.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), written.parameters(), strict=True))
        assert (ours.pre_norm, ours.feed_forward.dropout, ours.feed_forward.activation) == (False, 0.1, "geglu")
        assert make(CONFIG, ff_dim=5, heads=2).feed_forward.linear_out.in_features == 5
        assert make(CONFIG, heads=2).attention.heads == 2


def test_widths_are_derived():
    assert (CONFIG.widths, CONFIG.hidden_dim) == ((12, 12), 24)
    assert BlockConfig(dim=16).hidden_dim == 64
    assert replace(CONFIG, dim=6).hidden_dim == 12
    assert replace(CONFIG, head_dim=5).widths == (15, 15)
    assert replace(CONFIG, qk_channels=6).widths == (6, 6)
    assert replace(CONFIG, qk_channels=6, v_channels=9).widths == (6, 9)
    with pytest.raises(FrozenInstanceError):
        CONFIG.dim = 3  # pyright: ignore


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim=0 must be a whole number of at least 1"),
        ({"heads": 5}, "decoder_heads=5 does not divide dim=12: choose one that does, or give decoder_qk_channels"),
        ({"heads": 0}, "decoder_heads=0 must be"),
        ({"v_channels": 4}, "decoder_heads=3 does not divide decoder_v_channels=4"),
        ({"ff_dim": -1}, "decoder_ff_dim=-1 must be a whole number of at least 0"),
        ({"ff_dim_scale": 0.3}, "decoder_ff_dim_scale=0.3 times dim=12 must be a whole number: give decoder_ff_dim instead"),
        ({"pre_norm": 1}, "pre_norm=1 must be True or False"),
        ({"activation": "silu"}, "activation='silu' must be one of"),
        ({"attention_dropout": 1}, "attention_dropout=1 must be a probability"),
    ],
    ids=str,
)
def test_settings_are_checked_once_with_the_prefix_of_their_names(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(CONFIG, prefix="decoder_", **changes)


def test_unknown_settings():
    for make in (LatentTransformer, PerceiverBlock.from_dims, lambda **given: LatentTransformer(CONFIG, **given)):
        with pytest.raises(TypeError, match="hed_dim"):
            make(cross_kv_dim=3, dim=12, depth=1, hed_dim=3) if make == PerceiverBlock.from_dims else make(hed_dim=3)


def test_a_cross_attention_block_without_a_feed_forward():
    block = draw_parameters(CrossAttentionBlock(dim=12, kv_dim=9, ff_dim=0).double())
    assert not any("feed_forward" in name for name in block.state_dict())
    with pytest.raises(ValueError, match="hidden_dim=0 must be"):
        LatentTransformer(dim=8, ff_dim=0)


def test_token_groups_carry_their_own_masks():
    block = PerceiverBlock.from_dims(cross_kv_dim=9, dim=12, heads=3, depth=1)
    with pytest.raises(ValueError, match="mask is given together with token groups, which carry their own masks"):
        block(torch.zeros(2, 4, 12), [], torch.ones(2, 3, dtype=torch.bool))
