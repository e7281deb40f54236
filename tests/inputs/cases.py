"""A small module of each kind with data for it. The tests of this folder run over all of them.

A new input module needs one entry in `CASES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accuracy import draw_parameters
from perceivers.inputs import (
    ConvStem,
    Events,
    Features,
    FramePairs,
    InputModule,
    Labels,
    LearnedPixels,
    Located,
    LogMel,
    Multimodal,
    Patches,
    Pixels,
    Points,
    Tabular,
    TimeSeries,
    TokenIds,
    Waveform,
)
from perceivers.layers import CrossAttention

B = 2


@dataclass
class Case:
    """A module, its data, and the shape of its mask."""

    module: Callable[[], InputModule]
    data: Callable[[], Any]
    mask_shape: tuple[int, ...]
    channels: int
    inputs: int
    positions_only: bool = False  # the data are coordinates without values

    def mask(self) -> Tensor:
        """Return a random mask: about a third is False, and each sample has a True and a False entry."""
        mask = torch.rand(B, *self.mask_shape) > 0.35
        if self.mask_shape:
            flat = mask.flatten(1)
            flat[:, 0], flat[:, -1] = True, False
        else:
            mask[0], mask[1] = True, False
        return mask


def _floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(B, *shape)


def _coordinates(*shape: int) -> Callable[[], Tensor]:
    return lambda: 2 * torch.rand(B, *shape) - 1


def _ids(most: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(most, (B, *shape))


CASES = {
    "signal": Case(lambda: Pixels(data_shape=[2, 9], num_bands=3), _floats(2, 9), (9,), 2 + 7, 9),
    "image": Case(lambda: Pixels(data_shape=[3, 5, 7], num_bands=3), _floats(3, 5, 7), (5, 7), 3 + 14, 35),
    "video": Case(lambda: Pixels(data_shape=[1, 3, 4, 5], num_bands=2), _floats(1, 3, 4, 5), (3, 4, 5), 16, 60),
    "volumes": Case(lambda: Pixels(data_shape=[1, 2, 3, 2, 3], num_bands=1), _floats(1, 2, 3, 2, 3), (2, 3, 2, 3), 13, 36),
    "learned": Case(
        lambda: LearnedPixels(data_shape=[3, 4, 5], embed_dim=6, position_channels=5, position_dim=7),
        _floats(3, 4, 5),
        (4, 5),
        13,
        20,
    ),
    "learned_plain": Case(
        lambda: LearnedPixels(data_shape=[3, 4, 5], embed_dim=None, position_channels=5, position_dim=None),
        _floats(3, 4, 5),
        (4, 5),
        8,
        20,
    ),
    "conv": Case(lambda: ConvStem(data_shape=[3, 17, 22], stem_channels=4, num_bands=2), _floats(3, 17, 22), (17, 22), 14, 30),
    "conv_symmetric": Case(
        lambda: ConvStem(data_shape=[3, 17, 22], stem_channels=4, num_bands=2, padding="symmetric"),
        _floats(3, 17, 22),
        (17, 22),
        14,
        20,
    ),
    "patches": Case(lambda: Patches(data_shape=[3, 6, 8], patch_size=2, num_bands=3), _floats(3, 6, 8), (6, 8), 12 + 14, 12),
    "patches_linear": Case(
        lambda: Patches(data_shape=[3, 6, 8], patch_size=[3, 2], embed_dim=5, num_bands=3), _floats(3, 6, 8), (6, 8), 19, 8
    ),
    "video_patches": Case(
        lambda: Patches(data_shape=[2, 4, 6, 4], patch_size=[2, 3, 2], num_bands=1), _floats(2, 4, 6, 4), (4, 6, 4), 33, 8
    ),
    "video_patches_by_kinds": Case(
        lambda: Patches(data_shape=[2, 4, 6, 4], patch_size=[2, 3, 2], embed_dim=3, num_bands=1, feature_order="kinds"),
        _floats(2, 4, 6, 4),
        (4, 6, 4),
        3 + 9,
        8,
    ),
    "frame_pairs": Case(
        lambda: FramePairs(data_shape=[3, 4, 5], embed_dim=8, num_bands=2), _floats(3, 2, 4, 5), (4, 5), 18, 20
    ),
    "waveform": Case(lambda: Waveform(num_samples=24, samples_per_patch=4, num_bands=3), _floats(1, 24), (24,), 4 + 7, 6),
    "waveform_stereo": Case(
        lambda: Waveform(num_samples=24, samples_per_patch=4, audio_channels=2, embed_dim=3, num_bands=3),
        _floats(2, 24),
        (24,),
        10,
        6,
    ),
    "log_mel": Case(
        lambda: LogMel(num_samples=400, sample_rate=1600, num_mels=6, fft_length=64, hop_length=40, num_bands=2),
        _floats(1, 400),
        (400,),
        1 + 10,
        66,
    ),
    "log_mel_frames": Case(
        lambda: LogMel(
            num_samples=400,
            sample_rate=1600,
            num_mels=6,
            fft_length=64,
            hop_length=40,
            patch_size=[2, 6],
            embed_dim=5,
            num_bands=2,
        ),
        _floats(1, 400),
        (400,),
        5 + 10,
        5,
    ),
    "ids": Case(lambda: TokenIds(vocab_size=11, max_length=9, dim=6), _ids(11, 7), (7,), 6, 7),
    "points": Case(lambda: Points(resolution=20, num_bands=2), _coordinates(3, 6), (6,), 15, 6, positions_only=True),
    "points_with_values": Case(
        lambda: Points(num_axes=2, num_values=3, resolution=20, num_bands=2),
        lambda: Located(torch.randn(B, 3, 6), _coordinates(2, 6)()),
        (6,),
        3 + 10,
        6,
    ),
    "events": Case(
        lambda: Events(data_shape=[2, 4, 5], num_bands=2),
        lambda: Located(torch.randn(B, 2, 7), torch.randint(4, (B, 2, 7))),
        (7,),
        2 + 10,
        7,
    ),
    "features": Case(lambda: Features(dim=5), _floats(6, 5), (6,), 5, 6),
    "time_series": Case(
        lambda: TimeSeries(num_variables=3, start=0, stop=10, resolution=20, variable_channels=4, num_bands=2),
        lambda: Located(torch.randn(B, 3, 5), 10 * torch.rand(B, 5)),
        (3, 5),
        1 + 4 + 5,
        15,
    ),
    "tabular": Case(
        lambda: Tabular(num_numeric=3, categories=[4, 2], dim=5),
        lambda: {"numeric": torch.randn(B, 3), "categorical": torch.randint(2, (B, 2))},
        (5,),
        5,
        5,
    ),
    "labels": Case(lambda: Labels(num_classes=5), lambda: torch.tensor([1, 4]), (), 5, 1),
}


def multimodal(**kwargs: Any) -> Multimodal:
    """Return a module for projected image patches, audio and labels with 19 + 2 channels."""
    names = {"image": "patches_linear", "audio": "waveform", "label": "labels"}
    return Multimodal(modalities={name: CASES[case].module() for name, case in names.items()}, **kwargs)


def multimodal_data() -> dict[str, Any]:
    """Return data for `multimodal`."""
    names = {"image": "patches_linear", "audio": "waveform", "label": "labels"}
    return {name: CASES[case].data() for name, case in names.items()}


def attention(module: InputModule, implementation: str = "reference", dtype: torch.dtype | None = None) -> CrossAttention:
    """Return a cross-attention to the module's inputs, always with the same random parameters."""
    torch.manual_seed(1)
    layer = draw_parameters(CrossAttention(dim=8, kv_dim=module.num_channels, heads=2, head_dim=5).to(dtype or module.dtype))
    layer.set_attention_implementation(implementation)
    return layer
