"""Points and Events, written out."""

import pytest
import torch
from inputs.cases import B
from inputs.definitions import fourier

from perceivers.inputs import Events, Located, Pixels, Points


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


def test_published_width():
    assert Points(resolution=2240).num_channels == 387  # of ModelNet40; other published inputs: tests/test_presets.py


def test_events_everywhere_are_pixels():
    x = torch.randn(B, 2, 4, 5)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(5)).T.expand(B, -1, -1)
    order = torch.randperm(20)
    [events] = Events(data_shape=[2, 4, 5], num_bands=3)(Located(x.flatten(2)[..., order], places[..., order]))
    [pixels] = Pixels(data_shape=[2, 4, 5], num_bands=3)(x)
    assert torch.equal(events.encoded(), pixels.encoded()[:, order])
