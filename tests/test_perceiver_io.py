"""What `PerceiverIO` promises apart from its parts: errors, state, settings, saving, running compiled or elsewhere."""

import copy
import json
import pickle
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.export import Dim

from accuracy import IMPLEMENTATIONS, assert_varies, draw_parameters
from perceivers import PerceiverIO, create_model, inputs, outputs

PIXELS = {"kind": "Pixels", "data_shape": [2, 4, 6], "num_bands": 2}
CLASS = {"kind": "LearnedQueries", "dim": 8, "num_channels": 3}
GRID = {"kind": "Grid", "axes": [3, 5], "num_channels": 2, "num_bands": 2}
TEXT = {"kind": "TokenIds", "vocab_size": 7, "max_length": 9, "dim": 6}
LOGITS = {"kind": "TokenLogits", "max_length": 9, "dim": 6, "vocab_size": 7}
SMALL = {"num_latent_tokens": 5, "dim": 12, "heads": 2, "num_latent_transformers_in_layers": [1]}
GOOD = {"inputs": PIXELS, "outputs": CLASS, **SMALL}


def build(**changes) -> PerceiverIO:
    return draw_parameters(PerceiverIO(**{**GOOD, **changes}).eval())  # pyright: ignore


@pytest.fixture(autouse=True)
def _forget_compiled():
    yield
    torch._dynamo.reset()


BAD = [
    ({"inputs": nn.Linear(2, 3)}, "inputs is a Linear without num_channels: give an input module"),
    ({"outputs": nn.Linear(2, 3)}, "outputs is a Linear, not a perceivers.outputs.Output: give an output module"),
    ({"inputs": "Pixels"}, "inputs='Pixels' must be a module, or a description: a dict with 'kind' and its arguments"),
    ({"outputs": {"dim": 3}}, "outputs={'dim': 3} must be a module, or a description"),
    ({"outputs": {"kind": "Output"}}, "outputs: kind='Output' is not one of ['"),
    ({"outputs": {"kind": "os.system"}}, "import the module that defines the class, or pass an instance as outputs=..."),
    ({"outputs": {**CLASS, "dims": 3}}, "outputs: unexpected keys ['dims'] for LearnedQueries; did you mean 'dim'?"),
    ({"outputs": {"kind": "Grid", "axes": [3]}}, "outputs: num_channels of Grid is missing"),
    ({"dim": 0}, "dim=0 must be a whole number of at least 1"),
    ({"heads": 5}, "heads=5 does not divide dim=12: choose one that does, or give qk_channels"),
    ({"qk_channels": 7}, "heads=2 does not divide qk_channels=7: choose numbers where it does"),
    ({"v_channels": 7}, "heads=2 does not divide v_channels=7"),
    ({"cross_heads": 2, "cross_qk_channels": 7}, "cross_heads=2 does not divide cross_qk_channels=7"),
    ({"cross_heads": 2, "cross_v_channels": 9}, "cross_heads=2 does not divide cross_v_channels=9"),
    ({"decoder_heads": 5}, "decoder_heads=5 does not divide dim=12: choose one that does, or give decoder_qk_channels"),
    ({"decoder_v_channels": 0}, "decoder_v_channels=0 must be"),
    ({"decoder_query_residual": 1}, "decoder_query_residual=1 must be True or False"),
    ({"query_residual": 1}, "query_residual=1 must be True or False"),
    ({"layers_indice": [1]}, "layers_indice=[1] must use each of 0, 1, 2"),
    ({"attention_implementation": "fast"}, "attention_implementation='fast' must be one of"),
    ({"outputs": {"kind": "MeanPool", "dim": 13}}, "MeanPool has dim=13, but the latents have dim=12: make them equal"),
    (
        {"outputs": {"kind": "PerInput", "dim": 13, "num_channels": 2}},
        "PerInput has dim=13, but the inputs have num_channels=12",
    ),
    (
        {"outputs": {"kind": "PerToken", "dim": 13, "num_channels": 2}},
        "PerToken has dim=13, but the inputs have num_channels=12",
    ),
    ({"outputs": {"kind": "GivenQueries", "dim": 0, "num_channels": 2}}, "dim=0 must be"),
    ({"outputs": LOGITS}, "tied_to='embeddings.weight' is not a parameter of the inputs: choose from []"),
    (
        {"inputs": TEXT, "outputs": {**LOGITS, "dim": 8}},
        "tied_to='embeddings.weight' has shape [7, 6], but [7, 8] is needed: [vocab_size, width of decoded queries]",
    ),
    ({"outputs": {**CLASS, "num_channels": 0}}, "num_channels=0 must be"),
    ({"outputs": {**CLASS, "num_queries": 0}}, "num_queries=0 must be"),
    ({"outputs": {**GRID, "axes": []}}, "axes=[] and patch=[] must have the same number of entries, at least one"),
    ({"outputs": {**GRID, "patch": [2]}}, "axes=[3, 5] and patch=[2] must have the same number of entries"),
    ({"outputs": {**GRID, "feature_order": "x"}}, "feature_order='x' must be one of 'axes', 'kinds'"),
    ({"outputs": {**GRID, "sampled_positions": "x"}}, "sampled_positions='x' must be one of 'grid', 'left_aligned'"),
    ({"outputs": {**GRID, "content_channels": -1}}, "content_channels=-1 must be"),
    ({"outputs": {"kind": "MultiTask", "dim": 8, "tasks": {}}}, "tasks={} must be a dict from at least one task name"),
    ({"outputs": {"kind": "MultiTask", "dim": 8, "tasks": {"a": 0}}}, "tasks=0 must be"),
    ({"outputs": {"kind": "Multimodal", "modalities": {}}}, "modalities={} must be a dict with at least one name"),
    (
        {"outputs": {"kind": "Multimodal", "modalities": {"a": CLASS}}},
        "output 'a' has decoded_channels=8, but decoded queries have 10 channels: give it decoded_channels=10",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:45] for _, message in BAD])
