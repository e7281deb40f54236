import numpy as np
import pytest
import torch

from perceivers.data import Arrays, Sizes

COMMON = {"labels": ["a", "b"], "task": "classification"}


@pytest.mark.parametrize(
    ("shape", "data_shape", "last"),
    [
        ([300], [1, 300], False),
        ([8, 8], [1, 8, 8], False),
        ([3, 25], [3, 25], False),
        ([12, 50], [12, 50], False),
        ([25, 3], [1, 25, 3], False),
        ([3, 16, 16], [3, 16, 16], False),
        ([16, 16, 3], [3, 16, 16], True),
        ([8, 8, 8], [1, 8, 8, 8], False),
    ],
)
def test_channels_are_found_and_standardised(shape, data_shape, last):
    x = np.random.default_rng(0).standard_normal((20, *shape)) * 3 + 5
    arrays = Arrays.choose(x, Sizes(), **COMMON)
    assert (arrays.data_shape, arrays.channels_last) == (data_shape, last)
    samples = torch.stack([arrays(one)[0] for one in x])
    assert list(samples.shape[1:]) == data_shape
    channels = samples.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(data_shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.std(1, unbiased=False), torch.ones(data_shape[0]))


def test_bad_arrays():
    arrays = Arrays(**COMMON, data_shape=[1, 4], mean=[0.0], std=[1.0], channel_axis=False)
    with pytest.raises(ValueError, match=r"shape \[1, 5\], but \[1, 4\] is needed"):
        arrays(np.zeros(5))
    with pytest.raises(ValueError, match="NaN or infinite"):
        arrays([0, np.nan, 0, 0])
