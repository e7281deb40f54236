"""Pairs of video frames for optical flow (Perceiver IO, section 4.2 and appendix H)."""

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import an_int
from perceivers.inputs.base import GridBatch, InputModule, Located, a_shape, project
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Tokens, check_mask
from perceivers.position import FourierFeatures

FRAMES, KERNEL = 2, 3


class FramePairs(InputModule):
    """One input per pixel: a linear projection of its 3x3 neighbourhoods in both frames, with Fourier features.

    In the published model the neighbourhoods have 54 channels, the projection 64, and an encoded input 322. According to the
    paper, the projection includes the position features; the released weights, and this module, project only the
    neighbourhoods.

    Args:
        data_shape: Channels, height and width of a frame, `[C, H, W]`. `forward` accepts other heights and widths.
        embed_dim: Width of the linear projection; `None` for no projection.
        num_bands: Number of frequency bands per axis; 0 keeps only the coordinates.
        resolution: Sampling rate, a scalar or one value per axis; the highest frequency is half of it. Defaults to the axis
            lengths.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1, as published.
    """

    def __init__(
        self,
        *,
        data_shape: Sequence[int] = (3, 368, 496),
        embed_dim: int | None = 64,
        num_bands: int = 64,
        resolution: float | Sequence[float] | None = None,
        frequency_base: float | None = None,
    ) -> None:
        super().__init__()
        shape = a_shape(data_shape, range(2, 3))
        self.features = FourierFeatures.of(num_bands, resolution, frequency_base, shape[1:])
        channels = FRAMES * KERNEL**2 * shape[0]
        self.linear = None if embed_dim is None else Linear(channels, an_int("embed_dim", embed_dim))
        self.num_channels = (embed_dim or channels) + self.features.num_channels
        self.config: dict[str, Any] = {"data_shape": shape, "embed_dim": embed_dim, **self.features.config}

    def forward(self, x: Tensor | Located, mask: Tensor | None = None) -> list[Tokens]:
        """Return one token group.

        Args:
            x: Two video frames per sample, `[B, C, 2, H, W]`, floating point; the published models expect values from -1 to
                1. Or `Located` with coordinates for height and width, for example of a tile of a larger frame pair.
            mask: `[B, H, W]`, bool, True where x may be attended to; masked pixels are 0 in their neighbours' neighbourhoods.
        """
        frames, coordinates = x if isinstance(x, Located) else (x, None)
        channels, *axes = self.config["data_shape"]
        if not isinstance(frames, Tensor) or frames.ndim != 5 or tuple(frames.shape[1:3]) != (channels, FRAMES):
            got = f"has shape {list(frames.shape)}" if isinstance(frames, Tensor) else f"is a {type(frames).__name__}"
            raise ValueError(f"x {got}, but [B, {channels}, {FRAMES}, H, W] is needed: stack both frames of each pair")
        check_mask(mask, (frames.shape[0], *frames.shape[3:]), "[B, H, W], one mask for both frames")
        flat = frames.flatten(1, 2)
        flat = flat if coordinates is None else Located(flat, coordinates)
        grid = GridBatch.of(flat, mask, [channels * FRAMES, *axes], self)
        content = neighbourhoods(grid.visible().unflatten(1, (channels, FRAMES)))
        return [project(Tokens(content, grid.positions(self.features, content), grid.mask), self.linear)]

    def example(self, batch_size: int = 1) -> Tensor:
        """Return zeros, `[batch_size, C, 2, H, W]`."""
        channels, *axes = self.config["data_shape"]
        return self._zeros(batch_size, channels, FRAMES, *axes)


def neighbourhoods(frames: Tensor) -> Tensor:
    """Return the 3x3 neighbourhood of each pixel, zero-padded: `[B, C, T, H, W]` to `[B, T 3 3 C, H, W]`."""
    windows = F.pad(frames, [KERNEL // 2] * 4).unfold(-2, KERNEL, 1).unfold(-2, KERNEL, 1)
    return rearrange(windows, "B C T H W y x -> B (T y x C) H W")
