"""Class labels as an input (Perceiver IO, section 4.3)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import an_int
from perceivers.inputs.base import InputModule
from perceivers.ops.tokens import Tokens, check_ids, check_mask


class Labels(InputModule):
    """One input per sample: its label, one-hot encoded, without positions.

    Args:
        num_classes: Number of classes, which is `num_channels`.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.num_channels = an_int("num_classes", num_classes)
        self.config: dict[str, Any] = {"num_classes": self.num_channels}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tokens]:
        """Return one token group with one input.

        Args:
            x: Class ids, `[B]`, integer; or class probabilities, `[B, num_classes]`, floating point.
            mask: `[B]`, bool, True where a sample has a label.

        Raises:
            ValueError: If a shape or dtype does not fit, or an unmasked class id is out of range.
        """
        if isinstance(x, Tensor) and x.dtype.is_floating_point:
            if x.ndim != 2 or x.shape[1] != self.num_channels:
                raise ValueError(f"x has shape {list(x.shape)}, but [B, {self.num_channels}] is needed: one value per class")
            check_mask(mask, x.shape[:1], "[B]")
            content = x
        else:
            x = check_ids("x", x, "[B]", 1, self.num_channels, "num_classes", mask)
            content = F.one_hot(x, self.num_channels).to(torch.get_default_dtype())
        return [Tokens(content.unsqueeze(-1), mask=None if mask is None else mask.unsqueeze(-1))]

    def example(self, batch_size: int = 1) -> Tensor:
        """Return class probabilities of zero, `[batch_size, num_classes]`."""
        return self._zeros(batch_size, self.num_channels)
