"""What leaves for perceiver-pytorch: its classes load it with nothing missing or left over, and give the same outputs."""

import pytest
import torch

from accuracy import assert_varies, draw_parameters
from perceivers import Perceiver, PerceiverIO, from_pretrained
from perceivers.__main__ import main
from perceivers.checkpoints.formats import perceiver_pytorch
from perceivers.checkpoints.readers.files import read

pytestmark = pytest.mark.peer("perceiver_pytorch")
COMMON = {"num_latent_tokens": 5, "dim": 12, "heads": 3, "cross_heads": 2, "bias": "out", "activation": "geglu"}
POSITIONS = {"num_bands": 3, "resolution": 10, "frequency_base": None}
IMAGE = {**COMMON, **POSITIONS, "data_shape": [2, 5, 4], "head_dim": 6, "cross_head_dim": 5, "final_norm": True}
IO = {**COMMON, "ff_dim_scale": 4, "qk_channels": 18, "cross_qk_channels": 10}
DECODER = {"decoder_heads": 2, "decoder_qk_channels": 10, "decoder_query_residual": False}
SHARED = {"layers_indice": [0, 1, 1], "num_latent_transformers_in_layers": [2, 2]}
QUERIES = {"kind": "GivenQueries", "dim": 8, "num_channels": 6}
FEATURES = {"kind": "Features", "dim": 7}
TEXT = {"kind": "TokenIds", "vocab_size": 11, "max_length": 9, "dim": 8}

MODELS = {
    "shared": lambda: Perceiver(**IMAGE, **SHARED, num_classes=6),
    "apart": lambda: Perceiver(**IMAGE, layers_indice=[0, 1], num_latent_transformers_in_layers=[1, 1], num_classes=6),
    "stacks of one": lambda: Perceiver(
        **IMAGE,
        layers_indice=[0, None, 1, None],
        latent_layers_indice=[0, 1, 2, 3],
        num_latent_transformers_in_layers=[1, 1, 1, 1],
        num_classes=6,
    ),
    "no latent transformers": lambda: Perceiver(
        **{**IMAGE, "heads": 1, "head_dim": 1},
        layers_indice=[0, 1, 1],
        latent_layers_indice=[0, 0, 0],
        num_latent_transformers_in_layers=[0],
        num_classes=6,
    ),
    "signal without bands": lambda: Perceiver(**{**IMAGE, "data_shape": [2, 7], "num_bands": 0}, **SHARED, num_classes=6),
    "no head": lambda: Perceiver(**{**IMAGE, "final_norm": False}, **SHARED),
    "features": lambda: PerceiverIO(
        **IO,
        **SHARED,
        inputs=FEATURES,
        outputs={"kind": "MeanPool", "dim": 12, "num_channels": 6, "final_norm": True},
        decoder_heads=3,  # of no decoder
    ),
    "io": lambda: PerceiverIO(
        **IO, **DECODER, inputs=FEATURES, outputs=QUERIES, num_latent_transformers_in_layers=[3], decoder_ff_dim=0
    ),
    "io shared": lambda: PerceiverIO(
        **IO,
        **DECODER,
        inputs=FEATURES,
        outputs={**QUERIES, "num_channels": None},
        layers_indice=[0, None],
        latent_layers_indice=[0, 0],
        num_latent_transformers_in_layers=[1],
        decoder_ff_dim_scale=4,
    ),
    "language": lambda: PerceiverIO(
        **IO,
        **DECODER,
        inputs=TEXT,
        outputs={"kind": "PerToken", "dim": 8, "num_channels": 11},
        num_latent_transformers_in_layers=[2],
        decoder_ff_dim=32,
    ),
}


def build(name):
    return draw_parameters(MODELS[name]()).double().eval()