def test_bad_arguments(changes, message):
    PerceiverIO(**GOOD)
    with pytest.raises(ValueError, match=re.escape(message)):
        PerceiverIO(**{**GOOD, **changes})


def test_unknown_arguments():
    with pytest.raises(TypeError, match="num_latents"):
        PerceiverIO(**GOOD, num_latents=3)
    with pytest.raises(TypeError, match="outputs"):
        PerceiverIO(inputs=PIXELS)  # pyright: ignore
    with pytest.raises(TypeError, match="positional"):
        outputs.Grid([3, 5], 2)  # pyright: ignore


X = torch.zeros(2, 2, 4, 6)
MANY = {"kind": "Multimodal", "modalities": {"a": {**CLASS, "decoded_channels": 10}}}
CALLS = [
    (
        CLASS,
        {"indices": [0]},
        "indices is list, not an int64 or int32 tensor: give the queries to decode, such as torch.arange(10)",
    ),
    (CLASS, {"indices": torch.zeros(1)}, "indices is torch.float32, not an int64 or int32 tensor"),
    (GRID, {"indices": torch.tensor([15])}, "indices has values from 15 to 15, but there are 15 queries: indices are 0 to 14"),
    (GRID, {"indices": torch.tensor([-1])}, "indices has values from -1 to -1"),
    (GRID, {"indices": torch.zeros(3, 1).long()}, "indices has shape [3, 1], but [O] or [2, O] with O > 0 is needed"),
    (GRID, {"indices": torch.zeros(0).long()}, "indices has shape [0], but"),
    (GRID, {"chunk_size": 0}, "chunk_size=0 must be a whole number of at least 1"),
    (GRID, {"query_mask": torch.ones(2, 15)}, "query_mask is torch.float32, not a bool tensor"),
    (GRID, {"query_mask": torch.ones(2, 14) > 0}, "query_mask has shape [2, 14], but [2, 15] is needed: [B, queries]"),
    (
        {"kind": "MeanPool", "dim": 12},
        {"indices": torch.arange(1)},
        "indices must be None: MeanPool has one result and no queries",
    ),
    ({"kind": "MeanPool", "dim": 12}, {"query_mask": X > 0}, "query_mask must be None: MeanPool has no queries"),
    (
        {"kind": "MultiTask", "dim": 8, "tasks": {"a": 2}},
        {"indices": torch.arange(1)},
        "indices must be None: each task has one",
    ),
    (MANY, {"indices": torch.arange(1)}, "indices is Tensor, but a dict with some of the keys ['a'] is needed"),
    (MANY, {"query_mask": {"b": None}}, "query_mask is ['b'], but a dict with some of the keys ['a'] is needed"),
    ({**GRID, "content_channels": 2}, {}, "axes=[3, 5], but group 0 of the inputs has axes [4, 6]"),
    ({**GRID, "axes": [4, 6], "content_channels": 3}, {}, "content_channels=3, but the content of the inputs has 2 channels"),
    ({**GRID, "axes": [4, 6], "content_channels": 2, "group": 1}, {}, "group=1, but there are 1 token groups"),
    (
        {"kind": "TokenLogits", "max_length": 9, "dim": 6, "vocab_size": 7, "tied_to": None},
        {},
        "the text has 24 tokens, but max_length=9: truncate it",
    ),
]


@pytest.mark.parametrize(("output", "arguments", "message"), CALLS, ids=[message[:45] for _, _, message in CALLS])
def test_bad_calls(output, arguments, message):
    model = build(outputs=output)
    with pytest.raises(ValueError, match=re.escape(message)):
        model(X, **arguments)


