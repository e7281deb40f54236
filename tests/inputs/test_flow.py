"""FramePairs: masks and tiles."""

import math

import torch

from accuracy import draw_parameters
from perceivers.inputs import FramePairs, Located
from perceivers.position import crop_coordinates


def test_frame_pairs_with_a_mask():
    """Masked neighbours are zero."""
    module = FramePairs(data_shape=[1, 3, 3], embed_dim=None, num_bands=0, resolution=2)
    x = torch.arange(1.0, 19).reshape(1, 1, 2, 3, 3)
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0] = False
    x[:, :, :, 0, 0] = math.nan
    [group] = module(x, mask)
    assert group.content[0, :, 1, 1].tolist() == [0, *range(2, 10), 0, *range(11, 19)]
    assert group.content[0, :9, 0, 1].tolist() == [0, 0, 0, 0, 2, 3, 4, 5, 6]


def test_a_tile_of_a_pair_of_frames_is_part_of_the_whole():
    """This holds for the inner pixels of a tile; those at its border lack neighbours."""
    module = draw_parameters(FramePairs(data_shape=[3, 12, 10], num_bands=4))
    x = torch.randn(1, 3, 2, 12, 10)
    whole = module(x)[0].encoded().unflatten(1, (12, 10))
    rows, columns = ((torch.tensor([a]), torch.tensor([b])) for a, b in ((3, 9), (2, 10)))
    tile = Located(x[..., 3:9, 2:10], [crop_coordinates(*rows, 12, 6), crop_coordinates(*columns, 10, 8)])
    encoded = module(tile)[0].encoded().unflatten(1, (6, 8))
    torch.testing.assert_close(encoded[:, 1:-1, 1:-1], whole[:, 4:8, 3:9], rtol=1e-5, atol=1e-5)
