"""krasserm's perceiver-io in its three forms, against what its own models compute with the same random weights.

It cannot be installed beside this library's other peers. goldens/make_perceiver_io.py, run where it is, kept its settings,
outputs and gradients; weights and inputs are drawn again here. Lightning's checkpoints hold objects of its classes: for the
time of writing one, classes of these names are made.
"""

import dataclasses
import enum
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from against_peers.goldens.make_perceiver_io import CASES, GOLDEN, POSITIONS, drawn, fourier, inputs, weights
from safetensors.torch import save_file

from accuracy import assert_varies
from perceivers import create_model, from_pretrained
from perceivers.__main__ import main
from perceivers.checkpoints.formats import krasserm
from perceivers.checkpoints.source import Source

RESULTS = np.load(GOLDEN) if GOLDEN.exists() else {}
GOLDENS = json.loads(bytes(RESULTS["described"])) if RESULTS else {}
FORMS = ("state_dict.pt", "lightning.ckpt", "hub", "state_dict.safetensors", "hub with .bin")
SETTINGS = (*krasserm.ENCODER, *krasserm.DECODER, "rescale_factor")

# Theirs: ours, of gradients.
PARAMETERS = {
    "0.latent_provider._query": "encoder.latents",
    "0.cross_attn_1.0.module.attention.q_proj.weight": "encoder.cross_attentions.0.attention.to_q.weight",
    "0.cross_attn_n.0.module.attention.v_proj.bias": "encoder.cross_attentions.1.attention.to_v.bias",
    "0.self_attn_1.1.1.module.1.weight": "encoder.latent_transformers.0.1.feed_forward.linear_in.weight",
    "0.self_attn_n.0.0.module.norm.weight": "encoder.latent_transformers.1.0.attention_norm.weight",
    "0.input_adapter.txt_embedding.weight": "inputs.embeddings.weight",
    "1.output_query_provider._query": "outputs.query",
    "1.output_adapter.linear.bias": "outputs.head.bias",
    "1.output_adapter.bias": "outputs.bias",
}


def golden(case: str) -> dict[str, Any]:
    assert GOLDEN.exists(), f"{GOLDEN} is missing: run make_perceiver_io.py beside it"
    return GOLDENS["cases"][case]


def state_of(case: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    described = golden(case)
    state = weights(described["shapes"], described["config"]["model_config"]["encoder"])
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def unspecified(case: str) -> dict[str, dict[str, Any]]:
    """The arguments that a file with a state_dict needs."""
    specified = golden(case)["config"]["model_config"]
    return {
        part: {name: specified[part][name] for name in SETTINGS if name in specified[part]} for part in ("encoder", "decoder")
    }


def write(case: str, form: str, state: dict[str, torch.Tensor], folder) -> tuple[Any, dict[str, Any]]:
    """Writes one form; returns what to load and the arguments that it needs."""
    if form == "state_dict.pt":
        torch.save(state, folder / form)
        return folder / form, unspecified(case)
    if form == "state_dict.safetensors":
        save_file(state, folder / form)
        return folder / form, unspecified(case)
    if form == "lightning.ckpt":
        write_lightning(case, state, folder / form)
        return folder / form, {}
    state = {f"backend_model.{name}": tensor for name, tensor in state.items()}
    if form == "hub":
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(golden(case)["config"]))
    return folder, {}


