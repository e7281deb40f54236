"""DeepMind's own code, at reduced sizes, against what is loaded from a pickle of the same parameters.

Nothing of it runs here: `goldens/make_deepmind.py` left what it computes. Parameters, inputs and cotangents are drawn from
their names by the functions of that script. The truth is float64; in float32 results agree to 1e-5 of the largest number.
"""

import json
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from against_peers.goldens.make_deepmind import CHOSEN, PATCH, SMALL, cotangent, inputs, parameter, tree
from against_peers.goldens.make_deepmind import PUBLISHED as published

from accuracy import assert_varies
from perceivers import PerceiverIO, create_model, from_pretrained
from perceivers.checkpoints.formats.transformers import save

GOLDENS = Path(__file__).parent / "goldens"
SHAPES = json.loads((GOLDENS / "deepmind.json").read_text())
ARRAYS = np.load(GOLDENS / "deepmind.npz")
ENCODER = "perceiver_encoder/~/"
IMAGENET = ("fourier", "conv", "learned")  # whose files hold parameters and state

SETTINGS = {"num_blocks": 3, "heads": 4, "cross_heads": 1, "decoder_heads": 1, "decoder_query_residual": True}
NO_RESIDUAL = {**SETTINGS, "num_blocks": 1, "decoder_query_residual": False}
# What files do not tell.
ARGUMENTS = {
    "language": {**SETTINGS, "cross_heads": 4, "decoder_heads": 4, "decoder_query_residual": False},
    "fourier": {**SETTINGS, "data_shape": [3, 9, 12], "resolution": [9, 12]},
    "conv": {**SETTINGS, "data_shape": [3, 30, 41], "resolution": [8, 11]},
    "learned": {**SETTINGS, "data_shape": [3, 6, 7], "decoder_query_residual": False},
    "flow": {**NO_RESIDUAL, "data_shape": [3, 6, 7], "resolution": [6, 7]},
    "multimodal": {**NO_RESIDUAL, "data_shape": [3, 2, 12, 12], "resolution": [2, 3, 3], "num_samples": 96},
}


def parameters(head: str, dtype: torch.dtype = torch.float32) -> dict:
    """What their file holds."""
    cast = lambda x: x.astype(str(dtype).removeprefix("torch.")) if x.dtype == np.float64 else x  # noqa: E731
    made = {
        part: {scope: {leaf: cast(x) for leaf, x in leaves.items()} for scope, leaves in tree(head, shapes).items()}
        for part, shapes in SHAPES["small"][head].items()
    }
    return made if head in IMAGENET else made["params"]


