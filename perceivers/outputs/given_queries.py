"""Results for queries that the user computes: features of positions, words, agents, or anything else."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from perceivers._checks import an_int
from perceivers.ops.tokens import Tokens, check_array, check_dtype
from perceivers.outputs.base import Encoded, QueryOutput


class GivenQueries(QueryOutput):
    """One result per query given by the user, `[B, O, num_channels]`: `model(x, queries=queries)`.

    The queries are an argument of their own, not a part of x, so that latents can be reused with other queries:
    `model.decode(latents, queries=others)`.

    Args:
        dim: Q, the width of a query.
        num_channels: C, the channels of a result; `None` returns decoded queries unchanged.
        decoded_channels: Width of a decoded query. Defaults to `dim`.
    """

    takes_queries = True

    def __init__(self, *, dim: int, num_channels: int | None, decoded_channels: int | None = None) -> None:
        super().__init__(query_channels=an_int("dim", dim), num_channels=num_channels, decoded_channels=decoded_channels)
        self.config: dict[str, Any] = {"dim": dim, "num_channels": num_channels, "decoded_channels": decoded_channels}

    def queries(self, encoded: Encoded, sampled: bool) -> Tokens:
        """Return the given queries, `[O, Q]`, or `[B, O, Q]` if samples differ."""
        queries, batch = encoded.queries, encoded.latents.shape[0]
        wanted = f"[O, {self.query_channels}] or [{batch}, O, {self.query_channels}]"
        if queries is None:
            raise ValueError(f"queries=None, but GivenQueries makes none of its own: call model(x, queries=...) with {wanted}")
        check_array("queries", queries, 2 if isinstance(queries, Tensor) and queries.ndim == 2 else 3, wanted)
        if queries.shape[-1] != self.query_channels or (queries.ndim == 3 and queries.shape[0] != batch) or 0 in queries.shape:
            raise ValueError(f"queries has shape {list(queries.shape)}, but {wanted} with O > 0 is needed")
        check_dtype("queries", queries, encoded.latents.dtype)
        return Tokens.of(queries.expand(batch, -1, -1))

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Return the results in the order of the queries, `[B, O, C]`."""
        return results
