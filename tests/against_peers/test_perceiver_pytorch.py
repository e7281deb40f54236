"""The whole model, logits and gradients, against perceiver-pytorch's `Perceiver` with the same random weights.

It is the only other implementation of the original model with repeated cross-attention and a head. What it does otherwise
(geglu, a norm before the head, no bias of q, k and v, its weight sharing) are settings of ours; its position features come
in another order. Older versions are the same model under older names, with frequencies spaced otherwise.
"""

import importlib
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from accuracy import assert_varies, draw_parameters
from perceivers import PerceiverIO, from_pretrained
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
    """A model, its file, and the arguments to load it."""
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
def test_arguments_must_fit(saved, change, message):
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


# What changed at which version, as it is undone here: patterns of today's names and what stood there before.
HEAD_0_7_0 = [(r"^to_logits\.1\.", "to_logits.0."), (r"^to_logits\.2\.", "to_logits.1.")]
DROPOUT_0_7_5 = [(r"\.to_out\.", ".to_out.0."), (r"\.net\.2\.", ".net.3.")]
NUMBERS_0_10 = [(r"\.cross_attn\.", ".0."), (r"\.cross_ff\.", ".1."), (r"\.self_attns\.", ".2.")]
NUMBERS_0_1 = [*NUMBERS_0_10[:2], (r"\.self_attns\.0\.0\.", ".2."), (r"\.self_attns\.0\.1\.", ".3.")]
linear = lambda top, bands: np.linspace(1, top, bands)  # noqa: E731
older = {
    "0.10": ([NUMBERS_0_10], linear, {}),
    "0.7.4": ([NUMBERS_0_10, DROPOUT_0_7_5], linear, {"frequency_base": "linear"}),
    "0.7.3": (
        [NUMBERS_0_10, DROPOUT_0_7_5],
        lambda top, bands: np.logspace(0, math.log10(top), bands),
        {"frequency_base": 1},
    ),
    "0.7.2": (
        [NUMBERS_0_10, DROPOUT_0_7_5],
        lambda top, bands: np.logspace(0, math.log(top), bands),
        {"frequency_base": 1, "max_freq": 2 * 10 ** math.log(RESOLUTION / 2)},
    ),
    "0.7.0": (
        [NUMBERS_0_10, DROPOUT_0_7_5, HEAD_0_7_0],
        lambda top, bands: np.logspace(0, math.log2(top), bands, base=2),
        {"frequency_base": 1},
    ),
    "0.1": (
        [NUMBERS_0_1, DROPOUT_0_7_5, HEAD_0_7_0],
        lambda top, bands: np.logspace(1, math.log2(top), bands, base=2),
        {"frequency_base": 2},
    ),
}


def renamed(state, groups):
    for group in groups:
        state = {next((re.sub(old, new, n) for old, new in group if re.search(old, n)), n): w for n, w in state.items()}
    return state


def small(peer, **changes):
    """A model in float64 with everything in it random."""
    arguments = {
        "num_freq_bands": BANDS,
        "depth": 3,
        "max_freq": RESOLUTION,
        "input_channels": 2,
        "num_latents": 4,
        "latent_dim": 8,
        "latent_heads": 2,
        "cross_dim_head": 4,
        "latent_dim_head": 4,
        "num_classes": 3,
    }
    return draw_parameters(peer.Perceiver(**{**arguments, **changes})).double().eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("version", older)
