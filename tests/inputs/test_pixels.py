"""Pixels and LearnedPixels, written out, and crops that keep the coordinates of the whole array."""

import math

import torch
from inputs.cases import B
from inputs.definitions import close, fourier, line

from accuracy import draw_parameters
from perceivers.inputs import LearnedPixels, Located, Pixels
from perceivers.position import crop_coordinates


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


def test_crops_are_rows_of_the_whole():
    module = Pixels(data_shape=[3, 12, 10], num_bands=4)
    x = torch.randn(2, 3, 12, 10)
    whole = module(x)[0].encoded().unflatten(1, (12, 10))
    top, left = torch.tensor([0, 5]), torch.tensor([6, 1])
    crops = torch.stack([x[b, :, t : t + 7, s : s + 4] for b, (t, s) in enumerate(zip(top, left, strict=True))])
    coordinates = [crop_coordinates(top, top + 7, 12, 7), crop_coordinates(left, left + 4, 10, 4)]
    encoded = module(Located(crops, coordinates))[0].encoded().unflatten(1, (7, 4))
    for b in range(2):
        rows = whole[b, top[b] : top[b] + 7, left[b] : left[b] + 4]
        torch.testing.assert_close(encoded[b], rows, rtol=1e-6, atol=1e-6)


def test_the_whole_as_its_own_crop():
    module = Pixels(data_shape=[3, 5, 4], num_bands=4)
    x = torch.randn(2, 3, 5, 4)
    coordinates = [crop_coordinates(torch.tensor([0, 0]), torch.tensor([n, n]), n, n) for n in (5, 4)]
    ours = module(Located(x, coordinates))[0].encoded()
    torch.testing.assert_close(ours, module(x)[0].encoded(), rtol=1e-6, atol=1e-6)
    shared = module(Located(x, [c[0] for c in coordinates]))[0].encoded()
    assert torch.equal(shared, ours)
