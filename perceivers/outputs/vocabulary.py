"""Logits over a vocabulary for each position of a text, for masked language models (Perceiver IO, section 4.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perceivers._checks import an_int
from perceivers.layers.linear import why_touched
from perceivers.ops.linear import linear
from perceivers.ops.tokens import Tokens
from perceivers.outputs.base import Encoded, QueryOutput, learned_queries


class TokenLogits(QueryOutput):
    """One learned query per position, decoded to logits `[B, M, vocab_size]` by the tied input embedding or a linear head.

    Without `indices` there is one result per input token. With `query_mask`, queries under False gather zeros: DeepMind's
    language model passes the mask of the inputs as query mask, transformers' ignores it; results at unmasked positions are the
    same.

    Args:
        max_length: Number of positions, at least the length of any input.
        dim: Q, the width of a query; with `tied_to` also the width of the embedding, unless `decoded_channels` is given.
        vocab_size: Number of logits.
        tied_to: Name of the embedding, a parameter of the input module `[vocab_size, dim]`, that is used as the weight of the
            head; `None` for a head with its own weight.
        group: Index of the token group that holds the text.
        decoded_channels: Width of a decoded query. Defaults to `dim`.
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
        """Raise `ValueError` if the tied embedding does not exist or has another shape."""
        if self.config["tied_to"] is not None:
            shape, wanted = self._tied(inputs)[1].shape, (self.config["vocab_size"], self.decoded_channels)
            if shape != wanted:
                raise ValueError(
                    f"tied_to={self.config['tied_to']!r} has shape {list(shape)}, but {list(wanted)} is needed:"
                    " [vocab_size, width of decoded queries]"
                )

    def queries(self, encoded: Encoded, sampled: bool) -> Tokens:
        """Return the first rows of the learned queries, one per input token; all of them if only latents are available."""
        length = encoded.group(self.config["group"]).num_inputs if encoded.tokens else len(self.query)
        if length > len(self.query):
            raise ValueError(f"the text has {length} tokens, but max_length={len(self.query)}: truncate it")
        return Tokens.of(self.query[:length].expand(encoded.latents.shape[0], -1, -1))

    def results(self, decoded: Tensor, encoded: Encoded) -> Tensor:
        """Return logits, `[B, O, vocab_size]`."""
        if self.head is not None:
            return self.head(decoded)
        return linear(decoded, self._embedding(encoded.inputs), self.bias)

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Return the logits unchanged, positions before channels."""
        return results

    def _tied(self, inputs: nn.Module) -> tuple[nn.Module, Tensor]:
        """Return the module that owns the tied weight, and the weight."""
        path, _, name = self.config["tied_to"].rpartition(".")
        try:
            owner = inputs.get_submodule(path)
            weight = getattr(owner, name)
        except AttributeError:
            weight = None
        if not isinstance(weight, Tensor):
            names = [name for name, _ in inputs.named_parameters()]
            raise ValueError(f"tied_to={self.config['tied_to']!r} is not a parameter of the inputs: choose from {names}")
        return owner, weight  # pyright: ignore[reportPossiblyUnboundVariable]

    def _embedding(self, inputs: nn.Module) -> Tensor:
        """Return the tied weight as the input module applies it, `[vocab_size, width of decoded queries]`.

        An embedding that is wrapped (by an adapter), hooked or parametrised is called on all ids, since its `weight` alone is
        not what it computes.
        """
        owner, weight = self._tied(inputs)
        is_embedding = isinstance(owner, nn.Embedding) or isinstance(getattr(owner, "base_layer", None), nn.Embedding)
        if is_embedding and (type(owner) is not nn.Embedding or why_touched("embedding", owner) is not None):
            return owner(torch.arange(self.config["vocab_size"], device=weight.device))
        return weight
