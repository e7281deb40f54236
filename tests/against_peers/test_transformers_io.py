"""The seven published heads of transformers, saved by its own code and loaded here, at reduced sizes.

Every parameter is drawn at random. In float32 they agree to 1e-5 of the largest number; in float64, where the peer is
given float64 position tables (it builds them in float32), to 1e-10.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accuracy import assert_varies, draw_parameters
from perceivers import PerceiverIO, from_pretrained
from perceivers.__main__ import main
from perceivers.checkpoints.formats.transformers import save
from perceivers.inputs.flow import neighbourhoods

pytestmark = pytest.mark.peer("transformers")


@dataclass
class Head:
    """One of their classes: how it is made, what it is given, and how that and its results look here."""

    config: dict[str, Any]
    x: Any
    mask: bool = False
    theirs_x: Any = lambda x: x
    as_ours: Any = lambda logits: logits
    indices: Any = None


IMAGE = lambda *axes: lambda: 3 * torch.randn(2, 3, *axes)  # noqa: E731
WIDTHS = {"num_latents": 6, "d_latents": 32, "num_self_attends_per_block": 2, "num_blocks": 3, "num_labels": 5}
ONE_HEAD = {**WIDTHS, "num_cross_attention_heads": 1, "num_self_attention_heads": 4}
LANGUAGE = {**WIDTHS, "d_model": 24, "max_position_embeddings": 11, "vocab_size": 13, "qk_channels": 16, "v_channels": 32}
IDS = lambda: torch.randint(13, (2, 11))  # noqa: E731

HEADS = {
    "PerceiverForMaskedLM": Head(config=LANGUAGE, x=IDS, mask=True),
    "PerceiverForSequenceClassification": Head(config=LANGUAGE, x=IDS, mask=True),
    "PerceiverForImageClassificationLearned": Head(config={**ONE_HEAD, "image_size": 7}, x=IMAGE(7, 7)),
    "PerceiverForImageClassificationFourier": Head(config=ONE_HEAD, x=IMAGE(9, 12)),
    "PerceiverForImageClassificationConvProcessing": Head(config=ONE_HEAD, x=IMAGE(30, 41)),
    "PerceiverForOpticalFlow": Head(
        config={**ONE_HEAD, "train_size": (6, 7)},
        x=lambda: 3 * torch.randn(2, 3, 2, 6, 7),
        theirs_x=lambda x: neighbourhoods(x).unflatten(1, (2, 27)),  # they leave the patches to the user
        as_ours=lambda logits: logits.movedim(-1, 1),
    ),
    "PerceiverForMultimodalAutoencoding": Head(
        config={
            **ONE_HEAD,
            "num_frames": 2,
            "image_size": 8,
            "audio_samples_per_frame": 48,
            "output_shape": [2, 2, 8, 8],
            "output_num_channels": 20,
            "_label_trainable_num_channels": 12,
        },
        x=lambda: {"audio": 3 * torch.randn(2, 1, 96), "image": 3 * torch.randn(2, 3, 2, 8, 8), "label": torch.randn(2, 5)},
        theirs_x=lambda x: {"audio": x["audio"].mT, "image": x["image"].transpose(1, 2), "label": x["label"]},
        as_ours=lambda logits: {
            "audio": logits["audio"].unflatten(1, (-1, 16)).mT,
            "image": logits["image"].mT,
            "label": logits["label"],
        },
        # Decoding everything fails there: results are cut by the numbers of inputs.
        indices={"audio": torch.tensor([5, 0, 2, 2]), "image": torch.tensor([127, 0, 64, 8, 1])},
    ),
}


def build(peer, name: str, dtype: torch.dtype, folder: Path) -> tuple[nn.Module, PerceiverIO]:
    """Theirs, every parameter drawn, and ours, loaded from what theirs saved."""
    config = peer.PerceiverConfig(**HEADS[name].config, attn_implementation="eager")
    theirs = (
        draw_parameters(getattr(peer, name)(config), lambda p: 2 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.5).to(dtype).eval()
    )
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    theirs.save_pretrained(folder)
    return theirs, from_pretrained(folder)


def cast(x, dtype: torch.dtype):
    if isinstance(x, Mapping):
        return {name: cast(value, dtype) for name, value in x.items()}
    return x.to(dtype) if x.is_floating_point() else x


@pytest.fixture
def float64_tables(monkeypatch):
    """Has the peer build its positions and frequencies in float64."""
    from transformers.models.perceiver import modeling_perceiver

    def build_linear_positions(index_dims, output_range=(-1.0, 1.0), device=None):
        ranges = [torch.linspace(*output_range, n, dtype=torch.float64) for n in index_dims]
        return torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1)

    monkeypatch.setattr(modeling_perceiver, "build_linear_positions", build_linear_positions)
    default = torch.get_default_dtype()
    yield lambda dtype: torch.set_default_dtype(dtype)
    torch.set_default_dtype(default)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_same_outputs(peer, float64_tables, name, dtype, tmp_path):
    head = HEADS[name]
    theirs, ours = build(peer, name, dtype, tmp_path)
    x = cast(head.x(), dtype)
    mask = torch.arange(11) < torch.tensor([[11], [6]]) if head.mask else None
    float64_tables(dtype)
    options = {} if head.indices is None else {"subsampled_output_points": {**head.indices, "label": None}}
    attention_mask = None if mask is None else mask.to(dtype)
    wanted = head.as_ours(theirs(head.theirs_x(x), attention_mask=attention_mask, **options).logits)
    got = ours(x, mask, indices=head.indices)
    if isinstance(wanted, Tensor):
        wanted, got = {"": wanted}, {"": got}
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert got.keys() == wanted.keys()
    for modality, logits in wanted.items():
        assert_varies(logits)
        assert got[modality].dtype == dtype
        assert (got[modality] - logits).abs().max() < tolerance * logits.abs().max()


@pytest.mark.parametrize("name", HEADS)
def test_same_gradients(peer, name, tmp_path):
    head = HEADS[name]
    theirs, ours = build(peer, name, torch.float32, tmp_path)
    x = head.x()
    options = {} if head.indices is None else {"subsampled_output_points": {**head.indices, "label": None}}
    wanted, got = head.as_ours(theirs(head.theirs_x(x), **options).logits), ours(x, indices=head.indices)
    wanted, got = (value if isinstance(value, Mapping) else {"": value} for value in (wanted, got))
    cotangents = {modality: torch.randn_like(value) for modality, value in wanted.items()}
    for results in (wanted, got):
        sum((results[modality] * cotangents[modality]).sum() for modality in wanted).backward()
    cross, last = ours.encoder.cross_attentions[0], ours.encoder.latent_transformers[0][1]
    their_cross, their_last = theirs.perceiver.encoder.cross_attention, theirs.perceiver.encoder.self_attends[1]
    pairs = [
        (ours.encoder.latents, theirs.perceiver.embeddings.latents),
        (last.feed_forward.linear_in.weight, their_last.mlp.dense1.weight),
        (cross.attention.to_q.weight, their_cross.attention.self.query.weight),
    ]
    for our, their in pairs:
        assert their.grad.abs().max() > 0
        assert (our.grad - their.grad).abs().max() < 1e-4 * their.grad.abs().max()


@pytest.mark.parametrize("form", ["bin", "a tied copy"])
def test_forms_of_files(peer, form, tmp_path):
    _, ours = build(peer, "PerceiverForMaskedLM", torch.float32, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    file.unlink()
    copy = "embedding_decoder.decoder.weight"
    if form == "a tied copy":
        state[copy] = state["perceiver.input_preprocessor.embeddings.weight"].clone()
    torch.save(state, tmp_path / "pytorch_model.bin")
    ids = torch.randint(13, (2, 11))
    assert torch.equal(from_pretrained(tmp_path)(ids), ours(ids))
    if form == "a tied copy":
        state[copy][0, 0] += 1
        torch.save(state, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="stored twice, but differ"):
            from_pretrained(tmp_path)


@pytest.mark.parametrize("implementation", ["reference", "dense", "absorbed", "separable"])
def test_every_implementation_gives_the_same(peer, implementation, tmp_path):
    theirs, ours = build(peer, "PerceiverForImageClassificationFourier", torch.float32, tmp_path)
    x = torch.randn(2, 3, 9, 12)
    wanted = theirs(x).logits
    ours.set_attention_implementation(implementation)
    assert (ours(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["PerceiverForChess"]}, "PerceiverForChess"),
        ({"architectures": None}, "architectures=None"),
        ({"d_latents": 40}, "shape"),
        ({"num_self_attends_per_block": 3}, "is missing"),
        ({"num_self_attends_per_block": 1}, "have no place"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"cross_attention_widening_factor": 2}, "differ"),
        ({"model_type": "bert"}, "model_type='bert'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_error(peer, change, message, tmp_path):
    build(peer, "PerceiverForImageClassificationFourier", torch.float32, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_exported_models_are_theirs(peer, name, tmp_path):
    """Loaded from theirs, written, and loaded by the class that the configuration names: bit for bit what it was."""
    theirs, ours = build(peer, name, torch.float32, tmp_path / "theirs")
    save(ours, tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["architectures"] == [name]
    again, report = getattr(peer, name).from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    state = again.state_dict()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(state[key], tensor), key
    head = HEADS[name]
    x = head.theirs_x(head.x())
    options = {} if head.indices is None else {"subsampled_output_points": {**head.indices, "label": None}}
    wanted, got = (one.eval()(x, **options).logits for one in (theirs, again))
    for modality in wanted if isinstance(wanted, Mapping) else [...]:
        torch.testing.assert_close(got[modality], wanted[modality], rtol=1e-5, atol=1e-5)


def test_labels_travel(peer, tmp_path):
    _, ours = build(peer, "PerceiverForImageClassificationLearned", torch.float32, tmp_path)
    save(ours, tmp_path, labels=list("abcde"))
    assert peer.PerceiverConfig.from_pretrained(tmp_path).id2label == dict(enumerate("abcde"))
    with pytest.raises(ValueError, match="5 classes"):
        save(ours, tmp_path, labels=["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers_indice": [0, 1], "latent_layers_indice": [0, 0]}, "layers_indice"),
        ({"activation": "geglu"}, "hidden_act='geglu'"),
        ({"pre_norm": False}, "pre_norm=False"),
        ({"inputs": {"kind": "Pixels", "data_shape": [3, 8, 8], "resolution": 8}}, "inputs="),
        ({"inputs": {"kind": "Patches", "data_shape": [3, 8, 8], "patch_size": 2}}, "inputs Patches"),
    ],
    ids=str,
)
def test_what_transformers_cannot_express_is_named(change, message, tmp_path):
    arguments = {
        "inputs": {"kind": "Pixels", "data_shape": [3, 8, 8], "resolution": 224},
        "outputs": {"kind": "LearnedQueries", "dim": 16, "num_channels": 3},
        "num_latent_tokens": 4,
        "dim": 16,
        "heads": 2,
        "num_latent_transformers_in_layers": [1],
    }
    model = PerceiverIO(**{**arguments, **change})
    with pytest.raises(ValueError, match=message):
        save(model, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@torch.no_grad()
def test_convert(peer, tmp_path, capsys):
    theirs, ours = build(peer, "PerceiverForImageClassificationLearned", torch.float32, tmp_path / "theirs")
    x = torch.randn(2, 3, 7, 7)
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert "PerceiverIO with" in capsys.readouterr().out
    torch.testing.assert_close(PerceiverIO.from_pretrained(tmp_path / "ours")(x), ours(x))
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "transformers"]) == 0
    again = peer.PerceiverForImageClassificationLearned.from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(again(x).logits, theirs(x).logits)
    capsys.readouterr()
    for arguments, message in (
        (["convert", str(tmp_path / "ours"), str(tmp_path / "back")], "already exists"),
        (["convert", str(tmp_path / "nothing" / "there"), str(tmp_path / "new")], "is not a file, a folder"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
