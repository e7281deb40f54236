"""The interface of `PerceiverIO`'s output modules, and the base class of those that query the latents.

An output module makes queries, lets them attend to the latents through the decoder (`Encoded.attend`), and converts the
decoded queries to a result. It may call the decoder any number of times: queries do not interact, so decoding some of them, or
one chunk at a time, gives the same as decoding all at once.

Letters: B batch, N latents, D their width, O queries, Q their width, C channels of a result.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perceivers._checks import an_int
from perceivers._registry import Configurable
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Tokens
from perceivers.outputs.gather import gather_tokens


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an output module decodes from.

    Attributes:
        latents: `[B, N, D]`.
        attend: The decoder, a function of a token group of O queries and a mask `[B, O]` of the queries that may attend, or
            `None`. It returns the decoded queries, `[B, O, Q]`.
        tokens: The token groups that the latents were computed from; empty if they are not available.
        inputs: The input module that made the token groups, for outputs that share parameters with it.
        queries: The queries passed by the user, for outputs without queries of their own; else `None`.
    """

    latents: Tensor
    attend: Callable[[Tokens, Tensor | None], Tensor]
    tokens: Sequence[Tokens]
    inputs: nn.Module
    queries: Any = None

    def group(self, index: int) -> Tokens:
        """Return a token group of the inputs by its index; raise `ValueError` if there is none."""
        if not -len(self.tokens) <= index < len(self.tokens):
            raise ValueError(
                f"group={index}, but there are {len(self.tokens)} token groups: pass those of the inputs to decode()"
            )
        return self.tokens[index]


class Output(Configurable, ABC, argument="outputs"):
    """Base class of output modules.

    A subclass implements `forward` and sets the attributes below. For outputs with one result per query, `QueryOutput` does
    most of that. Defining a subclass registers it: `PerceiverIO` then accepts `{"kind": name of the class, **config}` as
    `outputs`, and `from_pretrained` restores it once the class has been imported.

    Attributes:
        query_channels: Q, the width of the queries that the decoder is built for; `None` for outputs without a decoder.
        decoded_channels: Width of the decoded queries that this output expects; `None` for outputs without a decoder.
        takes_queries: Whether each call needs queries from the user.
        config: All constructor arguments with defaults resolved, JSON-serialisable.
    """

    query_channels: int | None
    decoded_channels: int | None
    takes_queries: bool = False

    def check(self, inputs: nn.Module, dim: int) -> None:
        """Raise `ValueError` if this output does not fit the input module or latents of width `dim`."""

    def check_queries(self, queries: Any) -> None:
        """Raise `ValueError` if queries are given to an output that makes its own."""
        if queries is not None and not self.takes_queries:
            raise ValueError(
                f"queries must be None: {type(self).__name__} makes its own queries, outputs.GivenQueries takes yours"
            )

    @abstractmethod
    def forward(
        self,
        encoded: Encoded,
        *,
        indices: Any = None,
        query_mask: Any = None,
        chunk_size: int | None = None,
    ) -> Any:
        """Return the result. `PerceiverIO.forward` documents the keyword arguments."""


