"""One result per input, with the encoded inputs as queries: optical flow, segmentation (Perceiver IO, section 4.2)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from perceivers._checks import a_number, an_int
from perceivers.ops.tokens import Tokens
from perceivers.outputs.base import Encoded, QueryOutput


class InputQueries(QueryOutput):
    """Base class of outputs whose queries are the encoded inputs, content and positions.

    Args:
        dim: Q, the channels of an encoded input.
        num_channels: C, the channels of a result; `None` returns decoded queries unchanged.
        group: Index of the token group that the queries are made of.
        decoded_channels: Width of a decoded query. Defaults to `dim`.
    """

    def __init__(self, *, dim: int, num_channels: int | None, group: int = 0, decoded_channels: int | None = None) -> None:
        super().__init__(query_channels=an_int("dim", dim), decoded_channels=decoded_channels, num_channels=num_channels)
        self.config: dict[str, Any] = {
            "dim": self.query_channels,
            "num_channels": num_channels,
            "group": group,
            "decoded_channels": decoded_channels,
        }

    def check(self, inputs: nn.Module, dim: int) -> None:
        """Raise `ValueError` unless encoded inputs have `dim` channels."""
        if self.query_channels != inputs.num_channels:
            raise ValueError(
                f"{type(self).__name__} has dim={self.query_channels}, but the inputs have num_channels={inputs.num_channels}:"
                " make them equal"
            )

    def queries(self, encoded: Encoded, sampled: bool) -> Tokens:
        """Return the token group of the inputs."""
        return encoded.group(self.config["group"])


class PerInput(InputQueries):
    """One result per input, at the input's position, `[B, C, *axes]`. The queries are the encoded inputs.

    The weight of the head is initialised to zero, as in DeepMind's flow model.

    Args:
        dim: Q, the channels of an encoded input.
        num_channels: C: 2 for optical flow, the number of classes for segmentation; `None` returns decoded queries unchanged.
        divisor: Divisor of the results; 100 in the published flow model.
        group: Index of the token group that the queries are made of.
        decoded_channels: Width of a decoded query. Defaults to `dim`.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_channels: int | None,
        divisor: float = 1,
        group: int = 0,
        decoded_channels: int | None = None,
    ) -> None:
        super().__init__(dim=dim, num_channels=num_channels, group=group, decoded_channels=decoded_channels)
        self.config["divisor"] = a_number("divisor", divisor)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def results(self, decoded: Tensor, encoded: Encoded) -> Tensor:
        """Return the results of decoded queries, divided by `divisor`."""
        return super().results(decoded, encoded) / self.config["divisor"]

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Return the results with channels first: `[B, C, *axes]`, or `[B, C, O]`."""
        results = results.transpose(1, 2)
        return results if axes is None else results.unflatten(-1, list(axes))


class PerToken(InputQueries):
    """One result per token of a text or another sequence, `[B, M, C]`. The queries are the encoded tokens.

    Args:
        dim: Q, the channels of an encoded input.
        num_channels: C, such as the vocabulary size; `None` returns decoded queries unchanged.
        group: Index of the token group that the queries are made of.
        decoded_channels: Width of a decoded query. Defaults to `dim`.
    """

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Return the results unchanged, positions before channels."""
        return results
