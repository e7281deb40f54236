"""The resampler of transformers' first Idefics, loaded: layer norms, also of queries and keys, and a ReLU."""

from types import SimpleNamespace

import pytest
import torch

from accuracy import assert_varies, draw_parameters
from perceivers import from_pretrained
from perceivers.layers import Resampler

pytestmark = pytest.mark.peer("transformers")


@pytest.mark.parametrize("qk_norm", [False, True])
def test_tokens_and_gradients(peer, qk_norm, tmp_path):
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = SimpleNamespace(
        perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=qk_norm), vision_config=SimpleNamespace(embed_dim=24)
    )
    theirs = IdeficsPerceiverResampler(config, embed_dim=24, depth=3, n_heads=4, head_dim=5, n_latents=7)
    theirs = draw_parameters(theirs.double().eval())
    torch.save(theirs.state_dict(), tmp_path / "resampler.pt")
    ours = from_pretrained(tmp_path / "resampler.pt", heads=4)
    assert isinstance(ours, Resampler)
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


@pytest.mark.parametrize("qk_norm", [False, True])
def test_whole_models(peer, qk_norm, tmp_path):
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    vision = {"embed_dim": 24, "image_size": 28, "patch_size": 14, "num_hidden_layers": 1, "num_attention_heads": 2}
    resampler = {"use_resampler": True, "resampler_n_latents": 7, "resampler_depth": 2, "resampler_n_heads": 4}
    resampler |= {"resampler_head_dim": 5, "qk_layer_norms_perceiver": qk_norm}
    config = IdeficsConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        vision_config=vision,
        perceiver_config=resampler,
        use_resampler=True,
    )
    theirs = draw_parameters(IdeficsForVisionText2Text(config).eval())
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    x = torch.randn(2, 31, 24)
    wanted = theirs.model.perceiver_resampler(x)
    assert_varies(wanted)
    assert (ours(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
