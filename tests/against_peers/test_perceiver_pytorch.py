"""The whole model, logits and gradients, against perceiver-pytorch's `Perceiver` with the same random weights.

It is the only other implementation of the original model with repeated cross-attention and a head. What it does otherwise
(geglu, a norm before the head, no bias of q, k and v, its weight sharing) are settings of ours; its position features come
in another order.
"""

import pytest
import torch
from safetensors.torch import save_file

from accuracy import assert_varies, draw_parameters
from perceivers import from_pretrained
from perceivers.__main__ import main

pytestmark = pytest.mark.peer("perceiver_pytorch")
BANDS, RESOLUTION = 5, 10.0


@pytest.mark.parametrize("axes", [(17,), (6, 9), (3, 4, 5)], ids=str)
@pytest.mark.parametrize(("tied", "layers"), [(False, [0, 1, 2]), (True, [0, 1, 1])])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_and_gradients(peer, axes, tied, layers, masked, tmp_path):
    theirs = peer.Perceiver(
        num_freq_bands=BANDS,
        depth=3,
        max_freq=RESOLUTION,
        input_channels=2,
        input_axis=len(axes),
        num_latents=7,
        latent_dim=12,
        cross_heads=2,
        latent_heads=3,
        cross_dim_head=5,
        latent_dim_head=4,
        num_classes=6,
        weight_tie_layers=tied,
        self_per_cross_attn=2,
    ).double()
    draw_parameters(theirs)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = from_pretrained(
        tmp_path / "theirs.pt",
        max_freq=RESOLUTION,
        input_channels=2,
        input_axis=len(axes),
        data_shape=[2, *axes],
        cross_heads=2,
        latent_heads=3,
    )
    assert ours.config["layers_indice"] == layers
    x = torch.randn(3, 2, *axes, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, *axes) > 0.4 if masked else None
    our_logits, their_logits = ours(x, mask), theirs(x.movedim(1, -1), mask=mask)
    assert_varies(their_logits)
    torch.testing.assert_close(our_logits, their_logits, rtol=1e-10, atol=1e-10)

    cotangent = torch.randn_like(their_logits)
    pairs = [
        (ours.encoder.latents, theirs.latents),
        (ours.encoder.cross_attentions[-1].attention.to_out.weight, theirs.layers[-1].cross_attn.fn.to_out.weight),
        (ours.encoder.cross_attentions[0].attention.to_q.weight, theirs.layers[0].cross_attn.fn.to_q.weight),
        (ours.head.weight, theirs.to_logits[2].weight),
        (x, x),
    ]
    our_grads = torch.autograd.grad(our_logits, [ours for ours, _ in pairs], cotangent)
    their_grads = torch.autograd.grad(their_logits, [theirs for _, theirs in pairs], cotangent)
    for our_grad, their_grad in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-8, atol=1e-10)


@pytest.fixture
def saved(peer, tmp_path):
    """A model, its file, and what is to be said of it."""
    model = peer.Perceiver(
        num_freq_bands=3,
        depth=3,
        max_freq=8.0,
        num_latents=4,
        latent_dim=8,
        latent_heads=2,
        cross_dim_head=4,
        latent_dim_head=4,
        num_classes=3,
        weight_tie_layers=True,
    )
    draw_parameters(model)
    path = tmp_path / "theirs.pt"
    torch.save(model.state_dict(), path)
    return model, path, {"max_freq": 8.0, "latent_heads": 2}


@pytest.mark.parametrize("form", ["state_dict", "model", "safetensors"])
def test_forms_of_files(saved, form, tmp_path):
    model, _, arguments = saved
    path = tmp_path / ("other.safetensors" if form == "safetensors" else "other.ckpt")
    if form == "safetensors":
        save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    else:
        torch.save({form: model.state_dict(), "epoch": 3}, path)
    x = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(from_pretrained(path, **arguments)(x), model(x.movedim(1, -1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_freq": None}, "max_freq is missing"),
        ({"input_axis": 3}, "input_axis=3"),
        ({"num_freq_bands": 9}, "num_freq_bands=9"),
        ({"latent_heads": 3}, "latent_heads=3"),
        ({"cross_heads": 0}, "cross_heads=0"),
    ],
    ids=str,
)
def test_what_is_not_told_must_fit(saved, change, message):
    _, path, arguments = saved
    with pytest.raises(ValueError, match=message):
        from_pretrained(path, **{**arguments, **change})


def test_unknown_arguments_and_tensors(saved):
    model, path, arguments = saved
    with pytest.raises(TypeError, match="depth"):
        from_pretrained(path, depth=2, **arguments)
    state = model.state_dict()
    missing = {name: tensor for name, tensor in state.items() if name != "layers.0.cross_ff.norm.weight"}
    for changed, message in ((missing, "is missing"), ({**state, "more": torch.zeros(3)}, "have no place")):
        torch.save(changed, path)
        with pytest.raises(ValueError, match=message):
            from_pretrained(path, **arguments)


def test_convert(saved, tmp_path, capsys):
    _, path, arguments = saved
    assert main(["convert", str(path), str(tmp_path / "ours"), "--max-freq=8", "--latent-heads=2"]) == 0
    x = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(from_pretrained(tmp_path / "ours")(x), from_pretrained(path, **arguments)(x))
    assert main(["convert", str(path), str(tmp_path / "new")]) == 2
    assert "max_freq is missing" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "new"), "--to=transformers"]) == 2
    assert "does not have" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
