"""What all input modules share: their interface, linear projections of content, and checks of arrays on a grid.

Letters: B batch, C channels, A axes, n_a length of axis a.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceivers._checks import a_list, an_int
from perceivers._registry import Configurable
from perceivers.inputs.ragged import pad_ragged
from perceivers.layers.linear import known_affine
from perceivers.ops.tokens import Positions, Tokens, check_grid
from perceivers.position import FourierFeatures, grid_coordinates


class Located(NamedTuple):
    """Values with the coordinates at which they were measured. Each input module documents the shapes of both.

    Attributes:
        values: The measured values.
        coordinates: Their coordinates in space or time.
    """

    values: Any
    coordinates: Any


class InputModule(Configurable, argument="inputs"):
    """Base class of input modules, which convert one kind of data to token groups.

    A subclass implements `forward(x, mask=None) -> list[Tokens]` and sets `num_channels` and `config`. The token groups share
    one softmax. A mask is True where an input may be attended to; values under False, including NaN, must not affect the
    result. Tokens keep content and position features apart, so that the concatenated array is made only for attention
    implementations that need it.

    Defining a subclass registers it: `PerceiverIO` then accepts `{"kind": name of the class, **config}` as `inputs`, and
    `from_pretrained` restores it once the class has been imported.

    Attributes:
        num_channels: Channels of an encoded input.
        config: All constructor arguments with defaults resolved, JSON-serialisable.
    """

    num_channels: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the parameters, or `None` for a module without parameters."""
        return next((parameter.dtype for parameter in self.parameters()), None)

    def example(self, batch_size: int = 1) -> Any:
        """Return a batch of zeros of the size this module was made for, or `None` if it takes any number of inputs.

        Floating-point tensors have the dtype and device of the parameters; without parameters they are float32 on the default
        device. Exporters, FLOP counts and summaries use the example as input.

        Args:
            batch_size: Number of samples.
        """
        return None

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return zeros on the device of the parameters and, unless `dtype` is given, in their dtype."""
        parameter = next(self.parameters(), None)
        dtype = dtype or self.dtype or torch.float32
        return torch.zeros(shape, dtype=dtype, device=None if parameter is None else parameter.device)


def project(tokens: Tokens, linear: nn.Module | None) -> Tokens:
    """Return `tokens` with their content projected by a linear layer; unchanged if `linear` is `None`.

    If the weights that the layer applies are known, they become the `embedding` and `constant` of the tokens, and fast
    attention implementations never compute the projection for each input. Otherwise, for example if the layer has forward
    hooks or was replaced, it is called on the content.
    """
    if linear is None:
        return tokens
    affine = known_affine(linear)
    if affine is not None:
        return replace(tokens, embedding=affine[0], constant=affine[1])
    content = tokens.visible_content()
    content = content.to(next(linear.parameters(), content).dtype)
    return replace(tokens, content=linear(content.movedim(1, -1)).movedim(-1, 1))


def a_shape(data_shape: Sequence[int], axes: range = range(1, 5)) -> list[int]:
    """Return `data_shape`, `[C, *axes]`, as a list of ints; raise `ValueError` unless its number of axes is in `axes`."""
    shape = [an_int("data_shape", n) for n in a_list("data_shape", data_shape, "whole numbers")]
    if len(shape) - 1 not in axes:
        wanted = axes[0] if len(axes) == 1 else f"{axes[0]} to {axes[-1]}"
        raise ValueError(f"data_shape={data_shape!r} must be [channels, *axes] with {wanted} axes")
    return shape


@dataclass(frozen=True, eq=False)
class GridBatch:
    """A checked batch of arrays on a grid.

    Attributes:
        values: `[B, C, *axes]`.
        mask: `[B, *axes]`, bool, or `None`.
        coordinates: Coordinates of the encoded inputs, one tensor `[n]` or `[B, n]` per axis, if given; else `None`.
        lengths: `[B, A]`, the unpadded lengths of each array in a batch of different lengths; else `None`.
    """

    values: Tensor
    mask: Tensor | None
    coordinates: Sequence[Tensor] | None = None
    lengths: Tensor | None = None

    @classmethod
    def of(cls, x: Any, mask: Any, data_shape: Sequence[int], module: InputModule) -> "GridBatch":
        """Check the arguments of an input module's `forward`, and pad and mask arrays of different lengths.

        Args:
            x: `[B, C, *axes]`; or `Located` with such values and one coordinate tensor per axis; or a list of B arrays
                `[C, *axes]` of different lengths.
            mask: `[B, *axes]`, bool; for a list of arrays, a list of masks `[*axes]`; or `None`.
            data_shape: The module's `data_shape`. Channels and number of axes must match it, lengths may differ.
            module: The input module, whose dtype must fit.
        """
        axes = len(data_shape) - 1
        coordinates, lengths = None, None
        if isinstance(x, Located):
            x, coordinates = x.values, a_list("coordinates", x.coordinates, "tensors, one per axis")
            if len(coordinates) != axes:
                raise ValueError(f"coordinates has {len(coordinates)} entries for {axes} axes: give one tensor per axis")
        elif isinstance(x, list | tuple):
            x, mask, lengths = pad_ragged(x, mask, channel_axes=1, axes=axes)
        check_grid(x, mask, data_shape, module.dtype)
        return cls(x, mask, coordinates, lengths)

    def visible(self) -> Tensor:
        """Return the values with zeros under False, for operations that mix neighbours and would spread NaN."""
        return self.values if self.mask is None else self.values.masked_fill(~self.mask.unsqueeze(1), 0)

    def positions(self, features: FourierFeatures, content: Tensor, patch_size: Sequence[int] | None = None) -> Positions:
        """Return the Fourier features of the inputs' positions.

        Args:
            features: The features to compute.
            content: `[B, U, *axes]`, whose axes and dtype the positions are for.
            patch_size: Lengths of the patches of values that the content was made of; `None` for single values.

        Raises:
            ValueError: If the given coordinates do not fit.
        """
        dtype, lengths = content.dtype, content.shape[2:]
        if self.coordinates is not None:
            for a, (x, length) in enumerate(zip(self.coordinates, lengths, strict=True)):
                if not isinstance(x, Tensor) or tuple(x.shape) not in ((length,), (content.shape[0], length)):
                    got = f"have shape {list(x.shape)}" if isinstance(x, Tensor) else f"are a {type(x).__name__}"
                    raise ValueError(f"coordinates of axis {a} {got}, but [{length}] or [B, {length}] is needed")
            return Positions(features.tables_at(self.coordinates, dtype=dtype))
        if self.lengths is not None:  # each array spans -1 to 1 by itself, as it does alone
            own = self.lengths if patch_size is None else self.lengths // self.lengths.new_tensor(patch_size)
            spans = [grid_coordinates(own[:, a], length) for a, length in enumerate(lengths)]
            return Positions(features.tables_at([x.to(content.device) for x in spans], dtype=dtype))
        return Positions(features.tables(lengths, dtype=dtype, device=content.device))
