"""Input modules against transformers' preprocessors with the same random weights.

Their position features are ordered by kind: coordinates of all axes, then sines, then cosines. Their angles are float32, whose
error grows with the frequency; resolutions here are low enough for a tolerance of 1e-6.
"""

import pytest
import torch

from accuracy import assert_varies, draw_parameters
from perceivers.inputs import (
    ByteTokenizer,
    ConvStem,
    FramePairs,
    Labels,
    LearnedPixels,
    Multimodal,
    Patches,
    Pixels,
    TokenIds,
    Waveform,
)

pytestmark = pytest.mark.peer("transformers")
B = 2


def columns(content: int, axes: int, bands: int) -> list[int]:
    """Return the index of their channel for each of our channels of an encoded input."""
    order = list(range(content))
    for a in range(axes):
        sines = content + axes + a * bands
        order += [content + a, *range(sines, sines + bands), *range(sines + axes * bands, sines + (axes + 1) * bands)]
    return order


def fourier(bands, *resolution):
    return {"num_bands": bands, "max_resolution": resolution, "concat_pos": True, "sine_only": False}


def image(peer, kwargs, **settings):
    from transformers.models.perceiver.modeling_perceiver import PerceiverImagePreprocessor

    module = PerceiverImagePreprocessor(peer.PerceiverConfig(), **settings, **kwargs)
    return draw_parameters(module).eval()


def assert_same(ours, theirs, x, their_x, order):
    """Compare encoded inputs, with their channels in our order."""
    encoded = torch.cat([group.encoded() for group in ours.eval()(x)], dim=1)
    wanted = theirs(their_x)[0][..., order]
    assert_varies(encoded)
    assert ours.num_channels == theirs.num_channels == encoded.shape[-1]
    torch.testing.assert_close(encoded, wanted, rtol=1e-6, atol=3e-6)


@torch.no_grad()
def test_pixels(peer):
    positions = {"fourier_position_encoding_kwargs": fourier(4, 9, 12)}
    theirs = image(peer, positions, prep_type="pixels", spatial_downsample=1)
    x = torch.randn(B, 3, 9, 12)
    assert_same(Pixels(data_shape=[3, 9, 12], num_bands=4), theirs, x, x, columns(3, 2, 4))


@torch.no_grad()
def test_learned(peer):
    theirs = image(
        peer,
        {"trainable_position_encoding_kwargs": {"num_channels": 6, "index_dims": 64}},
        prep_type="conv1x1",
        spatial_downsample=1,
        out_channels=6,
        position_encoding_type="trainable",
        project_pos_dim=5,
    )
    ours = LearnedPixels(data_shape=[3, 8, 8], embed_dim=6, position_channels=6, position_dim=5, resample="cubic")
    ours.linear.weight.copy_(theirs.convnet_1x1.weight.flatten(1))
    ours.linear.bias.copy_(theirs.convnet_1x1.bias)
    ours.positions.embeddings.copy_(theirs.position_embeddings.position_embeddings)
    ours.position_linear.load_state_dict(theirs.positions_projection.state_dict())
    x = torch.randn(B, 3, 8, 8)
    assert_same(ours, theirs, x, x, slice(None))
    other = torch.randn(B, 3, 5, 11)
    wanted = theirs(other, interpolate_pos_encoding=True)[0]
    torch.testing.assert_close(ours(other)[0].encoded(), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (17, 22)])
def test_conv(peer, size):
    positions = {"fourier_position_encoding_kwargs": fourier(4, 8, 8)}
    theirs = image(peer, positions, prep_type="conv", spatial_downsample=1, out_channels=8)
    theirs.convnet.batchnorm.running_mean.normal_()
    theirs.convnet.batchnorm.running_var.uniform_(0.5, 2)
    ours = ConvStem(data_shape=[3, *size], stem_channels=8, padding="symmetric", num_bands=4, resolution=8)
    ours.conv.load_state_dict(theirs.convnet.conv.state_dict())
    ours.norm.load_state_dict(theirs.convnet.batchnorm.state_dict())
    x = torch.randn(B, 3, *size)
    assert_same(ours, theirs, x, x, columns(8, 2, 4))


