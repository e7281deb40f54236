"""Outputs with learned queries: one for classification, one per task, or any number (Perceiver IO, section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from perceivers._checks import an_int
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Tokens
from perceivers.outputs.base import Encoded, Output, QueryOutput, check_query_mask, learned_queries, refuse_indices


class LearnedQueries(QueryOutput):
    """One result per learned query, `[B, num_queries, num_channels]`.

    Args:
        num_queries: O, the number of queries; `None` for one query and a result without that axis, `[B, num_channels]`.
        dim: Q, the width of a query.
        num_channels: C, the channels of a result, such as the number of classes; `None` returns decoded queries unchanged.
        decoded_channels: Width of a decoded query. Defaults to `dim`.
    """

    def __init__(
        self, *, num_queries: int | None = None, dim: int, num_channels: int | None, decoded_channels: int | None = None
    ) -> None:
        super().__init__(
            query_channels=(dim := an_int("dim", dim)), num_channels=num_channels, decoded_channels=decoded_channels
        )
        self.num_queries = None if num_queries is None else an_int("num_queries", num_queries)
        self.config = {
            "num_queries": self.num_queries,
            "dim": dim,
            "num_channels": None if self.head is None else self.head.out_features,
            "decoded_channels": decoded_channels,
        }
        self.query = learned_queries(self.num_queries or 1, dim)

    def queries(self, encoded: Encoded, sampled: bool) -> Tokens:
        """Return the learned queries."""
        return Tokens.of(self.query.expand(encoded.latents.shape[0], -1, -1))

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Return `[B, O, C]`, or `[B, C]` if `num_queries` is `None`."""
        return results.squeeze(1) if self.num_queries is None else results


class MultiTask(Output):
    """A learned query and a linear head per task (Perceiver IO, section 4.1: GLUE).

    Args:
        dim: Q, the width of a query.
        tasks: Number of output channels of each task, by name.
    """

    def __init__(self, *, dim: int, tasks: Mapping[str, int]) -> None:
        super().__init__()
        if not isinstance(tasks, Mapping) or not tasks:
            raise ValueError(f"tasks={tasks!r} must be a dict from at least one task name to its number of channels")
        self.query_channels = self.decoded_channels = dim = an_int("dim", dim)
        self.config = {"dim": dim, "tasks": {name: an_int("tasks", size) for name, size in tasks.items()}}
        self.query = learned_queries(len(tasks), dim)
        self.heads = nn.ModuleDict({name: Linear(dim, size) for name, size in tasks.items()})

    def forward(
        self, encoded: Encoded, *, indices: Any = None, query_mask: Any = None, chunk_size: int | None = None
    ) -> dict[str, Tensor]:
        """Return the result of each task, `[B, channels]`, by name."""
        refuse_indices(indices, "each task has one query; select from the results instead")
        batch = encoded.latents.shape[0]
        mask = None if query_mask is None else check_query_mask(query_mask, batch, len(self.query))
        decoded = encoded.attend(Tokens.of(self.query.expand(batch, -1, -1)), mask)
        return {name: head(decoded[:, i]) for i, (name, head) in enumerate(self.heads.items())}