def test_queries_of_inputs_need_the_inputs():
    model = build(outputs={"kind": "PerInput", "dim": 12, "num_channels": 2})
    latents = model.encode(X)
    torch.testing.assert_close(model.decode(latents, model.inputs(X)), model(X))
    with pytest.raises(
        ValueError, match=re.escape("group=0, but there are 0 token groups: pass those of the inputs to decode()")
    ):
        model.decode(latents)


def test_state_dict_keys():
    """The names are a promise."""
    names = set(build(layers_indice=[0, None], latent_layers_indice=[0, 0]).state_dict())
    block = {f"attention.{part}" for part in ("inputs_norm", "to_q", "to_k", "to_v", "to_out")} | {
        "attention_norm",
        "feed_forward_norm",
        "feed_forward.linear_in",
        "feed_forward.linear_out",
    }
    of = lambda start, parts: {f"{start}.{part}.{end}" for part in parts for end in ("weight", "bias")}  # noqa: E731
    assert names == {
        "encoder.latents",
        "outputs.query",
        *of("encoder.cross_attentions.0", block),
        *of("encoder.latent_transformers.0.0", block - {"attention.inputs_norm"}),
        *of("decoder", block),
        *of("outputs", {"head"}),
    }


def test_widths():
    """Of queries and keys, and of values; one that is not given defaults to the next that is."""

    def widths(**changes):
        model = build(**changes)
        blocks = (model.encoder.cross_attentions[0], model.encoder.latent_transformers[0][0], model.decoder)
        return [(block.attention.to_k.out_features, block.attention.to_v.out_features) for block in blocks]

    assert widths() == [(12, 12), (12, 12), (12, 12)]
    assert widths(qk_channels=6, v_channels=8) == [(6, 8), (6, 8), (12, 12)]
    assert widths(qk_channels=6, v_channels=8, cross_qk_channels=5) == [(5, 5), (6, 8), (12, 12)]
    assert widths(qk_channels=6, cross_v_channels=7, decoder_qk_channels=4) == [(6, 7), (6, 6), (4, 4)]
    assert widths(decoder_v_channels=3) == [(12, 12), (12, 12), (12, 3)]
    assert build(decoder_ff_dim_scale=2).decoder.feed_forward.linear_in.out_features == 16
    assert build(decoder_ff_dim=0).decoder.feed_forward is None


def test_encoder_residual():
    """Without it, the latents are replaced by what they gathered."""
    x = torch.randn(2, 2, 4, 6)
    on, off = (build(query_residual=on, num_latent_transformers_in_layers=[0]) for on in (True, False))
    off.load_state_dict(on.state_dict())
    seen = []
    for model in (on, off):
        block = model.encoder.cross_attentions[0]
        block.feed_forward_norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        model.encode(x)
    torch.testing.assert_close(seen[0] - seen[1], on.encoder.latents.expand(2, -1, -1))


def test_attention_maps():
    parts = {"a": PIXELS, "b": {"kind": "Labels", "num_classes": 4}}
    model = build(inputs={"kind": "Multimodal", "modalities": parts}, cross_heads=2)
    x = {"a": torch.randn(2, 2, 4, 6), "b": torch.tensor([1, 3])}
    maps = model.attention_maps(x)
    assert [tuple(m.shape) for m in maps] == [(2, 2, 5, 4, 6), (2, 2, 5, 1)]
    torch.testing.assert_close(sum(m.flatten(3).sum(-1) for m in maps), torch.ones(2, 2, 5))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_implementation_is_of_encoder_and_decoder(implementation):
    model = PerceiverIO(**GOOD, attention_implementation=implementation)
    for block in (*model.encoder.cross_attentions, model.decoder):
        assert block.attention.attention_implementation == implementation
    assert "attention_implementation" not in model.config
    model.flops(X)
    assert model.decoder.attention.attention_implementation == implementation


def test_configuration_is_json():
    for name in ("perceiver_io_multimodal_kinetics_tiny", "perceiver_io_mlm_bytes_tiny"):
        model = create_model(name)
        again = PerceiverIO(**json.loads(json.dumps(model.config)))
        assert again.config == model.config
        assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"kind": "os.system", "command": "true"}}, "inputs: kind='os.system' is not one of"),
        ({"outputs": {"kind": "Encoded"}}, "outputs: kind='Encoded' is not one of"),
        ({"outputs": {**CLASS, "num_channels": 4}}, "outputs.head.bias has shape [3], not [4]"),
        ({"outputs": {**CLASS, "width": 4}}, "outputs: unexpected keys ['width'] for LearnedQueries; remove"),
        ({"model_class": "Perceiver"}, "model_class='Perceiver': load it with Perceiver, not PerceiverIO"),
    ],
    ids=str,
)
def test_files_that_do_not_fit(tmp_path, changes, message):
    build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=re.escape(message)):
        PerceiverIO.from_pretrained(tmp_path)


