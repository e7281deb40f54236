"""What each input module makes, written out in a second hand: concatenated, added and masked explicitly."""

import math

import pytest
import torch

from accuracy import assert_varies, draw_parameters
from perceivers.inputs import (
    ByteTokenizer,
    ConvStem,
    Events,
    FramePairs,
    InputModule,
    Labels,
    LearnedPixels,
    Located,
    LogMel,
    Patches,
    Pixels,
    Points,
    Tabular,
    TimeSeries,
    TokenIds,
    Waveform,
)

B = 2


def fourier(x, bands, resolution):
    """Features of one coordinate, in float64: x, sines, cosines."""
    frequencies = [1 + (resolution / 2 - 1) * k / (bands - 1) for k in range(bands)]
    return [x, *(math.sin(math.pi * f * x) for f in frequencies), *(math.cos(math.pi * f * x) for f in frequencies)]


def close(ours, wanted):
    torch.testing.assert_close(ours, torch.as_tensor(wanted).to(ours.dtype), rtol=1e-6, atol=1e-6)


def line(i, n):
    return -1 + 2 * i / (n - 1)


def test_pixels():
    x = torch.randn(B, 3, 4, 5)
    [group] = Pixels(data_shape=[3, 4, 5], num_bands=3)(x)
    assert group.content.data_ptr() == x.data_ptr()
    rows = []
    for b in range(B):
        for i in range(4):
            for j in range(5):
                rows.append([*x[b, :, i, j].tolist(), *fourier(line(i, 4), 3, 4), *fourier(line(j, 5), 3, 5)])
    close(group.encoded().flatten(0, 1), rows)


def test_pixels_with_a_base_and_other_lengths():
    module = Pixels(data_shape=[1, 64], num_bands=5, frequency_base=2)
    assert module.config == {"data_shape": [1, 64], "num_bands": 5, "resolution": [64], "frequency_base": 2}
    [group] = module(torch.zeros(B, 1, 3))
    assert group.encoded().shape == (B, 3, 12)
    x = 1.0
    wanted = [0, x, *(math.sin(math.pi * f) for f in (2, 4, 8, 16, 32)), *(1 for _ in range(5))]
    close(group.encoded()[0, -1], wanted)


def test_learned():
    module = draw_parameters(LearnedPixels(data_shape=[3, 4, 5], embed_dim=6, position_channels=5, position_dim=7))
    x = torch.randn(B, 3, 4, 5)
    [group] = module(x)
    assert group.content.data_ptr() == x.data_ptr()
    pixels = torch.nn.functional.conv2d(x, module.linear.weight[:, :, None, None], module.linear.bias).flatten(2).mT
    positions = module.position_linear(module.positions.embeddings).expand(B, -1, -1)
    close(group.encoded(), torch.cat([pixels, positions], dim=-1))


def test_patches():
    """Channels of an element stay together; the last axis of a patch goes fastest."""
    x = torch.randn(B, 2, 4, 6)
    [group] = Patches(data_shape=[2, 4, 6], patch_size=[2, 3], num_bands=0, resolution=2)(x)
    for i in range(2):
        for j in range(2):
            values = [x[0, c, 2 * i + di, 3 * j + dj] for di in range(2) for dj in range(3) for c in range(2)]
            close(group.encoded()[0, 2 * i + j], [*values, line(i, 2), line(j, 2)])


def test_patches_of_one_element_are_pixels():
    x, mask = torch.randn(B, 2, 4, 6), torch.rand(B, 4, 6) > 0.5
    [ours], [pixels] = Patches(data_shape=[2, 4, 6], patch_size=1)(x, mask), Pixels(data_shape=[2, 4, 6])(x, mask)
    assert torch.equal(ours.encoded(), pixels.encoded())
    assert torch.equal(ours.mask, mask)


def test_linear_map_of_patches_stands_in_front_of_the_positions():
    module = draw_parameters(Patches(data_shape=[2, 4, 6], patch_size=2, embed_dim=5, num_bands=2))
    plain = Patches(data_shape=[2, 4, 6], patch_size=2, num_bands=2)
    x = torch.randn(B, 2, 4, 6)
    without = plain(x)[0].encoded()
    close(module(x)[0].encoded(), torch.cat([module.linear(without[..., :8]), without[..., 8:]], dim=-1))


def test_a_patch_is_seen_where_any_of_its_values_is():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    x = torch.full((1, 1, 4, 4), math.nan).masked_fill(mask[:, None], 3.0)
    [group] = Patches(data_shape=[1, 4, 4], patch_size=2, num_bands=0, resolution=2)(x, mask)
    assert group.mask.tolist() == [[[False, True], [False, False]]]
    assert group.content[0, :, 0, 1].tolist() == [0, 0, 3, 0]


