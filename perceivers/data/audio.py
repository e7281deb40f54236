"""Audio: files that soundfile reads, or a column of audio of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from perceivers._checks import an_int
from perceivers.data.checks import check_lengths
from perceivers.data.figures import draw_series
from perceivers.data.files import source_of
from perceivers.data.preprocessing import Preprocessing, Sample, Sizes, spread


@dataclass(frozen=True, kw_only=True)
class Audio(Preprocessing):
    """Audio files, mixed to one channel and resampled; long ones are cropped around the centre, short ones padded and masked.

    Attributes:
        num_samples: Length of what the model hears, in samples.
        sample_rate: Samples per second, in Hz.
    """

    plural: ClassVar[str] = "audio clips"
    suffixes: ClassVar[frozenset[str]] = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"})
    feature: ClassVar[str | None] = "Audio"
    augmentations: ClassVar[tuple[str, ...]] = ("time_masks",)
    mask_ratio: ClassVar[float | None] = 0.75
    num_samples: int
    sample_rate: int

    def check(self) -> None:  # noqa: D102
        check_lengths("num_samples", [self.num_samples], 1)
        an_int("sample_rate", self.sample_rate)

    def __call__(self, record: Any) -> Sample:
        """Read a file: a path, its bytes, or a dict with either."""
        values, rate = read_audio(record)
        if rate != self.sample_rate:
            from scipy.signal import resample_poly

            ratio = Fraction(self.sample_rate, rate)
            values = resample_poly(values, ratio.numerator, ratio.denominator).astype(np.float32)
        start = max(0, (len(values) - self.num_samples) // 2)
        values = values[start : start + self.num_samples]
        x, mask = torch.zeros(1, self.num_samples), torch.zeros(self.num_samples, dtype=torch.bool)
        x[0, : len(values)], mask[: len(values)] = torch.from_numpy(values), True
        return x, mask

    def example(self) -> Sample:  # noqa: D102
        return torch.zeros(1, self.num_samples), torch.ones(self.num_samples, dtype=torch.bool)

    def inputs(self, dim: int) -> dict[str, Any]:
        """Describe a mel spectrogram: windows of 32 ms every 16 ms, 64 bands up to half the rate, one input per window."""
        hop = max(1, round(self.sample_rate * 0.016))
        mels = 64 if self.sample_rate >= 8000 else 32
        return {
            "kind": "LogMel",
            "num_samples": self.num_samples,
            "sample_rate": self.sample_rate,
            "num_mels": mels,
            "fft_length": 2 * hop,
            "hop_length": hop,
            "patch_size": [1, mels],
            "num_bands": 16,
        }

    @classmethod
    def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any) -> Self:
        """Choose the median sample rate, and the longest duration, at most 10 seconds."""
        clips = [read_audio(record) for record in spread(records)]
        rate = int(np.median([rate for _, rate in clips]))
        longest = max(len(values) / own for values, own in clips)
        samples = round((min(longest, 10.0) if sizes.seconds is None else sizes.seconds) * rate)
        return cls(**common, sample_rate=rate, num_samples=max(samples, 2))

    def draw(self, panels: Sequence[Any], record: Any, x: Any, maps: Tensor) -> None:  # noqa: D102
        draw_series(panels, x[0], maps, length=self.num_samples / self.sample_rate, label="seconds")


def read_audio(record: Any) -> tuple[np.ndarray, int]:
    """Return the samples of an audio file, averaged over its channels, and their rate in Hz.

    Raises:
        ValueError: If it cannot be read, is empty, or holds NaN or infinite values.
    """
    import soundfile

    source, name = source_of(record)
    try:
        values, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{name} is damaged or not an audio file ({error}): remove or replace it") from error
    values = values.mean(axis=1)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{name} is empty, or holds NaN or infinite values: remove or replace it")
    return values, rate
