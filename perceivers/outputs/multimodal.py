"""Several outputs that share one decoder, each with its own queries (Perceiver IO, section 4.3: Kinetics autoencoding)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import an_int
from perceivers._registry import describe
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Tokens
from perceivers.outputs.base import Encoded, Output


class Multimodal(Output):
    """A dict of output modules. Learned padding brings their queries to a common width and identifies the modality.

    Queries do not interact, so the order of the modalities only determines the order of the results.

    Args:
        modalities: An output module or its description, as in `PerceiverIO`, for each name.
        min_padding_size: Minimum width of the padding. The common width is that of the widest modality's queries plus this.
        decoded_channels: Width of a shared linear projection of decoded queries, before the head of each modality, whose own
            `decoded_channels` must be equal; `None` for no projection.
    """

    def __init__(
        self,
        *,
        modalities: Mapping[str, Output | Mapping[str, Any]],
        min_padding_size: int = 2,
        decoded_channels: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(modalities, Mapping) or not modalities:
            raise ValueError(f"modalities={modalities!r} must be a dict with at least one name and output module")
        outputs = {name: Output.create(output) for name, output in modalities.items()}
        widths = {name: output.query_channels for name, output in outputs.items() if output.query_channels is not None}
        common = max(widths.values(), default=0) + an_int("min_padding_size", min_padding_size, 0)
        self.query_channels = self.decoded_channels = common
        width = common if decoded_channels is None else an_int("decoded_channels", decoded_channels)
        for name, output in outputs.items():
            if output.decoded_channels not in (None, width):
                raise ValueError(
                    f"output {name!r} has decoded_channels={output.decoded_channels}, but decoded queries have {width}"
                    f" channels: give it decoded_channels={width}"
                )
        self.config = {
            "modalities": {name: describe(output) for name, output in outputs.items()},
            "min_padding_size": min_padding_size,
            "decoded_channels": decoded_channels,
        }
        self.modalities = nn.ModuleDict(outputs)
        self.takes_queries = any(output.takes_queries for output in outputs.values())
        self.padding = nn.ParameterDict({name: nn.Parameter(torch.empty(common - width)) for name, width in widths.items()})
        for padding in self.padding.values():
            nn.init.trunc_normal_(padding, std=0.02, a=-0.04, b=0.04)
        self.projection = None if decoded_channels is None else Linear(common, decoded_channels)

    def check(self, inputs: nn.Module, dim: int) -> None:
        """Raise `ValueError` if the output of any modality does not fit."""
        for output in self.modalities.values():
            cast(Output, output).check(inputs, dim)

    def forward(
        self,
        encoded: Encoded,
        *,
        indices: Mapping[str, Tensor | None] | None = None,
        query_mask: Mapping[str, Tensor | None] | None = None,
        chunk_size: int | None = None,
    ) -> dict[str, Any]:
        """Return the results by modality. `indices`, `query_mask` and queries are dicts with entries for some modalities."""
        named = (("indices", indices), ("query_mask", query_mask), ("queries", encoded.queries))
        indices, query_mask, queries = (self._by_name(*pair) for pair in named)
        results = {}
        for name, output in self.modalities.items():
            cast(Output, output).check_queries(given := queries.get(name))
            attend = lambda queries, mask, name=name: self._attend(encoded, name, queries, mask)  # noqa: E731
            here = replace(encoded, attend=attend, queries=given)
            results[name] = output(here, indices=indices.get(name), query_mask=query_mask.get(name), chunk_size=chunk_size)
        return results

    def _attend(self, encoded: Encoded, name: str, queries: Tokens, mask: Tensor | None) -> Tensor:
        padding = self.padding[name]
        before = padding.new_zeros(queries.num_channels)
        if queries.constant is not None:
            before = before + F.pad(queries.constant, (0, len(before) - len(queries.constant)))
        decoded = encoded.attend(replace(queries, constant=torch.cat([before, padding])), mask)
        return decoded if self.projection is None else self.projection(decoded)

    def _by_name(self, argument: str, values: Mapping[str, Tensor | None] | None) -> Mapping[str, Tensor | None]:
        if values is None:
            return {}
        if not isinstance(values, Mapping) or not values.keys() <= self.modalities.keys():
            got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"{argument} is {got}, but a dict with some of the keys {list(self.modalities)} is needed")
        return values