class QueryOutput(Output):
    """Base class of outputs with one result per query. A subclass defines the queries and the arrangement of the results.

    Args:
        query_channels: Q.
        decoded_channels: Width of a decoded query. Defaults to Q; it differs inside a `Multimodal` with a projection.
        num_channels: C; `None` returns decoded queries unchanged.
        bias: Whether the linear head has a bias.
    """

    def __init__(
        self, *, query_channels: int, decoded_channels: int | None, num_channels: int | None, bias: bool = True
    ) -> None:
        super().__init__()
        self.query_channels = query_channels
        self.decoded_channels = query_channels if decoded_channels is None else an_int("decoded_channels", decoded_channels)
        self.head = None
        if num_channels is not None:
            self.head = Linear(self.decoded_channels, an_int("num_channels", num_channels), bias=bias)

    @abstractmethod
    def queries(self, encoded: Encoded, sampled: bool) -> Tokens:
        """Return all queries as a token group with Q channels and the axes of the output, never as one encoded array.

        Args:
            encoded: See `Encoded`.
            sampled: Whether the user chose some of the queries by `indices`.
        """

    def results(self, decoded: Tensor, encoded: Encoded) -> Tensor:
        """Return the results `[B, O, C]` of decoded queries."""
        return decoded if self.head is None else self.head(decoded)

    @abstractmethod
    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Return results `[B, O, C]` in their final shape: those of all queries on `axes`, or, if `None`, of chosen ones."""

    def forward(
        self,
        encoded: Encoded,
        *,
        indices: Tensor | None = None,
        query_mask: Tensor | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Decode all queries, or those given by `indices`, at most `chunk_size` at a time."""
        queries = self.queries(encoded, indices is not None)
        batch, total = encoded.latents.shape[0], queries.num_inputs
        if query_mask is not None:
            query_mask = check_query_mask(query_mask, batch, total)
        if indices is not None:
            indices = check_indices(indices, batch, total)
            query_mask = None if query_mask is None else query_mask.take_along_dim(indices.expand(batch, -1), dim=1)
        size = None if chunk_size is None else an_int("chunk_size", chunk_size)
        results, done = [], 0
        for piece in _pieces(queries, indices, size):
            mask = None if query_mask is None else query_mask[:, done : done + piece.num_inputs]
            results.append(self.results(encoded.attend(piece, mask), encoded))
            done += piece.num_inputs
        return self.arrange(torch.cat(results, dim=1), queries.content.shape[2:] if indices is None else None)


def _pieces(queries: Tokens, indices: Tensor | None, size: int | None) -> Iterator[Tokens]:
    """Yield all queries, or those given by `indices`, at most `size` at a time."""
    if indices is not None:
        return (gather_tokens(queries, rows) for rows in indices.split(size or indices.shape[-1], dim=-1))
    return iter([queries]) if size is None else queries.pieces(size)


def learned_queries(num_queries: int, channels: int) -> nn.Parameter:
    """Return learned queries, drawn from a normal distribution (std 0.02) truncated to [-0.04, 0.04].

    Source: DeepMind's released code.
    """
    queries = nn.Parameter(torch.empty(num_queries, channels))
    nn.init.trunc_normal_(queries, std=0.02, a=-0.04, b=0.04)
    return queries


def refuse_indices(indices: Any, remedy: str) -> None:
    """Raise `ValueError` if indices are given to an output without queries to choose from."""
    if indices is not None:
        raise ValueError(f"indices must be None: {remedy}")


def check_indices(indices: Any, batch: int, total: int) -> Tensor:
    """Return `indices` as int64; raise `ValueError` unless it is `[O]` or `[B, O]`, int32 or int64, from 0 to `total` - 1."""
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int64, torch.int32):
        kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise ValueError(
            f"indices is {kind}, not an int64 or int32 tensor: give the queries to decode, such as torch.arange(10)"
        )
    if indices.ndim not in (1, 2) or (indices.ndim == 2 and len(indices) != batch) or indices.shape[-1] == 0:
        raise ValueError(f"indices has shape {list(indices.shape)}, but [O] or [{batch}, O] with O > 0 is needed")
    if not torch.compiler.is_compiling() and not indices.is_meta:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= total:
            raise ValueError(
                f"indices has values from {low} to {high}, but there are {total} queries: indices are 0 to {total - 1}"
            )
    return indices.long()


def check_query_mask(mask: Any, batch: int, total: int) -> Tensor:
    """Return `mask` as `[B, total]`; raise `ValueError` unless it is a bool tensor `[B, total]` or `[B, *axes]`."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"query_mask is {kind}, not a bool tensor: give one that is True for queries that may attend")
    if mask.shape[:1] != (batch,) or mask.numel() != batch * total:
        raise ValueError(f"query_mask has shape {list(mask.shape)}, but [{batch}, {total}] is needed: [B, queries]")
    return mask.flatten(1)
