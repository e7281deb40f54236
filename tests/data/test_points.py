import numpy as np
import pytest
import torch

from perceivers.data import PointClouds


def test_clouds_are_centred_and_scaled():
    clouds = PointClouds(num_axes=3, labels=["a"], task="classification")
    points = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    x, mask = clouds(points)
    assert x.shape == (3, 50)
    assert mask is None
    assert float(x.norm(dim=0).max()) == pytest.approx(1)
    torch.testing.assert_close(x.amax(1), -x.amin(1))
    torch.testing.assert_close(clouds(points * 7 + [1, -2, 30])[0], x)


def test_bad_clouds():
    clouds = PointClouds(num_axes=3, labels=["a"], task="classification")
    for points, message in ((np.zeros((4, 2)), r"shape \[4, 2\]"), (np.full((4, 3), np.inf), "NaN or infinite")):
        with pytest.raises(ValueError, match=message):
            clouds(points)
