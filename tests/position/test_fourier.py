"""Fourier features against the formula of the paper."""

import math
import re

import pytest
import torch

from perceivers.position import FourierFeatures, crop_coordinates, grid_coordinates

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


def test_given_coordinates():
    features = FourierFeatures.of(3, [8, 20], None, [5, 6])
    given = [grid_coordinates(5), 2 * torch.rand(2, 6, dtype=torch.float64) - 1]
    first, second = features.tables_at(given, dtype=torch.float64)
    assert torch.equal(first, features.tables([5, 6], dtype=torch.float64, device=CPU)[0])
    assert second.shape == (2, 6, 7)
    for x, row in zip(given[1].flatten().tolist(), second.flatten(0, 1), strict=True):
        wanted = [x, *(math.sin(math.pi * f * x) for f in (1, 5.5, 10)), *(math.cos(math.pi * f * x) for f in (1, 5.5, 10))]
        assert row.tolist() == pytest.approx(wanted, abs=1e-12)
    assert all(table.dtype == torch.float32 for table in features.tables_at(given, dtype=torch.bfloat16))


def test_arguments_by_the_names_of_models():
    features = FourierFeatures.of(2, None, 2, [8, 20])
    assert features == FourierFeatures(num_bands=2, resolutions=(8, 20), base=2)
    assert features.config == {"num_bands": 2, "resolution": [8, 20], "frequency_base": 2}
    assert FourierFeatures.of(2, 16, None, [8, 20]).resolutions == (16, 16)
    with pytest.raises(ValueError, match=r"resolution=\[1, 2, 3\] has 3 entries for 2 axes: give one each"):
        FourierFeatures.of(2, [1, 2, 3], None, [8, 20])
    with pytest.raises(ValueError, match="num_bands=-1 must be"):
        FourierFeatures.of(-1, None, None, [8])


def test_each_length_spans_minus_one_to_one_by_itself():
    ours = grid_coordinates(torch.tensor([5, 2, 1]))
    assert ours.tolist() == [[-1, -0.5, 0, 0.5, 1], [-1, 1, 3, 5, 7], [0, 2, 4, 6, 8]]
    assert grid_coordinates(3, 5).tolist() == [-1, 0, 1, 2, 3]


def test_crop_coordinates():
    ours = crop_coordinates(torch.tensor([0, 2, 3]), torch.tensor([5, 5, 4]), 5, 5)
    assert ours[0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert ours[1].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert ours[2].tolist() == [0.5] * 5
    assert crop_coordinates(torch.tensor([0]), torch.tensor([1]), 1, 1).tolist() == [[0]]


def test_crops_outside_the_array():
    for start, stop in [(-1, 3), (2, 2), (5, 9)]:
        with pytest.raises(
            ValueError, match=re.escape(f"start=[{start}], stop=[{stop}] must satisfy 0 <= start < stop <= whole=8")
        ):
            crop_coordinates(torch.tensor([start]), torch.tensor([stop]), 8, 4)