def write_lightning(case: str, state: dict[str, torch.Tensor], path) -> None:
    """Writes a checkpoint with what those of perceiver-io 0.11 hold: settings are objects of its own classes."""
    described = golden(case)
    settings = dict(described["config"]["model_config"])
    with pytest.MonkeyPatch.context() as patch:

        def make(module: str, name: str, made: Any) -> Any:
            made.__module__, made.__qualname__ = module, name
            while module:
                if module not in sys.modules:
                    patch.setitem(sys.modules, module, types.ModuleType(module))
                if module == made.__module__:
                    setattr(sys.modules[module], name, made)
                module = module.rpartition(".")[0]
            return made

        for part in ("encoder", "decoder"):
            module, name = described[f"{part}_class"]
            fields = {key: tuple(value) if isinstance(value, list) else value for key, value in settings[part].items()}
            settings[part] = make(module, name, dataclasses.make_dataclass(name, list(fields)))(**fields)
        task = make("perceiver.data.text.common", "Task", enum.Enum("Task", ["mlm", "clm"]))
        checkpoint = {
            "epoch": 1,
            "global_step": 1,
            "pytorch-lightning_version": "2.0.0",
            "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {**settings, "params": None},
            "datamodule_hyper_parameters": {"task": task.mlm},
        }
        torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("case", "form", "dtype"),
    [
        *((case, form, torch.float64) for case in CASES for form in FORMS[:3]),
        *((case, "hub", torch.float32) for case in CASES),
        *(("one read", form, torch.float64) for form in FORMS[3:]),
    ],
    ids=str,
)
def test_same_outputs_and_gradients(case, form, dtype, tmp_path):
    source, arguments = write(case, form, state_of(case, dtype), tmp_path)
    model = from_pretrained(source, **arguments)
    assert "perceiver" not in sys.modules
    assert not model.training
    x, mask = inputs(case)
    x = x.to(dtype).requires_grad_() if x.is_floating_point() else x
    out = model(x, mask)
    wanted = torch.from_numpy(RESULTS[f"{case}/out"])
    assert_varies(wanted)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert out.shape == wanted.shape
    assert (out - wanted).abs().max() < tolerance * wanted.abs().max()

    pairs = {f"{case}/{theirs}": ours for theirs, ours in PARAMETERS.items()}
    leaves = {name: model.get_parameter(ours) for name, ours in pairs.items() if name in RESULTS}
    leaves |= {f"{case}/x": x} if x.is_floating_point() else {}
    assert {*leaves, f"{case}/out"} == {name for name in RESULTS if name.startswith(f"{case}/")}
    grads = torch.autograd.grad(out, list(leaves.values()), drawn(case + "cotangent", out.shape).to(dtype))
    for name, grad in zip(leaves, grads, strict=True):
        true = torch.from_numpy(RESULTS[name])
        assert true.abs().max() > 1e-3, name
        assert (grad - true).abs().max() < 10 * tolerance * true.abs().max(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("perceiver_io_imagenet_fourier", 48_440_627),
        ("perceiver_io_mlm_bytes", 201_108_230),
        ("perceiver_io_optical_flow", 41_057_134),
    ],
)
def test_published_sizes(name, parameters):
    """Names and shapes that the peer gives the published models load as the model that this library has of that name."""
    golden("tied")
    described = GOLDENS["published"][name]
    state = {f"backend_model.{key}": torch.zeros(shape) for key, shape in described["shapes"].items()}
    if POSITIONS in described["shapes"]:
        encoder = described["config"]["model_config"]["encoder"]
        axes = encoder["image_shape"][:2]
        state[f"backend_model.{POSITIONS}"] = torch.from_numpy(fourier(axes, encoder["num_frequency_bands"])).float()
    source = Source.of(state, name)
    source.config = described["config"]
    model = krasserm.FOLDER.load(source)[0]
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.device("meta"):
        assert model.config == create_model(name).config | {"activation": "gelu"}


PLAIN = "one read"


def changed(encoder=None, decoder=None, **rest) -> dict[str, Any]:
    """The arguments of a file, with others, or without those that are given as `None`."""
    right = unspecified(PLAIN)
    return {"encoder": {**right["encoder"], **(encoder or {})}, "decoder": {**right["decoder"], **(decoder or {})}, **rest}


def load(state, name, **arguments):
    """The model of a state_dict."""
    return krasserm.FILE.load(Source.of(state, name), **arguments)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder": {"num_cross_attention_heads": 2}},
            r"encoder\.num_cross_attention_heads=2 does not divide .* 17 channels",
        ),
        ({"encoder": {"num_self_attention_heads": 5}}, r"encoder\.num_self_attention_heads=5 does not divide .* 12 channels"),
        (
            {"decoder": {"num_cross_attention_heads": 3}},
            r"decoder\.num_cross_attention_heads=3 does not divide .* 14 channels",
        ),
        ({"encoder": {"num_self_attention_heads": 0}}, r"encoder\.num_self_attention_heads=0 must be"),
        ({"encoder": {"num_self_attention_blocks": None}}, "encoder lacks num_self_attention_blocks, which"),
        ({"decoder": {"num_cross_attention_heads": None}}, "decoder lacks num_cross_attention_heads"),
        (
            {"encoder": {"num_cross_attention_layers": 3}},
            "num_cross_attention_layers=3 must be at most .*_blocks=2",
        ),
        (
            {"encoder": {"num_cross_attention_layers": 2, "first_cross_attention_layer_shared": False}},
            r"0\.cross_attn_n\..* is missing",
        ),
        ({"encoder": {"first_self_attention_block_shared": 1}}, "first_self_attention_block_shared=1 must be"),
        ({"encoder": {"heads": 1, 7: 2}}, r"encoder has unknown settings \['7', 'heads'\]"),
        ({"decoder": {"first_self_attention_block_shared": True}}, r"decoder has unknown settings"),
        ({"encoder": {"image_shape": [9, 7, 3]}}, r"encoder\.image_shape=\(9, 7, 3\), but the weights show \(7, 9, 3\)"),
        ({"decoder": {"num_classes": 6}}, r"decoder\.num_classes=6, but the weights show 5"),
        ({"decoder": {"cross_attention_residual": False}}, r"decoder\.cross_attention_residual=False"),
        ({"num_latents": 6}, "num_latents=6, but the weights show 5"),
    ],
    ids=str,
)
def test_settings_must_fit(change, message):
    state = state_of(PLAIN, torch.float32)
    with pytest.raises(ValueError, match=message):
        load(state, "file", **changed(**change))