def test_modules_of_the_same_name_are_not_confused(tmp_path):
    class Pixels(nn.Module):
        num_channels = 12

        def forward(self, x, mask=None):
            return inputs.Pixels(data_shape=[2, 4, 6], num_bands=2)(x, mask)

    model = build(inputs=Pixels())
    assert model.config["inputs"] == {"kind": f"{__name__}.test_modules_of_the_same_name_are_not_confused.<locals>.Pixels"}
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not one of"):
        PerceiverIO.from_pretrained(tmp_path)


def test_batch_statistics_are_saved(tmp_path):
    """The running statistics of the convolutional stem, one of which is a whole number."""
    model = build(inputs={"kind": "ConvStem", "data_shape": [2, 16, 16], "stem_channels": 4, "num_bands": 2})
    x = torch.randn(2, 2, 16, 16)
    model.train()(x)
    model.eval().save_pretrained(tmp_path)
    again = PerceiverIO.from_pretrained(tmp_path)
    assert again.inputs.norm.num_batches_tracked == 1
    torch.testing.assert_close(again(x), model(x))


RUNS = {
    "class": (GOOD, lambda b: torch.randn(b, 2, 4, 6)),
    "grid": ({**GOOD, "outputs": GRID}, lambda b: torch.randn(b, 2, 4, 6)),
    "inputs": ({**GOOD, "outputs": {"kind": "PerInput", "dim": 12, "num_channels": 2}}, lambda b: torch.randn(b, 2, 4, 6)),
    "text": ({**GOOD, "inputs": TEXT, "outputs": LOGITS}, lambda b: torch.randint(7, (b, 9))),
    "several": ({**GOOD, "outputs": MANY}, lambda b: torch.randn(b, 2, 4, 6)),
}
runs = pytest.mark.parametrize("name", RUNS)
leaves = lambda out: list(out.values()) if isinstance(out, dict) else [out]  # noqa: E731


@runs
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_compiles_as_one_graph(name, chunk_size):
    config, data = RUNS[name]
    model, x = build(**config), data(2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    wanted = model(x, chunk_size=chunk_size)
    assert_varies(leaves(wanted)[0])
    torch.testing.assert_close(compiled(x, chunk_size=chunk_size), wanted)


@runs
def test_exports_with_any_batch(name):
    config, data = RUNS[name]
    model, x = build(**config), data(2)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=64)},)).module()
    for batch in (1, 5):
        other = data(batch)
        torch.testing.assert_close(exported(other), model(other))


@runs
def test_copies_and_pickles(name):
    config, data = RUNS[name]
    model, x = build(**config), data(2)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(again(x), model(x))
        assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


@runs
def test_autocast_and_half_precision(name):
    config, data = RUNS[name]
    model, x = build(**config), data(2)
    wanted = leaves(model(x))
    with torch.autocast("cpu", torch.bfloat16):
        for out, true in zip(leaves(model(x)), wanted, strict=True):
            assert (out - true).abs().max() < 0.1 * true.abs().max()
    half = copy.deepcopy(model).bfloat16()
    for out, true in zip(leaves(half(x.bfloat16() if x.is_floating_point() else x)), wanted, strict=True):
        assert out.dtype == torch.bfloat16
        assert (out - true).abs().max() < 0.1 * true.abs().max()


def test_chosen_queries_train_the_same():
    """Gradients of a loss on some of the outputs are the same, decoded alone or among all."""
    model = build(outputs=GRID).double()
    x, indices = torch.randn(2, 2, 4, 6).double(), torch.tensor([[3, 14], [0, 7]])
    grads = []
    for out in (model(x, indices=indices), model(x).flatten(2).take_along_dim(indices.unsqueeze(1), dim=-1)):
        grads.append(torch.autograd.grad(out.square().sum(), list(model.parameters())))
    torch.testing.assert_close(*grads)


def test_dropout_of_the_decoder_acts_in_training_only():
    for name in ("ff_dropout", "attention_dropout"):
        model = build(**{name: 0.5}, num_latent_transformers_in_layers=[0])
        latents = torch.randn(2, 5, 12)
        assert torch.equal(model.decode(latents), model.decode(latents))
        model.train()
        assert not torch.equal(model.decode(latents), model.decode(latents))


def test_inputs_need_only_width_and_tokens():
    """Any module that has `num_channels` and makes tokens is accepted."""
    with pytest.raises(ValueError, match="must be a module"):
        PerceiverIO(**{**GOOD, "inputs": SimpleNamespace(num_channels=3)})
