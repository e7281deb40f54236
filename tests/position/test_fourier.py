"""Fourier features against the formula of the paper."""

import math

import pytest
import torch

from perceivers.position import FourierFeatures

CPU = torch.device("cpu")


def table(length, dtype=torch.float64, **kwargs):
    kwargs = {"num_bands": 3, "resolutions": (224,), "base": None} | kwargs
    return FourierFeatures(**kwargs).tables([length], dtype=dtype, device=CPU)[0]


@pytest.mark.parametrize(
    ("base", "resolution", "bands", "wanted"),
    [
        (None, 224, 3, [1, 56.5, 112]),
        (None, 224, 1, [1]),
        (2, 224, 3, [2, math.sqrt(2 * 112), 112]),
        (2, 64, 5, [2, 4, 8, 16, 32]),
        (2, 64, 1, [2]),
        (0.5, 4, 3, [0.5, 1, 2]),
        (2, 4, 2, [2, 2]),
        (2, 224, 0, []),
    ],
)
def test_frequencies(base, resolution, bands, wanted):
    features = FourierFeatures(num_bands=bands, resolutions=(resolution,), base=base)
    assert list(features.frequencies[0]) == pytest.approx(wanted, rel=1e-14)


def test_table_written_out():
    ours = table(5)
    for i, x in enumerate([-1.0, -0.5, 0.0, 0.5, 1.0]):
        bands = [1, 56.5, 112]
        wanted = [x, *(math.sin(math.pi * f * x) for f in bands), *(math.cos(math.pi * f * x) for f in bands)]
        assert ours[i].tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("length", [2, 3, 7, 224])
def test_coordinates_span_minus_one_to_one_symmetrically(length):
    x = table(length, num_bands=0)[:, 0]
    assert x[0] == -1
    assert x[-1] == 1
    assert torch.equal(x, -x.flip(0))
    torch.testing.assert_close(x, torch.linspace(-1, 1, length, dtype=torch.float64))


def test_axis_of_length_one_has_coordinate_zero():
    assert table(1).tolist() == [[0, 0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_tables_are_correctly_rounded(dtype):
    ours = table(224, dtype=dtype, num_bands=64)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, table(224, num_bands=64).float())


def test_one_resolution_an_axis():
    features = FourierFeatures(num_bands=2, resolutions=(8, 20), base=None)
    assert list(features.frequencies[0]) == [1, 4]
    assert list(features.frequencies[1]) == [1, 10]
    assert features.num_channels == 10


@pytest.mark.parametrize(("base", "resolution"), [(None, 1), (2, 3), (2, 3.9), (113, 224)])
def test_impossible_range(base, resolution):
    with pytest.raises(ValueError, match=rf"resolution={resolution} of axis 0 .* below the lowest .* num_bands=0"):
        FourierFeatures(num_bands=4, resolutions=(resolution,), base=base)
    FourierFeatures(num_bands=0, resolutions=(resolution,), base=base)
