"""What an output module of `PerceiverIO` is, and what those that query the latents have in common.

An output module makes queries, has them attend to the latents, and turns what they gather into a result. It asks for the
decoder (`Encoded.attend`) where it needs it, as often as it likes: queries do not see one another, so that some of them, or
a piece at a time, give what all of them at once give.

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
from perceivers.outputs.gather import take


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an output module reads.

    Attributes:
        latents: `[B, N, D]`.
        attend: The decoder: a token group of O queries and, or `None`, which of them attend, `[B, O]`, to decoded queries
            `[B, O, Q]`.
        tokens: The token groups that the latents were made of; empty where nobody kept them.
        inputs: The input module that made the groups, for parameters that are shared with it.
        queries: What the user gave as queries, for an output that has none of its own; else `None`.
    """

    latents: Tensor
    attend: Callable[[Tokens, Tensor | None], Tensor]
    tokens: Sequence[Tokens]
    inputs: nn.Module
    queries: Any = None

    def group(self, index: int) -> Tokens:
        """Returns one of the token groups."""
        if not -len(self.tokens) <= index < len(self.tokens):
            raise ValueError(
                f"group={index}, but there are {len(self.tokens)} token groups: pass decode() those of the inputs"
            )
        return self.tokens[index]


class Output(Configurable, ABC, argument="outputs"):
    """An output module.

    Attributes:
        query_channels: Q, which the decoder is built for; `None` for an output that needs no decoder.
        decoded_channels: Width of the decoded queries that it expects; `None` for an output that needs no decoder.
        takes_queries: Whether the user gives its queries, in each call.
        config: All arguments of the constructor, ready for JSON.
    """

    query_channels: int | None
    decoded_channels: int | None
    takes_queries: bool = False

    def check(self, inputs: nn.Module, dim: int) -> None:
        """Raises `ValueError` where this output does not fit the input module, or latents of width `dim`."""

    def check_queries(self, queries: Any) -> None:
        """Raises `ValueError` where queries are given to an output that has its own."""
        if queries is not None and not self.takes_queries:
            raise ValueError(f"queries must be None: {type(self).__name__} makes its own, outputs.GivenQueries takes them")

    @abstractmethod
    def forward(
        self,
        encoded: Encoded,
        *,
        indices: Any = None,
        query_mask: Any = None,
        chunk_size: int | None = None,
    ) -> Any:
        """Makes the result; the arguments are those of `PerceiverIO.forward`."""


class QueryOutput(Output):
    """An output with one result a query: what is left to a subclass is what a query is, and how results are arranged.

    Args:
        query_channels: Q.
        decoded_channels: Width of a decoded query, where it is not Q: an output inside `Multimodal` with a projection.
        num_channels: C; `None` for decoded queries as they are.
        bias: Whether the linear map to results has a bias.
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
        """Makes all queries, as a token group with Q channels on the axes of the output: what is read is never made whole.

        Args:
            encoded: See `Encoded`.
            sampled: Whether a user chooses some, rather than all.
        """

    def results(self, decoded: Tensor, encoded: Encoded) -> Tensor:
        """Maps decoded queries to results, `[B, O, C]`."""
        return decoded if self.head is None else self.head(decoded)

    @abstractmethod
    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Gives results `[B, O, C]` their shape: of all queries on `axes`, or, where that is `None`, of chosen ones."""

    def forward(
        self,
        encoded: Encoded,
        *,
        indices: Tensor | None = None,
        query_mask: Tensor | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Decodes all queries, or those that `indices` names, at most `chunk_size` at a time."""
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
    """All queries, or those with the numbers `indices`, at most `size` at a time."""
    if indices is not None:
        return (take(queries, rows) for rows in indices.split(size or indices.shape[-1], dim=-1))
    return iter([queries]) if size is None else queries.pieces(size)


def learned_queries(num_queries: int, channels: int) -> nn.Parameter:
    """Returns query vectors: normal with standard deviation 0.02, cut at two of them, as in DeepMind's released code."""
    queries = nn.Parameter(torch.empty(num_queries, channels))
    nn.init.trunc_normal_(queries, std=0.02, a=-0.04, b=0.04)
    return queries


def refuse_indices(indices: Any, remedy: str) -> None:
    """Raises `ValueError` where indices are given to an output that has nothing to choose from."""
    if indices is not None:
        raise ValueError(f"indices must be None: {remedy}")


def check_indices(indices: Any, batch: int, total: int) -> Tensor:
    """Returns `indices` if it is an integer tensor `[O]` or `[B, O]` of numbers from 0 to `total` - 1."""
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int64, torch.int32):
        kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise ValueError(f"indices is {kind}, not a tensor of whole numbers: choose queries, such as torch.arange(10)")
    if indices.ndim not in (1, 2) or (indices.ndim == 2 and len(indices) != batch) or indices.shape[-1] == 0:
        raise ValueError(f"indices has shape {list(indices.shape)}, but [O] or [{batch}, O] with O > 0 is needed")
    if not torch.compiler.is_compiling() and not indices.is_meta:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= total:
            raise ValueError(
                f"indices reach from {low} to {high}, but there are {total} queries: stay within 0 to {total - 1}"
            )
    return indices.long()


def check_query_mask(mask: Any, batch: int, total: int) -> Tensor:
    """Returns `mask` if it is a bool tensor with an entry for each query; axes of the queries may be written out."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"query_mask is {kind}, not a bool tensor: make one where True may attend")
    if mask.shape[:1] != (batch,) or mask.numel() != batch * total:
        raise ValueError(f"query_mask has shape {list(mask.shape)}, but [{batch}, {total}] is needed: [B, queries]")
    return mask.flatten(1)
