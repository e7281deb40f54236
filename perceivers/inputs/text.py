"""Sequences of token ids, and text as bytes (Perceiver IO, section 4.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perceivers._checks import a_bool, a_list, an_int
from perceivers.inputs.base import InputModule
from perceivers.inputs.ragged import pad_ragged
from perceivers.ops.tokens import Positions, Tokens, check_ids
from perceivers.position import LearnedPositions


class TokenIds(InputModule):
    """A learned vector for each id plus one for its place in the sequence.

    The published language model has `vocab_size=262, max_length=2048, dim=768`.

    Args:
        vocab_size: Ids are 0 to `vocab_size - 1`.
        max_length: The longest sequence.
        dim: Width of the vectors, which is `num_channels`.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(self, *, vocab_size: int = 262, max_length: int = 2048, dim: int = 768) -> None:
        super().__init__()
        self.num_channels = an_int("dim", dim)
        self.embeddings = nn.Embedding(an_int("vocab_size", vocab_size), dim)
        self.positions = LearnedPositions(axes=[an_int("max_length", max_length)], num_channels=dim)
        self.config: dict[str, Any] = {"vocab_size": vocab_size, "max_length": max_length, "dim": dim}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new vectors for the ids: normal with deviation 1, cut at two, as in DeepMind's released code."""
        nn.init.trunc_normal_(self.embeddings.weight)

    def forward(self, x: Tensor | Sequence[Tensor], mask: Any = None) -> list[Tokens]:
        """Makes one token group.

        Args:
            x: Ids, `[B, M]`, integer; or a list of sequences `[M]` of different lengths.
            mask: `[B, M]`, bool, True where x may be attended to, such as `x != tokenizer.pad`; for a list a list of masks.

        Raises:
            ValueError: If a shape or dtype does not fit, an id outside the mask is out of range, or x is too long.
        """
        if isinstance(x, list | tuple):
            x, mask, _ = pad_ragged(x, mask, channel_axes=0)
        ids = check_ids("x", x, "[B, M]", 2, self.config["vocab_size"], "vocab_size", mask)
        length, longest = ids.shape[1], self.config["max_length"]
        if not 0 < length <= longest:
            raise ValueError(f"x has shape {list(ids.shape)}, but max_length={longest}: cut it to 1 to {longest} ids")
        content = self.embeddings(ids).movedim(-1, 1)
        return [Tokens(content, Positions([self.positions.embeddings[:length]], starts=[0]), mask)]


class ByteTokenizer:
    """Text as UTF-8 bytes: id = byte + 6, and six special ids. No files, no vocabulary to train.

    Args:
        cls_sep: Whether `encode` puts [CLS] in front and [SEP] behind, as transformers' tokenizer of the published model
            does; DeepMind's does not.
    """

    pad, bos, eos, mask, cls, sep = range(6)
    num_specials = 6
    vocab_size = num_specials + 256

    def __init__(self, *, cls_sep: bool = False) -> None:
        self.cls_sep = a_bool("cls_sep", cls_sep)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text."""
        if not isinstance(text, str):
            raise ValueError(f"text is a {type(text).__name__}, not a string: call encode for each string, or the tokenizer")
        ids = [byte + self.num_specials for byte in text.encode()]
        return [self.cls, *ids, self.sep] if self.cls_sep else ids

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Returns the text of ids without the special ones; bytes that are no UTF-8 become the replacement character.

        Raises:
            ValueError: If an id is out of range.
        """
        numbers = [int(i) for i in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.vocab_size:
            raise ValueError(f"ids from {min(numbers)} to {max(numbers)}: an id is 0 to {self.vocab_size - 1}")
        return bytes(i - self.num_specials for i in numbers if i >= self.num_specials).decode(errors="replace")

    def __call__(self, texts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Encodes texts and pads them at the end.

        Args:
            texts: B strings.
            length: Length to pad to; `None` for the longest.

        Returns:
            Ids `[B, M]` and their mask `[B, M]`, True where there is text.

        Raises:
            ValueError: If a text is longer than `length`.
        """
        rows = [self.encode(text) for text in a_list("texts", texts, "strings")]
        if not rows:
            raise ValueError("texts=[], there is no text: give at least one")
        longest = max(1, *(len(row) for row in rows))
        length = longest if length is None else an_int("length", length)
        if longest > length:
            raise ValueError(f"length={length} is too short for a text of {longest} ids: cut the text")
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask
