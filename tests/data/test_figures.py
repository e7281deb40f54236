import numpy as np
import pytest
import torch

from perceivers.data import PointClouds, Videos
from perceivers.data.figures import draw_image, draw_series

figure = pytest.importorskip("matplotlib.figure", reason="the extra predict is not installed")


def panels(count):
    return figure.Figure().subplots(1, count)


def test_image():
    axes = panels(2)
    maps = torch.rand(1, 4, 4)
    draw_image(axes, torch.rand(3, 8, 8) * 5 - 2, maps)
    shown = axes[0].images[0].get_array()
    assert (float(shown.min()), float(shown.max())) == (0, 1)
    np.testing.assert_array_equal(axes[1].images[0].get_array(), maps[0])


def test_video():
    """The middle frame, and the attention of all frames together."""
    axes, x, maps = panels(2), torch.rand(3, 4, 8, 8), torch.rand(1, 2, 4, 4)
    Videos(size=[8, 8], num_frames=4, labels=[], task="classification").draw(axes, None, x, maps)
    np.testing.assert_array_equal(axes[1].images[0].get_array(), maps[0].sum(0))


def test_points():
    """From the broadest side: the axis of the smallest extent is left out."""
    axes, points = panels(2), torch.rand(3, 9) * torch.tensor([[5.0], [0.1], [3.0]])
    PointClouds(num_axes=3, labels=[], task="classification").draw(axes, None, points, torch.rand(1, 9))
    np.testing.assert_array_equal(axes[0].collections[0].get_offsets(), points[[0, 2]].mT)


def test_series():
    axes, maps = panels(2), torch.rand(1, 5)
    draw_series(axes, torch.rand(20), maps, length=2.0, label="seconds")
    bars = axes[1].patches
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6])
    assert [bar.get_height() for bar in bars] == pytest.approx(maps[0].tolist())
    assert axes[0].lines[0].get_xdata()[-1] == 2.0
