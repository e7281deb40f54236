"""`Pooler` against the attention pooling head of transformers' SigLIP, with the same random weights."""

import pytest
import torch

from accuracy import assert_varies, draw_parameters
from perceivers.layers import Pooler

pytestmark = pytest.mark.peer("transformers")


def test_vector_and_gradients(peer):
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    config = peer.SiglipVisionConfig(
        hidden_size=24, num_attention_heads=4, intermediate_size=40, layer_norm_eps=1e-5, hidden_act="gelu_pytorch_tanh"
    )
    theirs = draw_parameters(SiglipMultiheadAttentionPoolingHead(config).double().eval())
    ours = Pooler(dim=24, heads=4, ff_dim=40, norm_inputs=False, activation="gelu_tanh").double().eval()
    with torch.no_grad():
        ours.queries.copy_(theirs.probe[0])
        a, inner = ours.attention, theirs.attention
        for linear, weight, bias in zip(
            (a.to_q, a.to_k, a.to_v), inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3), strict=True
        ):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        a.to_out.load_state_dict(inner.out_proj.state_dict())
        ours.feed_forward_norm.load_state_dict(theirs.layernorm.state_dict())
        ours.feed_forward.linear_in.load_state_dict(theirs.mlp.fc1.state_dict())
        ours.feed_forward.linear_out.load_state_dict(theirs.mlp.fc2.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x = torch.randn(3, 31, 24, dtype=torch.float64, requires_grad=True)
    wanted, out = theirs(x), ours(x)
    assert_varies(wanted)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    grads = [torch.autograd.grad(y.square().sum(), x) for y in (out, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)
