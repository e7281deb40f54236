"""Makes `deepmind.json` and `deepmind.npz`: what DeepMind's own Perceiver IO code computes, at reduced sizes.

    python make_deepmind.py FOLDER

FOLDER holds `perceiver/` of the repository deepmind-research as it is; `jax`, `dm-haiku`, `einops` and `numpy` are needed
(made with jax 0.10.2 and dm-haiku 0.0.17). Models are built as in the notebooks of that folder. Parameters and inputs are
drawn from their names, so that a test draws the same without storing them. In float64 the code is given positions of float64,
which it makes in float32 otherwise; nothing else of it is changed.

`deepmind.json`: for each head the shapes of parameters and state by their names, reduced; and those of the published sizes,
with the first self-attention for all, and how many there are.
`deepmind.npz`: for each head the outputs in float32 and float64, and, in float64, the gradients of their sum, weighted by
`cotangent`, of a few parameters.
"""

import functools
import json
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).parent
Shapes = dict[str, dict[str, list[int]]]

ENCODER = {
    "z_index_dim": 6,
    "num_z_channels": 32,
    "num_self_attends_per_block": 2,
    "num_self_attend_heads": 4,
    "num_blocks": 3,
}
ONE_BLOCK = {**ENCODER, "num_blocks": 1}
WIDTHS = {"qk_channels": 16, "v_channels": 32}
CHOSEN = {"audio": [5, 0, 2, 2], "image": [287, 0, 64, 8, 1]}
SMALL = {
    "language": SimpleNamespace(
        encoder={**ENCODER, **WIDTHS, "num_cross_attend_heads": 4}, length=11, vocabulary=13, width=24, decoder_heads=4
    ),
    "fourier": SimpleNamespace(encoder=ENCODER, size=(9, 12), bands=5, resolution=(9, 12), classes=5),
    "conv": SimpleNamespace(encoder=ENCODER, size=(30, 41), channels=9, bands=5, resolution=(8, 11), classes=5),
    "learned": SimpleNamespace(encoder=ENCODER, size=(6, 7), channels=10, positions=8, projected=12, classes=5),
    "flow": SimpleNamespace(encoder=ONE_BLOCK, size=(6, 7), channels=9, bands=5),
    "multimodal": SimpleNamespace(
        encoder=ONE_BLOCK,
        video=(2, 12, 12),
        samples=96,
        bands=(4, 3),
        classes=5,
        decoded=20,
        label=14,
    ),
}
IMAGENET = {"z_index_dim": 512, "num_z_channels": 1024, "num_self_attends_per_block": 6, "num_self_attend_heads": 8}
PUBLISHED = {
    "language": SimpleNamespace(
        encoder={
            "z_index_dim": 256,
            "num_z_channels": 1280,
            "num_self_attends_per_block": 26,
            "num_self_attend_heads": 8,
            "num_cross_attend_heads": 8,
            "qk_channels": 256,
            "v_channels": 1280,
        },
        length=2048,
        vocabulary=262,
        width=768,
        decoder_heads=8,
    ),
    "fourier": SimpleNamespace(encoder=IMAGENET, size=(224, 224), bands=64, resolution=(224, 224), classes=1000),
    "conv": SimpleNamespace(encoder=IMAGENET, size=(224, 224), channels=64, bands=64, resolution=(56, 56), classes=1000),
    "learned": SimpleNamespace(encoder=IMAGENET, size=(224, 224), channels=256, positions=256, projected=256, classes=1000),
    "flow": SimpleNamespace(
        encoder={
            "z_index_dim": 2048,
            "num_z_channels": 512,
            "num_self_attends_per_block": 24,
            "num_self_attend_heads": 16,
        },
        size=(368, 496),
        channels=64,
        bands=64,
    ),
    "multimodal": SimpleNamespace(
        encoder={"z_index_dim": 784, "num_z_channels": 512, "num_self_attends_per_block": 8, "num_self_attend_heads": 8},
        video=(16, 224, 224),
        samples=30_720,
        bands=(192, 32),
        classes=700,
        decoded=512,
        label=1024,
    ),
}
PATCH, PER_PATCH = 4, 16
# Where gradients are kept.
KEPT = ("trainable_position_encoding/pos_embs", "cross_attention/attention/linear/b", "self_attention_1/mlp/linear/b")


