"""Rows of tables: .csv, .tsv, .parquet, .json and .jsonl files, data sets, and arrays of vectors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.data.checks import check_names, check_numbers
from perceivers.data.figures import draw_bars
from perceivers.data.files import TABLES, read_array, read_table
from perceivers.data.preprocessing import Preprocessing, Sample, Sizes
from perceivers.ops.tokens import Tokens

MOST_COLUMNS = 256  # vectors with more elements are series, not rows
FEW_NAMES = 100  # a column with more names, and fewer than ten rows per name, is left out


@dataclass(frozen=True, kw_only=True)
class Table(Preprocessing):
    """Rows of a table: numbers standardised, categories by their names, missing and unknown values left out.

    Attributes:
        numeric: Columns of numbers.
        mean: Mean of each, which is subtracted.
        std: Standard deviation of each, by which the difference is divided.
        categorical: Columns of categories, each with its names.
    """

    plural: ClassVar[str] = "table rows"
    containers: ClassVar[frozenset[str]] = frozenset({*TABLES, ".npz"})
    mask_ratio: ClassVar[float | None] = 0.3
    numeric: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    categorical: dict[str, list[str]] = field(default_factory=dict)

    def check(self) -> None:  # noqa: D102
        check_names("numeric", self.numeric)
        check_numbers("mean", self.mean, len(self.numeric))
        check_numbers("std", self.std, len(self.numeric), positive=True)
        if not isinstance(self.categorical, dict):
            raise ValueError(f"categorical={self.categorical!r} must be a dict from columns to lists of names")
        for column, names in self.categorical.items():
            check_names(f"categorical[{column!r}]", names)

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order of the inputs."""
        return [*self.numeric, *self.categorical]

    def __call__(self, record: Mapping[str, Any]) -> Sample:
        """Encode one row, a dict from columns to values."""
        if missing := [name for name in self.columns if name not in record]:
            raise ValueError(f"a row lacks the columns {missing}, it has {sorted(record)}: add them, empty if unknown")
        x = {}
        if self.numeric:
            numbers = [_number(name, record[name]) for name in self.numeric]
            x["numeric"] = (torch.tensor(numbers) - torch.tensor(self.mean)) / torch.tensor(self.std)
        if self.categorical:
            ids = [_index(names, record[name]) for name, names in self.categorical.items()]
            x["categorical"] = torch.tensor(ids, dtype=torch.int64)
        return x, None

    def example(self) -> Sample:  # noqa: D102
        x = {}
        if self.numeric:
            x["numeric"] = torch.zeros(len(self.numeric))
        if self.categorical:
            x["categorical"] = torch.zeros(len(self.categorical), dtype=torch.int64)
        return x, None

    def inputs(self, dim: int) -> dict[str, Any]:
        """Describe one input per column."""
        categories = [max(1, len(names)) for names in self.categorical.values()]
        return {"kind": "Tabular", "num_numeric": len(self.numeric), "categories": categories, "dim": dim, "missing": "token"}

    @classmethod
    def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any) -> Self:
        """Choose the columns that differ between rows, and their statistics, from all rows.

        Raises:
            ValueError: If there are none.
        """
        table = [records[i] for i in range(len(records))]
        numeric, categorical, means, stds = [], {}, [], []
        for column in table[0]:
            values = [row[column] for row in table if row[column] is not None and row[column] != ""]
            if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                known = np.array(values, dtype=np.float64)
                known = known[np.isfinite(known)]
                if len(known) and known.std() > 0:  # a constant column carries no information
                    numeric.append(column)
                    means.append(float(known.mean()))
                    stds.append(float(known.std()))
            elif values:
                names = sorted({str(value) for value in values})
                if 1 < len(names) <= max(FEW_NAMES, len(table) // 10):  # not a constant, and not a name per row
                    categorical[column] = names
        if not numeric and not categorical:
            raise ValueError(
                f"PATH: none of the columns {list(table[0])} differs between rows, or all are free text: add columns"
            )
        return cls(**common, numeric=numeric, mean=means, std=stds, categorical=categorical)

    @classmethod
    def accepts(cls, name: str, x: np.ndarray) -> bool:
        """Return whether the array holds vectors of at most 256 elements."""
        return name == "x" and x.ndim == 2 and x.shape[1] <= MOST_COLUMNS

    @classmethod
    def from_array(cls, x: np.ndarray) -> Sequence[Any]:
        """Return the vectors as rows with the columns "0", "1", ..."""
        return Rows(x)

    @classmethod
    def read(cls, file: Path) -> Iterable[Any]:
        """Return the rows of a table, or of the array of an .npz file."""
        return read_table(file) if file.suffix.lower() in TABLES else Rows(read_array(file))

    def target_channels(self, channels: int) -> int:
        """Return the largest number of categories of a column."""
        return max(1, *(len(names) for names in self.categorical.values()), 1)

    def known(self, x: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
        """Return which values are not missing: missing ones can neither be seen nor predicted."""
        numbers = [~x["numeric"].isnan()] if "numeric" in x else []
        return torch.cat([*numbers, *([x["categorical"] != -1] if "categorical" in x else [])], dim=1)

    def reconstruction_loss(
        self, predicted: Tensor, x: Mapping[str, Tensor], tokens: Tokens, known: Tensor, rows: Tensor
    ) -> Tensor:
        """Return the squared error of numbers and the cross-entropy of categories."""
        numeric = len(self.numeric)
        losses = torch.zeros_like(predicted[..., 0])
        if numeric:
            wanted = x["numeric"].nan_to_num().gather(1, rows.clamp_max(numeric - 1))
            losses = (predicted[..., 0] - wanted).square()
        if self.categorical:
            columns = (rows - numeric).clamp_min(0)
            counts = torch.tensor([len(names) for names in self.categorical.values()], device=predicted.device)[columns]
            absent = torch.arange(predicted.shape[-1], device=predicted.device) >= counts.unsqueeze(-1)
            wanted = x["categorical"].clamp_min(0).gather(1, columns)
            entropy = F.cross_entropy(predicted.masked_fill(absent, -1e4).mT, wanted, reduction="none")
            losses = torch.where(rows < numeric, losses, entropy)
        return losses

    def draw(self, panels: Sequence[Any], record: Any, x: Any, maps: Tensor) -> None:
        """Draw the row as text, and one bar per column."""
        panels[0].axis("off")
        panels[0].text(0, 1, "\n".join(f"{c}: {record[c]}" for c in self.columns[:20]), va="top", fontsize=6)
        draw_bars(panels[1:], maps, len(self.columns))
        for panel in panels[1:]:
            panel.set_xticks(np.arange(len(self.columns)) + 0.5, self.columns, rotation=90, fontsize=5)


class Rows(Sequence):
    """Rows of an array as rows of a table, with the columns "0", "1", ..."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: Any) -> Any:
        return {str(column): value.item() for column, value in enumerate(self.x[int(i)])}


def _number(name: str, value: Any) -> float:
    if value is None or value == "":
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} holds {value!r}, which is not a number: correct it or leave it empty") from error
    if math.isinf(number):
        raise ValueError(f"column {name!r} holds {value!r}: correct it or leave it empty")
    return number


def _index(names: list[str], value: Any) -> int:
    """Return the index of a category; -1 if it is missing or unknown."""
    return names.index(str(value)) if value is not None and str(value) in names else -1
