"""TimeSeries, written out."""

import math

import torch
from inputs.definitions import close, fourier

from accuracy import draw_parameters
from perceivers.inputs import Located, TimeSeries


def test_time_series():
    module = draw_parameters(
        TimeSeries(num_variables=[2, 1], start=100, stop=300, resolution=20, variable_channels=3, num_bands=3)
    )
    slow = Located(torch.tensor([[[1.0, math.nan], [3.0, 4.0]]]), torch.tensor([[150.0, 300.0]]))
    fast = Located(torch.tensor([[[5.0, 6.0, 7.0]]]), torch.tensor([100.0, 120.0, 140.0]))
    first, second = module([slow, fast])
    assert first.flat_mask().tolist() == [[True, False, True, True]]
    for at, (value, variable, time) in enumerate([(1, 0, -0.5), (None, 0, 1), (3, 1, -0.5), (4, 1, 1)]):
        if value is not None:
            close(first.encoded()[0, at], [value, *module.codes[variable].tolist(), *fourier(time, 3, 20)])
    for at, (value, time) in enumerate([(5, -1), (6, -0.8), (7, -0.6)]):
        close(second.encoded()[0, at], [value, *module.codes[2].tolist(), *fourier(time, 3, 20)])


def test_time_series_with_a_mask():
    module = TimeSeries(num_variables=2, start=0, stop=1, resolution=4, num_bands=2)
    series = Located(torch.tensor([[[1.0, math.nan], [3.0, 4.0]]]), torch.tensor([0.0, 1.0]))
    [group] = module(series, torch.tensor([[True, True]]))
    assert group.mask.tolist() == [[[True, False], [True, True]]]
    [group] = module(series, torch.tensor([[[False, True], [True, False]]]))
    assert group.mask.tolist() == [[[False, False], [True, False]]]


def test_a_time_without_values_may_be_anything():
    module = TimeSeries(num_variables=1, start=0, stop=1, resolution=4, num_bands=2)
    [group] = module(Located(torch.tensor([[[1.0, math.nan]]]), torch.tensor([[0.3, math.nan]])))
    assert group.mask.tolist() == [[[True, False]]]
    assert all(table.isfinite().all() for table in group.tables)
