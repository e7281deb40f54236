"""Logits over a vocabulary for each position of a text: masked language models (Perceiver IO, section 4.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perceivers._checks import an_int
from perceivers.ops.linear import linear
from perceivers.ops.tokens import Tokens
from perceivers.outputs.base import Encoded, QueryOutput, learned_queries


class TokenLogits(QueryOutput):
    """A learned query for each position, decoded to logits with the embedding of the inputs or with a map of its own.

    Without indices there are as many results as input tokens. Only what `query_mask` names attends: DeepMind's language
    model passes the mask of its inputs, transformers' ignores it; results at visible positions are the same.

    Args:
        max_length: Number of positions, at least the length of any input.
        dim: Q, the width of a query; with `tied_to` also of the embedding, unless `decoded_channels` is given.
        vocab_size: Number of logits.
        tied_to: Name of the embedding among the parameters of the input module, `[vocab_size, dim]`, whose rows are
            the map to logits; `None` for a map of its own.
        group: Which of the token groups holds the text.
        decoded_channels: Width of a decoded query, where it is not `dim`.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(
        self,
        *,
        max_length: int,
        dim: int,
        vocab_size: int,
        tied_to: str | None = "embeddings.weight",
        group: int = 0,
        decoded_channels: int | None = None,
    ) -> None:
        super().__init__(
            query_channels=(dim := an_int("dim", dim)),
            decoded_channels=decoded_channels,
            num_channels=None if tied_to else an_int("vocab_size", vocab_size),
        )
        self.config = {
            "max_length": an_int("max_length", max_length),
            "dim": dim,
            "vocab_size": an_int("vocab_size", vocab_size),
            "tied_to": tied_to,
            "group": group,
            "decoded_channels": decoded_channels,
        }
        self.query = learned_queries(max_length, dim)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if tied_to else None

    def check(self, inputs: nn.Module, dim: int) -> None:
        """Compares the embedding that is shared."""
        if self.config["tied_to"] is not None:
            shape, wanted = self._embedding(inputs).shape, (self.config["vocab_size"], self.decoded_channels)
            if shape != wanted:
                raise ValueError(
                    f"tied_to={self.config['tied_to']!r} has shape {list(shape)}, but {list(wanted)} is needed:"
                    " [vocab_size, width of decoded queries]"
                )

    def queries(self, encoded: Encoded, sampled: bool) -> Tokens:
        """Rows of the learned table: as many as the input has tokens, or, where only latents are there, all."""
        length = encoded.group(self.config["group"]).num_inputs if encoded.tokens else len(self.query)
        if length > len(self.query):
            raise ValueError(f"max_length={len(self.query)} positions, but the text has {length} tokens: cut it")
        return Tokens.of(self.query[:length].expand(encoded.latents.shape[0], -1, -1))

    def results(self, decoded: Tensor, encoded: Encoded) -> Tensor:
        """Logits, `[B, O, vocab_size]`."""
        if self.head is not None:
            return self.head(decoded)
        return linear(decoded, self._embedding(encoded.inputs), self.bias)

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Positions before logits, as everyone has them."""
        return results

    def _embedding(self, inputs: nn.Module) -> nn.Parameter:
        try:
            return inputs.get_parameter(self.config["tied_to"])
        except AttributeError as error:
            names = [name for name, _ in inputs.named_parameters()]
            raise ValueError(
                f"tied_to={self.config['tied_to']!r} is no parameter of the inputs: choose from {names}"
            ) from error