@torch.no_grad()
def test_conv_same_padding_is_symmetric_padding_moved_by_one_pixel():
    """The published code pads the start by 2 instead of 3, and also pads the pooling at the end."""
    ours = draw_parameters(ConvStem(data_shape=[3, 224, 224])).eval()
    symmetric = ConvStem(data_shape=[3, 224, 224], padding="symmetric").eval()
    symmetric.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 224, 224)
    [published], [shifted] = ours(x), symmetric(x)
    assert published.content.shape[2:] == (56, 56)
    assert shifted.content.shape[2:] == (55, 55)
    [moved] = symmetric(x.roll((-1, -1), (2, 3)))
    # Inputs whose receptive field lies within the image are equal.
    torch.testing.assert_close(published.content[..., 2:54, 2:54], moved.content[..., 2:54, 2:54])


@torch.no_grad()
@pytest.mark.parametrize("temporal", [1, 2])
def test_video_patches(peer, temporal):
    positions = {"fourier_position_encoding_kwargs": fourier(3, 4 // temporal, 6, 5)}
    theirs = image(peer, positions, prep_type="patches", spatial_downsample=2, temporal_downsample=temporal)
    ours = Patches(data_shape=[3, 4, 12, 10], patch_size=[temporal, 2, 2], num_bands=3)
    x = torch.randn(B, 3, 4, 12, 10)
    assert_same(ours, theirs, x, x.transpose(1, 2), columns(12 * temporal, 3, 3))
    as_theirs = Patches(**{**ours.config, "feature_order": "kinds"})
    assert_same(as_theirs, theirs, x, x.transpose(1, 2), slice(None))


@torch.no_grad()
def test_frame_pairs(peer):
    """Their input is the 27 channels of each frame's 3x3 neighbourhoods, with channels varying fastest."""
    theirs = image(
        peer,
        {"fourier_position_encoding_kwargs": fourier(4, 6, 8)},
        prep_type="patches",
        spatial_downsample=1,
        temporal_downsample=2,
        conv_after_patching=True,
        conv_after_patching_in_channels=54,
    )
    ours = FramePairs(data_shape=[3, 6, 8], num_bands=4)
    ours.linear.load_state_dict(theirs.conv_after_patches.state_dict())
    x = torch.randn(B, 3, 2, 6, 8)
    patches = torch.zeros(B, 2, 27, 6, 8)
    for t in range(2):
        for y in range(6):
            for x_ in range(8):
                for dy in range(3):
                    for dx in range(3):
                        if 0 <= y + dy - 1 < 6 and 0 <= x_ + dx - 1 < 8:
                            at = 3 * (3 * dy + dx)
                            patches[:, t, at : at + 3, y, x_] = x[:, :, t, y + dy - 1, x_ + dx - 1]
    assert_same(ours, theirs, x, patches, columns(64, 2, 4))


@torch.no_grad()
@pytest.mark.parametrize("stereo", [1, 2])
def test_waveform(peer, stereo):
    from transformers.models.perceiver.modeling_perceiver import PerceiverAudioPreprocessor

    theirs = PerceiverAudioPreprocessor(
        peer.PerceiverConfig(), samples_per_patch=5 * stereo, fourier_position_encoding_kwargs=fourier(6, 10)
    )
    ours = Waveform(num_samples=40, samples_per_patch=5, audio_channels=stereo, num_bands=6, resolution=10)
    x = torch.randn(B, stereo, 40)
    assert_same(ours, theirs, x, x.mT, columns(5 * stereo, 1, 6))


@torch.no_grad()
def test_token_ids(peer):
    from transformers.models.perceiver.modeling_perceiver import PerceiverTextPreprocessor

    config = peer.PerceiverConfig(vocab_size=262, max_position_embeddings=20, d_model=7)
    theirs = draw_parameters(PerceiverTextPreprocessor(config))
    ours = TokenIds(max_length=20, dim=7)
    ours.embeddings.load_state_dict(theirs.embeddings.state_dict())
    ours.positions.embeddings.copy_(theirs.position_embeddings.weight)
    ids = torch.randint(262, (B, 13))
    assert_same(ours, theirs, ids, ids, slice(None))


@torch.no_grad()
def test_labels(peer):
    from transformers.models.perceiver.modeling_perceiver import PerceiverOneHotPreprocessor

    theirs = PerceiverOneHotPreprocessor(peer.PerceiverConfig(num_labels=6))
    ids = torch.tensor([4, 1])
    one_hot = torch.zeros(B, 6)
    one_hot[0, 4] = one_hot[1, 1] = 1
    assert_same(Labels(num_classes=6), theirs, ids, one_hot, slice(None))
    assert_same(Labels(num_classes=6), theirs, one_hot, one_hot, slice(None))


@torch.no_grad()
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_multimodal(peer, p):
    from transformers.models.perceiver.modeling_perceiver import (
        PerceiverAudioPreprocessor,
        PerceiverImagePreprocessor,
        PerceiverMultimodalPreprocessor,
        PerceiverOneHotPreprocessor,
    )

    config = peer.PerceiverConfig(num_labels=6)
    probabilities = {"image": p, "audio": 0.0, "label": 1.0}
    theirs = PerceiverMultimodalPreprocessor(
        min_padding_size=4,
        modalities={
            "label": PerceiverOneHotPreprocessor(config),
            "image": PerceiverImagePreprocessor(
                config, prep_type="patches", spatial_downsample=2, fourier_position_encoding_kwargs=fourier(3, 4, 6, 5)
            ),
            "audio": PerceiverAudioPreprocessor(config, samples_per_patch=5, fourier_position_encoding_kwargs=fourier(6, 10)),
        },
        mask_probs=probabilities,
    )
    draw_parameters(theirs)
    ours = Multimodal(
        min_padding_size=4,
        modalities={
            "image": {"kind": "Patches", "data_shape": [3, 4, 12, 10], "patch_size": [1, 2, 2], "num_bands": 3},
            "label": Labels(num_classes=6),
            "audio": Waveform(num_samples=40, samples_per_patch=5, num_bands=6, resolution=10),
        },
        mask_probs=probabilities,
    ).eval()
    assert ours.num_channels == theirs.num_channels == 12 + 21 + 4
    orders = {"audio": columns(5, 1, 6), "image": columns(12, 3, 3), "label": list(range(6))}
    for name, order in orders.items():
        orders[name] = order + list(range(len(order), ours.num_channels))
        ours.padding[name].copy_(theirs.padding[name][0])
        ours.mask_tokens[name].copy_(theirs.mask[name][0, orders[name]])
    x = {"audio": torch.randn(B, 1, 40), "image": torch.randn(B, 3, 4, 12, 10), "label": torch.tensor([1, 5])}
    their_x = {
        "audio": x["audio"].mT,
        "image": x["image"].transpose(1, 2),
        "label": torch.nn.functional.one_hot(x["label"], 6).float(),
    }
    wanted, sizes, _ = theirs(their_x)
    groups = ours.by_modality(x)
    assert list(groups) == sorted(sizes)
    for name, part in zip(groups, wanted.split([sizes[name] for name in groups], dim=1), strict=True):
        [group] = groups[name]
        torch.testing.assert_close(group.encoded(), part[..., orders[name]], rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("cls_sep", [False, True])
def test_tokenizer(peer, cls_sep):
    theirs, ours = peer.PerceiverTokenizer(), ByteTokenizer(cls_sep=cls_sep)
    for text in ("", "plain", "grüße, 世界 \U0001f30d\n\t\x00"):
        ids = theirs(text, add_special_tokens=cls_sep).input_ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == text
    assert ours.vocab_size == len(theirs) == 262
    names = ("pad", "bos", "eos", "mask", "cls", "sep")
    assert [getattr(ours, name) for name in names] == [getattr(theirs, f"{name}_token_id") for name in names]
