"""Models as ONNX files: what onnxruntime computes, at other batches and lengths than those of the example."""

import re
import sys

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from accuracy import assert_varies, draw_parameters  # noqa: E402
from perceivers import Perceiver, PerceiverIO, create_model, inputs, outputs  # noqa: E402
from perceivers.__main__ import main  # noqa: E402
from perceivers.checkpoints.onnx import save  # noqa: E402
from perceivers.layers import Resampler  # noqa: E402

SMALL = {"num_latent_tokens": 5, "dim": 8, "heads": 2}
CLASSES = {"kind": "LearnedQueries", "dim": 8, "num_channels": 3}


def perceiver() -> Perceiver:
    """Two cross-attentions with the same weights, the second cached."""
    more = {"layers_indice": [0, 0], "num_latent_transformers_in_layers": [1], "num_bands": 3, "num_classes": 4}
    return Perceiver(data_shape=[3, 12, 10], **SMALL, **more)


def text() -> PerceiverIO:
    ids = {"vocab_size": 9, "max_length": 15, "dim": 8}
    kinds = inputs.TokenIds(**ids), outputs.TokenLogits(**ids)
    return PerceiverIO(inputs=kinds[0], outputs=kinds[1], **SMALL, decoder_heads=2, decoder_query_residual=False)


def flow() -> PerceiverIO:
    pairs = inputs.FramePairs(data_shape=[3, 12, 8], embed_dim=6, num_bands=3)
    return PerceiverIO(inputs=pairs, outputs=outputs.PerInput(dim=20, num_channels=2, divisor=100), **SMALL)


def classifier(**description) -> PerceiverIO:
    return PerceiverIO(inputs=description, outputs=CLASSES, **SMALL)


def multimodal() -> PerceiverIO:
    modalities = {
        "image": inputs.Patches(data_shape=[3, 2, 8, 8], patch_size=[1, 4, 4], num_bands=3),
        "audio": inputs.Waveform(num_samples=32, samples_per_patch=4, num_bands=2),
        "label": inputs.Labels(num_classes=4),
    }
    grid = outputs.Grid(axes=[2, 8, 8], num_channels=3, num_bands=2, resolution=[2, 8, 8], decoded_channels=12)
    label = outputs.LearnedQueries(dim=8, num_channels=4, decoded_channels=12)
    return PerceiverIO(
        inputs=inputs.Multimodal(modalities=modalities, min_padding_size=2, mask_probs={"label": 1.0}),
        outputs=outputs.Multimodal(modalities={"image": grid, "label": label}, min_padding_size=2, decoded_channels=12),
        decoder_query_residual=False,
        **SMALL,
    )


