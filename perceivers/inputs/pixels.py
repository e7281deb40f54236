"""Arrays on a grid with one input per element: signals, images, video, volumes (Perceiver, section 3.2)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from perceivers._checks import an_int
from perceivers.inputs.base import GridBatch, InputModule, Located, a_shape, project
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Positions, Tokens
from perceivers.position import FourierFeatures, LearnedPositions


class Pixels(InputModule):
    """One input per element, with Fourier features of its position: the published "fourier" models.

    ```python
    inputs = Pixels(data_shape=[3, 224, 224])  # 261 channels, as published
    tokens = inputs(images)  # [B, 3, 224, 224], or any other lengths
    ```

    Args:
        data_shape: Channels and axis lengths, `[C, *axes]`, 1 to 4 axes. `forward` accepts other lengths.
        num_bands: Number of frequency bands per axis; 0 keeps only the coordinates.
        resolution: Sampling rate, a scalar or one value per axis; the highest frequency is half of it. Defaults to the axis
            lengths.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1, as published.
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
        """Return one token group whose content is a view of `x`.

        Args:
            x: `[B, C, *axes]`, floating point. The coordinates span -1 to 1 along each axis; `Located(x, coordinates)`
                replaces them by one tensor `[n]` or `[B, n]` per axis, for example from `crop_coordinates`. Arrays of
                different lengths are given as a list of `[C, *axes]`; each of them spans -1 to 1.
            mask: `[B, *axes]`, bool, True where x may be attended to; for a list of arrays, a list of masks.
        """
        grid = GridBatch.of(x, mask, self.config["data_shape"], self)
        return [Tokens(grid.values, grid.positions(self.features, grid.values), grid.mask)]

    def example(self, batch_size: int = 1) -> Tensor:
        """Return zeros, `[batch_size, *data_shape]`."""
        return self._zeros(batch_size, *self.config["data_shape"])


class LearnedPixels(InputModule):
    """One input per element, linearly projected, with a learned and projected position: the published "learned" model.

    The module has no knowledge of the grid. The published model has `data_shape=[3, 224, 224]` and 256 for all three widths.

    Args:
        data_shape: Channels and axis lengths, `[C, *axes]`, 1 to 4 axes.
        embed_dim: Width of the linear projection of the channels, which is a 1x1 convolution; `None` for no projection.
        position_channels: Width of the learned position vectors.
        position_dim: Width of the linear projection of the position vectors; `None` for no projection.
        resample: "none", or "cubic" to interpolate positions for arrays of other lengths, see `LearnedPositions`.
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
        """Return one token group with all axes flattened, without a copy if the strides of `x` allow it.

        Args:
            x: `[B, C, *axes]`, floating point.
            mask: `[B, *axes]`, bool, True where x may be attended to.

        Raises:
            ValueError: If a shape or dtype does not fit, or there are no positions for the lengths of x.
        """
        if not isinstance(x, Tensor):
            raise ValueError(f"x is a {type(x).__name__}, not a tensor: learned positions need one array, [B, C, *axes]")
        grid = GridBatch.of(x, mask, self.config["data_shape"], self)
        table = self.positions(grid.values.shape[2:])
        positions = Positions([table if self.position_linear is None else self.position_linear(table)])
        flat_mask = None if grid.mask is None else grid.mask.flatten(1)
        return [project(Tokens(grid.values.flatten(2), positions, flat_mask), self.linear)]

    def example(self, batch_size: int = 1) -> Tensor:
        """Return zeros, `[batch_size, *data_shape]`."""
        return self._zeros(batch_size, *self.config["data_shape"])
