"""A result for each input, whose query is the encoded input itself: optical flow, segmentation (Perceiver IO, section 4.2)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from perceivers._checks import a_number, an_int
from perceivers.ops.tokens import Tokens
from perceivers.outputs.base import Encoded, QueryOutput


class InputQueries(QueryOutput):
    """What outputs have in common whose queries are the encoded inputs, content and positions.

    Args:
        dim: Q, channels of an encoded input.
        num_channels: C, the size of a result; `None` for decoded queries as they are.
        group: Which of the token groups.
        decoded_channels: Width of a decoded query, where it is not `dim`.
    """

    def __init__(self, *, dim: int, num_channels: int | None, group: int, decoded_channels: int | None) -> None:
        super().__init__(query_channels=an_int("dim", dim), decoded_channels=decoded_channels, num_channels=num_channels)
        self.config: dict[str, Any] = {
            "dim": self.query_channels,
            "num_channels": num_channels,
            "group": group,
            "decoded_channels": decoded_channels,
        }

    def check(self, inputs: nn.Module, dim: int) -> None:
        """Compares the width of an encoded input."""
        if self.query_channels != inputs.num_channels:
            raise ValueError(
                f"{type(self).__name__} has dim={self.query_channels}, but the inputs have {inputs.num_channels} channels"
            )

    def queries(self, encoded: Encoded, sampled: bool) -> Tokens:
        """Encoded inputs."""
        return encoded.group(self.config["group"])


class PerInput(InputQueries):
    """Queries are the encoded inputs, content and positions; results lie where the inputs lie, `[B, C, *axes]`.

    The linear map to results starts at zero, as in DeepMind's flow model.

    Args:
        dim: Q, channels of an encoded input.
        num_channels: C: 2 for optical flow, the number of classes for segmentation; `None` for decoded queries as they are.
        divisor: Results are divided by it; 100 in the published flow model.
        group: Which of the token groups.
        decoded_channels: Width of a decoded query, where it is not `dim`.

    Raises:
        ValueError: If an argument is out of range; the message names it.
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
        """Results, divided."""
        return super().results(decoded, encoded) / self.config["divisor"]

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Channels first."""
        results = results.transpose(1, 2)
        return results if axes is None else results.unflatten(-1, list(axes))


class PerToken(InputQueries):
    """The same for texts and other sequences, results `[B, M, C]`: logits at each place, with the token there as the query.

    Args:
        dim: Q, channels of an encoded input.
        num_channels: C, such as the size of a vocabulary; `None` for decoded queries as they are.
        group: Which of the token groups.
        decoded_channels: Width of a decoded query, where it is not `dim`.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(self, *, dim: int, num_channels: int | None, group: int = 0, decoded_channels: int | None = None) -> None:
        super().__init__(dim=dim, num_channels=num_channels, group=group, decoded_channels=decoded_channels)

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Positions before channels, as everyone has them."""
        return results
