"""Makes perceiver_io.npz: what krasserm's perceiver-io computes, for the tests, which run where it is not installed.

    python tests/against_peers/goldens/make_perceiver_io.py [FOLDER]

runs where perceiver-io==0.11.0 is installed as `benchmarks.peers` says, and beside it "transformers<5" "pytorch-lightning<3"
torchmetrics==0.9.3 "setuptools<81" opencv-python-headless pillow tqdm. Weights and inputs are drawn from seeds, here as in
the tests, so that only results are kept: for each case settings, names and shapes of the weights, outputs and some gradients
in float64; and for each published model settings, names and shapes. With a FOLDER, the models are also saved there by the
peer's own code, in all forms that it has, for a look by hand.
"""

import json
import os
import sys
import types
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).with_name("perceiver_io.npz")
POSITIONS = "0.input_adapter.position_encoding.position_encoding"

# All widths differ where they may. Each case: the kind of model, its encoder, its decoder, sizes of latents.
IMAGES = {"num_cross_attention_heads": 1, "num_self_attention_heads": 3, "num_self_attention_layers_per_block": 2}
LANGUAGE = {
    "vocab_size": 13,
    "max_seq_len": 11,
    "num_input_channels": 10,
    "num_cross_attention_heads": 2,
    "num_cross_attention_qk_channels": 8,
    "num_cross_attention_v_channels": 6,
    "num_self_attention_heads": 4,
    "num_self_attention_qk_channels": 8,
    "num_self_attention_v_channels": 16,
    "num_self_attention_layers_per_block": 2,
}
SEVERAL = {"num_cross_attention_layers": 2, "num_self_attention_blocks": 3}
FRAMES = {"image_shape": (6, 7), "num_patch_hidden_channels": 5, "num_frequency_bands": 2}
CLASSES = {"num_output_query_channels": 14, "num_cross_attention_heads": 2, "num_classes": 5}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "one read": (
        "image",
        {**IMAGES, "image_shape": (7, 9, 3), "num_frequency_bands": 3, "num_self_attention_blocks": 2},
        CLASSES,
    ),
    "first read apart": ("image", {**IMAGES, **SEVERAL, "image_shape": (5, 6, 1), "num_frequency_bands": 2}, CLASSES),
    "reads shared, first block apart": (
        "image",
        {
            **IMAGES,
            **SEVERAL,
            "image_shape": (11, 2),
            "num_frequency_bands": 4,
            "first_cross_attention_layer_shared": True,
            "first_self_attention_block_shared": False,
            "cross_attention_widening_factor": 2,
            "self_attention_widening_factor": 2,
        },
        {**CLASSES, "cross_attention_residual": False, "cross_attention_widening_factor": 3},
    ),
    "volume, nothing shared": (
        "image",
        {
            **IMAGES,
            "image_shape": (3, 4, 5, 2),
            "num_frequency_bands": 1,
            "num_cross_attention_layers": 2,
            "num_self_attention_blocks": 2,
            "first_self_attention_block_shared": False,
        },
        CLASSES,
    ),
    "classified text": ("text", LANGUAGE, CLASSES),
    "classified text, three results": ("text", {**LANGUAGE, **SEVERAL}, {**CLASSES, "num_output_queries": 3}),
    "tied": (
        "language",
        {**LANGUAGE, "num_self_attention_blocks": 2},
        {
            "vocab_size": 13,
            "max_seq_len": 12,
            "num_cross_attention_heads": 2,
            "num_cross_attention_qk_channels": 6,
            "num_cross_attention_v_channels": 4,
            "cross_attention_residual": False,
        },
    ),
    "untied": (
        "language",
        LANGUAGE,
        {"vocab_size": 13, "max_seq_len": 11, "num_output_query_channels": 9, "num_cross_attention_heads": 3},
    ),
    "flow": ("flow", {**IMAGES, **FRAMES}, {"image_shape": (6, 7), "cross_attention_residual": False}),
    "flow with residual": (
        "flow",
        {**IMAGES, **FRAMES, **SEVERAL},
        {"image_shape": (6, 7), "num_cross_attention_heads": 3, "rescale_factor": 7.5},
    ),
}
NUM_LATENTS, NUM_LATENT_CHANNELS, BATCH = 5, 12, 2
# Those of which there is one are compared; inputs are, where they are arrays.
GRADIENTS = (
    "0.latent_provider._query",
    "0.cross_attn_1.0.module.attention.q_proj.weight",
    "0.cross_attn_n.0.module.attention.v_proj.bias",
    "0.self_attn_1.1.1.module.1.weight",
    "0.self_attn_n.0.0.module.norm.weight",
    "0.input_adapter.txt_embedding.weight",
    "1.output_query_provider._query",
    "1.output_adapter.linear.bias",
    "1.output_adapter.bias",
)