def test_older_versions(peer, monkeypatch, tmp_path, version, tied):
    groups, spacing, specified = older[version]

    def fourier_encode(x, max_freq, num_bands):
        angles = x.unsqueeze(-1) * torch.pi * torch.tensor(spacing(max_freq / 2, num_bands))
        return torch.cat([angles.sin(), angles.cos(), x.unsqueeze(-1)], dim=-1)

    theirs = small(peer, weight_tie_layers=tied, self_per_cross_attn=1 if version == "0.1" else 2)
    state = theirs.state_dict()
    assert not renamed(state, groups).keys() & {name for name in state if name.startswith("layers")}
    torch.save(renamed(state, groups), tmp_path / "old.pt")
    ours = from_pretrained(
        tmp_path / "old.pt", **{"max_freq": RESOLUTION, "input_channels": 2, "latent_heads": 2, **specified}
    )
    np.testing.assert_allclose(ours.inputs.features.frequencies[0], spacing(RESOLUTION / 2, BANDS), rtol=1e-12)
    monkeypatch.setattr("perceiver_pytorch.perceiver_pytorch.fourier_encode", fourier_encode)
    x, mask = torch.randn(3, 2, 5, 4).double(), torch.rand(3, 5, 4) > 0.3
    wanted = theirs(x.movedim(1, -1), mask=mask)
    assert_varies(wanted)
    torch.testing.assert_close(ours(x, mask), wanted, rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_spacing_of_older_versions_must_be_specified(peer, tmp_path):
    torch.save(renamed(small(peer).state_dict(), [DROPOUT_0_7_5]), tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"frequency_base is missing.*2 .* up to 0\.2\.0, 1 for 0\.2\.1 to 0\.7\.3, 'linear'"):
        from_pretrained(tmp_path / "old.pt", max_freq=RESOLUTION, input_channels=2, latent_heads=2)


def test_names_of_two_versions(peer, tmp_path):
    state = small(peer).state_dict()
    torch.save({**renamed(state, [NUMBERS_0_10]), **state}, tmp_path / "mixed.pt")
    with pytest.raises(ValueError, match="under the names of two versions"):
        from_pretrained(tmp_path / "mixed.pt", max_freq=RESOLUTION, input_channels=2, latent_heads=2)


def test_sharing_inside_a_stack(peer, tmp_path):
    """Up to 0.8.3 all latent transformers of layers that share weights were one."""
    theirs = small(peer, weight_tie_layers=True, self_per_cross_attn=2)
    theirs.layers[1].self_attns[1].load_state_dict(theirs.layers[1].self_attns[0].state_dict())
    torch.save(theirs.state_dict(), tmp_path / "old.pt")
    ours = from_pretrained(tmp_path / "old.pt", max_freq=RESOLUTION, input_channels=2, latent_heads=2)
    assert ours.config["layers_indice"] == [0, None, 1, None, 1, None]
    assert ours.config["latent_layers_indice"] == [0, 1, 2, 2, 2, 2]
    x = torch.randn(3, 2, 5, 4).double()
    torch.testing.assert_close(ours(x), theirs(x.movedim(1, -1)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axes", [(17,), (5, 4)], ids=str)
@pytest.mark.parametrize("head", [True, False])
def test_features_without_positions(peer, tmp_path, axes, head):
    theirs = small(peer, fourier_encode_data=False, final_classifier_head=head, input_channels=7, input_axis=len(axes))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = from_pretrained(tmp_path / "theirs.pt", fourier_encode_data=False, latent_heads=2)
    assert isinstance(ours, PerceiverIO)
    x, mask = torch.randn(3, *axes, 7).double(), torch.rand(3, *axes) > 0.3
    flat = x.flatten(1, -2), mask.flatten(1)
    out = ours(*flat) if head else ours.encode(*flat)
    torch.testing.assert_close(out, theirs(x, mask=mask), rtol=1e-10, atol=1e-10)
    for specified, message in (({"max_freq": 4.0}, "max_freq"), ({"input_channels": 6}, "7 channels, but input_channels=6")):
        with pytest.raises(ValueError, match=message):
            from_pretrained(tmp_path / "theirs.pt", fourier_encode_data=False, latent_heads=2, **specified)


def test_without_a_head(peer, tmp_path):
    theirs = small(peer, final_classifier_head=False)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = from_pretrained(tmp_path / "theirs.pt", max_freq=RESOLUTION, input_channels=2, latent_heads=2)
    x = torch.randn(3, 2, 5, 4).double()
    latents = theirs(x.movedim(1, -1))
    torch.testing.assert_close(ours.encode(x), latents, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours(x), latents.mean(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["gated", "experimental", "mixed_latents"])
def test_what_is_not_here_is_refused_by_name(peer, tmp_path, kind):
    arguments = {"num_freq_bands": 2, "depth": 2, "max_freq": 8, "num_latents": 4, "latent_dim": 8}
    state = importlib.import_module(f"perceiver_pytorch.{kind}").Perceiver(**arguments).state_dict()
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=rf"belongs to {kind}\.Perceiver, which"):
        from_pretrained(tmp_path / "theirs.pt", max_freq=8.0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sinu_emb.inv_freq": torch.ones(2)}, r"self_attn_rel_pos=True of versions 0\.3 and 0\.4"),
        ({"layers.0.0.norm.g": torch.ones(1)}, r"the norms of versions before 0\.1\.16"),
        ({"layers.7.cross_attn.norm.weight": torch.ones(8)}, r"layers\.3 is missing: the file is not complete"),
        ({"layers.0.cross_attn.fn.to_kv.weight": torch.ones(9, 24)}, r"to_kv\.weight has shape \[9, 24\]: not keys and"),
        ({"latents": torch.ones(4)}, r"latents has shape \[4\], but 2 axes"),
        ({"layers.0.cross_attn.fn.to_q.weight": None}, r"to_q\.weight is missing"),
        ({"layers.2.self_attns.0.1.fn.net.2.bias": None}, r"net\.2\.bias is missing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_belong_or_is_missing(peer, tmp_path, more, message):
    state = {name: tensor for name, tensor in {**small(peer).state_dict(), **more}.items() if tensor is not None}
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path / "theirs.pt", max_freq=RESOLUTION, input_channels=2, latent_heads=2)


def test_attention_residual_and_no_layers(peer, tmp_path):
    path = tmp_path / "theirs.pt"
    torch.save(small(peer, attn_residual=True).state_dict(), path)
    with pytest.raises(ValueError, match=r"attn_residuals\.0\.\S+ belongs to attn_residual=True"):
        from_pretrained(path, max_freq=RESOLUTION)
    torch.save({"latents": torch.ones(4, 8), "layer.fn.to_kv.weight": torch.ones(8, 24)}, path)
    with pytest.raises(ValueError, match="it has no layers"):
        from_pretrained(path, max_freq=RESOLUTION)


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
