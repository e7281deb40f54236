"""Fourier features and comparisons shared by tests that write out what an input module computes."""

import math

import torch


def fourier(x, bands, resolution):
    """Return the features of one coordinate, in float64: x, sines, cosines."""
    frequencies = [1 + (resolution / 2 - 1) * k / (bands - 1) for k in range(bands)]
    return [x, *(math.sin(math.pi * f * x) for f in frequencies), *(math.cos(math.pi * f * x) for f in frequencies)]


def close(ours, wanted):
    torch.testing.assert_close(ours, torch.as_tensor(wanted).to(ours.dtype), rtol=1e-6, atol=1e-6)


def line(i, n):
    return -1 + 2 * i / (n - 1)
