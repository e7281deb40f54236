"""Text as bytes: .txt files, or the column "text" of a table or data set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import a_bool
from perceivers.data.checks import check_lengths
from perceivers.data.files import TABLES, read_table
from perceivers.data.preprocessing import Preprocessing, Sample, Sizes, spread
from perceivers.inputs import ByteTokenizer
from perceivers.ops.tokens import Tokens

PIECE = 256  # characters of the pieces that a file is cut into for pretraining


@dataclass(frozen=True, kw_only=True)
class Text(Preprocessing):
    """Text as UTF-8 bytes, truncated to `max_length`, padded and masked.

    Attributes:
        max_length: Bytes that the model reads.
        cls_sep: Whether [CLS] is prepended and [SEP] appended, as by the tokenizer of transformers.
    """

    plural: ClassVar[str] = "texts"
    suffixes: ClassVar[frozenset[str]] = frozenset({".txt"})
    containers: ClassVar[frozenset[str]] = frozenset(TABLES)
    column: ClassVar[str | None] = "text"
    mask_ratio: ClassVar[float | None] = 0.3  # more than BERT's 0.15, because no token stands for a hidden byte
    max_length: int
    cls_sep: bool = False

    def check(self) -> None:  # noqa: D102
        check_lengths("max_length", [self.max_length], 1)
        a_bool("cls_sep", self.cls_sep)

    def __call__(self, record: Any) -> Sample:
        """Encode a string, or a text file by its path."""
        if isinstance(record, Path):
            try:
                record = record.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{record} is not UTF-8 text ({error}): remove or convert it") from error
        if not isinstance(record, str):
            raise ValueError(f"a text must be a string, not a {type(record).__name__}: {record!r}")
        ids = ByteTokenizer(cls_sep=self.cls_sep).encode(record) or [ByteTokenizer.eos]
        if len(ids) > self.max_length:
            ids = [*ids[: self.max_length - 1], ids[-1 if self.cls_sep else self.max_length - 1]]
        x = torch.full((self.max_length,), ByteTokenizer.pad)
        x[: len(ids)] = torch.tensor(ids)
        return x, x != ByteTokenizer.pad

    def example(self) -> Sample:  # noqa: D102
        x = torch.full((self.max_length,), ByteTokenizer.eos)
        return x, torch.ones_like(x, dtype=torch.bool)

    def inputs(self, dim: int) -> dict[str, Any]:
        """Describe embedded bytes with learned positions."""
        return {"kind": "TokenIds", "vocab_size": ByteTokenizer.vocab_size, "max_length": self.max_length, "dim": dim}

    @classmethod
    def choose(cls, records: Sequence[Any], sizes: Sizes, **common: Any) -> Self:
        """Choose the length of the longest text, at most 1024 bytes."""
        texts = [one.read_text("utf-8", "replace") if isinstance(one, Path) else str(one) for one in spread(records)]
        longest = max(1, min(max(len(text.encode()) for text in texts), 1024))
        return cls(**common, max_length=longest if sizes.max_length is None else sizes.max_length)

    @classmethod
    def read(cls, file: Path) -> Iterable[str]:
        """Return the column "text" of a table."""
        return (row["text"] for row in read_table(file))

    @classmethod
    def pieces(cls, file: Path) -> Sequence[str]:
        """Cut a text file into pieces of 256 characters."""
        text = file.read_text(encoding="utf-8")
        return [text[i : i + PIECE] for i in range(0, len(text), PIECE)]

    def target_channels(self, channels: int) -> int:
        """Return the size of the vocabulary."""
        return ByteTokenizer.vocab_size

    def reconstruction_loss(self, predicted: Tensor, x: Any, tokens: Tokens, known: Tensor, rows: Tensor) -> Tensor:
        """Return the cross-entropy of each predicted byte."""
        return F.cross_entropy(predicted.mT, x.gather(1, rows), reduction="none")
