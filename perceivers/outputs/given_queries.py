"""Results for queries that the user makes: features of places, words, agents, anything the library does not know."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from perceivers._checks import an_int
from perceivers.ops.tokens import Tokens, check_array, check_dtype
from perceivers.outputs.base import Encoded, QueryOutput


class GivenQueries(QueryOutput):
    """A result for each query that is given, `[B, O, num_channels]`: `model(x, queries=queries)`.

    They are an argument of the call beside `indices`, not a part of x, so that latents that were made once can be asked
    again: `model.decode(latents, queries=others)`.

    Args:
        dim: Q, the width of a query.
        num_channels: C, the size of a result; `None` for decoded queries as they are.
        decoded_channels: Width of a decoded query, where it is not `dim`.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    takes_queries = True

    def __init__(self, *, dim: int, num_channels: int | None, decoded_channels: int | None = None) -> None:
        super().__init__(query_channels=an_int("dim", dim), num_channels=num_channels, decoded_channels=decoded_channels)
        self.config: dict[str, Any] = {"dim": dim, "num_channels": num_channels, "decoded_channels": decoded_channels}

    def queries(self, encoded: Encoded, sampled: bool) -> Tokens:
        """What was given, `[O, Q]`, or `[B, O, Q]` where samples differ."""
        queries, batch = encoded.queries, encoded.latents.shape[0]
        wanted = f"[O, {self.query_channels}] or [{batch}, O, {self.query_channels}]"
        if queries is None:
            raise ValueError(f"queries=None, but this output has none of its own: give model(x, queries=...), {wanted}")
        check_array("queries", queries, 2 if isinstance(queries, Tensor) and queries.ndim == 2 else 3, wanted)
        if queries.shape[-1] != self.query_channels or (queries.ndim == 3 and queries.shape[0] != batch) or 0 in queries.shape:
            raise ValueError(f"queries has shape {list(queries.shape)}, but {wanted} is needed, at least one")
        check_dtype("queries", queries, encoded.latents.dtype)
        return Tokens.of(queries.expand(batch, -1, -1))

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """As the queries lie, `[B, O, C]`."""
        return results