def test_all_missing_settings_are_named_together(tmp_path):
    source, _ = write("flow", "state_dict.pt", state_of("flow", torch.float32), tmp_path)
    with pytest.raises(ValueError, match="encoder lacks " + ", ".join(krasserm.ENCODER)):
        from_pretrained(source)
    with pytest.raises(ValueError, match="decoder lacks num_cross_attention_heads, rescale_factor"):
        from_pretrained(source, encoder=unspecified("flow")["encoder"])
    for bad in ("heads", 5, [1]):
        with pytest.raises(ValueError, match=r"encoder=.* must be a mapping"):
            from_pretrained(source, encoder=bad)
    with pytest.raises(TypeError, match="num_cross_attention_heads"):
        from_pretrained(source, num_cross_attention_heads=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.cross_attn_1.1.module.0.bias": None}, r"0\.cross_attn_1\.1\.module\.0\.bias is missing"),
        ({"0.self_attn_2.0.0.module.norm.weight": torch.zeros(12)}, "1 tensors have no place"),
        ({"1.output_adapter.linear.bias": torch.zeros(5, dtype=torch.int64)}, "is torch.int64, not floating point"),
        ({"1.output_adapter.linear.bias": torch.zeros(6)}, r"has shape \[6\], not \[5\]"),
        ({POSITIONS: None}, "position_encoding is missing"),
        ({POSITIONS: torch.zeros(63, 14)}, "are not Fourier features of a grid"),
        ({POSITIONS: torch.from_numpy(fourier((7, 9), 3))[:, [1, 0, *range(2, 14)]]}, "are not Fourier features of a grid"),
        ({POSITIONS: torch.from_numpy(fourier((9, 7), 3))}, r"weights show \(9, 7, 3\)"),
        (
            {
                "0.cross_attn_1.1.module.1.weight": torch.zeros(24, 12),
                "0.cross_attn_1.1.module.1.bias": torch.zeros(24),
                "0.cross_attn_1.1.module.3.weight": torch.zeros(12, 24),
            },
            "cross_attention_widening_factor=2 and self_attention_widening_factor=1 of the encoder differ",
        ),
    ],
    ids=range(9),
)
def test_weights_must_fit(change, message):
    state = {name: tensor for name, tensor in {**state_of(PLAIN, torch.float32), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        load(state, "file", **changed({"image_shape": (7, 9, 3)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.input_adapter.linear.weight": torch.zeros(5, 20)}, "num_patch_input_channels=10 is not a multiple of 9"),
        ({POSITIONS: torch.from_numpy(fourier((42,), 2))}, "position_encoding has 1 axes, not the 2 of optical flow"),
        ({"1.cross_attn.1.module.1.weight": torch.zeros(16, 15)}, "has 16 rows, which is not a multiple of its 15 columns"),
    ],
    ids=["patches", "axes", "rows"],
)
def test_weights_of_optical_flow_must_fit(change, message):
    with pytest.raises(ValueError, match=message):
        load({**state_of("flow", torch.float32), **change}, "file", **unspecified("flow"))


@pytest.mark.parametrize("case", [PLAIN, "flow with residual", "tied", "untied", "classified text"])
@pytest.mark.parametrize("bad", [None, torch.zeros(()), torch.zeros(0, 3), torch.zeros(2, 0)], ids=["none", "0d", "03", "20"])
def test_any_bad_tensor_is_one_error(case, bad):
    state = state_of(case, torch.float32)
    for name in state:
        others = {key: tensor for key, tensor in state.items() if key != name}
        with pytest.raises(ValueError, match=r"file: .*(missing|shape|attends|no place|lacks|must|weights show|embeddings)"):
            load(others | ({} if bad is None else {name: bad}), "file", **unspecified(case))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    model = load(state_of(PLAIN, dtype), "file", **unspecified(PLAIN))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.config["inputs"]["resolution"] == [7, 9]


CAUSAL = {"input_adapter.frq_pos_encoding.inv_freq": torch.ones(4), "input_adapter.txt_embedding.weight": torch.ones(9, 16)}


@pytest.mark.parametrize("form", ["file", "lightning", "hub"])
@pytest.mark.parametrize("kind", ["perceiver-ar-causal-language-model", "perceiver-ar-symbolic-audio-model"])
def test_perceiver_ar_is_refused_by_name(form, kind, tmp_path):
    source = tmp_path / "model.pt"
    if form == "file":
        torch.save(CAUSAL, source)
    elif form == "lightning":
        torch.save({"state_dict": {f"model.{k}": v for k, v in CAUSAL.items()}, "hyper_parameters": {"vocab_size": 9}}, source)
    else:
        source = tmp_path
        (source / "config.json").write_text(json.dumps({"model_type": kind, "model_config": {"vocab_size": 9}}))
        save_file({f"backend_model.{name}": tensor for name, tensor in CAUSAL.items()}, source / "model.safetensors")
    with pytest.raises(ValueError, match="no Perceiver AR yet"):
        from_pretrained(source)


def test_folders_tell_everything(tmp_path):
    source, _ = write(PLAIN, "hub", state_of(PLAIN, torch.float32), tmp_path)
    with pytest.raises(TypeError, match="encoder"):
        from_pretrained(source, encoder={})
    config = json.loads((source / "config.json").read_text())
    del config["model_config"]["decoder"]["num_cross_attention_heads"]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="decoder lacks num_cross_attention_heads"):
        from_pretrained(source)
    (source / "config.json").write_text(json.dumps({**config, "model_config": [1]}))
    with pytest.raises(ValueError, match=r"model_config=\[1\] must be a mapping"):
        from_pretrained(source)
    # Its weights alone are a file that tells less.
    assert from_pretrained(source / "model.safetensors", **unspecified(PLAIN)).config["heads"] == 3


def test_lightning_without_settings_needs_them(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state_of(PLAIN, torch.float32).items()}}, path)
    with pytest.raises(ValueError, match="encoder lacks"):
        from_pretrained(path)
    assert from_pretrained(path, **unspecified(PLAIN)).config["heads"] == 3


