"""ConvStem, written out."""

import torch
from inputs.cases import B
from inputs.definitions import close

from accuracy import draw_parameters
from perceivers.inputs import ConvStem


def test_conv():
    """The published stem, with the larger padding at the end."""
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


def test_mask_covers_the_receptive_field():
    """An input pools three values of the convolution along each axis, which cover pixels from 2 before to 4 after them."""
    module = ConvStem(data_shape=[3, 8, 12], stem_channels=4, num_bands=2).eval()
    for row, column in [(0, 0), (7, 11), (1, 9), (2, 10), (6, 1)]:
        mask = torch.zeros(1, 8, 12, dtype=torch.bool)
        mask[0, row, column] = True
        wanted = [[-2 <= row - 4 * i <= 8 and -2 <= column - 4 * j <= 8 for j in range(3)] for i in range(2)]
        assert module(torch.randn(1, 3, 8, 12), mask)[0].mask[0].tolist() == wanted
