"""Tokens: the inputs of the cross-attention, before anything is concatenated.

The encoded array of a Perceiver, content beside position features, is the largest array that other implementations hold:
50,176 x 261 elements per image. Its parts are small: the content is the user's own array, and on a grid the position
features of input m are rows of one short table per axis. A `Tokens` keeps the parts; only implementations that need the
whole array ask for it (`encoded`). In general

    x_m = E u_m + P_1[i_1(m)] + ... + P_A[i_A(m)] + constant

where each term fills a block of the C channels: blocks side by side if positions are concatenated, overlapping blocks if they
are added. E is the identity if the content is used as it is.

Letters:
    B  batch                                C    channels of an encoded input
    M  inputs, n_1 * ... * n_A on a grid    U    channels of the content
    A  axes of the positions                C_a  channels of the table of axis a, which has n_a rows
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.ops.linear import linear


@dataclass(frozen=True, eq=False)  # compared by identity: comparing tensors gives tensors
class Positions:
    """Position features as one table per axis.

    Attributes:
        tables: For each axis a, the features of its n_a coordinates, `[n_a, C_a]`, or `[B, n_a, C_a]` if samples differ,
            such as crops that keep their coordinates.
        index: `None` if the inputs are the full grid, in row-major order; else the rows of the tables that belong to each
            input, `[B, M, A]`, an integer tensor.
        starts: For each table, the first of the channels that it is added to; `None` for concatenation: one after
            another, after the content.
    """

    tables: Sequence[Tensor]
    index: Tensor | None = None
    starts: Sequence[int] | None = None


@dataclass(frozen=True, eq=False)
class Tokens:
    """One group of inputs to attend to.

    Attributes:
        content: `[B, U, *axes]`, channel-major, any strides: usually a view of the user's array.
        positions: Their position features; `None` for content that carries its own.
        mask: `[B, *axes]`, bool, True where an input may be attended to; `None` for everywhere.
        embedding: E, a linear projection of the content to the first channels, `[C_e, U]`; `None` for the content itself.
        constant: Added to the first channels of every encoded input, `[C]` or shorter: the bias of a linear layer, a
            modality's code, or both. It may be wider than content and positions together.
    """

    content: Tensor
    positions: Positions | None = None
    mask: Tensor | None = None
    embedding: Tensor | None = None
    constant: Tensor | None = None

    @classmethod
    def of(cls, inputs_BMC: Tensor, mask_BM: Tensor | None = None) -> "Tokens":
        """Make tokens of an array that is encoded already, `[B, M, C]`, and its mask, `[B, M]`."""
        return cls(content=inputs_BMC.transpose(1, 2), mask=mask_BM)

    @property
    def num_inputs(self) -> int:
        """M."""
        return prod(self.content.shape[2:])

    @property
    def tables(self) -> Sequence[Tensor]:
        """The tables of the positions; empty without positions."""
        return () if self.positions is None else self.positions.tables

    @property
    def index(self) -> Tensor | None:
        """The index list of the positions; `None` for a full grid."""
        return None if self.positions is None else self.positions.index

    @property
    def content_width(self) -> int:
        """Channels of the embedded content."""
        return self.content.shape[1] if self.embedding is None else self.embedding.shape[0]

    @property
    def starts(self) -> list[int]:
        """The first channel of each table."""
        if self.positions is not None and self.positions.starts is not None:
            return list(self.positions.starts)
        starts, width = [], self.content_width
        for table in self.tables:
            starts.append(width)
            width += table.shape[-1]
        return starts

    @property
    def num_channels(self) -> int:
        """C."""
        ends = [start + table.shape[-1] for start, table in zip(self.starts, self.tables, strict=True)]
        return max(self.content_width, *ends, 0 if self.constant is None else len(self.constant))

    @property
    def is_concatenation(self) -> bool:
        """True if content and tables are side by side, with nothing added."""
        plain = self.positions is None or self.positions.starts is None
        return plain and self.embedding is None and self.constant is None

    def visible_content(self) -> Tensor:
        """Return the content, zero where masked, so that nothing non-finite there reaches a result or a gradient."""
        return self.content if self.mask is None else self.content.masked_fill(~self.mask.unsqueeze(1), 0)

    def spread(self, a: int, rows: Tensor) -> Tensor:
        """Broadcast per-row values of table a, `[n_a, ...]` or `[B, n_a, ...]`, to all inputs: `[B or 1, *axes or 1, ...]`."""
        batch = rows.shape[: self.tables[a].ndim - 2]
        if self.index is not None:
            i_BM = self.index[..., a]
            return rows[i_BM] if not batch else rows[torch.arange(rows.shape[0], device=rows.device).unsqueeze(1), i_BM]
        lengths = [rows.shape[len(batch)] if axis == a else 1 for axis in range(len(self.tables))]
        return rows.reshape(*(batch or (1,)), *lengths, *rows.shape[len(batch) + 1 :])

    def encoded(self) -> Tensor:
        """Return the encoded array `[B, M, C]`.

        Half-precision content is converted to the dtype of the tables.
        """
        content = self.visible_content().movedim(1, -1)  # [B, *axes, U]
        if self.embedding is not None:
            content = linear(content.to(self.embedding.dtype), self.embedding)
        if self.positions is None and self.constant is None:
            return content.flatten(1, -2)
        features = [self.spread(a, table).expand(*content.shape[:-1], -1) for a, table in enumerate(self.tables)]
        if self.positions is None or self.positions.starts is None:
            x = torch.cat([content, *features], dim=-1)
        else:
            x = F.pad(content, (0, self.num_channels - content.shape[-1]))
            for start, block in zip(self.starts, features, strict=True):
                x = x + F.pad(block, (start, x.shape[-1] - start - block.shape[-1]))
        if self.constant is not None:
            x = F.pad(x, (0, self.num_channels - x.shape[-1])) + F.pad(
                self.constant, (0, self.num_channels - len(self.constant))
            )
        return x.flatten(1, -2)

    def flat_mask(self) -> Tensor:
        """Return the mask as `[B, M]`, all True if there is none."""
        if self.mask is None:
            return self.content.new_ones(self.content.shape[0], self.num_inputs, dtype=torch.bool)
        return self.mask.flatten(1)

    def pieces(self, size: int) -> Iterator["Tokens"]:
        """Split the inputs, in their order, into pieces of at most `size` inputs, as views: boxes of whole rows of an axis."""
        axis = 2  # a piece has several rows of it, one of each axis before, all of each axis after
        while prod(self.content.shape[axis + 1 :]) > size:
            axis += 1
        step = max(1, size // max(1, prod(self.content.shape[axis + 1 :])))
        ranges = [
            [slice(i, i + (step if d == axis else 1)) for i in range(0, n, step if d == axis else 1)]
            for d, n in enumerate(self.content.shape[: axis + 1])
            if d > 1
        ]
        for box in product(*ranges):
            positions = self.positions
            if positions is not None and positions.index is not None:
                positions = replace(positions, index=positions.index[:, box[0]])
            elif positions is not None:
                cut = [table[..., rows, :] for table, rows in zip(positions.tables, box, strict=False)]
                positions = replace(positions, tables=[*cut, *positions.tables[len(box) :]])
            mask = None if self.mask is None else self.mask[(slice(None), *box)]
            yield replace(self, content=self.content[(slice(None), slice(None), *box)], positions=positions, mask=mask)


def check_array(name: str, array: Tensor, ndim: int, shape: str) -> None:
    """Raise `ValueError` unless `array` is a floating-point tensor with `ndim` axes; `shape` names them in messages."""
    if not isinstance(array, Tensor):
        raise ValueError(f"{name} is a {type(array).__name__}, not a tensor: convert it, torch.as_tensor({name})")
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {list(array.shape)}, {array.ndim} axes, but {ndim} are needed: {shape}")
    if not array.dtype.is_floating_point:
        raise ValueError(f"{name} is {array.dtype}, not floating point: convert and scale it, such as {name}.float() / 255")


def check_dtype(name: str, array: Tensor, dtype: torch.dtype | None, owner: str = "model") -> None:
    """Raise `ValueError` if a float64 array would meet parameters of another dtype; `None` if there are none."""
    if dtype is not None and array.dtype.itemsize > 4 and array.dtype != dtype:
        raise ValueError(
            f"{name} is {array.dtype} but the {owner} is {dtype}: convert one, {name}.float() or {owner}.double()"
        )


def check_grid(x: Tensor, mask: Tensor | None, data_shape: Sequence[int], dtype: torch.dtype | None) -> None:
    """Raise `ValueError` unless `x`, `[B, C, *axes]`, and its mask have the channels and number of axes of `data_shape`."""
    check_array("x", x, 1 + len(data_shape), f"[B, {', '.join(map(str, data_shape))}]")
    if x.shape[1] != data_shape[0]:
        raise ValueError(f"x has shape {list(x.shape)}, {x.shape[1]} channels, but data_shape has {data_shape[0]} (axis 1)")
    if 0 in x.shape[2:]:
        raise ValueError(f"x has shape {list(x.shape)} with an empty axis: every axis needs at least one element")
    check_dtype("x", x, dtype)
    check_mask(mask, (x.shape[0], *x.shape[2:]), "[B, *axes]")


def check_mask(mask: Tensor | None, shape: Sequence[int], meaning: str) -> None:
    """Raise `ValueError` unless `mask` is `None` or a bool tensor of `shape`; `meaning` names its axes in messages."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"mask is {kind}, not a bool tensor: make one that is True for what may be attended to, such as mask != 0"
        )
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"mask has shape {list(mask.shape)}, but {list(shape)} is needed: {meaning}")


def check_ids(name: str, ids: Any, shape: str, ndim: int, count: int, count_name: str, mask: Tensor | None) -> Tensor:
    """Return ids, 0 where masked; raise `ValueError` unless they are integers from 0 to `count - 1`."""
    if not isinstance(ids, Tensor) or ids.ndim != ndim or ids.dtype.is_floating_point or ids.dtype == torch.bool:
        got = f"{ids.dtype} of shape {list(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise ValueError(f"{name} is {got}, but an integer tensor {shape} is needed: convert it, such as {name}.long()")
    check_mask(mask, ids.shape, shape)
    ids = ids.long() if mask is None else ids.long().masked_fill(~mask, 0)
    # A graph cannot stop at a value; there, and on a GPU, a wrong id raises PyTorch's own error.
    if ids.numel() > 0 and not torch.compiler.is_compiling() and ids.device.type == "cpu":
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= count:
            raise ValueError(f"{name} has ids from {low} to {high}, but {count_name}={count}: ids are 0 to {count - 1}")
    return ids
