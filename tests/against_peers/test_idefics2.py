"""The resampler of transformers' Idefics2, loaded: RMS norms, grouped heads, gates, masks; alone and from whole models."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from accuracy import assert_varies, draw_parameters
from perceivers import from_pretrained
from perceivers.layers import Resampler

pytestmark = pytest.mark.peer("transformers")


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
def test_tokens_and_gradients(peer, kv_heads, masked, dtype, tolerance, tmp_path):
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

    config = Idefics2PerceiverConfig(
        hidden_size=24,
        resampler_n_latents=7,
        resampler_depth=3,
        resampler_n_heads=6,
        resampler_head_dim=5,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-3,
    )
    theirs = draw_parameters(Idefics2PerceiverResampler(config).eval())
    theirs = in_float64(theirs) if dtype == torch.float64 else theirs
    torch.save(theirs.state_dict(), tmp_path / "resampler.pt")
    ours = from_pretrained(tmp_path / "resampler.pt", heads=6, norm_eps=1e-3)
    assert isinstance(ours, Resampler)
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


def whole_model(**changes):
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration

    text = {"model_type": "mistral", "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1, "vocab_size": 40}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-3, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    resampler = {"hidden_size": 24, "resampler_n_latents": 7, "resampler_depth": 2, "resampler_n_heads": 6}
    resampler |= {"resampler_head_dim": 5, "num_key_value_heads": 2, **changes}
    config = Idefics2Config(text_config=text, vision_config=vision, perceiver_config=resampler, image_token_id=39)
    return draw_parameters(Idefics2ForConditionalGeneration(config).eval())


def as_bin(folder):
    """Makes the folder what older versions wrote: files of torch.save, and an index where there is more than one."""
    for file in folder.glob("*.safetensors"):
        name = file.name.replace("model", "pytorch_model", 1)
        torch.save(load_file(file), folder / name.replace(".safetensors", ".bin"))
        file.unlink()
    for file in folder.glob("*.index.json"):
        text = file.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        file.unlink()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("size", ["5GB", "20KB"], ids=["one file", "several files"])
@pytest.mark.parametrize("changes", [{}, {"hidden_size": 32}, {"rms_norm_eps": 1e-2}], ids=str)
def test_whole_models(peer, kind, size, changes, tmp_path):
    """A width that is not the text model's makes transformers take width and eps from there."""
    theirs = whole_model(**changes)
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "20KB")
    if kind == "bin":
        as_bin(tmp_path)
    for index in tmp_path.glob("*.index.json"):  # the other files are not needed
        files = json.loads(index.read_text())["weight_map"]
        for name in set(files.values()) - {file for key, file in files.items() if "perceiver_resampler" in key}:
            (tmp_path / name).unlink()
    if "hidden_size" in changes:
        config = json.loads((tmp_path / "config.json").read_text())
        config["perceiver_config"] |= {**changes, "rms_norm_eps": 1e-6}  # as it is before transformers reads it
        (tmp_path / "config.json").write_text(json.dumps(config))
    ours = from_pretrained(tmp_path)
    assert isinstance(ours, Resampler)
    x, mask = torch.randn(2, 31, 24), torch.rand(2, 31) > 0.4
    wanted = theirs.model.connector.perceiver_resampler(x, mask)
    assert_varies(wanted)
    assert (ours(x, mask) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    with pytest.raises(TypeError, match="heads"):
        from_pretrained(tmp_path, heads=6)


def test_a_whole_model_in_one_file(peer, tmp_path):
    theirs = whole_model()
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    ours = from_pretrained(tmp_path / "model.pt", head_dim=5)
    x = torch.randn(2, 31, 24)
    wanted = theirs.model.connector.perceiver_resampler(x, torch.ones(2, 31, dtype=torch.bool))
    assert (ours(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("perceiver_config", {"hidden_act": "gelu"}, "hidden_act='gelu' of perceiver_config must be 'silu'"),
        ("perceiver_config", {"resampler_n_heads": 5}, "its queries are 30 wide, which is not heads=5 x head_dim=5"),
        ("perceiver_config", {"resampler_n_heads": "6"}, "heads='6' must be a whole number"),
        ("perceiver_config", {"rms_norm_eps": -1}, "norm_eps=-1 must be a finite number greater than 0"),
        ("perceiver_config", [1], "perceiver_config=\\[.*\\] is not a configuration"),
        ("model_type", "idefics", "use_resampler is not set, this model has no resampler"),
        ("weight_map", {"model.connector.perceiver_resampler.latents": "../other.safetensors"}, "weight_map does not name"),
        ("weight_map", {"model.connector.perceiver_resampler.latents": "gone.safetensors"}, "has no gone.safetensors"),
        ("weight_map", {}, "its weights have no resampler"),
        ("weight_map", [1], "weight_map does not name"),
    ],
    ids=range(10),
)
def test_bad_folders(peer, where, value, message, tmp_path):
    whole_model().save_pretrained(tmp_path, max_shard_size="20KB")
    path = tmp_path / ("model.safetensors.index.json" if where == "weight_map" else "config.json")
    content = json.loads(path.read_text())
    content[where] = {**content[where], **value} if where == "perceiver_config" and isinstance(value, dict) else value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.slow
def test_published_size(peer):
    """64 latents, 4,096 wide, 3 layers: 2.6 GB of weights."""
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

    from perceivers.checkpoints.formats import resamplers
    from perceivers.checkpoints.source import Source

    theirs = draw_parameters(Idefics2PerceiverResampler(Idefics2PerceiverConfig()).eval())
    ours = resamplers.FILE.load(Source.of(theirs.state_dict()))[0]
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert (ours.config["heads"], ours.config["kv_heads"], ours.config["head_dim"]) == (16, 4, 96)
    x, mask = torch.randn(2, 100, 4096), torch.rand(2, 100) > 0.4
    with torch.inference_mode():
        wanted = theirs(x, mask)
        assert_varies(wanted)
        assert (ours(x, mask) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
