"""Tokens: what the cross-attention reads, before anything is concatenated.

The encoded array of a Perceiver, content beside position features, is the largest thing that other implementations hold:
50,176 x 261 numbers a picture. Its parts are small: the content is the user's own array, and on a grid the position
features of input m are rows of one short table an axis. A `Tokens` keeps the parts; only implementations that need the
whole array ask for it (`encoded`).

Letters:
    B  batch                                C    channels of an encoded input, U + C_1 + ... + C_A
    M  inputs, n_1 * ... * n_A on a grid    U    channels of the content
    A  axes of the positions                C_a  channels of the table of axis a, which has n_a rows
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # compared by identity: tensors have no one truth value
class Positions:
    """Position features as one table an axis.

    Attributes:
        tables: For each axis a, the features of its n_a coordinates, `[n_a, C_a]`.
        index: `None` where the inputs are the full grid, in row-major order; else the rows of the tables that belong to
            each input, `[B, M, A]`, an integer tensor.
    """

    tables: Sequence[Tensor]
    index: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Tokens:
    """One group of inputs to attend to.

    Attributes:
        content: `[B, U, *axes]`, channel-major, any strides: usually a view of what the user passed.
        positions: Their position features; `None` for content that carries its own.
        mask: `[B, *axes]`, bool, True where an input may be attended; `None` for everywhere.
    """

    content: Tensor
    positions: Positions | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, inputs_BMC: Tensor, mask_BM: Tensor | None = None) -> "Tokens":
        """Takes an array that is encoded already, `[B, M, C]`, and its mask, `[B, M]`."""
        return cls(content=inputs_BMC.transpose(1, 2), mask=mask_BM)

    @property
    def num_inputs(self) -> int:
        """M."""
        return prod(self.content.shape[2:])

    @property
    def num_channels(self) -> int:
        """C."""
        tables = () if self.positions is None else self.positions.tables
        return self.content.shape[1] + sum(table.shape[-1] for table in tables)

    def encoded(self) -> Tensor:
        """Makes the array `[B, M, C]`: content, then the features of each axis in order.

        Content under a False mask becomes zero, so that nothing non-finite there reaches a result or a gradient.
        Half-precision content takes the dtype of the tables.
        """
        content = self.content
        if self.mask is not None:
            content = content.masked_fill(~self.mask.unsqueeze(1), 0)
        content = content.movedim(1, -1)  # [B, *axes, U]
        if self.positions is None:
            return content.flatten(1, -2)
        features = [content]
        for a, table in enumerate(self.positions.tables):
            if self.positions.index is not None:
                features.append(table[self.positions.index[..., a]])
                continue
            shape = [1] * content.ndim
            shape[1 + a], shape[-1] = table.shape
            features.append(table.view(shape).expand(*content.shape[:-1], -1))
        return torch.cat(features, dim=-1).flatten(1, -2)

    def flat_mask(self) -> Tensor:
        """The mask as `[B, M]`, all True where there is none."""
        if self.mask is None:
            return self.content.new_ones(self.content.shape[0], self.num_inputs, dtype=torch.bool)
        return self.mask.flatten(1)

    def pieces(self, size: int) -> Iterator["Tokens"]:
        """Cuts the inputs along the first axis into pieces of about `size` inputs, whole rows at a time, as views."""
        length = self.content.shape[2]
        step = max(1, size * length // max(1, self.num_inputs))
        for start in range(0, length, step):
            rows = slice(start, start + step)
            positions = self.positions
            if positions is not None and positions.index is not None:
                positions = Positions(positions.tables, positions.index[:, rows])
            elif positions is not None:
                first, *others = positions.tables
                positions = Positions([first[rows], *others])
            yield Tokens(self.content[:, :, rows], positions, None if self.mask is None else self.mask[:, rows])


def check_array(name: str, array: Tensor, ndim: int, shape: str) -> None:
    """Raises `ValueError` unless `array` is a floating-point tensor with `ndim` axes; `shape` tells the reader which."""
    if not isinstance(array, Tensor):
        raise ValueError(f"{name} is a {type(array).__name__}, not a tensor: convert it, torch.as_tensor({name})")
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {list(array.shape)}, {array.ndim} axes, but {ndim} are needed: {shape}")
    if not array.dtype.is_floating_point:
        raise ValueError(f"{name} is {array.dtype}, not floating point: convert and scale it, such as {name}.float() / 255")


def check_mask(mask: Tensor | None, shape: Sequence[int], meaning: str) -> None:
    """Raises `ValueError` unless `mask` is `None` or a bool tensor of `shape`; `meaning` tells the reader which."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask is {kind}, not a bool tensor: make one where True may be attended to, such as mask != 0")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"mask has shape {list(mask.shape)}, but {list(shape)} is needed: {meaning}")
