"""Audio: patches of a waveform, or a mel spectrogram (Perceiver, section 4.2; Perceiver IO, section 4.3)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perceivers._checks import a_number, an_int
from perceivers.inputs.base import GridBatch, InputModule, Located
from perceivers.inputs.patches import Patches, a_patch_size, patch_tokens
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Tokens
from perceivers.position import FourierFeatures


class Waveform(InputModule):
    """One input per patch of consecutive samples, with Fourier features of its time.

    The published autoencoder has `num_samples=30_720, samples_per_patch=16, num_bands=192`; the AudioSet model has 61,440
    samples and 128 per patch.

    Args:
        num_samples: Samples per channel, a multiple of `samples_per_patch`. `forward` accepts other multiples.
        samples_per_patch: Samples per channel in each patch.
        audio_channels: 1 for mono, 2 for stereo.
        embed_dim: Width of a linear projection of the samples; `None` for no projection. Positions are not projected.
        num_bands: Frequencies of the position features; 0 leaves the coordinate alone.
        resolution: Sampling rate; the highest frequency is half of it. Defaults to `num_samples`, as published, although
            there are fewer patches than samples.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1, as published.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        samples_per_patch: int = 16,
        audio_channels: int = 1,
        embed_dim: int | None = None,
        num_bands: int = 192,
        resolution: float | None = None,
        frequency_base: float | None = None,
    ) -> None:
        super().__init__()
        num_samples = an_int("num_samples", num_samples)
        self.patches = Patches(
            data_shape=[an_int("audio_channels", audio_channels), num_samples],
            patch_size=[an_int("samples_per_patch", samples_per_patch)],
            embed_dim=embed_dim,
            num_bands=num_bands,
            resolution=num_samples if resolution is None else resolution,
            frequency_base=frequency_base,
        )
        self.num_channels = self.patches.num_channels
        self.config: dict[str, Any] = {
            "num_samples": num_samples,
            "samples_per_patch": samples_per_patch,
            "audio_channels": audio_channels,
            "embed_dim": embed_dim,
            **self.patches.features.config,
            "resolution": self.patches.features.resolutions[0],
        }

    def forward(self, x: Tensor | Located | Sequence[Tensor], mask: Any = None) -> list[Tokens]:
        """Return one token group.

        Args:
            x: `[B, audio_channels, samples]`, floating point; or as in `Patches.forward`.
            mask: `[B, samples]`, bool, True where x may be attended to; see `Patches.forward`.
        """
        return self.patches(x, mask)

    def example(self, batch_size: int = 1) -> Tensor:
        """Return silence, `[batch_size, audio_channels, num_samples]`."""
        return self.patches.example(batch_size)