def test_frame_pairs_with_a_mask():
    """Neighbours that are masked count as zero."""
    module = FramePairs(data_shape=[1, 3, 3], embed_dim=None, num_bands=0, resolution=2)
    x = torch.arange(1.0, 19).reshape(1, 1, 2, 3, 3)
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0] = False
    x[:, :, :, 0, 0] = math.nan
    [group] = module(x, mask)
    assert group.content[0, :, 1, 1].tolist() == [0, *range(2, 10), 0, *range(11, 19)]
    assert group.content[0, :9, 0, 1].tolist() == [0, 0, 0, 0, 2, 3, 4, 5, 6]


def test_waveform():
    x = torch.randn(B, 2, 12)
    [group] = Waveform(num_samples=12, samples_per_patch=4, audio_channels=2, num_bands=2)(x)
    for i in range(3):
        values = [x[1, c, 4 * i + s] for s in range(4) for c in range(2)]
        close(group.encoded()[1, i], [*values, *fourier(line(i, 3), 2, 12)])


def test_conv():
    """The published stem, padded at the end where the padding is odd."""
    module = draw_parameters(ConvStem(data_shape=[3, 8, 12], stem_channels=4, num_bands=2)).eval()
    x = torch.randn(B, 3, 8, 12)
    [group] = module(x)
    padded = torch.nn.functional.pad(x, (2, 3, 2, 3))
    inner = torch.nn.functional.conv2d(padded, module.conv.weight, stride=2)
    inner = inner / (1 + 1e-5) ** 0.5 * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]
    assert inner.shape == (B, 4, 4, 6)
    assert group.content.shape == (B, 4, 2, 3)
    for i in range(2):
        for j in range(3):
            window = inner[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].clamp_min(0)
            close(group.content[:, :, i, j], window.amax((2, 3)))


def test_conv_sees_what_it_is_made_of():
    """An input sees three values of the convolution on each axis, and these pixels from 2 before to 4 behind."""
    module = ConvStem(data_shape=[3, 8, 12], stem_channels=4, num_bands=2).eval()
    for row, column in [(0, 0), (7, 11), (1, 9), (2, 10), (6, 1)]:
        mask = torch.zeros(1, 8, 12, dtype=torch.bool)
        mask[0, row, column] = True
        wanted = [[-2 <= row - 4 * i <= 8 and -2 <= column - 4 * j <= 8 for j in range(3)] for i in range(2)]
        assert module(torch.randn(1, 3, 8, 12), mask)[0].mask[0].tolist() == wanted


def test_log_mel_against_the_definition():
    """A transform written out for one frame, and triangles on the mel scale."""
    module = LogMel(num_samples=300, sample_rate=1000, num_mels=5, fft_length=64, hop_length=50, num_bands=2)
    x = torch.randn(B, 1, 300, dtype=torch.float64)
    spectrogram = module.spectrogram(x)
    assert spectrogram.shape == (B, 1, 7, 5)
    mel = [2595 * math.log10(1 + f / 700) for f in (20, 500)]
    edges = [700 * (10 ** ((mel[0] + (mel[1] - mel[0]) * k / 6) / 2595) - 1) for k in range(7)]
    for frame in (0, 3, 6):
        power = []
        for k in range(33):
            terms = []
            for n in range(64):
                at = 50 * frame - 32 + n
                value = x[1, 0, at].item() if 0 <= at < 300 else 0.0
                window = 0.5 - 0.5 * math.cos(2 * math.pi * n / 64)
                terms.append(value * window * complex(math.cos(2 * math.pi * k * n / 64), -math.sin(2 * math.pi * k * n / 64)))
            power.append(abs(sum(terms)) ** 2)
        for m in range(5):
            low, middle, high = edges[m : m + 3]
            total = 0.0
            for k, p in enumerate(power):
                f = k * 1000 / 64
                total += p * max(0.0, min((f - low) / (middle - low), (high - f) / (high - middle)))
            assert spectrogram[1, 0, frame, m].item() == pytest.approx(math.log(total + 1e-6), rel=1e-9)


def test_log_mel_hears_a_tone_where_it_is():
    module = LogMel(num_samples=4800, sample_rate=4800, num_mels=20, fft_length=512, hop_length=100, num_bands=1)
    seconds = torch.arange(4800) / 4800
    loudest = [
        module.spectrogram(torch.sin(2 * math.pi * f * seconds)[None, None])[0, 0, 24].argmax().item()
        for f in (100, 500, 2000)
    ]
    assert loudest[0] < loudest[1] < loudest[2]


def test_token_ids():
    module = draw_parameters(TokenIds(vocab_size=11, max_length=9, dim=6))
    ids = torch.tensor([[1, 4, 4], [10, 0, 2]])
    wanted = [[module.embeddings.weight[i] + module.positions.embeddings[m] for m, i in enumerate(row)] for row in ids]
    close(module(ids)[0].encoded(), torch.stack([torch.stack(row) for row in wanted]))


def test_labels():
    [group] = Labels(num_classes=3)(torch.tensor([2, 0]))
    assert group.encoded().tolist() == [[[0, 0, 1]], [[1, 0, 0]]]


