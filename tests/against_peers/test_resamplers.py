"""`from_pretrained` of Flamingo's and IP-Adapter's resamplers: the same tokens and gradients as theirs with the same weights.

flamingo-pytorch runs beside ours; what IP-Adapter's and open_flamingo's gave is in `goldens`.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from accuracy import assert_varies, draw_parameters
from perceivers import from_pretrained

GOLDENS = Path(__file__).with_name("goldens")
_spec = importlib.util.spec_from_file_location("make_resamplers", GOLDENS / "make_resamplers.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)

dtypes = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"]
)


def close(ours, wanted, tolerance):
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().max() <= tolerance * wanted.abs().max()


def loaded(weights, path, **arguments):
    (save_file if path.suffix == ".safetensors" else torch.save)(weights, path)
    return from_pretrained(path, **arguments)


@dtypes
@pytest.mark.parametrize("case", make.CASES)
def test_against_goldens(case, dtype, tolerance, tmp_path):
    with np.load(GOLDENS / "resamplers.npz") as file:
        shapes = json.loads(str(file[f"{case}/shapes"]))
        wanted, *wanted_gradients = (torch.from_numpy(file[f"{case}/{name}"]).to(dtype) for name in ("out", "x", "latents"))
    assert_varies(wanted)
    arguments = make.CASES[case]
    weights = {name: tensor.to(dtype) for name, tensor in make.weights_of(shapes).items()}
    ours = loaded(weights, tmp_path / "model.pt", heads=arguments["heads"])
    if case.startswith("ip_adapter"):
        x = given = make.inputs_of(*make.IP_ADAPTER_INPUTS, arguments["embedding_dim"])
        indices = torch.arange(x.shape[1]).expand(x.shape[:2]) if arguments.get("apply_pos_emb") else None
        out = ours(given.to(dtype), indices=indices)
    else:
        x = make.inputs_of(*make.FLAMINGO_INPUTS, arguments["dim"])
        samples, media, frames, features, _ = x.shape
        given = x.flatten(2, 3).flatten(0, 1)  # each image or video is a sample of its own
        numbers = {
            "flamingo": None,
            "flamingo_frames": torch.arange(frames).repeat_interleave(features).expand(samples * media, -1),
            "flamingo_media": torch.arange(media).repeat(samples)[:, None].expand(-1, frames * features),
        }
        out = ours(given.to(dtype), indices=numbers[case]).unflatten(0, (samples, media))
    close(out, wanted, tolerance)
    gradients = torch.autograd.grad(out.pow(3).sum(), [x, ours.latents])
    for gradient, of_theirs in zip(gradients, wanted_gradients, strict=True):
        close(gradient.to(dtype), of_theirs.reshape(gradient.shape), 5 * tolerance)


@pytest.mark.peer("flamingo_pytorch")
@dtypes
@pytest.mark.parametrize("prefix", ["", "perceiver."])
def test_flamingo_pytorch(peer, prefix, dtype, tolerance, tmp_path):
    theirs = peer.PerceiverResampler(dim=12, depth=2, dim_head=5, heads=3, num_latents=4, num_media_embeds=6, ff_mult=2)
    draw_parameters(theirs.to(dtype))
    weights = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    if prefix:
        weights["lang_encoder.embed.weight"] = torch.zeros(3, 2)  # not the resampler's
    ours = loaded(weights, tmp_path / "model.pt", head_dim=5)
    x = torch.randn(2, 5, 7, 12, dtype=dtype, requires_grad=True)  # five images of seven features in each sample
    indices = torch.arange(5).repeat(2)[:, None].expand(-1, 7)
    wanted, out = theirs(x), ours(x.flatten(0, 1), indices=indices).unflatten(0, (2, 5))
    assert_varies(wanted)
    close(out, wanted, tolerance)
    pairs = [(x, x), (ours.latents, theirs.latents), (ours.embeddings, theirs.media_pos_emb)]
    pairs += [(ours.blocks[1].feed_forward.linear_in.weight, theirs.layers[1][1][1].weight)]
    for leaf, of_theirs in pairs:
        gradient = torch.autograd.grad(out.pow(3).sum(), leaf, retain_graph=True)[0]
        wanted_gradient = torch.autograd.grad(wanted.pow(3).sum(), of_theirs, retain_graph=True)[0]
        close(gradient, wanted_gradient.reshape(gradient.shape), 5 * tolerance)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_official_files_of_ip_adapter(suffix, tmp_path):
    """Both kinds hold the attention layers of the diffusion model as well, which are not read."""
    with np.load(GOLDENS / "resamplers.npz") as file:
        shapes = json.loads(str(file["ip_adapter/shapes"]))
    weights = {name: tensor.float() for name, tensor in make.weights_of(shapes).items()}
    layers = {"1.to_k_ip.weight": torch.zeros(3, 2)}
    parts = {"image_proj": weights, "ip_adapter": layers}
    whole = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    ours = loaded(parts if suffix == ".bin" else whole, tmp_path / f"ip-adapter-plus{suffix}", head_dim=5)
    x = torch.randn(2, 11, 12)
    assert torch.equal(ours(x), loaded(weights, tmp_path / "alone.pt", heads=3)(x))


def test_published_widths_of_heads(tmp_path):
    """If nothing is specified, heads are 64 wide: 12 of them in IP-Adapter Plus for Stable Diffusion 1.5."""
    with np.load(GOLDENS / "resamplers.npz") as file:
        shapes = json.loads(str(file["ip_adapter/shapes"]))
    shapes = {name: [768 if n == 15 else 1536 if n == 30 else n for n in shape] for name, shape in shapes.items()}
    ours = loaded({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.pt")
    assert (ours.config["heads"], ours.config["head_dim"]) == (12, 64)
