"""Time series with irregular time stamps, missing values and several sampling rates.

Letters: B batch, V variables, M time stamps.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perceivers._checks import a_number, an_int
from perceivers.inputs.base import InputModule, Located
from perceivers.ops.tokens import Positions, Tokens, check_array, check_dtype, check_mask
from perceivers.position import FourierFeatures


class TimeSeries(InputModule):
    """One input per measured value, with a learned embedding of its variable and Fourier features of its time.

    Missing values are masked, so nothing is imputed. A series is a set of variables that share their time stamps; several
    series, each with its own sampling rate, give several token groups.

    Args:
        num_variables: Number of variables of the series; a list for several series.
        start: The time that has coordinate -1, in the unit of the time stamps.
        stop: The time that has coordinate 1.
        resolution: Sampling rate, in samples from `start` to `stop`; the highest frequency is half of it.
        variable_channels: Width of the variable embeddings.
        num_bands: Number of frequency bands of the time features; 0 keeps only the coordinate.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1.
    """

    def __init__(
        self,
        *,
        num_variables: int | Sequence[int],
        start: float,
        stop: float,
        resolution: float,
        variable_channels: int = 16,
        num_bands: int = 64,
        frequency_base: float | None = None,
    ) -> None:
        super().__init__()
        several = num_variables if isinstance(num_variables, Sequence) else [num_variables]
        self.num_variables = [an_int("num_variables", n) for n in several]
        if not self.num_variables:
            raise ValueError("num_variables=[] must have at least one entry, the number of variables of a series")
        self.start, self.stop = float(start), float(stop)
        a_number("stop - start", self.stop - self.start)
        self.features = FourierFeatures.of(num_bands, resolution, frequency_base, [1])
        self.codes = nn.Parameter(torch.empty(sum(self.num_variables), an_int("variable_channels", variable_channels)))
        self.num_channels = 1 + variable_channels + self.features.num_channels
        self.config: dict[str, Any] = {
            "num_variables": self.num_variables,
            "start": self.start,
            "stop": self.stop,
            "variable_channels": variable_channels,
            **self.features.config,
            "resolution": self.features.resolutions[0],
        }
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise the variable embeddings from a normal distribution (std 1) truncated to [-2, 2]."""
        nn.init.trunc_normal_(self.codes)

    def forward(self, x: Located | Sequence[Located], mask: Any = None) -> list[Tokens]:
        """Return one token group per series.

        Args:
            x: `Located(values, times)`: values `[B, V, M]`, floating point, NaN if missing; times `[M]`, or `[B, M]` if
                samples differ, in any order. For several series, a list with one `Located` per series.
            mask: `[B, V, M]` or `[B, M]`, bool, True where a value may be attended to; for several series, a list with a mask
                or `None` per series.
        """
        count = len(self.num_variables)
        if isinstance(x, Located):
            x, mask = [x], [mask]
        if mask is None:
            mask = [None] * count
        if not isinstance(x, list | tuple) or not all(isinstance(series, Located) for series in x) or len(x) != count:
            got = f"{len(x)} entries" if isinstance(x, list | tuple) else f"a {type(x).__name__}"
            raise ValueError(f"x is {got}, but Located(values, times) is needed, or a list of {count}, one per series")
        if not isinstance(mask, list | tuple) or len(mask) != count:
            raise ValueError(f"mask is a {type(mask).__name__}, but a list of {count} is needed, one mask per series")
        codes = self.codes.split(self.num_variables)
        return [self._series(*each) for each in zip(x, mask, codes, strict=True)]

    def _series(self, series: Located, mask: Tensor | None, codes: Tensor) -> Tokens:
        values, times = series
        check_array("values", values, 3, f"[B, {len(codes)}, M]")
        check_dtype("x", values, self.dtype)
        batch, variables, stamps = values.shape
        if variables != len(codes):
            raise ValueError(f"values have shape {list(values.shape)}, but num_variables={len(codes)} (axis 1)")
        if not isinstance(times, Tensor) or tuple(times.shape) not in ((stamps,), (batch, stamps)):
            got = f"have shape {list(times.shape)}" if isinstance(times, Tensor) else f"are a {type(times).__name__}"
            raise ValueError(f"times {got}, but [{stamps}] or [{batch}, {stamps}] is needed: one time per value")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            check_mask(mask, (batch, stamps), "[B, M]")
            mask = mask.unsqueeze(1).expand_as(values)
        check_mask(mask, values.shape, "[B, V, M] or [B, M]")
        seen = ~values.isnan() if mask is None else mask & ~values.isnan()
        coordinates = (times.double() - self.start) * (2 / (self.stop - self.start)) - 1
        if times.ndim == 2:  # times without any value may be NaN
            coordinates = coordinates.masked_fill(~seen.any(1), 0)
        [table] = self.features.tables_at([coordinates], dtype=values.dtype)
        return Tokens(values.unsqueeze(1), Positions([codes, table]), seen)