@pytest.mark.parametrize("values", [0, 2])
def test_points(values):
    module = Points(num_axes=3, num_values=values, resolution=[8, 10, 12], num_bands=3)
    coordinates, features = 2 * torch.rand(B, 3, 5) - 1, torch.randn(B, values, 5)
    [group] = module(Located(features, coordinates) if values else coordinates)
    rows = [
        [
            [*features[b, :, m], *(f for a, r in enumerate((8, 10, 12)) for f in fourier(coordinates[b, a, m].item(), 3, r))]
            for m in range(5)
        ]
        for b in range(B)
    ]
    torch.testing.assert_close(group.encoded(), torch.tensor(rows), rtol=1e-5, atol=1e-5)


def test_events_everywhere_are_pixels():
    x = torch.randn(B, 2, 4, 5)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(5)).T.expand(B, -1, -1)
    order = torch.randperm(20)
    [events] = Events(data_shape=[2, 4, 5], num_bands=3)(Located(x.flatten(2)[..., order], places[..., order]))
    [pixels] = Pixels(data_shape=[2, 4, 5], num_bands=3)(x)
    assert torch.equal(events.encoded(), pixels.encoded()[:, order])


def test_time_series():
    module = draw_parameters(
        TimeSeries(num_variables=[2, 1], start=100, stop=300, resolution=20, variable_channels=3, num_bands=3)
    )
    slow = Located(torch.tensor([[[1.0, math.nan], [3.0, 4.0]]]), torch.tensor([[150.0, 300.0]]))
    fast = Located(torch.tensor([[[5.0, 6.0, 7.0]]]), torch.tensor([100.0, 120.0, 140.0]))
    first, second = module([slow, fast])
    assert first.flat_mask().tolist() == [[True, False, True, True]]
    for at, (value, variable, time) in enumerate([(1, 0, -0.5), (None, 0, 1), (3, 1, -0.5), (4, 1, 1)]):
        if value is not None:
            close(first.encoded()[0, at], [value, *module.codes[variable].tolist(), *fourier(time, 3, 20)])
    for at, (value, time) in enumerate([(5, -1), (6, -0.8), (7, -0.6)]):
        close(second.encoded()[0, at], [value, *module.codes[2].tolist(), *fourier(time, 3, 20)])


def test_time_series_with_a_mask():
    module = TimeSeries(num_variables=2, start=0, stop=1, resolution=4, num_bands=2)
    series = Located(torch.tensor([[[1.0, math.nan], [3.0, 4.0]]]), torch.tensor([0.0, 1.0]))
    [group] = module(series, torch.tensor([[True, True]]))
    assert group.mask.tolist() == [[[True, False], [True, True]]]
    [group] = module(series, torch.tensor([[[False, True], [True, False]]]))
    assert group.mask.tolist() == [[[False, False], [True, False]]]


def test_a_time_without_values_may_be_anything():
    module = TimeSeries(num_variables=1, start=0, stop=1, resolution=4, num_bands=2)
    [group] = module(Located(torch.tensor([[[1.0, math.nan]]]), torch.tensor([[0.3, math.nan]])))
    assert group.mask.tolist() == [[[True, False]]]
    assert all(table.isfinite().all() for table in group.tables)


@pytest.mark.parametrize("missing", ["mask", "token"])
def test_tabular(missing):
    module = draw_parameters(Tabular(num_numeric=2, categories=[3, 2], dim=4, missing=missing))
    x = {"numeric": torch.tensor([[2.0, math.nan]]), "categorical": torch.tensor([[1, -1]])}
    [group] = module(x)
    wanted = [module.slopes[0] * 2 + module.offsets[0], None, module.embeddings.weight[1], None]
    if missing == "token":
        assert group.mask is None
        wanted[1], wanted[3] = module.missing_tokens[1], module.missing_tokens[3]
    else:
        assert group.mask.tolist() == [[True, False, True, False]]
    for m, column in enumerate(wanted):
        if column is not None:
            close(group.encoded()[0, m], column)
    x["categorical"][0, 1] = 1
    close(module(x)[0].encoded()[0, 3], module.embeddings.weight[3 + 1])
    mask = torch.tensor([[True, False, False, True]])
    assert module(x, mask)[0].mask.tolist() == [[True, False, False, True]]


def test_tokenizer():
    tokenizer = ByteTokenizer()
    ids, mask = tokenizer(["ab", "", "é"])
    assert ids.tolist() == [[103, 104], [0, 0], [201, 175]]
    assert mask.tolist() == [[True, True], [False, False], [True, True]]
    assert tokenizer(["ab"], length=4)[0].tolist() == [[103, 104, 0, 0]]
    assert [tokenizer.decode(row) for row in ids] == ["ab", "", "é"]
    assert tokenizer.decode([201]) == "\ufffd"
    assert ByteTokenizer(cls_sep=True).encode("a") == [4, 103, 5]


def test_kinds_by_name():
    module = InputModule.create({"kind": "Labels", "num_classes": 3})
    assert isinstance(module, Labels)
    assert InputModule.create(module) is module
    assert_varies(module(torch.tensor([0, 1]))[0].encoded())
