"""`perceivers info`: without PyTorch if no model is given; and what it prints of a model."""

import re
import subprocess
import sys

import pytest
import torch
from inputs.cases import CASES

from perceivers import Perceiver, PerceiverIO, create_model, outputs
from perceivers.__main__ import main
from perceivers.cli import info
from perceivers.ops.cross_attention import IMPLEMENTATIONS, kernel

SMALL = {"num_latent_tokens": 4, "dim": 8, "heads": 2, "num_latent_transformers_in_layers": [1]}
SLOW_TO_IMPORT = ("torch", "numpy", "transformers", "huggingface_hub")
TRAINING = ("lightning", "kornia", "jsonargparse", "tensorboard", "PIL", "soundfile", "av")


def imported(arguments: list[str], names: tuple[str, ...]) -> tuple[str, set[str]]:
    """What a command prints, and which of these packages it imports."""
    code = (
        "import sys; from perceivers.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print(*({set(names)} & sys.modules.keys()))"
    )
    printed = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout
    *printed, found = printed.splitlines()
    return "\n".join(printed), set(found.split())


@pytest.mark.parametrize("arguments", [["--help"], ["info"], [], ["info", "--help"]], ids=str)
def test_imports_nothing_that_takes_seconds(arguments):
    printed, found = imported(arguments, SLOW_TO_IMPORT)
    assert "perceivers" in printed
    assert not found


def test_needs_no_training_extra(tmp_path):
    create_model("perceiver_imagenet_fourier_tiny").save_pretrained(tmp_path / "model")
    for arguments in (["info", str(tmp_path / "model")], ["convert", str(tmp_path / "model"), str(tmp_path / "copy")]):
        printed, found = imported(arguments, TRAINING)
        assert "Perceiver" in printed
        assert not found


def test_what_is_printed_without_pytorch_is_right():
    assert tuple(IMPLEMENTATIONS) == info.IMPLEMENTATIONS
    assert info.here()[-1].endswith(kernel.description())
    shown = next(line for line in info.here() if line.startswith("torch "))
    assert f"torch {torch.__version__}".split("+")[0] == shown.split("+")[0]  # not all builds have their suffix in both


def test_graphics_cards(tmp_path):
    assert info.graphics_cards(tmp_path / "none") == []
    for bus, name in (("0000:01:00.0", "NVIDIA H100 80GB HBM3"), ("0000:02:00.0", "NVIDIA A10")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 16\nBus Location: \t {bus}\n")
    assert info.graphics_cards(tmp_path) == ["NVIDIA H100 80GB HBM3", "NVIDIA A10"]


def test_a_perceiver(tmp_path, capsys):
    model = create_model("perceiver_imagenet_fourier_tiny").bfloat16()
    model.preprocessing = {"kind": "Images", "labels": [f"digit {i}" for i in range(10)], "size": [32, 32]}
    model.save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for line in (
        str(tmp_path),
        "format: perceivers",
        "Perceiver",
        "  layers_indice: [0, 1]",
        "published as: perceiver_imagenet_fourier_tiny",
        "parameters: 83,678",
        "memory of the weights: 0.2 MB, bfloat16 (activations need more, depending on the batch size)",
        f"FLOPs of one sample of shape [3, 32, 32]: {model.flops():,} with dense cross-attention",
        "  > dense: costs were measured in float32, and this is half precision",
        "labels: 10: digit 0, digit 1, digit 2, digit 3, digit 4, digit 5, digit 6, digit 7 and 2 more",
        "  size: [32, 32]",
    ):
        assert line in printed.splitlines(), line


@pytest.mark.parametrize("kind", CASES)
def test_every_kind_of_input(kind, tmp_path):
    case = CASES[kind]
    model = PerceiverIO(inputs=case.module(), outputs=outputs.LearnedQueries(dim=8, num_channels=3), **SMALL)
    model.save_pretrained(tmp_path)
    printed = "\n".join(info.of(str(tmp_path)))
    assert f"parameters: {sum(p.numel() for p in model.parameters()):,}\n" in printed
    assert f"\n    kind: {type(model.inputs).__name__}\n" in printed
    if "FLOPs: unknown, because" not in printed:
        assert int(re.search(r"FLOPs of one sample of shape .*: ([\d,]+) with", printed)[1].replace(",", "")) > 0
        assert "\n  > " in printed
    else:
        assert type(model.inputs).__name__ in ("Points", "Events", "TimeSeries", "Features", "Multimodal")


def test_a_sample_that_is_too_large_is_not_made(tmp_path):
    Perceiver(data_shape=[3, 1_000_000, 1_000_000], resolution=224, num_bands=2, layers_indice=[0], **SMALL).save_pretrained(
        tmp_path
    )
    printed = "\n".join(info.of(str(tmp_path)))
    assert "FLOPs of one sample of shape [3, 1000000, 1000000]: " in printed
    assert "cross-attention is computed" not in printed


def test_what_a_file_does_not_specify(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["info", "--max-freq", "10"])  # of what?
    assert "unrecognized arguments: --max-freq" in capsys.readouterr().err
    assert main(["info", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_other_formats(tmp_path, capsys):
    peer = pytest.importorskip("perceiver_pytorch")
    theirs = peer.Perceiver(num_freq_bands=6, depth=2, max_freq=10.0, num_latents=16, latent_dim=32, num_classes=10)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    assert main(["info", str(tmp_path / "model.pt"), "--max-freq", "10"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path / 'model.pt'}\nformat: perceiver-pytorch\n")
    assert "  resolution: [10, 10]\n" in printed
    assert main(["info", str(tmp_path / "model.pt")]) == 2
    assert "max_freq is missing" in capsys.readouterr().err
