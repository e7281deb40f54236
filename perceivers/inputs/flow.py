"""Pairs of frames for optical flow (Perceiver IO, section 4.2 and appendix H)."""

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import an_int
from perceivers.inputs.base import Grid, InputModule, Located, a_shape, linear_map
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Tokens, check_mask
from perceivers.position import FourierFeatures

FRAMES, KERNEL = 2, 3


class FramePairs(InputModule):
    """Each pixel as one input: a linear map of the 3x3 patches around it in both frames, with Fourier features.

    The published model has 54 channels in the patches, 64 behind the linear map and 322 with positions. The paper says that
    the linear map comes behind the positions; the released weights have it in front of them, and so has this.

    Args:
        data_shape: Channels, height and width of a frame, `[C, H, W]`. Other heights and widths are accepted later.
        embed_dim: Width of the linear map; `None` for no map.
        num_bands: Frequencies of the position features of each axis; 0 leaves the coordinate alone.
        resolution: Sampling rate whose half is the highest frequency, one number or one an axis; `None` for the lengths.
        frequency_base: Lowest frequency of bands spaced geometrically; `None` for linear spacing from 1, as published.

    Raises:
        ValueError: If an argument is out of range or does not fit the others; the message names it.
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
        """Makes one token group.

        Args:
            x: A video of two frames, `[B, C, 2, H, W]`, floating point; published models want values from -1 to 1. Or
                `Located` with coordinates for height and width, such as those of a tile of a larger pair.
            mask: `[B, H, W]`, bool, True where x may be attended to; in patches of neighbours the rest counts as 0.

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        frames, coordinates = x if isinstance(x, Located) else (x, None)
        channels, *axes = self.config["data_shape"]
        if not isinstance(frames, Tensor) or frames.ndim != 5 or tuple(frames.shape[1:3]) != (channels, FRAMES):
            got = f"has shape {list(frames.shape)}" if isinstance(frames, Tensor) else f"is a {type(frames).__name__}"
            raise ValueError(f"x {got}, but [B, {channels}, {FRAMES}, H, W] is needed, both frames of a pair: stack them")
        check_mask(mask, (frames.shape[0], *frames.shape[3:]), "[B, H, W], one for both frames")
        flat = frames.flatten(1, 2)
        flat = flat if coordinates is None else Located(flat, coordinates)
        grid = Grid.of(flat, mask, [channels * FRAMES, *axes], self)
        content = neighbourhoods(grid.visible().unflatten(1, (channels, FRAMES)))
        return [
            Tokens(
                content=content,
                positions=grid.positions(self.features, content),
                mask=grid.mask,
                **linear_map(self.linear),
            )
        ]


def neighbourhoods(frames: Tensor) -> Tensor:
    """The 3x3 patch around each pixel of each frame, zero beyond the borders: `[B, C, T, H, W]` to `[B, T 3 3 C, H, W]`."""
    windows = F.pad(frames, [KERNEL // 2] * 4).unfold(-2, KERNEL, 1).unfold(-2, KERNEL, 1)
    return rearrange(windows, "B C T H W y x -> B (T y x C) H W")
