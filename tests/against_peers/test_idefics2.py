"""`Resampler` against transformers' Idefics2 resampler, same random weights: RMS norms, grouped heads, gates, masks."""

import pytest
import torch
from torch import nn

from accuracy import assert_varies, draw_parameters
from perceivers.layers import Resampler

pytestmark = pytest.mark.peer("transformers")


@torch.no_grad()
def copy_weights(theirs, ours: Resampler) -> None:
    ours.latents.copy_(theirs.latents)
    ours.norm.load_state_dict(theirs.norm.state_dict())
    for source, target in zip(theirs.layers, ours.blocks, strict=True):
        target.inputs_norm.norm.load_state_dict(source.input_context_norm.state_dict())
        target.attention_norm.norm.load_state_dict(source.input_latents_norm.state_dict())
        target.feed_forward_norm.norm.load_state_dict(source.post_attention_layernorm.state_dict())
        for name in "qkv":
            linear = getattr(source.self_attn, f"{name}_proj")
            getattr(target.attention, f"to_{name}").load_state_dict(linear.state_dict())
        target.attention.to_out.load_state_dict(source.self_attn.o_proj.state_dict())
        values_and_gates = torch.cat([source.mlp.up_proj.weight, source.mlp.gate_proj.weight])
        target.feed_forward.linear_in.weight.copy_(values_and_gates)
        target.feed_forward.linear_out.load_state_dict(source.mlp.down_proj.state_dict())


def in_float64(theirs):
    """Their norm computes in float32 whatever the model's dtype: for float64 it is replaced by PyTorch's, same weights."""
    theirs = theirs.double()
    for owner in list(theirs.modules()):
        for name, child in list(owner.named_children()):
            if type(child).__name__ == "Idefics2RMSNorm":
                norm = nn.RMSNorm(len(child.weight), eps=child.variance_epsilon, dtype=torch.float64)
                norm.load_state_dict(child.state_dict())
                setattr(owner, name, norm)
    return theirs


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"])
def test_tokens_and_gradients(peer, kv_heads, masked, dtype, tolerance):
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

    config = Idefics2PerceiverConfig(
        hidden_size=24,
        resampler_n_latents=7,
        resampler_depth=3,
        resampler_n_heads=6,
        resampler_head_dim=5,
        num_key_value_heads=kv_heads,
    )
    theirs = draw_parameters(Idefics2PerceiverResampler(config).eval())
    theirs = in_float64(theirs) if dtype == torch.float64 else theirs
    settings = {"dim": 24, "num_latent_tokens": 7, "depth": 3, "heads": 6, "kv_heads": kv_heads, "head_dim": 5}
    ours = Resampler(**settings, norm="rms_norm", activation="swiglu").to(dtype).eval()
    copy_weights(theirs, ours)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())

    x = torch.randn(3, 31, 24, dtype=dtype, requires_grad=True)
    mask = torch.rand(3, 31) > 0.4 if masked else torch.ones(3, 31, dtype=torch.bool)
    wanted, out = theirs(x, mask), ours(x, mask if masked else None)
    assert_varies(wanted)
    assert (out - wanted).abs().max() <= tolerance * wanted.abs().max()
    cotangent = torch.randn_like(wanted)
    for ours_leaf, theirs_leaf in (
        (x, x),
        (ours.latents, theirs.latents),
        (ours.blocks[0].attention.to_k.weight, theirs.layers[0].self_attn.k_proj.weight),
        (ours.blocks[2].inputs_norm.norm.weight, theirs.layers[2].input_context_norm.weight),
    ):
        ours_grad = torch.autograd.grad(out, ours_leaf, cotangent, retain_graph=True)[0]
        theirs_grad = torch.autograd.grad(wanted, theirs_leaf, cotangent, retain_graph=True)[0]
        assert (ours_grad - theirs_grad).abs().max() <= 3 * tolerance * theirs_grad.abs().max()