def ready(model):
    """With random weights, and statistics of a batch norm that are not those it starts with."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return draw_parameters(model)


def assert_same(model, path, *arguments):
    """What the file gives for these arguments against the model."""
    session = onnxruntime.InferenceSession(path)
    leaves = [leaf.numpy() for leaf in tree_leaves(arguments)]
    found = session.run(None, {i.name: leaf for i, leaf in zip(session.get_inputs(), leaves, strict=True)})
    with torch.inference_mode():
        wanted = tree_leaves(model.eval()(*arguments))
    assert len(found) == len(wanted)
    for ours, theirs in zip(wanted, found, strict=True):
        assert ours.shape == theirs.shape
        assert (torch.as_tensor(theirs) - ours).abs().max() <= 1e-5 * ours.abs().max()
    return wanted


def images(batch, *axes):
    return torch.randn(batch, 3, *axes)


def masked(x, axes):
    mask = torch.rand(x.shape[0], *axes) > 0.4
    mask[:, 0] = True
    return x, mask


def test_a_perceiver_with_a_mask(tmp_path):
    """From an example of one sample; the model is left as it was."""
    model, path = ready(perceiver()), tmp_path / "new" / "model.onnx"
    model.set_attention_implementation("absorbed")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shapes = save(model, path, *masked(images(1, 12, 10), (12, 10)))
    lengths = ["x_axis_2", "x_axis_3"]
    assert shapes == ({"x": ["batch", 3, *lengths], "mask": ["batch", *lengths]}, {"output": ["batch", 4]})
    session = onnxruntime.InferenceSession(path)
    assert {i.name: i.shape for i in session.get_inputs()} == shapes[0]
    assert model.training
    assert {cross.attention.attention_implementation for cross in model.encoder.cross_attentions} == {"absorbed"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    onnx.checker.check_model(path)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    model.set_attention_implementation("reference")
    for batch, axes in ((3, (20, 41)), (1, (5, 7)), (2, (3, 1))):
        x, mask = masked(images(batch, *axes), axes)
        out = assert_same(model, path, x, mask)[0]
        if batch > 1:
            assert_varies(out)
        assert (out - model(x)).abs().max() > 1e-3
        assert_same(model, path, torch.where(mask.unsqueeze(1), x, torch.nan), mask)
        nothing = mask.clone()
        nothing[0] = False
        assert_same(model, path, x, nothing)


def test_a_dense_output(tmp_path):
    """Its queries are the inputs: as many as there are pixels."""
    model, path = ready(flow()), tmp_path / "model.onnx"
    save(model, path)
    for batch, axes in ((3, (5, 9)), (1, (13, 4))):
        out = assert_same(model, path, torch.randn(batch, 3, 2, *axes))[0]
        assert out.shape == (batch, 2, *axes)


OTHERS = {
    "v1": (lambda: create_model("perceiver_imagenet_fourier_tiny"), [(1, 3, 32, 32), (3, 3, 20, 41), (2, 3, 64, 48)]),
    "pixels": (lambda: classifier(kind="Pixels", data_shape=[3, 12, 10], num_bands=3), [(3, 3, 20, 41)]),
    "patches": (lambda: classifier(kind="Patches", data_shape=[3, 8, 8], patch_size=4, num_bands=3), [(3, 3, 16, 4)]),
    "convolution": (
        lambda: classifier(kind="ConvStem", data_shape=[3, 16, 16], num_bands=3),
        [(3, 3, 20, 12), (1, 3, 13, 11)],
    ),
    "learned": (lambda: classifier(kind="LearnedPixels", data_shape=[3, 6, 5]), [(3, 3, 6, 5), (1, 3, 6, 5)]),
    "audio": (lambda: classifier(kind="Waveform", num_samples=32, samples_per_patch=4, num_bands=2), [(3, 1, 32), (1, 1, 24)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_inputs(name, tmp_path):
    make, sizes = OTHERS[name]
    model, path = ready(make()), tmp_path / "model.onnx"
    shapes = save(model, path)[0]["x"]
    assert shapes[:2] == ["batch", sizes[0][1]]
    assert shapes[2:] == ([6, 5] if name == "learned" else [f"x_axis_{i}" for i in range(2, len(shapes))])
    for size in sizes:
        assert_same(model, path, torch.randn(size))


@pytest.mark.slow
def test_several_inputs_and_outputs(tmp_path):
    model, path = ready(multimodal()), tmp_path / "model.onnx"
    given, made = save(model, path)
    assert list(given) == ["x_audio", "x_image", "x_label"]
    assert list(made) == ["output_image", "output_label"]
    for batch in (1, 3):
        shapes = {"audio": (1, 32), "image": (3, 2, 8, 8), "label": (4,)}
        assert_same(model, path, {name: torch.randn(batch, *shape) for name, shape in shapes.items()})


@pytest.mark.slow
def test_a_table(tmp_path):
    model = ready(classifier(kind="Tabular", num_numeric=2, categories=[3], dim=8))
    draw = lambda batch: {"numeric": torch.randn(batch, 2), "categorical": torch.randint(3, (batch, 1))}  # noqa: E731
    save(model, tmp_path / "model.onnx", draw(2), mask=torch.ones(2, 3, dtype=torch.bool))
    for batch in (1, 5):
        assert_same(model, tmp_path / "model.onnx", draw(batch), torch.rand(batch, 3) > 0.3)


@pytest.mark.slow
def test_half_precision(tmp_path):
    model, x = ready(classifier(kind="Pixels", data_shape=[3, 12, 10], num_bands=3)).half().eval(), images(3, 5, 7).half()
    save(model, tmp_path / "model.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x.numpy()})
    with torch.inference_mode():
        assert (torch.as_tensor(found) - model(x)).abs().max() <= 1e-2 * model(x).abs().max()
    with pytest.raises(ValueError, match="no file is kept"):
        save(model.double(), tmp_path / "double.onnx")


@pytest.mark.slow
def test_a_resampler(tmp_path):
    model = ready(Resampler(dim=12, kv_dim=10, num_latent_tokens=3, depth=2, heads=4, kv_heads=2, qk_norm=False))
    save(model, tmp_path / "model.onnx", mask=True)
    for batch, length in ((1, 9), (3, 2)):
        assert_same(model, tmp_path / "model.onnx", *masked(torch.randn(batch, length, 10), (length,)))


def test_convert_text_with_a_mask(tmp_path, capsys):
    ready(text()).save_pretrained(tmp_path / "ours")
    path = tmp_path / "model.onnx"
    assert main(["convert", str(tmp_path / "ours"), str(path), "--to", "onnx", "--mask"]) == 0
    lengths = "[batch, x_axis_1]"
    assert capsys.readouterr().out.startswith(
        f"x: {lengths}\nmask: {lengths}\noutput: [batch, x_axis_1, 9]\nwrote {path}: PerceiverIO"
    )
    model = PerceiverIO.from_pretrained(tmp_path / "ours")
    assert_varies(assert_same(model, path, *masked(torch.randint(9, (3, 15)), (15,)))[0])
    assert_same(model, path, *masked(torch.randint(9, (1, 4)), (4,)))
    for arguments, message in (
        ([str(path), "--to=onnx"], "already exists"),
        ([str(tmp_path / "model"), "--to=onnx"], "must be a file that ends in .onnx"),
        ([str(tmp_path / "other"), "--mask"], "--mask is for --to onnx, not perceivers"),
    ):
        assert main(["convert", str(tmp_path / "ours"), *arguments]) == 2
        assert message in capsys.readouterr().err


BAD = {
    "model": (lambda: nn.Linear(2, 2), {}, "model is a Linear, not a Perceiver, PerceiverIO or Resampler"),
    "number": (perceiver, {"example": 3}, "example holds ['int']: give a tensor"),
    "array": (perceiver, {"example": torch.zeros(2, 3, 4, 4).numpy()}, "example holds ['ndarray']"),
    "nothing": (perceiver, {"example": {}}, "example holds nothing"),
    "shape": (perceiver, {"example": torch.zeros(2, 1, 4, 4)}, "x has shape [2, 1, 4, 4], 1 channels, but data_shape has 3"),
    "mask": (
        perceiver,
        {"mask": torch.ones(2, 3, 3, dtype=torch.bool)},
        "mask has shape [2, 3, 3], but [2, 12, 10] is needed",
    ),
    "no mask": (perceiver, {"mask": False}, "mask=False must be a mask, True for one of the example's axes, or None"),
    "mask of many": (multimodal, {"mask": True}, "mask=True, but the example is a dict, not one tensor: give the mask"),
    "no example": (
        lambda: classifier(kind="Points", num_axes=2, num_values=3, num_bands=1, resolution=4),
        {},
        "example is missing: the inputs of this PerceiverIO have no fixed size",
    ),
    "suffix": (perceiver, {"path": "model.pt"}, "must be a file that ends in .onnx"),
    "folder": (perceiver, {"path": "folder.onnx"}, "must be a file that ends in .onnx"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case, tmp_path):
    make, arguments, message = BAD[case]
    (tmp_path / "folder.onnx").mkdir()
    arguments = {"path": "model.onnx", **arguments}
    with pytest.raises(ValueError, match=re.escape(message)):
        save(make(), tmp_path / arguments.pop("path"), **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.onnx"]


WRONG = {
    "otherwise at other lengths": (lambda x: 1 if x.shape[2] > 3 else 2, r"no file is kept: it differs by .*x_axis_2.: 3"),
    "for one batch alone": (lambda x: int(x.shape[0]), "its code treats the batch size as a fixed number"),
    "not in ONNX": (lambda x: torch.linalg.qr(torch.eye(3)).Q.sum(), "this Perceiver cannot be exported: "),
}


@pytest.mark.parametrize(
    "case", [case if case.startswith("otherwise") else pytest.param(case, marks=pytest.mark.slow) for case in WRONG]
)
def test_what_is_wrong_is_not_kept(case, tmp_path, monkeypatch):
    """A graph is what the model does with the example: code that looks at lengths would do something else with others."""
    factor, message = WRONG[case]
    model = ready(Perceiver(data_shape=[3, 4], **SMALL, layers_indice=[0], num_latent_transformers_in_layers=[0], num_bands=1))
    encode = Perceiver.encode
    monkeypatch.setattr(Perceiver, "encode", lambda self, x, mask=None: encode(self, x, mask) * factor(x))
    with pytest.raises(ValueError, match=message):
        save(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'perceivers\[onnx\]'"):
        save(perceiver(), tmp_path / "model.onnx")
    perceiver().save_pretrained(tmp_path / "ours")
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "model.onnx"), "--to=onnx"]) == 2
    assert "pip install 'perceivers[onnx]'" in capsys.readouterr().err