class LogMel(InputModule):
    """One input per patch of a log-mel spectrogram, with Fourier features of its time and frequency band.

    Frames are centred: frame i is a Hann window centred on sample `i * hop_length`, with zero padding at both ends. The mel
    filters are triangles with a peak of 1 between frequencies equally spaced on the HTK scale 2595 log10(1 + f / 700). The
    values are log(power + 1e-6).

    Args:
        num_samples: Samples per channel. `forward` accepts other numbers.
        sample_rate: Sample rate in Hz.
        num_mels: Number of mel bands.
        fft_length: Samples per window.
        hop_length: Samples between consecutive windows.
        lowest: Lower edge of the first band, in Hz.
        highest: Upper edge of the last band, in Hz. Defaults to half the sample rate.
        audio_channels: 1 for mono, 2 for stereo.
        patch_size: Frames and bands in each input: 1 gives one input per value, `[1, num_mels]` one per frame.
        embed_dim: Width of a linear projection of a patch; `None` for no projection. Positions are not projected.
        num_bands: Number of frequency bands per axis; 0 keeps only the coordinates.
        resolution: Sampling rate, a scalar or one value per axis; the highest frequency is half of it. Defaults to the number
            of patches per axis, but at least 2.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1, as published.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        sample_rate: float = 48_000,
        num_mels: int = 64,
        fft_length: int = 1_024,
        hop_length: int = 480,
        lowest: float = 20,
        highest: float | None = None,
        audio_channels: int = 1,
        patch_size: int | Sequence[int] = 1,
        embed_dim: int | None = None,
        num_bands: int = 64,
        resolution: float | Sequence[float] | None = None,
        frequency_base: float | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "num_samples": an_int("num_samples", num_samples),
            "sample_rate": a_number("sample_rate", sample_rate),
            "num_mels": an_int("num_mels", num_mels),
            "fft_length": an_int("fft_length", fft_length),
            "hop_length": an_int("hop_length", hop_length),
            "lowest": a_number("lowest", lowest),
            "highest": a_number("highest", sample_rate / 2 if highest is None else highest),
            "audio_channels": an_int("audio_channels", audio_channels),
            "embed_dim": None if embed_dim is None else an_int("embed_dim", embed_dim),
        }
        if not lowest < self.config["highest"] <= sample_rate / 2:
            raise ValueError(
                f"highest={self.config['highest']} must be greater than lowest={lowest} and at most {sample_rate / 2}, half of"
                " sample_rate"
            )
        self.patch_size = a_patch_size(patch_size, [0, num_mels])
        counts = [self._num_frames(num_samples) // self.patch_size[0], num_mels // self.patch_size[1]]
        if counts[0] == 0:
            raise ValueError(
                f"num_samples={num_samples} gives fewer frames than patch_size={self.patch_size}: give more samples"
            )
        if resolution is None:
            resolution = [max(2, count) for count in counts]
        self.features = FourierFeatures.of(num_bands, resolution, frequency_base, counts)
        channels = audio_channels * self.patch_size[0] * self.patch_size[1]
        self.linear = None if embed_dim is None else Linear(channels, embed_dim)
        self.num_channels = (embed_dim or channels) + self.features.num_channels
        self.config |= {"patch_size": self.patch_size, **self.features.config}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tokens]:
        """Return one token group. Frames at the end that do not fill a patch are dropped.

        Args:
            x: `[B, audio_channels, samples]`, floating point.
            mask: `[B, samples]`, bool, True where x may be attended to; masked samples are replaced by silence. A patch may be
                attended to if, in any of its frames, any of the `hop_length` samples around the centre may.
        """
        if not isinstance(x, Tensor):
            raise ValueError(f"x is a {type(x).__name__}, not a tensor: a spectrogram needs one array, [B, channels, samples]")
        grid = GridBatch.of(x, mask, [self.config["audio_channels"], self.config["num_samples"]], self)
        spectrogram = self.spectrogram(grid.visible())
        frames = spectrogram.shape[2] // self.patch_size[0] * self.patch_size[0]
        if frames == 0:
            raise ValueError(f"x has shape {list(x.shape)}, fewer frames than patch_size={self.patch_size}: give more samples")
        seen = None if grid.mask is None else self._seen(grid.mask)[:, :frames, None].expand(-1, -1, spectrogram.shape[3])
        return [patch_tokens(GridBatch(spectrogram[:, :, :frames], seen), self.patch_size, self.linear, self.features)]

    def example(self, batch_size: int = 1) -> Tensor:
        """Return silence, `[batch_size, audio_channels, num_samples]`."""
        return self._zeros(batch_size, self.config["audio_channels"], self.config["num_samples"])

    def spectrogram(self, x: Tensor) -> Tensor:
        """Return the log-mel spectrogram of `[B, channels, samples]`, `[B, channels, frames, num_mels]`."""
        length, hop = self.config["fft_length"], self.config["hop_length"]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # the FFT does not support half precision
        spectrum = torch.stft(
            wide.flatten(0, 1),
            n_fft=length,
            hop_length=hop,
            window=torch.hann_window(length, dtype=wide.dtype, device=wide.device),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()  # [B * channels, frequencies, frames]
        mel = self._filters(wide.device).to(wide.dtype) @ power
        return torch.log(mel + 1e-6).mT.unflatten(0, x.shape[:2]).to(x.dtype)

    def _filters(self, device: torch.device) -> Tensor:
        """Return the mel filters, `[num_mels, fft_length // 2 + 1]`."""
        low, high = (2595 * math.log10(1 + self.config[edge] / 700) for edge in ("lowest", "highest"))
        mels = torch.linspace(low, high, self.config["num_mels"] + 2, dtype=torch.float64, device=device)
        edges = (700 * (10 ** (mels / 2595) - 1)).unsqueeze(-1)
        bins = torch.arange(self.config["fft_length"] // 2 + 1, dtype=torch.float64, device=device)
        frequencies = bins * (self.config["sample_rate"] / self.config["fft_length"])
        rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
        return torch.minimum(rising, falling).clamp_min(0)

    def _num_frames(self, samples: int) -> int:
        return 1 + samples // self.config["hop_length"]

    def _seen(self, mask: Tensor) -> Tensor:
        """Return the mask of the frames, `[B, frames]`: True if any sample within half a hop of the centre is True."""
        hop, samples = self.config["hop_length"], mask.shape[1]
        frames = self._num_frames(samples)
        nearest = (torch.arange(samples, device=mask.device) + hop // 2) // hop
        counts = mask.new_zeros(mask.shape[0], frames, dtype=torch.int32)
        return counts.index_add_(1, nearest.clamp_max(frames - 1), mask.to(torch.int32)) > 0