def written(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def given(head: str, dtype: torch.dtype) -> tuple:
    """x and keyword arguments, channels first."""
    theirs = {name: torch.from_numpy(x) for name, x in inputs(head, SMALL[head]).items()}
    if head == "language":
        return (theirs["ids"], theirs["mask"]), {"query_mask": theirs["mask"]}
    theirs = {name: x.to(dtype) for name, x in theirs.items()}
    if head == "multimodal":
        return ({**theirs, "audio": theirs["audio"].mT, "image": theirs["image"].movedim(-1, 1)},), {}
    return (theirs["images"].movedim(-1, 1),), {}


def as_theirs(name: str, key: str, result: torch.Tensor) -> torch.Tensor:
    """A result laid out as there: channels last, audio as samples."""
    if name == "flow":
        return result.movedim(1, -1)
    if name == "multimodal" and key != "label":  # chosen: [B, C, O]
        return result.mT.flatten(1) if key == "audio" else result.mT
    if name == "multimodal_all" and key != "label":
        return result.flatten(1) if key == "audio" else result.flatten(2).mT
    return result


def run(model, name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    head = name.removesuffix("_all")
    x, options = given(head, dtype)
    if name == "multimodal":
        options["indices"] = {key: torch.tensor(rows) for key, rows in CHOSEN.items()}
    results = model(*x, **options)
    results = results if isinstance(results, dict) else {"": results}
    return {key: as_theirs(name, key, result) for key, result in results.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*SMALL, "multimodal_all"])
@torch.no_grad()
def test_same_outputs(name, dtype, tmp_path):
    head = name.removesuffix("_all")
    model = from_pretrained(written(tmp_path / "file.pystate", parameters(head, dtype)), **ARGUMENTS[head])
    got = run(model, name, dtype)
    prefix = f"float64/{name}/outputs/"
    wanted = {key.removeprefix(prefix): torch.from_numpy(ARRAYS[key]) for key in ARRAYS if key.startswith(prefix)}
    assert wanted
    assert got.keys() == wanted.keys()
    for key, truth in wanted.items():
        assert got[key].dtype == dtype
        assert got[key].shape == truth.shape
        assert_varies(truth)
        assert (got[key] - truth).abs().max() < (1e-5 if dtype == torch.float32 else 1e-10) * truth.abs().max()
        theirs = torch.from_numpy(ARRAYS[f"float32/{name}/outputs/{key}"])  # as they compute it by default
        assert (got[key] - theirs).abs().max() < 1.5e-5 * truth.abs().max()


@pytest.mark.parametrize("head", SMALL)
def test_same_gradients(head, tmp_path):
    model = from_pretrained(written(tmp_path / "file.pystate", parameters(head, torch.float64)), **ARGUMENTS[head])
    for key, out in run(model, head, torch.float64).items():
        (out * torch.from_numpy(cotangent(head, key, tuple(out.shape)))).sum().backward(retain_graph=True)
    ours = {
        "trainable_position_encoding/pos_embs": model.encoder.latents,
        "cross_attention/attention/linear/b": model.encoder.cross_attentions[0].attention.to_q.bias,
        "self_attention_1/mlp/linear/b": model.encoder.latent_transformers[0][1].feed_forward.linear_in.bias,
    }
    wanted = {key.rpartition("encoder/~/")[2]: key for key in ARRAYS if key.startswith(f"float64/{head}/gradients/")}
    assert wanted.keys() == ours.keys()
    for name, key in wanted.items():
        truth = torch.from_numpy(ARRAYS[key])
        assert truth.abs().max() > 0
        assert (ours[name].grad - truth).abs().max() < 1e-10 * truth.abs().max()


def test_a_sample_without_inputs_and_masked_queries_gather_zeros(tmp_path):
    """The third sample of the goldens attends to nothing; elsewhere queries under the mask do."""
    logits = torch.from_numpy(ARRAYS["float64/language/outputs/"])
    assert (logits[2] - logits[2, :1]).abs().max() == 0
    assert (logits[1, 6:] - logits[2, :1]).abs().max() == 0
    assert (logits[1, :6] - logits[2, :1]).abs().amax(-1).min() > 0.1


class FlatMapping(dict):
    """Pickles as Haiku's class of that name, or of others, does."""

    kind = "FlatMapping"

    def __reduce__(self):
        return getattr(sys.modules["haiku._src.data_structures"], self.kind), (dict(self),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["FlatMapping", "FlatMap", "frozendict", "OrderedDict", "dict"])
@torch.no_grad()
def test_every_form_of_file(kind, protocol, tmp_path, monkeypatch):
    """Haiku's containers by the names that they have had, and dicts, in every protocol."""
    module = types.ModuleType("haiku._src.data_structures")
    monkeypatch.setitem(sys.modules, "haiku", types.ModuleType("haiku"))
    monkeypatch.setitem(sys.modules, "haiku._src", types.ModuleType("haiku._src"))
    monkeypatch.setitem(sys.modules, "haiku._src.data_structures", module)
    for name in ("FlatMapping", "FlatMap", "frozendict"):
        setattr(module, name, type(name, (dict,), {"__module__": module.__name__}))
    monkeypatch.setattr(FlatMapping, "kind", kind)
    wrap = {"OrderedDict": OrderedDict, "dict": dict}.get(kind, FlatMapping)
    made = {part: wrap({k: wrap(v) for k, v in scopes.items()}) for part, scopes in parameters("conv").items()}
    path = written(tmp_path / "weights", made, protocol)
    assert (b"haiku" in path.read_bytes()) == (wrap is FlatMapping)
    model = from_pretrained(path, **ARGUMENTS["conv"])
    x, _ = given("conv", torch.float32)
    truth = torch.from_numpy(ARRAYS["float64/conv/outputs/"])
    assert (model(*x) - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_haiku_itself(protocol, tmp_path):
    """Where Haiku and JAX are installed: what they write today."""
    haiku = pytest.importorskip("haiku")
    jax = pytest.importorskip("jax")
    params = parameters("language")
    for made in (haiku.data_structures.to_immutable_dict(params), jax.tree.map(jax.numpy.asarray, params)):
        model = from_pretrained(written(tmp_path / "weights", made, protocol), **ARGUMENTS["language"])
        assert (
            model.encoder.latents.numpy(force=True) == params["perceiver_encoder/~/trainable_position_encoding"]["pos_embs"]
        ).all()


def test_batch_norm(tmp_path):
    """The averages without the bias towards zero, not the sums they are made of."""
    model = from_pretrained(written(tmp_path / "file", parameters("conv")), **ARGUMENTS["conv"])
    scope = "image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/"
    mean = parameter("conv", f"{scope}mean_ema/average", [1, 1, 1, 9])
    torch.testing.assert_close(model.inputs.norm.running_mean, torch.from_numpy(mean).float().flatten())
    assert model.inputs.norm.num_batches_tracked == 7
    assert model.inputs.norm.num_batches_tracked.dtype == torch.int64


def test_a_kernel_is_not_transposed(tmp_path):
    kernel = parameters("conv")["params"]["image_preprocessor/~/conv2_d_downsample/~/conv"]["w"]
    model = from_pretrained(written(tmp_path / "file", parameters("conv")), **ARGUMENTS["conv"])
    assert model.inputs.conv.weight[4, 1, 2, 6] == kernel[2, 6, 1, 4]


@torch.no_grad()
def test_saved_and_exported(tmp_path):
    model = from_pretrained(written(tmp_path / "file", parameters("language")), **ARGUMENTS["language"])
    model.save_pretrained(tmp_path / "ours")
    (ids, mask), options = given("language", torch.float32)
    assert torch.equal(from_pretrained(tmp_path / "ours")(ids, mask, **options), model(ids, mask, **options))
    pixels = from_pretrained(written(tmp_path / "file", parameters("learned")), **ARGUMENTS["learned"])
    with pytest.raises(ValueError, match="decoder_query_residual"):  # in transformers it is on
        save(pixels, tmp_path / "exported")


def changed(head: str, change) -> dict:
    made = parameters(head)
    change(made.get("params", made), made.get("state"))
    return made


WRONG = {
    "an array too much": ("language", lambda p, s: p["embed"].update(w=np.zeros(3)), {}, "embed/w"),
    "an array too few": (
        "language",
        lambda p, s: p[f"{ENCODER}self_attention_1/mlp/linear"].pop("w"),
        {},
        "1/mlp/linear/w is",
    ),
    "a layer too few": ("language", lambda p, s: [p.pop(k) for k in list(p) if "attention/" in k], {}, "is missing"),
    "no decoder": ("fourier", lambda p, s: [p.pop(k) for k in list(p) if "decoder" in k], {}, "no head is known"),
    "a shape": ("language", lambda p, s: p["embedding_decoder"].update(bias=np.zeros(12)), {}, "embedding_decoder/bias has"),
    "flat latents": (
        "language",
        lambda p, s: p[f"{ENCODER}trainable_position_encoding"].update(pos_embs=np.zeros(3)),
        {},
        "axes",
    ),
    "a number": ("flow", lambda p, s: p["image_preprocessor/patches_linear"].update(b=np.zeros(())), {}, "axes"),
    "an empty array": ("language", lambda p, s: p["embed"].update(embeddings=np.zeros((10**9, 0))), {}, "are empty"),
    "no state": ("conv", lambda p, s: s.clear(), {}, "average is missing"),
    "no average": ("conv", lambda p, s: [v.pop("average") for v in s.values()], {}, "average is missing"),
    "two counters": ("conv", lambda p, s: next(iter(s.values())).update(counter=np.array(8)), {}, "stored twice, but differ"),
    "whole numbers": (
        "language",
        lambda p, s: p["embed"].update(embeddings=np.zeros((13, 24), int)),
        {},
        "not floating point",
    ),
    "heads": ("fourier", None, {"heads": 5}, "heads=5"),
    "an odd width": ("fourier", None, {"data_shape": [4, 9, 12]}, "has shape"),
    "another grid": ("learned", None, {"data_shape": [3, 7, 7]}, "has shape"),
    "a flat grid": ("learned", None, {"data_shape": [42]}, "must have 3 numbers"),
    "no number": ("learned", None, {"data_shape": 42}, "data_shape=42"),
    "no block": ("fourier", None, {"num_blocks": 0}, "num_blocks=0"),
    "another head's argument": ("fourier", None, {"num_samples": 9}, "num_samples.*do not belong"),
    "nothing specified": ("flow", None, dict.fromkeys(ARGUMENTS["flow"]), "does not specify num_blocks, heads, cross_heads"),
    "one not specified": ("fourier", None, {"resolution": None}, "does not specify resolution"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_error(case, tmp_path):
    head, change, arguments, message = WRONG[case]
    made = parameters(head) if change is None else changed(head, change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(written(tmp_path / "file", made), **{**ARGUMENTS[head], **arguments})
    with pytest.raises(TypeError, match="max_freq"):
        from_pretrained(written(tmp_path / "file", parameters(head)), max_freq=10)


@pytest.mark.parametrize("head", SMALL)
def test_altered_trees(head, tmp_path):
    """Whatever is changed in one array: a model of other sizes, or one error that names the file."""
    rng, refusals = np.random.default_rng(0), 0
    for _ in range(20):
        made = parameters(head)
        parts = made["params"] if head in IMAGENET else made
        leaves = parts[list(parts)[rng.integers(len(parts))]]
        leaf = list(leaves)[rng.integers(len(leaves))]
        x = leaves.pop(leaf)
        change = rng.integers(7)
        leaves |= [
            {},
            {leaf + "s": x},
            {leaf: x[None]},
            {leaf: x[..., :-1]},
            {leaf: np.zeros((*x.shape, 2), "f4")},
            {leaf: np.float32(3)},
            {leaf: x.astype(int)},
        ][change]
        path = written(tmp_path / "file", made)
        try:
            from_pretrained(path, **ARGUMENTS[head])
            continue
        except ValueError as error:
            message = str(error)
        assert str(path) in message
        refusals += 1
    assert refusals > 15


def test_more_layers_than_there_are_is_one_error_before_a_model_is_made(tmp_path, monkeypatch):
    made = parameters("language")
    scopes = {f"{ENCODER}self_attention_{n}/layer_norm": {"scale": np.ones(1, "f4")} for n in range(2, 4000)}
    path = written(tmp_path / "file", {**made, **scopes})
    monkeypatch.setattr(PerceiverIO, "__init__", None)
    with pytest.raises(ValueError, match=r"self_attention_2/.* is missing"):
        from_pretrained(path, **ARGUMENTS["language"])


def test_other_things_beside_the_parameters(tmp_path):
    made = {**parameters("conv"), "opt_state": {"mu": np.zeros(3)}}
    with pytest.raises(ValueError, match=r"opt_state.*beside params and state"):
        from_pretrained(written(tmp_path / "file", made), **ARGUMENTS["conv"])


PUBLISHED = {
    "fourier": ("perceiver_io_imagenet_fourier", 48_440_627),
    "conv": ("perceiver_io_imagenet_conv", 48_646_522),
    "learned": ("perceiver_io_imagenet_learned", 62_255_848),
    "language": ("perceiver_io_mlm_bytes", 201_108_230),
    "flow": ("perceiver_io_optical_flow", 41_057_134),
    "multimodal": ("perceiver_io_multimodal_kinetics", 19_858_855),
}


def test_positions_are_those_of_the_notebooks():
    """Which no weight tells."""
    with torch.device("meta"):
        configs = {head: create_model(preset).config for head, (preset, _) in PUBLISHED.items()}
    for head in ("fourier", "conv", "flow"):
        c = published[head]
        assert configs[head]["inputs"]["resolution"] == list(getattr(c, "resolution", c.size))
        assert configs[head]["inputs"]["num_bands"] == c.bands
    c = published["multimodal"]
    frames, height, width = c.video
    for side in ("inputs", "outputs"):
        audio, video = (configs["multimodal"][side]["modalities"][name] for name in ("audio", "image"))
        assert audio["resolution"] in (c.samples, [c.samples])
        assert video["resolution"] == [frames, height // PATCH, width // PATCH]
        assert (audio["num_bands"], video["num_bands"]) == c.bands


@pytest.mark.slow
@pytest.mark.parametrize("head", PUBLISHED)
def test_published_sizes_need_no_arguments(head, tmp_path):
    """With the shapes that their code makes at the published settings."""
    shapes, made = SHAPES["published"][head], {"params": {}, "state": {}}
    for part, scopes in ((part, shapes[part]) for part in made):
        for scope, leaves in scopes.items():
            depth = shapes["depth"] if "/self_attention/" in scope else 1
            for n in range(depth):
                name = scope.replace("/self_attention/", f"/self_attention{f'_{n}' if n else ''}/")
                made[part][name] = {
                    leaf: np.array(7, "i4") if leaf == "counter" else np.full(shape, 0.01, "f4")
                    for leaf, shape in leaves.items()
                }
    path = written(tmp_path / "file.pystate", made if head in IMAGENET else made["params"])
    model = from_pretrained(path)
    preset, count = PUBLISHED[head]
    assert sum(p.numel() for p in model.parameters()) == count
    with torch.device("meta"):
        assert model.config == create_model(preset).config
    path.unlink()
