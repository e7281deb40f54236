"""Files with resamplers of larger models that are damaged, not complete, or ambiguous: one error that says what."""

import pytest
import torch

from perceivers import from_pretrained
from perceivers.__main__ import main
from perceivers.checkpoints.formats import resamplers
from perceivers.checkpoints.source import Source


def flamingo(prefix="", depth=2):
    """A state_dict of flamingo-pytorch: 3 heads of 5, width 12, 4 latents."""
    shapes = {"latents": (4, 12), "media_pos_emb": (6, 1, 12), "norm.weight": (12,), "norm.bias": (12,)}
    for i in range(depth):
        for norm in ("0.norm_media", "0.norm_latents", "1.0"):
            shapes |= {f"layers.{i}.{norm}.{part}": (12,) for part in ("weight", "bias")}
        maps = {"0.to_q": (15, 12), "0.to_kv": (30, 12), "0.to_out": (12, 15), "1.1": (20, 12), "1.3": (12, 20)}
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in maps.items()}
    return {prefix + name: torch.zeros(shape) for name, shape in shapes.items()}


def without(name):
    return {key: value for key, value in flamingo("p.").items() if key != name}


BAD = {
    "no latents": (without("p.latents"), {}, r"p\.latents is missing"),
    "no queries": (without("p.layers.0.0.to_q.weight"), {}, r"p\.layers\.0\.0\.to_q\.weight is missing"),
    "no keys": (without("p.layers.1.0.to_kv.weight"), {}, r"p\.layers\.1\.0\.to_kv\.weight is missing"),
    "no norm": (without("p.norm.bias"), {}, r"p\.norm\.bias is missing"),
    "no inner norm": (without("p.layers.1.1.0.bias"), {}, r"p\.layers\.1\.1\.0\.bias is missing"),
    "no feed-forward": (without("p.layers.1.1.3.weight"), {}, r"p\.layers\.1\.1\.3\.weight is missing"),
    "one too many": (flamingo("p.") | {"p.extra": torch.zeros(2)}, {}, r"1 tensors have no place in Resampler, .*p\.extra"),
    "a layer too many": (flamingo() | {"layers.7.0.to_q.weight": torch.zeros(1)}, {}, r"layers\.2 is missing: the file is"),
    "no number": (flamingo() | {"layers.x.0.to_q.weight": torch.zeros(1)}, {}, r"layers\.2 is missing: the file is not"),
    "other shape": (flamingo() | {"norm.weight": torch.zeros(13)}, {}, r"norm\.weight has shape \[13\], not \[12\]"),
    "vector for latents": (
        flamingo() | {"latents": torch.zeros(12)},
        {},
        r"latents has shape \[12\], but 2 or 3 or 4 axes are needed",
    ),
    "odd keys": (flamingo() | {"layers.0.0.to_kv.weight": torch.zeros(29, 12)}, {}, r"shape \[29, 12\]: not keys and values"),
    "integers": (flamingo() | {"latents": torch.zeros(4, 12, dtype=torch.int64)}, {}, "latents is torch.int64"),
    "two kinds of embeddings": (
        flamingo() | {"frame_embs": torch.zeros(3, 12)},
        {},
        "media_pos_emb and frame_embs, but Resampler adds one kind of embeddings",
    ),
    "two resamplers": (flamingo("a.") | flamingo("b."), {}, r"2 resamplers, under \['a\.', 'b\.'\]"),
    "usual heads": (flamingo(), {"heads": None}, "15 wide, which is not heads=0 x head_dim=64: give the heads"),
    "other heads": (flamingo(), {"heads": 4}, "15 wide, which is not heads=4 x head_dim=3"),
    "no heads": (flamingo(), {"heads": 0}, "heads=0 must be a whole number"),
    "both": (flamingo(), {"heads": 5, "head_dim": 5}, "which is not heads=5 x head_dim=5"),
    "no head_dim": (flamingo(), {"head_dim": 0}, "head_dim=0 must be a whole number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case, tmp_path):
    weights, arguments, message = BAD[case]
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path / "model.pt", **{"heads": 3, **arguments})


def test_arguments(tmp_path):
    torch.save({"model_state_dict": flamingo("module.perceiver."), "epoch": 3}, tmp_path / "model.pt")  # of a training loop
    assert from_pretrained(tmp_path / "model.pt", heads=3).config["head_dim"] == 5
    assert from_pretrained(tmp_path / "model.pt", head_dim=3).config["heads"] == 5
    with pytest.raises(TypeError, match="depth"):
        from_pretrained(tmp_path / "model.pt", depth=2)


def test_names_that_only_end_alike():
    assert resamplers.FILE.recognises(Source.of(flamingo()))
    assert not resamplers.FILE.recognises(Source.of({"other" + name: value for name, value in flamingo().items()}))


def test_convert(tmp_path, capsys):
    torch.save(flamingo(), tmp_path / "model.pt")
    assert main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "ours"), "--heads=3"]) == 0
    assert "Resampler with " in capsys.readouterr().out
    assert from_pretrained(tmp_path / "ours").config["head_dim"] == 5
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to=transformers"]) == 2
    assert "transformers does not have a Resampler" in capsys.readouterr().err