def drawn(name: str, shape: Sequence[int]) -> Tensor:
    """Random numbers in float64 that float32 can hold, always the same for one name and shape."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32)).double()


def weights(shapes: Mapping[str, Sequence[int]], encoder: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state_dict with such names and shapes: every parameter drawn, the position features as they are stored there."""
    state = {}
    for name in sorted(shapes):
        shape = shapes[name]
        scale = 2 * shape[-1] ** -0.5 if len(shape) > 1 else 0.5  # large enough that queries attend to different inputs
        state[name] = (scale * drawn(name, shape)).float().double()
    if POSITIONS in shapes:
        axes = encoder["image_shape"][: -1 if "num_patch_input_channels" not in encoder else None]
        state[POSITIONS] = torch.from_numpy(fourier(axes, encoder["num_frequency_bands"]))
    return state


def fourier(axes: Sequence[int], bands: int) -> np.ndarray:
    """Position features of a grid, `[M, A (1 + 2 K)]`: all coordinates, all sines, all cosines."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in axes), indexing="ij"), axis=-1).reshape(-1, len(axes))
    angles = [np.pi * grid[:, a, None] * np.linspace(1, n / 2, bands) for a, n in enumerate(axes)]
    return np.concatenate([grid, *map(np.sin, angles), *map(np.cos, angles)], axis=1)


def inputs(case: str) -> tuple[Tensor, Tensor | None]:
    """What a model is given, as it is given here: an array and a mask, True for what may be attended to, or `None`."""
    kind, encoder, _ = CASES[case]
    if kind == "flow":
        return drawn(case, (BATCH, 3, 2, *encoder["image_shape"])), None
    if kind == "image":
        *axes, channels = encoder["image_shape"]
        x = drawn(case, (BATCH, channels, *axes))
        return x, drawn(case + "mask", (BATCH, *axes)) > -1
    ids = np.random.RandomState(zlib.crc32(case.encode())).randint(encoder["vocab_size"], size=(BATCH, 8))
    return torch.from_numpy(ids), torch.arange(8) < torch.tensor([[8], [5]])


def main(arguments: Sequence[str]) -> None:
    """Writes the file."""
    import perceiver  # pyright: ignore[reportMissingImports]

    # Beside the processing of frames lie data sets, which are not needed.
    data = types.ModuleType("perceiver.data.vision")
    data.__path__ = [os.path.join(perceiver.__path__[0], "data", "vision")]
    sys.modules[data.__name__] = data
    folder = Path(arguments[0]) if arguments else None
    golden: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {"cases": {}, "published": {}}
    for case in CASES:
        described["cases"][case], results = run(case, folder)
        golden |= {f"{case}/{name}": array for name, array in results.items()}
    for name, (kind, config) in published().items():
        described["published"][name] = describe(kind, config, build(kind, config, "meta"))
    golden["described"] = np.frombuffer(json.dumps(described).encode(), dtype=np.uint8)
    np.savez_compressed(GOLDEN, **golden)
    print(f"{GOLDEN}: {len(CASES)} cases, {GOLDEN.stat().st_size:,} bytes")


class Kind(NamedTuple):
    """Their classes of one kind of model: the parts of its configuration, the model, and two wrappers, or no Lightning's."""

    encoder: Any
    decoder: Any
    model: Any
    folder_config: Any
    folder: Any
    lightning: Any


def kinds() -> dict[str, Kind]:
    """Imports them."""
    from perceiver.model.text import classifier, mlm  # pyright: ignore[reportMissingImports]
    from perceiver.model.vision import image_classifier, optical_flow  # pyright: ignore[reportMissingImports]

    def of(module: Any, encoder: str, decoder: str, model: str, folder: str, lightning: str | None) -> Kind:
        found = [getattr(module, name) for name in (encoder, decoder, model, f"{folder}Config", folder)]
        return Kind(*found, getattr(module, lightning) if lightning else None)

    i = ("ImageEncoderConfig", "ClassificationDecoderConfig", "ImageClassifier", "PerceiverImageClassifier")
    t = ("TextEncoderConfig", "ClassificationDecoderConfig", "TextClassifier", "PerceiverTextClassifier")
    m = ("TextEncoderConfig", "TextDecoderConfig", "MaskedLanguageModel", "PerceiverMaskedLanguageModel")
    f = ("OpticalFlowEncoderConfig", "OpticalFlowDecoderConfig", "OpticalFlow", "OpticalFlowPerceiver")
    return {
        "image": of(image_classifier, *i, "LitImageClassifier"),
        "text": of(classifier, *t, "LitTextClassifier"),
        "language": of(mlm, *m, "LitMaskedLanguageModel"),
        "flow": of(optical_flow, *f, None),
    }


