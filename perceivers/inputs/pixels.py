"""Arrays on a grid, one input for every element: signals, pictures, video, volumes (Perceiver, section 3.2)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from perceivers._checks import an_int
from perceivers.inputs.base import Grid, InputModule, Located, a_shape, linear_map
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Positions, Tokens
from perceivers.position import FourierFeatures, LearnedPositions


class Pixels(InputModule):
    """Every element with Fourier features of its position: the published "fourier" models.

    ```python
    inputs = Pixels(data_shape=[3, 224, 224])  # 261 channels, as published
    tokens = inputs(pictures)  # [B, 3, 224, 224], or any other lengths
    ```

    Args:
        data_shape: Channels and axis lengths, `[C, *axes]`, 1 to 4 axes. Other lengths are accepted later.
        num_bands: Frequencies of the position features of each axis; 0 leaves the coordinate alone.
        resolution: Sampling rate whose half is the highest frequency, one number or one an axis; `None` for the lengths.
        frequency_base: Lowest frequency of bands spaced geometrically; `None` for linear spacing from 1, as published.

    Raises:
        ValueError: If an argument is out of range or does not fit the others; the message names it.
    """

    def __init__(
        self,
        *,
        data_shape: Sequence[int],
        num_bands: int = 64,
        resolution: float | Sequence[float] | None = None,
        frequency_base: float | None = None,
    ) -> None:
        super().__init__()
        shape = a_shape(data_shape)
        self.features = FourierFeatures.of(num_bands, resolution, frequency_base, shape[1:])
        self.num_channels = shape[0] + self.features.num_channels
        self.config: dict[str, Any] = {"data_shape": shape, **self.features.config}

    def forward(self, x: Tensor | Located | Sequence[Tensor], mask: Any = None) -> list[Tokens]:
        """Makes one token group, whose content is a view of `x`.

        Args:
            x: `[B, C, *axes]`, floating point. Positions span -1 to 1 over it; `Located(x, coordinates)` gives others, for
                each axis `[n]` or `[B, n]`, such as those of `crop_coordinates`. A list of arrays `[C, *axes]` may have
                different lengths: each spans -1 to 1 by itself.
            mask: `[B, *axes]`, bool, True where x may be attended to; for a list of arrays a list of masks.

        Raises:
            ValueError: If a shape, dtype or nesting does not fit.
        """
        grid = Grid.of(x, mask, self.config["data_shape"], self)
        return [Tokens(grid.values, grid.positions(self.features, grid.values), grid.mask)]


class LearnedPixels(InputModule):
    """Every element through a linear map, beside a learned position that passes one too: the published "learned" model.

    It knows nothing of the grid. The published one has `data_shape=[3, 224, 224]` and 256 for all three widths.

    Args:
        data_shape: Channels and axis lengths, `[C, *axes]`, 1 to 4 axes.
        embed_dim: Width of the linear map of the channels, which is a 1x1 convolution; `None` for no map.
        position_channels: Width of the learned vectors.
        position_dim: Width of the linear map of the vectors; `None` for no map.
        resample: "none", or "cubic" for arrays of other lengths, see `LearnedPositions`.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(
        self,
        *,
        data_shape: Sequence[int],
        embed_dim: int | None = 256,
        position_channels: int = 256,
        position_dim: int | None = 256,
        resample: str = "none",
    ) -> None:
        super().__init__()
        channels, *axes = a_shape(data_shape)
        self.linear = None if embed_dim is None else Linear(channels, an_int("embed_dim", embed_dim))
        self.positions = LearnedPositions(axes=axes, num_channels=position_channels, resample=resample)
        self.position_linear = (
            None if position_dim is None else Linear(position_channels, an_int("position_dim", position_dim))
        )
        self.num_channels = (embed_dim or channels) + (position_dim or position_channels)
        self.config: dict[str, Any] = {
            "data_shape": [channels, *axes],
            "embed_dim": embed_dim,
            "position_channels": position_channels,
            "position_dim": position_dim,
            "resample": resample,
        }

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tokens]:
        """Makes one token group, whose content is a view of `x` with all axes flattened where memory allows.

        Args:
            x: `[B, C, *axes]`, floating point.
            mask: `[B, *axes]`, bool, True where x may be attended to.

        Raises:
            ValueError: If a shape or dtype does not fit, or there are no positions for the lengths of x.
        """
        if not isinstance(x, Tensor):
            raise ValueError(f"x is a {type(x).__name__}, not a tensor: learned positions take one array, [B, C, *axes]")
        grid = Grid.of(x, mask, self.config["data_shape"], self)
        table = self.positions(grid.values.shape[2:])
        positions = Positions([table if self.position_linear is None else self.position_linear(table)])
        return [
            Tokens(
                content=grid.values.flatten(2),
                positions=positions,
                mask=None if grid.mask is None else grid.mask.flatten(1),
                **linear_map(self.linear),
            )
        ]
