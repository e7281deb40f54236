"""What input modules have in common: their interface, and reading arrays on a grid.

Letters: B batch, C channels, A axes, n_a length of axis a.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceivers._checks import a_list, an_int
from perceivers._registry import Configurable
from perceivers.inputs.ragged import pad_ragged
from perceivers.ops.tokens import Positions, check_grid
from perceivers.position import FourierFeatures, grid_coordinates


class Located(NamedTuple):
    """Values with the coordinates they were taken at; each input module says what it wants in both.

    Attributes:
        values: What was measured.
        coordinates: Where, or when.
    """

    values: Any
    coordinates: Any


class InputModule(Configurable, argument="inputs"):
    """Turns data of one kind into token groups: `forward(x, mask=None) -> list[Tokens]`, which share one softmax.

    True in a mask is what may be attended to, and what lies under False, even NaN, has no effect. Tokens keep the parts of an
    encoded input, so that the array of inputs and features side by side is never made unless an implementation needs it.

    Attributes:
        num_channels: Channels of an encoded input.
        config: All arguments of the constructor, every default resolved, ready for JSON.
    """

    num_channels: int

    @property
    def dtype(self) -> torch.dtype | None:
        """That of the parameters; `None` where there are none."""
        return next((parameter.dtype for parameter in self.parameters()), None)

    def example(self, batch_size: int = 1) -> Any:
        """Stub for tests of the models, until each input module has its own."""
        config = {"kind": type(self).__name__, **self.config}
        return _stub(config, batch_size)


def _stub(config: Any, batch_size: int) -> Any:
    match config["kind"]:
        case "Multimodal":
            parts = {name: _stub(part, batch_size) for name, part in config["modalities"].items()}
            return None if any(part is None for part in parts.values()) else parts
        case "TokenIds":
            return torch.zeros(batch_size, config["max_length"], dtype=torch.int64)
        case "FramePairs":
            channels, *axes = config["data_shape"]
            shape = [channels, 2, *axes]
        case "Waveform" | "LogMel":
            shape = [config.get("audio_channels", 1), config["num_samples"]]
        case "Labels":
            shape = [config["num_classes"]]
        case "Tabular":
            numbers = {"numeric": torch.zeros(batch_size, config["num_numeric"])}
            ids = {"categorical": torch.zeros(batch_size, len(config["categories"]), dtype=torch.int64)}
            return {name: x for name, x in {**numbers, **ids}.items() if x.shape[1]}
        case "Pixels" | "LearnedPixels" | "Patches" | "ConvStem":
            shape = config["data_shape"]
        case _:
            return None
    return torch.zeros(batch_size, *shape)


def linear_map(linear: nn.Linear | None) -> dict[str, Any]:
    """The arguments of `Tokens` for a linear map of the content."""
    return {} if linear is None else {"embedding": linear.weight, "constant": linear.bias}


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
        axes = len(data_shape) - 1
        coordinates, lengths = None, None
        if isinstance(x, Located):
            x, coordinates = x.values, a_list("coordinates", x.coordinates, "tensors, one an axis")
            if len(coordinates) != axes:
                raise ValueError(f"coordinates has {len(coordinates)} entries for {axes} axes: give one each")
        elif isinstance(x, list | tuple):
            x, mask, lengths = pad_ragged(x, mask, channel_axes=1, axes=axes)
        check_grid(x, mask, data_shape, module.dtype)
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