def generator(name: str) -> np.random.Generator:
    """Random numbers that only a name decides."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def parameter(head: str, name: str, shape: list[int]) -> np.ndarray:
    """One parameter, or one array of the state, float64."""
    leaf = name.rsplit("/")[-1]
    if leaf == "counter":
        return np.array(7, np.int32)
    values = generator(f"{head}/{name}").standard_normal(shape)
    if leaf == "w":
        return values * 2 * np.prod(shape[:-1]) ** -0.5
    if leaf == "scale":
        return 1 + values / 2
    if "var_ema" in name:
        return np.abs(values) + 0.5
    return values


def tree(head: str, shapes: Shapes) -> dict[str, dict[str, np.ndarray]]:
    """All parameters of a head, as Haiku holds them."""
    return {
        scope: {leaf: parameter(head, f"{scope}/{leaf}", shape) for leaf, shape in sorted(leaves.items())}
        for scope, leaves in sorted(shapes.items())
    }


def inputs(head: str, c: SimpleNamespace) -> dict[str, np.ndarray]:
    """What a head is given, as DeepMind's code wants it: channels last."""
    draw = lambda *shape: 3 * generator(f"{head}/inputs").standard_normal(shape)  # noqa: E731
    if head == "language":
        ids = generator(head).integers(c.vocabulary, size=(3, c.length))
        return {"ids": ids, "mask": np.arange(c.length) < np.array([[c.length], [6], [0]])}
    if head == "multimodal":
        return {"audio": draw(2, c.samples, 1), "image": draw(2, *c.video, 3), "label": np.zeros((2, c.classes))}
    return {"images": draw(2, *((2,) if head == "flow" else ()), *c.size, 3)}


def cotangent(head: str, output: str, shape: tuple[int, ...]) -> np.ndarray:
    """What an output is multiplied with before it is summed."""
    return generator(f"{head}/cotangent/{output}").standard_normal(shape)


def compact(shapes: Shapes, depth: int) -> Shapes:
    """Leaves out all self-attentions but the first, which they are like."""
    layers: list[Shapes] = [{} for _ in range(depth)]
    rest: Shapes = {}
    for scope, leaves in shapes.items():
        before, found, after = scope.partition("/self_attention")
        number, _, part = after.partition("/")
        if found:
            layers[int(number[1:] or 0)][f"{before}/self_attention/{part}"] = leaves
        else:
            rest[scope] = leaves
    assert all(layer == layers[0] for layer in layers)
    return {**rest, **layers[0]}


