"""Tables with numeric and categorical columns.

Letters: B batch (rows of the table), M columns, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perceivers._checks import a_list, an_int, one_of
from perceivers.inputs.base import InputModule
from perceivers.ops.tokens import Tokens, check_array, check_dtype, check_ids, check_mask


class Tabular(InputModule):
    """One input per column: a learned affine embedding of a number, or a learned embedding of a category.

    Source: Gorishniy et al., 2021, "Revisiting Deep Learning Models for Tabular Data", section 3.3.

    Args:
        num_numeric: Number of numeric columns.
        categories: Number of categories of each categorical column.
        dim: Width of the embeddings, which is `num_channels`.
        missing: "mask" masks missing values; "token" replaces them by a learned vector per column.

    Raises:
        ValueError: If an argument is out of range or there are no columns.
    """

    def __init__(self, *, num_numeric: int = 0, categories: Sequence[int] = (), dim: int = 64, missing: str = "mask") -> None:
        super().__init__()
        num_numeric = an_int("num_numeric", num_numeric, 0)
        self.categories = [an_int("categories", n) for n in a_list("categories", categories, "whole numbers")]
        columns = num_numeric + len(self.categories)
        if columns == 0:
            raise ValueError("num_numeric=0 and categories=[] make a table without columns: give at least one")
        self.num_channels = an_int("dim", dim)
        self.missing = one_of("missing", missing, ("mask", "token"))
        if num_numeric:
            self.slopes = nn.Parameter(torch.empty(num_numeric, dim))
            self.offsets = nn.Parameter(torch.empty(num_numeric, dim))
        if self.categories:
            self.embeddings = nn.Embedding(sum(self.categories), dim)
        self.missing_tokens = nn.Parameter(torch.empty(columns, dim)) if missing == "token" else None
        self.config: dict[str, Any] = {
            "num_numeric": num_numeric,
            "categories": self.categories,
            "dim": dim,
            "missing": missing,
        }
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise all embeddings from a normal distribution (std 1) truncated to [-2, 2], like those of token ids."""
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter)

    def forward(self, x: Mapping[str, Tensor], mask: Tensor | None = None) -> list[Tokens]:
        """Return one token group, numeric columns first.

        Args:
            x: `{"numeric": ..., "categorical": ...}`, with keys for the columns that exist: numbers `[B, num_numeric]`,
                floating point, preferably standardised, NaN if missing; categories `[B, len(categories)]`, integer, -1 if
                missing.
            mask: `[B, M]`, bool, True where a column may be attended to.

        Raises:
            ValueError: If a name, shape or dtype does not fit, or a category is out of range.
        """
        wanted = {"numeric": self.config["num_numeric"], "categorical": len(self.categories)}
        names = [name for name, count in wanted.items() if count]
        if not isinstance(x, Mapping) or set(x) != set(names):
            got = f"has {sorted(map(str, x))}" if isinstance(x, Mapping) else f"is a {type(x).__name__}"
            raise ValueError(f"x {got}, but a dict with exactly the keys {names} is needed")
        tokens, known, first = [], [], x[names[0]]
        batch = first.shape[0] if isinstance(first, Tensor) else len(first)
        check_mask(mask, (batch, sum(wanted.values())), "[B, M], one entry per column")
        if numeric := wanted["numeric"]:
            numbers = x["numeric"]
            check_array("x['numeric']", numbers, 2, f"[B, {numeric}]")
            check_dtype("x", numbers, self.dtype)
            _check_columns("numeric", numbers, batch, numeric)
            present = _present(~numbers.isnan(), mask, slice(0, numeric))
            known.append(present)
            tokens.append(numbers.masked_fill(~present, 0).unsqueeze(-1) * self.slopes + self.offsets)
        if wanted["categorical"]:
            ids = x["categorical"]
            _check_columns("categorical", ids, batch, wanted["categorical"])
            present = _present(ids != -1, mask, slice(numeric, None))
            columns = [
                check_ids(f"x['categorical'][:, {i}]", ids[:, i], "[B]", 1, n, f"categories[{i}]", present[:, i])
                + sum(self.categories[:i])
                for i, n in enumerate(self.categories)
            ]
            known.append(present)
            tokens.append(self.embeddings(torch.stack(columns, dim=1)))
        content_BMD, known_BM = torch.cat(tokens, dim=1), torch.cat(known, dim=1)
        if self.missing_tokens is None:
            return [Tokens(content_BMD.mT, mask=known_BM)]
        content_BMD = torch.where(known_BM.unsqueeze(-1), content_BMD, self.missing_tokens)
        return [Tokens(content_BMD.mT, mask=mask)]

    def example(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return rows of zeros: `[batch_size, num_numeric]` and `[batch_size, len(categories)]`, int64."""
        x = {
            "numeric": self._zeros(batch_size, self.config["num_numeric"]),
            "categorical": self._zeros(batch_size, len(self.categories), dtype=torch.int64),
        }
        return {name: columns for name, columns in x.items() if columns.shape[1]}


def _check_columns(name: str, columns: Any, batch: int, count: int) -> None:
    if not isinstance(columns, Tensor) or tuple(columns.shape) != (batch, count):
        got = f"has shape {list(columns.shape)}" if isinstance(columns, Tensor) else f"is a {type(columns).__name__}"
        raise ValueError(f"x[{name!r}] {got}, but [{batch}, {count}] is needed: [rows, columns]")


def _present(known: Tensor, mask: Tensor | None, columns: slice) -> Tensor:
    return known if mask is None else known & mask[:, columns]
