"""Learned position embeddings: their own grid, resampling and gradients."""

import pytest
import torch

from perceivers.position import LearnedPositions


def test_its_own_grid():
    positions = LearnedPositions(axes=[3, 4], num_channels=5)
    assert positions([3, 4]) is positions.embeddings
    assert positions.embeddings.shape == (12, 5)
    assert 0.01 < positions.embeddings.std() < 0.02
    assert positions.embeddings.abs().max() <= 0.04
    with pytest.raises(ValueError, match=r"learned positions have axes=\[3, 4\], but the inputs have axes \[4, 3\]: resize"):
        positions([4, 3])


@pytest.mark.parametrize("axes", [[5], [3, 4, 5]], ids=str)
def test_resampling_keeps_what_is_linear(axes):
    """Embeddings that are linear along an axis remain so at another length; bicubic ones are compared with transformers."""
    positions = LearnedPositions(axes=axes, num_channels=len(axes), resample="cubic").double()
    ramp = torch.stack(torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in axes), indexing="ij"), -1)
    positions.embeddings.data.copy_(ramp.flatten(0, -2))
    longer = [3 * n for n in axes]
    ours = positions(longer).unflatten(0, longer)
    wanted = torch.stack(torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in longer), indexing="ij"), -1)
    inner = tuple(slice(n // 3 + 1, -(n // 3) - 1) for n in longer)
    torch.testing.assert_close(ours[inner], wanted[inner].double(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="learned positions have axes="):
        positions([*axes, 2])


def test_bad_axes():
    with pytest.raises(ValueError, match="axes=0 must be a whole number of at least 1"):
        LearnedPositions(axes=[0], num_channels=3)


def test_gradients_reach_through_resampling():
    positions = LearnedPositions(axes=[4, 4], num_channels=3, resample="cubic")
    positions([7, 5]).square().sum().backward()
    assert positions.embeddings.grad.abs().min() > 0
