"""Patches of arrays on a grid, one input each: space-to-depth for signals, pictures, video, volumes.

Letters: B batch, C channels, A axes, n_a length of axis a, p_a length of a patch on it.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor

from perceivers._checks import an_int, one_each, one_of
from perceivers.inputs.base import Grid, InputModule, Located, a_shape, linear_map
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Tokens
from perceivers.position import FourierFeatures, by_kinds


class Patches(InputModule):
    """Each patch as one input: its values, or a linear map of them, with Fourier features of the patch's position.

    The video of the published autoencoder has `data_shape=[3, 16, 224, 224], patch_size=[1, 4, 4], num_bands=32`, that of
    AudioSet `patch_size=[2, 8, 8]`.

    Args:
        data_shape: Channels and axis lengths, `[C, *axes]`, 1 to 4 axes; the lengths are multiples of the patch's. Other
            multiples are accepted later.
        patch_size: Length of a patch, one number or one an axis.
        embed_dim: Width of a linear map of the values, in front of the positions; `None` for no map.
        num_bands: Frequencies of the position features of each axis; 0 leaves the coordinate alone.
        resolution: Sampling rate whose half is the highest frequency, one number or one an axis; `None` for the number of
            patches.
        frequency_base: Lowest frequency of bands spaced geometrically; `None` for linear spacing from 1, as published.
        feature_order: "axes" (coordinate, sines and cosines of the first axis, then of the next) or "kinds" (coordinates
            of all axes, then sines, then cosines, as in DeepMind's code). It matters only for weights from there that
            several modalities share; elsewhere a permutation of the weights does the same.

    Raises:
        ValueError: If an argument is out of range or does not fit the others; the message names it.
    """

    def __init__(
        self,
        *,
        data_shape: Sequence[int],
        patch_size: int | Sequence[int],
        embed_dim: int | None = None,
        num_bands: int = 64,
        resolution: float | Sequence[float] | None = None,
        frequency_base: float | None = None,
        feature_order: str = "axes",
    ) -> None:
        super().__init__()
        shape = a_shape(data_shape)
        self.patch_size = a_patch_size(patch_size, shape[1:])
        counts = [n // p for n, p in zip(shape[1:], self.patch_size, strict=True)]
        self.features = FourierFeatures.of(num_bands, resolution, frequency_base, counts)
        channels = shape[0] * prod(self.patch_size)
        self.linear = None if embed_dim is None else Linear(channels, an_int("embed_dim", embed_dim))
        self.num_channels = (embed_dim or channels) + self.features.num_channels
        self.config: dict[str, Any] = {
            "data_shape": shape,
            "patch_size": self.patch_size,
            "embed_dim": embed_dim,
            **self.features.config,
            "feature_order": one_of("feature_order", feature_order, ("axes", "kinds")),
        }

    def forward(self, x: Tensor | Located | Sequence[Tensor], mask: Any = None) -> list[Tokens]:
        """Makes one token group.

        Args:
            x: `[B, C, *axes]`, floating point, each axis a multiple of the patch's; or `Located` with coordinates of the
                patches; or a list of arrays of different lengths; see `Pixels.forward`.
            mask: `[B, *axes]`, bool, True where x may be attended to. A patch is attended to where any of its values may
                be; the others of it count as 0.

        Raises:
            ValueError: If a shape, dtype or nesting does not fit.
        """
        if isinstance(x, list | tuple) and not isinstance(x, Located):
            for array in x:  # before padding, which could make a multiple of what is none
                if isinstance(array, Tensor):
                    _check_multiples(array.shape[1:], self.patch_size)
        grid = Grid.of(x, mask, self.config["data_shape"], self)
        _check_multiples(grid.values.shape[2:], self.patch_size)
        tokens = patch_tokens(grid, self.patch_size, self.linear, self.features)
        if self.config["feature_order"] == "kinds" and tokens.positions is not None:
            starts = [tokens.content_width] * len(self.patch_size)
            tokens = replace(tokens, positions=replace(tokens.positions, tables=by_kinds(tokens.tables), starts=starts))
        return [tokens]


def patch_tokens(grid: Grid, patch_size: Sequence[int], linear: Linear | None, features: FourierFeatures) -> Tokens:
    """Patches of a grid, with a linear map of them where there is one, and Fourier features."""
    content = space_to_depth(grid.visible(), patch_size)
    mask = grid.mask
    if mask is not None and prod(patch_size) > 1:
        mask = space_to_depth(mask.unsqueeze(1), patch_size).any(1)
    return Tokens(
        content=content,
        positions=grid.positions(features, content, patch_size),
        mask=mask,
        **linear_map(linear),
    )


def space_to_depth(x: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Moves patches into channels: `[B, C, n_1, ..., n_A]` to `[B, p_1 ... p_A C, n_1 / p_1, ..., n_A / p_A]`.

    The channels of an element stay together and those of the last axis follow each other, the order of the published
    weights. Patches of one element change nothing and copy nothing.
    """
    axes = len(patch_size)
    split = x
    for a in reversed(range(axes)):
        split = split.unflatten(2 + a, (-1, patch_size[a]))  # [B, C, n_1 / p_1, p_1, n_2 / p_2, p_2, ...]
    order = [0, *range(3, 3 + 2 * axes, 2), 1, *range(2, 2 + 2 * axes, 2)]
    return split.permute(order).flatten(1, 1 + axes)


def a_patch_size(patch_size: int | Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Returns the length of a patch on each axis, if it divides the axis."""
    sizes = [an_int("patch_size", size) for size in one_each("patch_size", patch_size, len(lengths))]
    _check_multiples(lengths, sizes, "data_shape")
    return sizes


def _check_multiples(lengths: Sequence[int], sizes: Sequence[int], name: str = "x") -> None:
    for a, (n, p) in enumerate(zip(lengths, sizes, strict=True)):
        if n % p:
            raise ValueError(
                f"{name} has length {n} on axis {a}, no multiple of patch_size={p}: cut it to {n - n % p} or pad it to"
                f" {n - n % p + p}"
            )
