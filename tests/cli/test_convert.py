"""`perceivers convert`, between formats that need no other project; tests/against_peers has the others."""

import pytest
import torch
from checkpoints.hostile import their_state

from perceivers import PerceiverIO, create_model, from_pretrained
from perceivers.__main__ import main
from perceivers.layers import Resampler


@pytest.fixture
def theirs(tmp_path):
    torch.save(their_state(), tmp_path / "theirs.pt")
    return str(tmp_path / "theirs.pt")


def test_options_reach_the_format(theirs, tmp_path, capsys):
    count = sum(tensor.numel() for tensor in their_state().values())
    options = ["--max-freq=6", "--frequency-base=2", "--input-axis=2", "--latent-heads=2"]
    assert main(["convert", theirs, str(tmp_path / "ours"), *options]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'ours'}: Perceiver with {count:,} parameters\n"
    config = from_pretrained(tmp_path / "ours").config
    assert (config["resolution"], config["frequency_base"], config["heads"]) == ([6, 6], 2, 2)
    for more, message in ([], "max_freq is missing"), (["--mask"], "--mask is for --to onnx, not perceivers"):
        assert main(["convert", theirs, str(tmp_path / "new"), *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_there_and_back(theirs, tmp_path, capsys):
    assert main(["convert", theirs, str(tmp_path / "ours"), "--max-freq=6"]) == 0
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back.pt"), "--to=perceiver-pytorch"]) == 0
    assert "\nperceiver_pytorch.Perceiver(num_latents=4, " in capsys.readouterr().out
    x = torch.randn(2, 3, 9, 7)
    first, again = (from_pretrained(path, max_freq=6) for path in (theirs, tmp_path / "back.pt"))
    assert torch.equal(first(x), again(x))


def test_preprocessing_is_kept(tmp_path):
    learned = {"kind": "LearnedPixels", "data_shape": [3, 5, 5]}
    outputs = {"kind": "LearnedQueries", "dim": 8, "num_channels": 2}
    sizes = {"num_latent_tokens": 4, "dim": 8, "heads": 2, "num_latent_transformers_in_layers": [1], "cross_qk_channels": 512}
    model = PerceiverIO(inputs=learned, outputs=outputs, decoder_qk_channels=8, **sizes)
    images = {"size": [5, 5], "crop": None, "resample": 2, "scale": 0.5, "mean": [0.0] * 3, "std": [1.0] * 3}
    model.preprocessing = {"kind": "CenterCroppedImages", "labels": ["cat", "dog"], "task": "multi_label", **images}
    model.save_pretrained(tmp_path / "ours")
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to=transformers"]) == 0
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "again")]) == 0
    assert from_pretrained(tmp_path / "again").preprocessing == model.preprocessing


def test_what_is_refused(tmp_path, capsys):
    create_model("perceiver_imagenet_fourier_tiny").save_pretrained(tmp_path / "perceiver")
    Resampler(dim=8, num_latent_tokens=2, depth=1, heads=2).save_pretrained(tmp_path / "resampler")
    for source, form, message in (
        ("perceiver", "transformers", "transformers does not have a Perceiver with inputs None"),
        ("resampler", "transformers", "transformers does not have a Resampler with inputs None"),
        ("resampler", "perceiver-pytorch", "perceiver-pytorch does not have a Resampler with inputs None"),
        ("nothing", "perceivers", "is not a file, a folder, or a repository"),
    ):
        assert main(["convert", str(tmp_path / source), str(tmp_path / "new"), f"--to={form}"]) == 2
        assert message in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "perceiver"), str(tmp_path / "resampler")]) == 2
    assert "already exists: remove it, or give another folder" in capsys.readouterr().err