def build(kind: str, config: Any, device: str = "cpu") -> torch.nn.Module:
    """Makes a model, in float64, so that its position features are."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device(device):
            return kinds()[kind].model(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def describe(kind: str, config: Any, model: torch.nn.Module) -> dict[str, Any]:
    """Settings in the ways that they are stored there, and the names and shapes of the weights."""
    classes = kinds()[kind]
    return {
        "encoder_class": [classes.encoder.__module__, classes.encoder.__name__],
        "decoder_class": [classes.decoder.__module__, classes.decoder.__name__],
        "config": json.loads(classes.folder_config(config).to_json_string(use_diff=True)),
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
    }


def run(case: str, folder: Path | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Describes a case and computes its results."""
    from perceiver.data.vision.optical_flow import OpticalFlowProcessor  # pyright: ignore[reportMissingImports]
    from perceiver.model.core.config import PerceiverIOConfig  # pyright: ignore[reportMissingImports]

    kind, encoder, decoder = CASES[case]
    classes = kinds()[kind]
    if kind == "flow":
        decoder = {"num_cross_attention_heads": 1, **decoder}
    config = PerceiverIOConfig(
        classes.encoder(**encoder),
        classes.decoder(**decoder),
        num_latents=NUM_LATENTS,
        num_latent_channels=NUM_LATENT_CHANNELS,
    )
    model = build(kind, config)
    described = describe(kind, config, model)
    state = weights(described["shapes"], asdict(config.encoder))
    if POSITIONS in state:
        torch.testing.assert_close(state[POSITIONS], model.state_dict()[POSITIONS], rtol=1e-12, atol=1e-12)
    model.load_state_dict(state)
    x, mask = inputs(case)
    if kind == "flow":
        leaf = x.requires_grad_()
        processor = OpticalFlowProcessor(patch_size=(32, 32))
        patches = [processor._extract_image_patches(pair.transpose(0, 1), kernel=3) for pair in x]
        out = model(torch.stack(patches)).movedim(-1, 1)
    elif kind == "image":
        leaf = x.requires_grad_()
        out = model(x.movedim(1, -1), pad_mask=~mask.flatten(1))
    else:
        leaf = None
        out = model(x, ~mask)
    parameters = dict(model.named_parameters())
    wanted = [name for name in GRADIENTS if name in parameters]
    leaves = [parameters[name] for name in wanted] + ([] if leaf is None else [leaf])
    grads = torch.autograd.grad(out, leaves, drawn(case + "cotangent", out.shape))
    results = {"out": out, **dict(zip([*wanted, "x"], grads, strict=False))}
    if folder is not None:
        save(case, classes, config, model.float(), folder)
    return described, {name: tensor.detach().numpy() for name, tensor in results.items()}


def save(case: str, classes: Kind, config: Any, model: torch.nn.Module, folder: Path) -> None:
    """Saves a model in float32 with the peer's own code."""
    import pytorch_lightning  # pyright: ignore[reportMissingImports]

    folder = folder / case
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "state_dict.pt")
    wrapped = classes.folder(classes.folder_config(config))
    wrapped.backend_model.load_state_dict(model.state_dict())
    wrapped.save_pretrained(folder / "hub")
    if classes.lightning is not None:
        module = classes.lightning.create(config)
        module.model.load_state_dict(model.state_dict())
        trainer = pytorch_lightning.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(folder / "lightning.ckpt")


def published() -> dict[str, tuple[str, Any]]:
    """The configurations that the published models have there, by its own conversion."""
    from perceiver.model.text import mlm  # pyright: ignore[reportMissingImports]
    from perceiver.model.vision import image_classifier, optical_flow  # pyright: ignore[reportMissingImports]
    from transformers import PerceiverConfig

    heads = {"num_cross_attention_heads": 1}
    images = PerceiverConfig(
        num_latents=512, d_latents=1024, num_blocks=8, num_self_attends_per_block=6, num_labels=1000, **heads
    )
    frames = PerceiverConfig(
        num_latents=2048, d_latents=512, num_blocks=1, num_self_attends_per_block=24, num_self_attention_heads=16, **heads
    )
    language = PerceiverConfig(qk_channels=256, v_channels=1280)
    return {
        "perceiver_io_imagenet_fourier": ("image", image_classifier.convert_config(images)),
        "perceiver_io_mlm_bytes": ("language", mlm.convert_config(language)),
        "perceiver_io_optical_flow": ("flow", optical_flow.convert_config(frames)),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
