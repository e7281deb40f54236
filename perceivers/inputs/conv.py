"""A convolutional stem for images: the published "conv" model (Perceiver IO, appendix D)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import an_int, one_of
from perceivers.inputs.base import GridBatch, InputModule, a_shape
from perceivers.ops.tokens import Tokens
from perceivers.position import FourierFeatures

CONV, POOL, STRIDE = 7, 3, 2


class ConvStem(InputModule):
    """7x7 convolution, batch norm, ReLU and 3x3 max pooling, with stride 2 in both; then Fourier features.

    An image of 224 x 224 becomes 56 x 56 inputs of 322 channels.

    Args:
        data_shape: Channels, height and width, `[C, H, W]`. `forward` accepts other heights and widths.
        stem_channels: Output channels of the convolution.
        padding: "same" pads like DeepMind's code, more at the end than at the start: 224 gives 56. "symmetric" pads the
            convolution by 3 on both sides and does not pad the pooling, like transformers: 224 gives 55.
        num_bands: Number of frequency bands per axis; 0 keeps only the coordinates.
        resolution: Sampling rate, a scalar or one value per axis; the highest frequency is half of it. Defaults to a quarter
            of the lengths, rounded up, as published for both paddings.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1, as published.
    """

    def __init__(
        self,
        *,
        data_shape: Sequence[int],
        stem_channels: int = 64,
        padding: str = "same",
        num_bands: int = 64,
        resolution: float | Sequence[float] | None = None,
        frequency_base: float | None = None,
    ) -> None:
        super().__init__()
        shape = a_shape(data_shape, range(2, 3))
        quarters = [-(-n // STRIDE**2) for n in shape[1:]]
        self.features = FourierFeatures.of(num_bands, resolution, frequency_base, quarters)
        self.padding = one_of("padding", padding, ("same", "symmetric"))
        self.conv = nn.Conv2d(shape[0], an_int("stem_channels", stem_channels), CONV, STRIDE, bias=False)
        self.norm = nn.BatchNorm2d(stem_channels)
        self.reset_parameters()
        self.num_channels = stem_channels + self.features.num_channels
        self.config: dict[str, Any] = {
            "data_shape": shape,
            "stem_channels": stem_channels,
            "padding": padding,
            **self.features.config,
        }

    def reset_parameters(self) -> None:
        """Re-initialise the convolution from a normal distribution (variance 1 / fan_in) truncated at 2 std, and the norm.

        Source: DeepMind's released code.
        """
        std = self.conv.weight[0].numel() ** -0.5
        nn.init.trunc_normal_(self.conv.weight, std=std, a=-2 * std, b=2 * std)
        self.norm.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tokens]:
        """Return one token group. In training mode the batch norm uses batch statistics, so samples are not independent.

        Args:
            x: `[B, C, H, W]`, floating point.
            mask: `[B, H, W]`, bool, True where x may be attended to. An input may be attended to if any pixel in its receptive
                field may; masked pixels are replaced by 0.
        """
        if not isinstance(x, Tensor):
            raise ValueError(f"x is a {type(x).__name__}, not a tensor: a convolution needs one array, [B, C, H, W]")
        grid = GridBatch.of(x, mask, self.config["data_shape"], self)
        if self.padding == "symmetric" and min(x.shape[2:]) < 5:
            raise ValueError(f"x has shape {list(x.shape)}, but padding='symmetric' needs a height and width of at least 5")
        content = self.conv(self._pad(grid.visible(), CONV, CONV // 2))
        content = F.max_pool2d(self._pad(F.relu(self.norm(content)), POOL, 0), POOL, STRIDE)
        return [Tokens(content, grid.positions(self.features, content), None if mask is None else self._reach(mask))]

    def example(self, batch_size: int = 1) -> Tensor:
        """Return zeros, `[batch_size, *data_shape]`."""
        return self._zeros(batch_size, *self.config["data_shape"])

    def _pad(self, x: Tensor, kernel: int, symmetric: int) -> Tensor:
        """Pad with zeros; after a ReLU, max pooling gives the same result as with a padding of minus infinity."""
        if self.padding == "symmetric":
            return F.pad(x, [symmetric] * 4)
        edges = []
        for n in reversed(x.shape[2:]):  # F.pad expects the last axis first
            missing = max(((n + STRIDE - 1) // STRIDE - 1) * STRIDE + kernel - n, 0)
            edges += [missing // 2, missing - missing // 2]
        return F.pad(x, edges)

    def _reach(self, mask: Tensor) -> Tensor:
        """Return the mask of the inputs: True where any pixel in the receptive field is True."""
        seen = mask.unsqueeze(1).to(torch.float32)
        for kernel, symmetric in ((CONV, CONV // 2), (POOL, 0)):
            seen = F.max_pool2d(self._pad(seen, kernel, symmetric), kernel, STRIDE)
        return seen.squeeze(1) > 0
