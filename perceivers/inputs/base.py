"""What input modules have in common: their interface, and reading arrays on a grid.

Letters: B batch, C channels, A axes, n_a length of axis a.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import a_list, an_int, one_of
from perceivers.ops.tokens import Positions, check_array, check_mask
from perceivers.position import FourierFeatures, grid_coordinates


class Located(NamedTuple):
    """Values with the coordinates they were taken at; each input module says what it wants in both.

    Attributes:
        values: What was measured.
        coordinates: Where, or when.
    """

    values: Any
    coordinates: Any


class InputModule(nn.Module):
    """Turns data of one kind into token groups: `forward(x, mask=None) -> list[Tokens]`, which share one softmax.

    True in a mask is what may be attended to, and what lies under False, even NaN, has no effect. Tokens keep the parts of an
    encoded input, so that the array of inputs and features side by side is never made unless an implementation needs it.

    Attributes:
        num_channels: Channels of an encoded input.
        config: All arguments of the constructor, every default resolved, ready for JSON.
        kinds: Every subclass by its name.
    """

    kinds: ClassVar[dict[str, type["InputModule"]]] = {}
    num_channels: int
    config: dict[str, Any]

    def __init_subclass__(cls) -> None:
        InputModule.kinds[cls.__name__] = cls

    def describe(self) -> dict[str, Any]:
        """The configuration with the kind of module, from which `create` makes one like it."""
        return {"kind": type(self).__name__, **self.config}

    @staticmethod
    def create(description: "InputModule | Mapping[str, Any]") -> "InputModule":
        """Makes a module from what `describe` returned, such as `{"kind": "Labels", "num_classes": 700}`.

        A module is returned as it is.

        Raises:
            ValueError: If the kind is unknown, or an argument does not fit.
            TypeError: If an argument is none of that kind's.
        """
        if isinstance(description, InputModule):
            return description
        if not isinstance(description, Mapping):
            raise ValueError(f"input={description!r} must be an input module or a dict with 'kind' and its arguments")
        kind = one_of("kind", description.get("kind"), sorted(InputModule.kinds))
        return InputModule.kinds[kind](**{name: value for name, value in description.items() if name != "kind"})

    def check_dtype(self, x: Tensor) -> None:
        """Raises `ValueError` where float64 would meet parameters of another dtype."""
        dtype = next((parameter.dtype for parameter in self.parameters()), x.dtype)
        if x.dtype.itemsize > 4 and x.dtype != dtype:
            raise ValueError(f"x is {x.dtype} but the model is {dtype}: convert one, x.float() or model.double()")


def a_shape(data_shape: Sequence[int], axes: range = range(1, 5)) -> list[int]:
    """Returns `data_shape`, `[C, *axes]`, if its number of axes is allowed."""
    shape = [an_int("data_shape", n) for n in a_list("data_shape", data_shape, "whole numbers")]
    if len(shape) - 1 not in axes:
        wanted = axes[0] if len(axes) == 1 else f"{axes[0]} to {axes[-1]}"
        raise ValueError(f"data_shape={data_shape!r} must be [channels, *axes] with {wanted} axes")
    return shape


@dataclass(frozen=True, eq=False)
class Grid:
    """A batch of arrays, checked.

    Attributes:
        values: `[B, C, *axes]`.
        mask: `[B, *axes]`, bool, or `None`.
        coordinates: Given for each axis, `[n]` or `[B, n]`, of encoded inputs; or `None`.
        lengths: `[B, A]`, the arrays' own lengths where shorter ones are padded; or `None`.
    """

    values: Tensor
    mask: Tensor | None
    coordinates: Sequence[Tensor] | None = None
    lengths: Tensor | None = None

    @classmethod
    def of(cls, x: Any, mask: Any, data_shape: Sequence[int], module: InputModule) -> "Grid":
        """Reads what a user passed.

        Args:
            x: `[B, C, *axes]`; `Located` with such values and, for each axis, coordinates; or a list of arrays `[C, *axes]`
                of different lengths, which are padded and masked.
            mask: `[B, *axes]`, or for a list of arrays a list of masks `[*axes]`; or `None`.
            data_shape: The module's, whose channels and number of axes must fit.
            module: Its dtype must fit.

        Raises:
            ValueError: If a shape, dtype or nesting does not fit.
        """
        channels, axes = data_shape[0], len(data_shape) - 1
        coordinates, lengths = None, None
        if isinstance(x, Located):
            x, coordinates = x.values, a_list("coordinates", x.coordinates, "tensors, one an axis")
            if len(coordinates) != axes:
                raise ValueError(f"coordinates has {len(coordinates)} entries for {axes} axes: give one each")
        elif isinstance(x, list | tuple):
            x, mask, lengths = pad_ragged(x, mask, channel_axes=1, axes=axes)
        check_array("x", x, 2 + axes, f"[B, {', '.join(map(str, data_shape))}]")
        if x.shape[1] != channels:
            raise ValueError(f"x has shape {list(x.shape)}, {x.shape[1]} channels, but data_shape says {channels} (axis 1)")
        if 0 in x.shape[2:]:
            raise ValueError(f"x has shape {list(x.shape)} with an empty axis: every axis needs at least one element")
        module.check_dtype(x)
        check_mask(mask, (x.shape[0], *x.shape[2:]), "[B, *axes]")
        return cls(x, mask, coordinates, lengths)

    def visible(self) -> Tensor:
        """The values, zero under a False mask: for maps that mix neighbours, where NaN would spread."""
        return self.values if self.mask is None else self.values.masked_fill(~self.mask.unsqueeze(1), 0)

    def positions(self, features: FourierFeatures, content: Tensor, patch_size: Sequence[int] | None = None) -> Positions:
        """Fourier features of the inputs `content`, `[B, U, *axes]`, each made of a patch of values.

        Raises:
            ValueError: If given coordinates do not fit.
        """
        dtype, lengths = content.dtype, content.shape[2:]
        if self.coordinates is not None:
            for a, (x, length) in enumerate(zip(self.coordinates, lengths, strict=True)):
                if not isinstance(x, Tensor) or tuple(x.shape) not in ((length,), (content.shape[0], length)):
                    shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                    raise ValueError(f"coordinates of axis {a} have shape {shape}, but [{length}] or [B, {length}] is needed")
            return Positions(features.tables_at(self.coordinates, dtype=dtype))
        if self.lengths is not None:  # each array spans -1 to 1 by itself, as it does alone
            own = self.lengths if patch_size is None else self.lengths // self.lengths.new_tensor(patch_size)
            spans = [grid_coordinates(own[:, a], length) for a, length in enumerate(lengths)]
            return Positions(features.tables_at([x.to(content.device) for x in spans], dtype=dtype))
        return Positions(features.tables(lengths, dtype=dtype, device=content.device))


def pad_ragged(
    arrays: Sequence[Tensor], masks: Sequence[Tensor] | None = None, *, channel_axes: int = 1, axes: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Makes one array of arrays with different lengths: shorter ones are padded with zeros, and the padding is masked.

    Args:
        arrays: B arrays, `[C, *axes]`, or `[*axes]` without channels.
        masks: For each `[*axes]`, bool; `None` for True everywhere.
        channel_axes: Number of leading axes that are the same for all arrays.
        axes: Number of axes whose lengths differ.

    Returns:
        `[B, C, *axes]`, its mask `[B, *axes]`, and the arrays' own lengths `[B, axes]`.

    Raises:
        ValueError: If an entry is no tensor, has other axes, other channels, another dtype, or is empty.
    """
    for i, array in enumerate(arrays):
        if not isinstance(array, Tensor) or array.ndim != channel_axes + axes:
            got = f"has shape {list(array.shape)}" if isinstance(array, Tensor) else f"is a {type(array).__name__}"
            shape = "[C, *axes]" if channel_axes else "[*axes]"
            raise ValueError(
                f"x[{i}] {got}, but a list of tensors {shape} with {channel_axes + axes} axes is needed, one a sample"
            )
        if array.shape[:channel_axes] != arrays[0].shape[:channel_axes] or array.dtype != arrays[0].dtype:
            raise ValueError(
                f"x[{i}] has shape {list(array.shape)} and {array.dtype}, x[0] has {list(arrays[0].shape)} and"
                f" {arrays[0].dtype}: make channels and dtype equal"
            )
        if 0 in array.shape:
            raise ValueError(f"x[{i}] has shape {list(array.shape)} with an empty axis: leave it out, or mask one element")
    if not arrays:
        raise ValueError("x is an empty list: give at least one array")
    if masks is not None and (not isinstance(masks, list | tuple) or len(masks) != len(arrays)):
        raise ValueError(f"mask is a {type(masks).__name__}, but x is a list of {len(arrays)} arrays: give a list of as many")
    for i, mask in enumerate(masks or ()):
        check_mask(mask, arrays[i].shape[channel_axes:], f"that of x[{i}]")
    lengths = torch.tensor([list(array.shape[channel_axes:]) for array in arrays])
    longest = lengths.amax(0).tolist()

    def pad(array: Tensor) -> Tensor:
        missing = [most - n for most, n in zip(longest, array.shape[array.ndim - axes :], strict=True)]
        return F.pad(array, [edge for count in reversed(missing) for edge in (0, count)])

    own = masks or [array.new_ones(array.shape[channel_axes:], dtype=torch.bool) for array in arrays]
    return torch.stack([pad(array) for array in arrays]), torch.stack([pad(mask) for mask in own]), lengths
