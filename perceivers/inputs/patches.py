"""Patches of arrays on a grid, one input per patch: space-to-depth for signals, images, video, volumes.

Letters: B batch, C channels, A axes, n_a length of axis a, p_a length of a patch along it.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor, nn

from perceivers._checks import an_int, one_each, one_of
from perceivers.inputs.base import GridBatch, InputModule, Located, a_shape, project
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Tokens
from perceivers.position import FourierFeatures, by_kinds


class Patches(InputModule):
    """One input per patch: its values or a linear projection of them, with Fourier features of the patch's position.

    The video of the published autoencoder has `data_shape=[3, 16, 224, 224], patch_size=[1, 4, 4], num_bands=32`, the
    AudioSet model `patch_size=[2, 8, 8]`.

    Args:
        data_shape: Channels and axis lengths, `[C, *axes]`, 1 to 4 axes; the lengths are multiples of the patch size.
            `forward` accepts other multiples.
        patch_size: Length of a patch, a scalar or one value per axis.
        embed_dim: Width of a linear projection of the values; `None` for no projection. Positions are not projected.
        num_bands: Number of frequency bands per axis; 0 keeps only the coordinates.
        resolution: Sampling rate, a scalar or one value per axis; the highest frequency is half of it. Defaults to the number
            of patches per axis.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1, as published.
        feature_order: Order of the position features: "axes" (coordinate, sines and cosines of the first axis, then of the
            next) or "kinds" (the coordinates of all axes, then all sines, then all cosines, as in DeepMind's code). Use
            "kinds" for weights from that code that several modalities share; otherwise permuting the weights is equivalent.
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
        """Return one token group.

        Args:
            x: `[B, C, *axes]`, floating point, each axis a multiple of the patch size; or `Located` with coordinates of the
                patches; or a list of arrays of different lengths; see `Pixels.forward`.
            mask: `[B, *axes]`, bool, True where x may be attended to. A patch may be attended to if any of its values may;
                its masked values are replaced by 0.
        """
        if isinstance(x, list | tuple) and not isinstance(x, Located):
            for array in x:  # before padding, which could hide a length that is not a multiple
                if isinstance(array, Tensor):
                    _check_multiples(array.shape[1:], self.patch_size)
        grid = GridBatch.of(x, mask, self.config["data_shape"], self)
        _check_multiples(grid.values.shape[2:], self.patch_size)
        tokens = patch_tokens(grid, self.patch_size, self.linear, self.features)
        if self.config["feature_order"] == "kinds" and tokens.positions is not None:
            starts = [tokens.content_width] * len(self.patch_size)
            tokens = replace(tokens, positions=replace(tokens.positions, tables=by_kinds(tokens.tables), starts=starts))
        return [tokens]

    def example(self, batch_size: int = 1) -> Tensor:
        """Return zeros, `[batch_size, *data_shape]`."""
        return self._zeros(batch_size, *self.config["data_shape"])


def patch_tokens(grid: GridBatch, patch_size: Sequence[int], linear: nn.Module | None, features: FourierFeatures) -> Tokens:
    """Return the patches of a grid, projected by `linear` unless it is `None`, with Fourier features of their positions."""
    content = space_to_depth(grid.visible(), patch_size)
    mask = grid.mask
    if mask is not None and prod(patch_size) > 1:
        mask = space_to_depth(mask.unsqueeze(1), patch_size).any(1)
    return project(Tokens(content, grid.positions(features, content, patch_size), mask), linear)


def space_to_depth(x: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Move patches to channels: `[B, C, n_1, ..., n_A]` to `[B, p_1 ... p_A C, n_1 / p_1, ..., n_A / p_A]`.

    Channels vary fastest, then the last axis of the patch, which is the order of the published weights. If all patches have
    one element, the result is a view of `x`.
    """
    axes = len(patch_size)
    split = x
    for a in reversed(range(axes)):
        split = split.unflatten(2 + a, (-1, patch_size[a]))  # [B, C, n_1 / p_1, p_1, n_2 / p_2, p_2, ...]
    order = [0, *range(3, 3 + 2 * axes, 2), 1, *range(2, 2 + 2 * axes, 2)]
    return split.permute(order).flatten(1, 1 + axes)


def a_patch_size(patch_size: int | Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Return the patch length for each axis; raise `ValueError` unless it divides the axis length."""
    sizes = [an_int("patch_size", size) for size in one_each("patch_size", patch_size, len(lengths))]
    _check_multiples(lengths, sizes, "data_shape")
    return sizes


def _check_multiples(lengths: Sequence[int], sizes: Sequence[int], name: str = "x") -> None:
    for a, (n, p) in enumerate(zip(lengths, sizes, strict=True)):
        if n % p:
            raise ValueError(
                f"{name} has length {n} on axis {a}, which is not a multiple of patch_size={p}: crop it to {n - n % p} or pad"
                f" it to {n - n % p + p}"
            )
