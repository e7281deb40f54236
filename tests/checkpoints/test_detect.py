"""`from_pretrained` of any format: our own, and files that are damaged or were made to do harm."""

import json
import os
import pickle

import pytest
import torch
from checkpoints.measured import measured

from perceivers import PerceiverIO, create_model, from_pretrained, inputs, outputs


@pytest.mark.parametrize("kind", ["Perceiver", "PerceiverIO"])
def test_our_own_format(kind, tmp_path):
    if kind == "Perceiver":
        model, x = create_model("perceiver_imagenet_fourier_tiny"), torch.randn(2, 3, 32, 32)
    else:
        model = PerceiverIO(
            inputs=inputs.TokenIds(vocab_size=9, max_length=5, dim=8),
            outputs=outputs.LearnedQueries(dim=8, num_channels=3),
            num_latent_tokens=4,
            dim=8,
            heads=2,
        )
        x = torch.randint(9, (2, 5))
    model.eval().save_pretrained(tmp_path)
    again = from_pretrained(tmp_path, attention_dropout=0.5)
    assert type(again) is type(model)
    assert again.config["attention_dropout"] == 0.5
    torch.testing.assert_close(again(x), model(x))
    with pytest.raises(TypeError, match="depth"):
        from_pretrained(tmp_path, depth=3)


class Runs:
    """A pickle that would run a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


BAD = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "a pickle that runs a command": lambda path: path.write_bytes(pickle.dumps(Runs(f"touch {path.parent}/ran"))),
    "a checkpoint that runs a command": lambda path: torch.save({"latents": Runs(f"touch {path.parent}/ran")}, path),
    "a module": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "a list": lambda path: torch.save([torch.zeros(2)], path),
    "numbers": lambda path: torch.save({"latents": 3}, path),
    "other tensors": lambda path: torch.save({"weight": torch.zeros(2)}, path),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bad_files_are_one_error_and_run_nothing(case, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    BAD[case](path)
    with measured(case), pytest.raises(ValueError, match="model"):
        from_pretrained(path, **({"local_files_only": True} if case == "missing" else {}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "holds a list"),
        ("[" * 100_000, "not valid JSON"),
        (json.dumps({"model_type": "gpt2"}), "model_type='gpt2'"),
        (json.dumps({"format_version": 1, "model_class": "system"}), "model_class='system'"),
        (json.dumps({"format_version": 1, "model_class": "Perceiver"}), "missing"),
    ],
    ids=range(6),
)
def test_bad_configurations(config, message, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        from_pretrained(tmp_path)
