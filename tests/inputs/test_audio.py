"""Waveform and LogMel, written out."""

import math

import pytest
import torch
from inputs.cases import B
from inputs.definitions import close, fourier, line

from perceivers.inputs import LogMel, Waveform


def test_waveform():
    x = torch.randn(B, 2, 12)
    [group] = Waveform(num_samples=12, samples_per_patch=4, audio_channels=2, num_bands=2)(x)
    for i in range(3):
        values = [x[1, c, 4 * i + s] for s in range(4) for c in range(2)]
        close(group.encoded()[1, i], [*values, *fourier(line(i, 3), 2, 12)])


def test_log_mel_against_the_definition():
    """The Fourier transform of some frames, and the triangular mel filters, written out."""
    module = LogMel(num_samples=300, sample_rate=1000, num_mels=5, fft_length=64, hop_length=50, num_bands=2)
    x = torch.randn(B, 1, 300, dtype=torch.float64)
    spectrogram = module.spectrogram(x)
    assert spectrogram.shape == (B, 1, 7, 5)
    mel = [2595 * math.log10(1 + f / 700) for f in (20, 500)]
    edges = [700 * (10 ** ((mel[0] + (mel[1] - mel[0]) * k / 6) / 2595) - 1) for k in range(7)]
    for frame in (0, 3, 6):
        power = []
        for k in range(33):
            terms = []
            for n in range(64):
                at = 50 * frame - 32 + n
                value = x[1, 0, at].item() if 0 <= at < 300 else 0.0
                window = 0.5 - 0.5 * math.cos(2 * math.pi * n / 64)
                terms.append(value * window * complex(math.cos(2 * math.pi * k * n / 64), -math.sin(2 * math.pi * k * n / 64)))
            power.append(abs(sum(terms)) ** 2)
        for m in range(5):
            low, middle, high = edges[m : m + 3]
            total = 0.0
            for k, p in enumerate(power):
                f = k * 1000 / 64
                total += p * max(0.0, min((f - low) / (middle - low), (high - f) / (high - middle)))
            assert spectrogram[1, 0, frame, m].item() == pytest.approx(math.log(total + 1e-6), rel=1e-9)


def test_log_mel_of_a_tone_peaks_at_its_frequency():
    module = LogMel(num_samples=4800, sample_rate=4800, num_mels=20, fft_length=512, hop_length=100, num_bands=1)
    seconds = torch.arange(4800) / 4800
    loudest = [
        module.spectrogram(torch.sin(2 * math.pi * f * seconds)[None, None])[0, 0, 24].argmax().item()
        for f in (100, 500, 2000)
    ]
    assert loudest[0] < loudest[1] < loudest[2]
