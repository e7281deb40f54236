"""Published configurations and smaller siblings, as data. A test pins the parameter count, layers and FLOPs of each.

The ImageNet models of *Perceiver* (table 7 and appendix E of the paper) have 512 latents of width 1024, a cross-attention
of one head as wide as its inputs (261 channels), and 48 latent layers in 8 stacks of 6 that share weights. They differ in
the number of cross-attentions and in what is shared.

The models of *Perceiver IO* (section 4 and appendix, tables 9 to 12) are those that DeepMind released, with its tanh GELU;
a comment names the one that was not released. transformers' versions differ in settings: `activation="gelu"`, for learned
positions `decoder_query_residual=True`, for the convolution `padding="symmetric"`.
"""

from typing import Any

_IMAGENET: dict[str, Any] = {
    "model_class": "Perceiver",
    "data_shape": [3, 224, 224],
    "cross_heads": 1,
    "cross_head_dim": 261,
    "num_latent_tokens": 512,
    "dim": 1024,
    "heads": 8,
    "num_bands": 64,
    "resolution": 224,
    "frequency_base": None,
    "pre_norm": True,
    "ff_dim_scale": 1,
    "bias": True,
    "final_norm": False,
    "num_classes": 1000,
}

_IO_IMAGENET: dict[str, Any] = {
    "model_class": "PerceiverIO",
    "outputs": {"kind": "LearnedQueries", "dim": 1024, "num_channels": 1000},
    "num_latent_tokens": 512,
    "dim": 1024,
    "heads": 8,
    "layers_indice": [0] + [None] * 7,
    "latent_layers_indice": [0] * 8,
    "num_latent_transformers_in_layers": [6],
    "activation": "gelu_tanh",
}
_IO_MLM: dict[str, Any] = {
    "model_class": "PerceiverIO",
    "inputs": {"kind": "TokenIds", "vocab_size": 262, "max_length": 2048, "dim": 768},
    "outputs": {"kind": "TokenLogits", "vocab_size": 262, "max_length": 2048, "dim": 768},
    "num_latent_tokens": 256,
    "dim": 1280,
    "heads": 8,
    "cross_heads": 8,
    "num_latent_transformers_in_layers": [26],
    "qk_channels": 256,
    "v_channels": 1280,
    "decoder_heads": 8,
    "decoder_qk_channels": 256,
    "decoder_v_channels": 768,
    "decoder_query_residual": False,
    "activation": "gelu_tanh",
}
_IO_FLOW: dict[str, Any] = {
    "model_class": "PerceiverIO",
    "inputs": {"kind": "FramePairs", "data_shape": [3, 368, 496], "embed_dim": 64, "num_bands": 64},
    "outputs": {"kind": "PerInput", "dim": 322, "num_channels": 2, "divisor": 100},
    "num_latent_tokens": 2048,
    "dim": 512,
    "heads": 16,
    "cross_qk_channels": 322,
    "num_latent_transformers_in_layers": [24],
    "decoder_query_residual": False,
    "activation": "gelu_tanh",
}


