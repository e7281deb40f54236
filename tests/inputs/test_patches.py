"""Patches, written out."""

import math

import torch
from inputs.cases import B
from inputs.definitions import close, line

from accuracy import draw_parameters
from perceivers.inputs import Patches, Pixels


def test_patches():
    """Channels vary fastest, then the last axis of a patch."""
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


def test_linear_projection_of_patches_precedes_the_positions():
    module = draw_parameters(Patches(data_shape=[2, 4, 6], patch_size=2, embed_dim=5, num_bands=2))
    plain = Patches(data_shape=[2, 4, 6], patch_size=2, num_bands=2)
    x = torch.randn(B, 2, 4, 6)
    without = plain(x)[0].encoded()
    close(module(x)[0].encoded(), torch.cat([module.linear(without[..., :8]), without[..., 8:]], dim=-1))


def test_a_patch_is_visible_if_any_of_its_values_is():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    x = torch.full((1, 1, 4, 4), math.nan).masked_fill(mask[:, None], 3.0)
    [group] = Patches(data_shape=[1, 4, 4], patch_size=2, num_bands=0, resolution=2)(x, mask)
    assert group.mask.tolist() == [[[False, True], [False, False]]]
    assert group.content[0, :, 0, 1].tolist() == [0, 0, 3, 0]
