"""`PerceiverIO` against the seven published heads of transformers, with the same random weights, at reduced sizes.

Both are given every parameter at random. In float32 they agree to 1e-5 of the largest number; in float64, where the peer is
given float64 position tables (it builds them in float32), to 1e-10.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accuracy import assert_varies, draw_parameters
from perceivers import PerceiverIO
from perceivers.inputs.flow import neighbourhoods

pytestmark = pytest.mark.peer("transformers")

# Ours: theirs, of one attention layer. Only cross-attentions have `inputs_norm`.
LAYER = {
    "attention_norm": "attention.self.layernorm1",
    "attention.inputs_norm": "attention.self.layernorm2",
    "attention.to_q": "attention.self.query",
    "attention.to_k": "attention.self.key",
    "attention.to_v": "attention.self.value",
    "attention.to_out": "attention.output.dense",
    "feed_forward_norm": "layernorm",
    "feed_forward.linear_in": "mlp.dense1",
    "feed_forward.linear_out": "mlp.dense2",
}
QUERY = "perceiver.decoder.decoder.output_position_encodings.position_embeddings"
CLASSES = {"outputs.query": QUERY, "outputs.head": "perceiver.decoder.decoder.final_layer"}
TEXT = {
    "inputs.embeddings": "perceiver.input_preprocessor.embeddings",
    "inputs.positions.embeddings": "perceiver.input_preprocessor.position_embeddings.weight",
}


def key_table(decoder: str, depth: int, rest: Mapping[str, str]) -> dict[str, str]:
    """For each of our names, or what it starts with, theirs."""
    layers = {
        "encoder.cross_attentions.0": "perceiver.encoder.cross_attention",
        **{f"encoder.latent_transformers.0.{n}": f"perceiver.encoder.self_attends.{n}" for n in range(depth)},
        "decoder": f"perceiver.{decoder}decoding_cross_attention",
    }
    table = {f"{ours}.{part}": f"{theirs}.{LAYER[part]}" for ours, theirs in layers.items() for part in LAYER}
    return {"encoder.latents": "perceiver.embeddings.latents", **table, **rest}


def convert(theirs: Mapping[str, Tensor], ours: nn.Module, table: Mapping[str, str], orders: Mapping[str, list[int]]) -> None:
    """Loads their weights. Every one of theirs is used, and every one of ours filled; `orders` permutes last axes."""
    state, used = {}, set()
    for name, tensor in ours.state_dict().items():
        start = next((start for start in table if name == start or name.startswith(start + ".")), None)
        assert start is not None, f"{name} has no counterpart"
        source = table[start] + name[len(start) :]
        used.add(source)
        value = theirs[source].reshape(tensor.shape)  # convolutions of size 1 and rows of one are stored with more axes
        order = next((order for end, order in orders.items() if name.startswith(end)), None)
        state[name] = value if order is None else value[..., order]
    assert theirs.keys() == used
    ours.load_state_dict(state)


def by_axes(content: int, axes: int, bands: int) -> list[int]:
    """For each of our channels theirs: they have all coordinates, then all sines, then all cosines."""
    order = list(range(content))
    for a in range(axes):
        sines = content + axes + a * bands
        order += [content + a, *range(sines, sines + bands), *range(sines + axes * bands, sines + (axes + 1) * bands)]
    return order


def inputs_order(order: list[int]) -> dict[str, list[int]]:
    """What encoded inputs meet: the norm of the inputs, and the maps to keys and values, whose biases stay."""
    cross = "encoder.cross_attentions.0.attention."
    return {f"{cross}inputs_norm": order, f"{cross}to_k.weight": order, f"{cross}to_v.weight": order}


@dataclass
class Head:
    """One of their classes, and the same model of ours."""

    config: dict[str, Any]
    model: dict[str, Any]
    x: Any
    decoder: str = "decoder.decoder."
    rest: Mapping[str, str] = field(default_factory=dict)
    orders: Mapping[str, list[int]] = field(default_factory=dict)
    mask: bool = False
    theirs_x: Any = lambda x: x
    as_ours: Any = lambda logits: logits
    indices: Any = None


PICTURE = lambda *axes: lambda: 3 * torch.randn(2, 3, *axes)  # noqa: E731
WIDTHS = {"num_latents": 6, "d_latents": 32, "num_self_attends_per_block": 2, "num_blocks": 3, "num_labels": 5}
ONE_HEAD = {**WIDTHS, "num_cross_attention_heads": 1, "num_self_attention_heads": 4}
OURS = {
    "num_latent_tokens": 6,
    "dim": 32,
    "heads": 4,
    "layers_indice": [0, None, None],
    "latent_layers_indice": [0, 0, 0],
    "num_latent_transformers_in_layers": [2],
}
CLASS = {"kind": "LearnedQueries", "dim": 32, "num_channels": 5}
LANGUAGE = {**WIDTHS, "d_model": 24, "max_position_embeddings": 11, "vocab_size": 13, "qk_channels": 16, "v_channels": 32}
TOKENS = {"kind": "TokenIds", "vocab_size": 13, "max_length": 11, "dim": 24}
OURS_LANGUAGE = {**OURS, "inputs": TOKENS, "heads": 8, "cross_heads": 8, "qk_channels": 16, "v_channels": 32}
MODALITIES = ("audio", "image", "label")
VIDEO = {"num_bands": 32, "resolution": [2, 8, 8], "feature_order": "kinds"}
SAMPLED = {"sampled_positions": "left_aligned", "decoded_channels": 20}
IDS = lambda: torch.randint(13, (2, 11))  # noqa: E731

HEADS = {
    "PerceiverForMaskedLM": Head(
        config=LANGUAGE,
        model={
            **OURS_LANGUAGE,
            "outputs": {"kind": "TokenLogits", "max_length": 11, "dim": 24, "vocab_size": 13},
            "decoder_heads": 8,
            "decoder_qk_channels": 256,
            "decoder_v_channels": 24,
            "decoder_query_residual": False,
        },
        x=IDS,
        decoder="decoder.",
        rest={
            **TEXT,
            "outputs.query": "perceiver.decoder.output_position_encodings.position_embeddings",
            "outputs.bias": "embedding_decoder.bias",
        },
        mask=True,
    ),
    "PerceiverForSequenceClassification": Head(
        config=LANGUAGE,
        model={**OURS_LANGUAGE, "outputs": CLASS, "decoder_qk_channels": 32},
        x=IDS,
        rest={**TEXT, **CLASSES},
        mask=True,
    ),
    "PerceiverForImageClassificationLearned": Head(
        config={**ONE_HEAD, "image_size": 7},
        model={
            **OURS,
            "inputs": {"kind": "LearnedPixels", "data_shape": [3, 7, 7]},
            "outputs": CLASS,
            "cross_qk_channels": 512,
        },
        x=PICTURE(7, 7),
        rest={
            "inputs.linear": "perceiver.input_preprocessor.convnet_1x1",
            "inputs.positions.embeddings": "perceiver.input_preprocessor.position_embeddings.position_embeddings",
            "inputs.position_linear": "perceiver.input_preprocessor.positions_projection",
            **CLASSES,
        },
    ),
    "PerceiverForImageClassificationFourier": Head(
        config=ONE_HEAD,
        model={
            **OURS,
            "inputs": {"kind": "Pixels", "data_shape": [3, 9, 12], "resolution": 224},
            "outputs": CLASS,
            "cross_qk_channels": 261,
        },
        x=PICTURE(9, 12),
        rest=CLASSES,
        orders=inputs_order(by_axes(3, 2, 64)),
    ),
    "PerceiverForImageClassificationConvProcessing": Head(
        config=ONE_HEAD,
        model={
            **OURS,
            "inputs": {"kind": "ConvStem", "data_shape": [3, 30, 41], "padding": "symmetric", "resolution": 56},
            "outputs": CLASS,
            "cross_qk_channels": 322,
        },
        x=PICTURE(30, 41),
        rest={
            "inputs.conv": "perceiver.input_preprocessor.convnet.conv",
            "inputs.norm": "perceiver.input_preprocessor.convnet.batchnorm",
            **CLASSES,
        },
        orders=inputs_order(by_axes(64, 2, 64)),
    ),
    "PerceiverForOpticalFlow": Head(
        config={**ONE_HEAD, "train_size": (6, 7)},
        model={
            **OURS,
            "inputs": {"kind": "FramePairs", "data_shape": [3, 6, 7]},
            "outputs": {"kind": "PerInput", "dim": 322, "num_channels": 2, "divisor": 100},
            "cross_qk_channels": 322,
            "decoder_query_residual": False,
        },
        x=lambda: 3 * torch.randn(2, 3, 2, 6, 7),
        rest={
            "inputs.linear": "perceiver.input_preprocessor.conv_after_patches",
            "outputs.head": "perceiver.decoder.decoder.final_layer",
        },
        orders={
            **inputs_order(by_axes(64, 2, 64)),
            "decoder.attention_norm": by_axes(64, 2, 64),
            "decoder.attention.to_q.weight": by_axes(64, 2, 64),
        },
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
        model={
            **OURS,
            "inputs": {
                "kind": "Multimodal",
                "modalities": {
                    "audio": {"kind": "Waveform", "num_samples": 96, "num_bands": 192},
                    "image": {
                        "kind": "Patches",
                        "data_shape": [3, 2, 8, 8],
                        "patch_size": [1, 4, 4],
                        **VIDEO,
                    },
                    "label": {"kind": "Labels", "num_classes": 5},
                },
                "min_padding_size": 4,
                "mask_probs": {"audio": 0.0, "image": 0.0, "label": 1.0},
            },
            "outputs": {
                "kind": "Multimodal",
                "modalities": {
                    "audio": {
                        "kind": "Grid",
                        "axes": [6],
                        "patch": [16],
                        "num_channels": 1,
                        "num_bands": 192,
                        "resolution": 96,
                        **SAMPLED,
                    },
                    "image": {"kind": "Grid", "axes": [2, 8, 8], "num_channels": 3, **VIDEO, **SAMPLED},
                    "label": {"kind": "LearnedQueries", "dim": 12, "num_channels": 5, "decoded_channels": 20},
                },
                "decoded_channels": 20,
            },
            "cross_qk_channels": 405,
            "decoder_query_residual": False,
        },
        x=lambda: {
            "audio": 3 * torch.randn(2, 1, 96),
            "image": 3 * torch.randn(2, 3, 2, 8, 8),
            "label": torch.randn(2, 5),
        },
        rest={
            **{f"inputs.padding.{m}": f"perceiver.input_preprocessor.padding.{m}" for m in MODALITIES},
            **{f"inputs.mask_tokens.{m}": f"perceiver.input_preprocessor.mask.{m}" for m in MODALITIES},
            **{f"outputs.padding.{m}": f"perceiver.decoder.padding.{m}" for m in MODALITIES},
            **{
                f"outputs.modalities.{m}.head": f"perceiver.output_postprocessor.modalities.{m}.classifier" for m in MODALITIES
            },
            "outputs.modalities.label.query": "perceiver.decoder.modalities.label.decoder.output_position_encodings"
            ".position_embeddings",
            "outputs.projection": "perceiver.decoder.decoder.final_layer",
        },
        theirs_x=lambda x: {
            "audio": x["audio"].mT,
            "image": x["image"].transpose(1, 2),
            "label": x["label"],
        },
        as_ours=lambda logits: {
            "audio": logits["audio"].unflatten(1, (-1, 16)).mT,
            "image": logits["image"].mT,
            "label": logits["label"],
        },
        # Decoding everything fails there: results are cut by the numbers of inputs.
        indices={"audio": torch.tensor([5, 0, 2, 2]), "image": torch.tensor([127, 0, 64, 8, 1])},
    ),
}


def build(peer, name: str, dtype: torch.dtype) -> tuple[nn.Module, PerceiverIO]:
    """Both models, every parameter drawn."""
    head = HEADS[name]
    config = peer.PerceiverConfig(**head.config, attn_implementation="eager")
    theirs = (
        draw_parameters(getattr(peer, name)(config), lambda p: 2 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.5).to(dtype).eval()
    )
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    ours = PerceiverIO(**head.model).to(dtype).eval()
    convert(theirs.state_dict(), ours, key_table(head.decoder, 2, head.rest), head.orders)
    return theirs, ours


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
def test_same_outputs(peer, float64_tables, name, dtype):
    head = HEADS[name]
    theirs, ours = build(peer, name, dtype)
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