def _kinetics(frames: int, size: int, samples: int, bands: tuple[int, int], classes: int, width: int) -> dict[str, Any]:
    """Audio, video and label of Kinetics: the input is video patches of 4 x 4 and audio patches of 16, the output pixels."""
    video, audio = [frames, size, size], samples // 16
    audio_bands, video_bands = bands
    audio_positions = {"num_bands": audio_bands, "resolution": samples}
    # The highest frequency is that of the patches, also for the decoded pixels.
    rates = [frames, size // 4, size // 4]
    video_positions = {"num_bands": video_bands, "resolution": rates, "feature_order": "kinds"}
    inputs = {
        "audio": {"kind": "Waveform", "num_samples": samples, "samples_per_patch": 16, **audio_positions},
        "image": {"kind": "Patches", "data_shape": [3, *video], "patch_size": [1, 4, 4], **video_positions},
        "label": {"kind": "Labels", "num_classes": classes},
    }
    outputs = {
        "audio": {"kind": "Grid", "axes": [audio], "num_channels": 1, "patch": [16], **audio_positions},
        "image": {"kind": "Grid", "axes": video, "num_channels": 3, **video_positions},
        "label": {"kind": "LearnedQueries", "dim": 2 * width, "num_channels": classes},
    }
    for output in outputs.values():
        output |= {"decoded_channels": width}
        if output["kind"] == "Grid":
            output |= {"sampled_positions": "left_aligned"}
    # The released model masks the label with probability 1; in training it was masked with probability 0.5.
    mask_probs = {"audio": 0.0, "image": 0.0, "label": 1.0}
    return {
        "model_class": "PerceiverIO",
        "inputs": {"kind": "Multimodal", "modalities": inputs, "min_padding_size": 4, "mask_probs": mask_probs},
        "outputs": {"kind": "Multimodal", "modalities": outputs, "min_padding_size": 2, "decoded_channels": width},
        "dim": width,
        "heads": 8,
        "decoder_query_residual": False,
        "activation": "gelu_tanh",
    }


PRESETS: dict[str, dict[str, Any]] = {
    # 8 cross-attentions, all but the first shared; 78.0% top-1 in the paper
    "perceiver_imagenet_fourier": {
        **_IMAGENET,
        "layers_indice": [0] + [1] * 7,
        "latent_layers_indice": [0] * 8,
        "num_latent_transformers_in_layers": [6],
    },
    # one cross-attention, in the first layer; 76.7% top-1
    "perceiver_imagenet_fourier_1cross": {
        **_IMAGENET,
        "layers_indice": [0] + [None] * 7,
        "latent_layers_indice": [0] * 8,
        "num_latent_transformers_in_layers": [6],
    },
    # nothing shared; 72.9% top-1
    "perceiver_imagenet_fourier_unshared": {
        **_IMAGENET,
        "layers_indice": list(range(8)),
        "latent_layers_indice": list(range(8)),
        "num_latent_transformers_in_layers": [6] * 8,
    },
    # for images of 64 x 64 on a CPU
    "perceiver_imagenet_fourier_small": {
        **_IMAGENET,
        "data_shape": [3, 64, 64],
        "cross_head_dim": 64,
        "num_latent_tokens": 128,
        "dim": 256,
        "num_bands": 16,
        "resolution": 64,
        "layers_indice": [0] + [1] * 3,
        "latent_layers_indice": [0] * 4,
        "num_latent_transformers_in_layers": [3],
    },
    # for tests, which take seconds
    "perceiver_imagenet_fourier_tiny": {
        **_IMAGENET,
        "data_shape": [3, 32, 32],
        "cross_head_dim": 32,
        "num_latent_tokens": 32,
        "dim": 64,
        "heads": 4,
        "num_bands": 8,
        "resolution": 32,
        "layers_indice": [0, 1],
        "latent_layers_indice": [0, 0],
        "num_latent_transformers_in_layers": [2],
        "num_classes": 10,
    },
    # pixels with Fourier features; 79.0% top-1 in the paper
    "perceiver_io_imagenet_fourier": {
        **_IO_IMAGENET,
        "inputs": {"kind": "Pixels", "data_shape": [3, 224, 224], "num_bands": 64, "resolution": 224},
        "cross_qk_channels": 261,
    },
    # a convolution and pooling, then Fourier features of 56 x 56 inputs; 82.1% top-1
    "perceiver_io_imagenet_conv": {
        **_IO_IMAGENET,
        "inputs": {"kind": "ConvStem", "data_shape": [3, 224, 224], "num_bands": 64, "resolution": 56},
        "cross_qk_channels": 322,
    },
    # learned positions, without knowledge of the grid; 72.7% top-1
    "perceiver_io_imagenet_learned": {
        **_IO_IMAGENET,
        "inputs": {"kind": "LearnedPixels", "data_shape": [3, 224, 224]},
        "cross_qk_channels": 512,
        "decoder_query_residual": False,
    },
    # for images of 32 x 32
    "perceiver_io_imagenet_fourier_tiny": {
        **_IO_IMAGENET,
        "inputs": {"kind": "Pixels", "data_shape": [3, 32, 32], "num_bands": 8, "resolution": 32},
        "outputs": {"kind": "LearnedQueries", "dim": 64, "num_channels": 10},
        "num_latent_tokens": 32,
        "dim": 64,
        "heads": 4,
        "layers_indice": [0, None],
        "latent_layers_indice": [0, 0],
        "num_latent_transformers_in_layers": [2],
    },
    # masked language model of UTF-8 bytes; 81.0 on GLUE
    "perceiver_io_mlm_bytes": _IO_MLM,
    # its larger version, "IO++", not released; 81.8 on GLUE
    "perceiver_io_mlm_bytes_large": {**_IO_MLM, "dim": 1536, "v_channels": 1536, "num_latent_transformers_in_layers": [40]},
    # for texts of 512 bytes on a CPU
    "perceiver_io_mlm_bytes_small": {
        **_IO_MLM,
        "inputs": {**_IO_MLM["inputs"], "max_length": 512, "dim": 128},
        "outputs": {**_IO_MLM["outputs"], "max_length": 512, "dim": 128},
        "num_latent_tokens": 64,
        "dim": 256,
        "num_latent_transformers_in_layers": [6],
        "qk_channels": 64,
        "v_channels": 256,
        "decoder_qk_channels": 64,
        "decoder_v_channels": 128,
    },
    "perceiver_io_mlm_bytes_tiny": {
        **_IO_MLM,
        "inputs": {**_IO_MLM["inputs"], "max_length": 64, "dim": 32},
        "outputs": {**_IO_MLM["outputs"], "max_length": 64, "dim": 32},
        "num_latent_tokens": 16,
        "dim": 64,
        "num_latent_transformers_in_layers": [2],
        "qk_channels": 16,
        "v_channels": 64,
        "decoder_qk_channels": 16,
        "decoder_v_channels": 32,
    },
    # optical flow of 368 x 496 pairs; end-point error 1.81 (Sintel clean), 2.42 (final), 4.98 (KITTI)
    "perceiver_io_optical_flow": _IO_FLOW,
    "perceiver_io_optical_flow_tiny": {
        **_IO_FLOW,
        "inputs": {"kind": "FramePairs", "data_shape": [3, 24, 32], "embed_dim": 16, "num_bands": 8},
        "outputs": {"kind": "PerInput", "dim": 50, "num_channels": 2, "divisor": 100},
        "num_latent_tokens": 32,
        "dim": 64,
        "heads": 4,
        "cross_qk_channels": 50,
        "num_latent_transformers_in_layers": [2],
    },
    # autoencoder of video, audio and label
    "perceiver_io_multimodal_kinetics": {
        **_kinetics(frames=16, size=224, samples=30_720, bands=(192, 32), classes=700, width=512),
        "num_latent_tokens": 784,
        "cross_qk_channels": 704,
        "num_latent_transformers_in_layers": [8],
    },
    "perceiver_io_multimodal_kinetics_tiny": {
        **_kinetics(frames=2, size=16, samples=512, bands=(16, 8), classes=10, width=64),
        "num_latent_tokens": 32,
        "num_latent_transformers_in_layers": [2],
    },
}

# Evaluation preprocessing of the ImageNet models, in timm's terms: a centre crop of 224/256 of the shorter side of an image,
# resized to the input size and normalised, as in DeepMind's code and in transformers' PerceiverImageProcessor.
PRETRAINED_CFGS: dict[str, dict[str, Any]] = {
    name: {
        "input_size": tuple(preset.get("inputs", preset)["data_shape"]),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
    }
    for name, preset in PRESETS.items()
    if "_imagenet_" in name
}