def called(name, model, theirs):
    """What both say of the same data, with a mask."""
    random = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    if name == "language":
        ids, mask = torch.randint(11, (3, 8)), torch.arange(8) < torch.tensor([[8], [3], [5]])
        return model(ids, mask)[mask], theirs(ids, mask=mask)[mask]
    if name.startswith("io"):
        x, mask, queries = random(3, 9, 7), torch.rand(3, 9) > 0.3, random(3, 4, 8)
        return model(x, mask, queries=queries), theirs(x, mask=mask, queries=queries)
    if name == "features":
        x, mask = random(3, 9, 7), torch.rand(3, 9) > 0.3
        return model(x, mask), theirs(x, mask=mask)
    axes = model.config["data_shape"][1:]
    x, mask = random(3, 2, *axes), torch.rand(3, *axes) > 0.3
    ours = model.encode(x, mask) if name == "no head" else model(x, mask)
    return ours, theirs(x.movedim(1, -1), mask=mask)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_exported_models_are_theirs(peer, tmp_path, name, suffix):
    model, path = build(name), tmp_path / f"theirs{suffix}"
    arguments = perceiver_pytorch.save(model, path)
    kind, again = perceiver_pytorch.constructor(model)
    assert again == arguments
    theirs = getattr(peer, kind)(**arguments).double().eval()
    theirs.load_state_dict(read(path).weights)  # strict
    ours, wanted = called(name, model, theirs)
    assert_varies(wanted)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_back_again_bit_for_bit(tmp_path, name):
    """Ours, theirs, ours, theirs: the same tensors, and the same outputs but for where tensors lie in memory."""
    model, path = build(name), tmp_path / "theirs.pt"
    arguments = perceiver_pytorch.save(model, path)
    specified = {key: arguments[key] for key in ("cross_heads", "latent_heads")}
    if arguments.get("fourier_encode_data"):
        specified |= {key: arguments[key] for key in ("max_freq", "num_freq_bands", "input_channels", "input_axis")}
    elif "fourier_encode_data" in arguments:
        specified |= {"fourier_encode_data": False}
    again = from_pretrained(path, **specified)
    assert perceiver_pytorch.save(again, tmp_path / "again.pt") == arguments
    first, second = read(path).weights, read(tmp_path / "again.pt").weights
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    method, arrays = model.encode if name == "no head" else model, isinstance(model, Perceiver)
    ours, wanted = called(name, again, lambda x, mask, **given: method(x.movedim(-1, 1) if arrays else x, mask, **given))
    torch.testing.assert_close(ours, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "changes", "messages"),
    [
        (
            "shared",
            {"bias": True, "activation": "gelu", "pre_norm": False, "ff_dim_scale": 2, "frequency_base": 1},
            ["bias=True, only 'out'", "activation='gelu', only 'geglu'", "pre_norm=False, only True", "ff_dim=24, only 48"],
        ),
        ("shared", {"frequency_base": 1}, [r"frequency_base=1, only None"]),
        ("shared", {"final_norm": False}, ["final_norm=False, only True"]),
        ("no head", {"final_norm": True}, ["final_norm=True, only False"]),
        ("shared", {"resolution": [10, 12]}, [r"resolution=\[10, 12\], only \[10, 10\]"]),
        ("shared", {"layers_indice": [0, 1, 0]}, [r"layers_indice=\[0, 1, 0\]", "share all or nothing"]),
        ("shared", {"latent_layers_indice": [0, 0, 1]}, [r"latent_layers_indice=\[0, 0, 1\]"]),
        ("shared", {"num_latent_transformers_in_layers": [1, 2]}, [r"num_latent_transformers_in_layers=\[1, 2\]"]),
        (
            "shared",
            {"layers_indice": [None, 0], "latent_layers_indice": [0, 1]},
            [r"layers_indice=\[None, 0\]"],
        ),
        (
            "io",
            {"decoder_heads": 1, "decoder_query_residual": True, "v_channels": 6, "query_residual": False},
            ["decoder_heads=1, only 2", "decoder_query_residual=True", "v_channels=6, only 18", "query_residual=False"],
        ),
        (
            "io",
            {"decoder_qk_channels": 4, "decoder_ff_dim": 8},
            ["decoder_qk_channels=4, only 10", "decoder_ff_dim=8, only 32"],
        ),
        ("io", {"layers_indice": [0, 1], "num_latent_transformers_in_layers": [3, 3]}, ["one cross-attention"]),
        (
            "io",
            {"outputs": {"kind": "LearnedQueries", "dim": 8, "num_channels": 3}},
            ["does not have a PerceiverIO with inputs Features and outputs LearnedQueries"],
        ),
        ("io", {"outputs": {**QUERIES, "decoded_channels": 8}}, ["decoded_channels"]),
        ("language", {"outputs": {"kind": "PerToken", "dim": 8, "num_channels": 5}}, ["'num_channels': 5"]),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else None,
)
def test_what_they_do_not_have_is_refused_by_name(tmp_path, name, changes, messages):
    model = MODELS[name]()
    arguments = {**model.config, **changes}
    if "ff_dim_scale" in changes:
        del arguments["ff_dim"]
    if "layers_indice" in changes and "latent_layers_indice" not in changes:
        del arguments["latent_layers_indice"]
    if isinstance(model, PerceiverIO) and "v_channels" not in changes:
        del arguments["v_channels"], arguments["decoder_v_channels"]
    changed = type(model)(**arguments)
    for message in messages:
        with pytest.raises(ValueError, match=message):
            perceiver_pytorch.save(changed, tmp_path / "theirs.pt")
    assert not list(tmp_path.iterdir())


def test_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"theirs\.bin must end with \.safetensors or \.pt"):
        perceiver_pytorch.save(build("io"), tmp_path / "theirs.bin")


def test_convert(peer, tmp_path, capsys):
    model = build("shared").float()
    model.save_pretrained(tmp_path / "ours")
    path = tmp_path / "theirs.safetensors"
    assert main(["convert", str(tmp_path / "ours"), str(path), "--to=perceiver-pytorch"]) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("perceiver_pytorch."))
    theirs = eval(printed, {"perceiver_pytorch": peer}).eval()  # the line is Python
    theirs.load_state_dict(read(path).weights)
    x = torch.randn(2, 2, 5, 4)
    torch.testing.assert_close(model(x), theirs(x.movedim(1, -1)), rtol=1e-5, atol=1e-5)
    specified = ["--max-freq=10", "--input-channels=2", "--latent-heads=3", "--cross-heads=2", "--frequency-base=linear"]
    assert main(["convert", str(path), str(tmp_path / "again"), *specified]) == 0
    torch.testing.assert_close(Perceiver.from_pretrained(tmp_path / "again")(x), model(x))
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "x.bin"), "--to=perceiver-pytorch"]) == 2
    assert ".safetensors or .pt" in capsys.readouterr().err