def cyclic() -> list:
    found: list = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"encoder": 3}, "encoder=3 must be a mapping"),
        ({"encoder": {1: torch.zeros(2), "num_classes": torch.zeros(3)}}, "encoder lacks"),
        ({"encoder": {"num_cross_attention_heads": torch.ones(2)}}, "encoder lacks num_cross_attention_heads"),
        ([torch.zeros(2)], "encoder lacks"),
        ({"num_latents": [torch.zeros(2)]}, r"num_latents=\(None,\)"),
        (cyclic(), "hyper_parameters are damaged"),
    ],
    ids=range(6),
)
def test_damaged_hyper_parameters_are_one_error(stored, message, tmp_path):
    path = tmp_path / "model.ckpt"
    state = {f"model.{name}": tensor for name, tensor in state_of(PLAIN, torch.float32).items()}
    torch.save({"state_dict": state, "hyper_parameters": stored}, path)
    with pytest.raises(ValueError, match=message):
        from_pretrained(path)


def test_nothing_is_imported_or_run(tmp_path, monkeypatch):
    """Not even where a package has the name of the peer."""
    package = tmp_path / "perceiver"
    for folder in ("", "model", "model/core", "model/vision", "model/vision/image_classifier", "data", "data/text"):
        (package / folder).mkdir(exist_ok=True)
        (package / folder / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    source, _ = write(PLAIN, "lightning.ckpt", state_of(PLAIN, torch.float32), tmp_path)
    from_pretrained(source)
    assert "perceiver" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_convert(tmp_path, capsys):
    source, arguments = write(PLAIN, "state_dict.pt", state_of(PLAIN, torch.float32), tmp_path)
    options = [f"--{part}={json.dumps(specified)}" for part, specified in arguments.items()]
    assert main(["convert", str(source), str(tmp_path / "ours"), *options]) == 0
    x, mask = inputs(PLAIN)
    wanted = from_pretrained(source, **arguments)(x.float(), mask)
    assert torch.equal(from_pretrained(tmp_path / "ours")(x.float(), mask), wanted)
    assert main(["convert", str(source), str(tmp_path / "new")]) == 2
    assert "encoder lacks" in capsys.readouterr().err


@pytest.mark.checkout
def test_documented(tmp_path, monkeypatch):
    """The page's code, which the test of all pages cannot run: its files are those of another library."""
    page = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
    (code,) = re.findall(r'^```python title="perceiver-io"\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL)
    folder = tmp_path / "classifier"
    folder.mkdir()
    state = state_of(PLAIN, torch.float32)
    for form in FORMS[:2]:
        write(PLAIN, form, state, tmp_path)
    write(PLAIN, "hub", state, folder)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, page, "exec"), found)
    for name in ("first", "second", "third"):
        assert found[name].config == from_pretrained(folder).config