def main(folder: str) -> None:
    """Writes both files."""
    sys.path.insert(0, folder)
    import haiku as hk
    import jax
    import jax.numpy as jnp
    from perceiver import io_processors, perceiver, position_encoding  # pyright: ignore[reportMissingImports]

    fourier = lambda bands, resolution: {  # noqa: E731
        "position_encoding_type": "fourier",
        "fourier_position_encoding_kwargs": {"num_bands": bands, "max_resolution": resolution},
    }
    trainable = lambda channels: {  # noqa: E731
        "position_encoding_type": "trainable",
        "trainable_position_encoding_kwargs": {"num_channels": channels},
    }

    def language(c: SimpleNamespace, given: dict[str, Any], training: bool) -> dict[str, Any]:
        embed = hk.Embed(vocab_size=c.vocabulary, embed_dim=c.width)
        x = embed(given["ids"])
        x = x + position_encoding.TrainablePositionEncoding(index_dim=c.length, num_channels=c.width)(len(x))
        model = perceiver.Perceiver(
            encoder=perceiver.PerceiverEncoder(**c.encoder),
            decoder=perceiver.BasicDecoder(
                output_num_channels=c.encoder["num_z_channels"],
                output_index_dims=c.length,
                qk_channels=c.encoder["qk_channels"],
                v_channels=c.width,
                num_heads=c.decoder_heads,
                final_project=False,
                **trainable(c.width),
            ),
        )
        mask = given["mask"].astype(jnp.int32)
        out = model(x, is_training=training, input_mask=mask, query_mask=mask)
        return {"": io_processors.EmbeddingDecoder(embedding_matrix=embed.embeddings)(out)}

    def classifier(c: SimpleNamespace, given: dict[str, Any], training: bool, *, residual: bool, **preprocessor: Any) -> Any:
        decoder = {"use_query_residual": residual, **trainable(c.encoder["num_z_channels"])}
        model = perceiver.Perceiver(
            encoder=perceiver.PerceiverEncoder(**c.encoder),
            decoder=perceiver.ClassificationDecoder(c.classes, **decoder),
            input_preprocessor=io_processors.ImagePreprocessor(**preprocessor),
        )
        return {"": model(given["images"], is_training=training)}

    def pixels(c: SimpleNamespace, given: dict[str, Any], training: bool) -> Any:
        positions = fourier(c.bands, c.resolution)
        return classifier(c, given, training, residual=True, prep_type="pixels", spatial_downsample=1, **positions)

    def conv(c: SimpleNamespace, given: dict[str, Any], training: bool) -> Any:
        positions = fourier(c.bands, c.resolution)
        return classifier(c, given, training, residual=True, prep_type="conv", num_channels=c.channels, **positions)

    def learned(c: SimpleNamespace, given: dict[str, Any], training: bool) -> Any:
        positions = {"project_pos_dim": c.projected, **trainable(c.positions)}
        settings = {"prep_type": "conv1x1", "spatial_downsample": 1, "num_channels": c.channels}
        return classifier(c, given, training, residual=False, **settings, **positions)

    def flow(c: SimpleNamespace, given: dict[str, Any], training: bool) -> dict[str, Any]:
        positions = fourier(c.bands, c.size)
        model = perceiver.Perceiver(
            encoder=perceiver.PerceiverEncoder(**c.encoder),
            decoder=perceiver.FlowDecoder(c.size, rescale_factor=100.0, output_w_init=jnp.zeros, **positions),
            input_preprocessor=io_processors.ImagePreprocessor(
                prep_type="patches",
                spatial_downsample=1,
                temporal_downsample=2,
                conv_after_patching=True,
                num_channels=c.channels,
                **positions,
            ),
        )
        return {"": model(io_processors.patches_for_flow(given["images"]), is_training=training)}

    def multimodal(c: SimpleNamespace, given: dict[str, Any], training: bool, *, chosen: Any = None) -> dict[str, Any]:
        audio_bands, video_bands = c.bands
        frames, height, width = c.video
        sound = fourier(audio_bands, (c.samples,))
        video = fourier(video_bands, (frames, height // PATCH, width // PATCH))
        sizes = {"audio": c.samples // PER_PATCH, "image": frames * height * width, "label": 1}
        if chosen is not None:
            sizes |= {name: len(indices) for name, indices in chosen.items()}
            chosen = {**{name: jnp.array(indices) for name, indices in chosen.items()}, "label": None}
        widths = {"output_num_channels": c.decoded}
        model = perceiver.Perceiver(
            encoder=perceiver.PerceiverEncoder(**c.encoder, name="encoder"),
            decoder=perceiver.MultimodalDecoder(
                subsampled_index_dims=sizes,
                modalities={
                    "audio": perceiver.BasicDecoder(output_index_dims=(c.samples // PER_PATCH,), **widths, **sound),
                    "image": perceiver.BasicVideoAutoencodingDecoder(output_shape=given["image"].shape[:4], **widths, **video),
                    "label": perceiver.ClassificationDecoder(num_classes=c.classes, **trainable(c.label)),
                },
                num_outputs=None,
                use_query_residual=False,
                **widths,
            ),
            input_preprocessor=io_processors.MultimodalPreprocessor(
                min_padding_size=4,
                modalities={
                    "audio": io_processors.AudioPreprocessor(samples_per_patch=PER_PATCH, **sound),
                    "image": io_processors.ImagePreprocessor(prep_type="patches", spatial_downsample=PATCH, **video),
                    "label": io_processors.OneHotPreprocessor(),
                },
                mask_probs={"image": 0.0, "audio": 0.0, "label": 1.0},
            ),
            output_postprocessor=io_processors.MultimodalPostprocessor(
                modalities={
                    "audio": io_processors.AudioPostprocessor(samples_per_patch=PER_PATCH),
                    "image": io_processors.ProjectionPostprocessor(num_outputs=3),
                    "label": io_processors.ClassificationPostprocessor(num_classes=c.classes),
                }
            ),
        )
        return model(given, is_training=training, subsampled_output_points=chosen)

    heads = {
        "language": language,
        "fourier": pixels,
        "conv": conv,
        "learned": learned,
        "flow": flow,
        "multimodal": functools.partial(multimodal, chosen=CHOSEN),
        "multimodal_all": multimodal,
    }
    rng = jax.random.PRNGKey(0)

    def shapes_of(model: Any, given: Any) -> list[Shapes]:
        made = jax.eval_shape(functools.partial(model.init, training=True), rng, given)
        return [jax.tree.map(lambda x: list(x.shape), dict(part)) for part in made]

    shapes: dict[str, dict[str, Any]] = {"small": {}, "published": {}}
    for head, c in PUBLISHED.items():
        model = hk.transform_with_state(functools.partial(heads[head], c))
        params, state = shapes_of(model, inputs(head, c))
        depth = c.encoder["num_self_attends_per_block"]
        shapes["published"][head] = {"depth": depth, "params": compact(params, depth), "state": state}

    arrays = {}
    for dtype in ("float32", "float64"):
        jax.config.update("jax_enable_x64", dtype == "float64")
        if dtype == "float64":

            def positions(index_dims: Any, output_range: Any = (-1.0, 1.0)) -> Any:
                ranges = [jnp.linspace(*output_range, n, dtype=jnp.float64) for n in index_dims]
                return jnp.stack(jnp.meshgrid(*ranges, indexing="ij"), axis=-1)

            position_encoding.build_linear_positions = positions
        for name, function in heads.items():
            head = name.removesuffix("_all")
            model = hk.transform_with_state(functools.partial(function, SMALL[head]))
            cast = lambda x, dtype=dtype: jnp.asarray(x, dtype if x.dtype == np.float64 else None)  # noqa: E731
            given = jax.tree.map(cast, inputs(head, SMALL[head]))
            made = shapes_of(model, given)
            shapes["small"][head] = dict(zip(("params", "state"), made, strict=True))
            params, state = (jax.tree.map(cast, tree(head, part)) for part in made)

            def run(params: Any, model=model, state=state, given=given) -> Any:
                return model.apply(params, state, rng, given, False)[0]

            def loss(params: Any, run=run, head=head) -> Any:
                return sum((out * cotangent(head, key, out.shape)).sum() for key, out in run(params).items())

            for key, out in run(params).items():
                assert out.dtype == dtype, (name, key, out.dtype)
                arrays[f"{dtype}/{name}/outputs/{key}"] = np.asarray(out)
            if dtype == "float32" or name != head:
                continue
            for scope, leaves in jax.grad(loss)(params).items():
                for leaf, gradient in leaves.items():
                    if f"{scope}/{leaf}".endswith(KEPT) and "encoder/" in scope:
                        arrays[f"{dtype}/{name}/gradients/{scope}/{leaf}"] = np.asarray(gradient)
    (HERE / "deepmind.json").write_text(json.dumps(shapes, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
    np.savez_compressed(HERE / "deepmind.npz", **arrays)
    for key, value in arrays.items():
        if key.startswith("float32"):
            truth = arrays[key.replace("float32", "float64")]
            print(f"{key}: {value.shape}, largest {np.abs(truth).max():.3g}, error {np.abs(value - truth).max():.2g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
