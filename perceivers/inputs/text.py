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
    """One input per token: the embedding of its id plus a learned position embedding.

    The published language model has `vocab_size=262, max_length=2048, dim=768`.

    Args:
        vocab_size: Size of the vocabulary; ids are 0 to `vocab_size - 1`.
        max_length: Length of the longest sequence.
        dim: Width of the embeddings, which is `num_channels`.
    """

    def __init__(self, *, vocab_size: int = 262, max_length: int = 2048, dim: int = 768) -> None:
        super().__init__()
        self.num_channels = an_int("dim", dim)
        self.embeddings = nn.Embedding(an_int("vocab_size", vocab_size), dim)
        self.positions = LearnedPositions(axes=[an_int("max_length", max_length)], num_channels=dim)
        self.config: dict[str, Any] = {"vocab_size": vocab_size, "max_length": max_length, "dim": dim}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise the token embeddings from a normal distribution (std 1) truncated to [-2, 2].

        Source: DeepMind's released code.
        """
        nn.init.trunc_normal_(self.embeddings.weight)

    def forward(self, x: Tensor | Sequence[Tensor], mask: Any = None) -> list[Tokens]:
        """Return one token group.

        Args:
            x: Ids, `[B, M]`, integer; or a list of sequences `[M]` of different lengths.
            mask: `[B, M]`, bool, True where x may be attended to, such as `x != tokenizer.pad`; for a list of sequences, a
                list of masks.

        Raises:
            ValueError: If a shape or dtype does not fit, an unmasked id is out of range, or x is too long.
        """
        if isinstance(x, list | tuple):
            x, mask, _ = pad_ragged(x, mask, channel_axes=0)
        ids = check_ids("x", x, "[B, M]", 2, self.config["vocab_size"], "vocab_size", mask)
        length, longest = ids.shape[1], self.config["max_length"]
        if not 0 < length <= longest:
            raise ValueError(f"x has shape {list(ids.shape)}, but max_length={longest}: truncate it to 1 to {longest} ids")
        content = self.embeddings(ids).movedim(-1, 1)
        return [Tokens(content, Positions([self.positions([longest])[:length]], starts=[0]), mask)]

    def example(self, batch_size: int = 1) -> Tensor:
        """Return ids of zero, `[batch_size, max_length]`, int64."""
        return self._zeros(batch_size, self.config["max_length"], dtype=torch.int64)


class ByteTokenizer:
    """Tokenizer that encodes text as UTF-8 bytes: id = byte + 6, below six special ids. It needs no files or training.

    Args:
        cls_sep: Whether `encode` adds [CLS] at the start and [SEP] at the end, like transformers' tokenizer of the published
            model; DeepMind's adds neither.
    """

    pad, bos, eos, mask, cls, sep = range(6)
    num_specials = 6
    vocab_size = num_specials + 256

    def __init__(self, *, cls_sep: bool = False) -> None:
        self.cls_sep = a_bool("cls_sep", cls_sep)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        if not isinstance(text, str):
            raise ValueError(
                f"text is a {type(text).__name__}, not a string: call the tokenizer itself to encode several strings"
            )
        ids = [byte + self.num_specials for byte in text.encode()]
        return [self.cls, *ids, self.sep] if self.cls_sep else ids

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Return the text of ids, ignoring special ids; invalid UTF-8 becomes the replacement character.

        Raises:
            ValueError: If an id is out of range.
        """
        numbers = [int(i) for i in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.vocab_size:
            raise ValueError(f"ids has values from {min(numbers)} to {max(numbers)}: ids are 0 to {self.vocab_size - 1}")
        return bytes(i - self.num_specials for i in numbers if i >= self.num_specials).decode(errors="replace")

    def __call__(self, texts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Encode texts and pad them at the end.

        Args:
            texts: B strings.
            length: Length to pad to. Defaults to that of the longest text.

        Returns:
            Ids `[B, M]` and their mask `[B, M]`, True where there is text, False in the padding.

        Raises:
            ValueError: If a text is longer than `length`.
        """
        rows = [self.encode(text) for text in a_list("texts", texts, "strings")]
        if not rows:
            raise ValueError("texts=[] must have at least one text")
        longest = max(1, *(len(row) for row in rows))
        length = longest if length is None else an_int("length", length)
        if longest > length:
            raise ValueError(f"length={length} is too short for a text of {longest} ids: truncate the text or increase length")
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask
