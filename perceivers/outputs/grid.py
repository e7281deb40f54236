"""Outputs on a grid: images, video, audio (Perceiver IO, sections 3.2 and 4.3).

A query consists of the Fourier features of its position, or of a learned vector, optionally after the preprocessed input at
that position. The Fourier features of all queries are one table per axis, so that the array of queries is made only if the
attention needs it.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from perceivers._checks import a_list, an_int, one_of
from perceivers.ops.tokens import Positions, Tokens
from perceivers.outputs.base import Encoded, QueryOutput, learned_queries
from perceivers.position import FourierFeatures, by_kinds


class Grid(QueryOutput):
    """One result per position of a grid, `[B, C, *axes]`, or per chosen position, `[B, C, O]`.

    Args:
        axes: Lengths of the axes.
        num_channels: C, the channels of a result; `None` returns decoded queries unchanged.
        patch: Length per axis of the patch of results that one query decodes: `[16]` for audio decoded in patches of 16
            samples. The result's axes are multiplied by these lengths; for chosen queries, patches are flattened into C.
        num_bands: Number of frequency bands per axis; 0 keeps only the coordinates.
        resolution: Sampling rate, a scalar or one value per axis; the highest frequency is half of it. Defaults to the axis
            lengths.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` spaces them linearly from 1, as published.
        learned_channels: Width of learned queries, which replace the Fourier features; `None` for Fourier features.
        feature_order: Order of the position features: "axes" (coordinate, sines and cosines of the first axis, then of the
            next) or "kinds" (the coordinates of all axes, then all sines, then all cosines, as in DeepMind's code). Use
            "kinds" for weights from that code that several modalities share; otherwise permuting the weights is equivalent.
        sampled_positions: Coordinates of chosen queries: "grid", those of the whole grid, or "left_aligned", -1 + 2 i / n, as
            in DeepMind's code, where they differ from those of its own grid.
        content_channels: Channels of the preprocessed input, without positions, at the start of each query; 0 for none.
        group: Index of the token group that provides this content. Its axes must equal `axes`.
        decoded_channels: Width of a decoded query. Defaults to that of a query.
    """

    def __init__(
        self,
        *,
        axes: Sequence[int],
        num_channels: int | None,
        patch: Sequence[int] | None = None,
        num_bands: int = 64,
        resolution: float | Sequence[float] | None = None,
        frequency_base: float | None = None,
        learned_channels: int | None = None,
        feature_order: str = "axes",
        sampled_positions: str = "grid",
        content_channels: int = 0,
        group: int = 0,
        decoded_channels: int | None = None,
    ) -> None:
        lengths = [an_int("axes", n) for n in a_list("axes", axes, "whole numbers")]
        steps = [1] * len(lengths) if patch is None else [an_int("patch", n) for n in a_list("patch", patch, "whole numbers")]
        if not lengths or len(steps) != len(lengths):
            raise ValueError(f"axes={lengths} and patch={steps} must have the same number of entries, at least one")
        positions = FourierFeatures.of(num_bands, resolution, frequency_base, lengths)
        width = positions.num_channels if learned_channels is None else an_int("learned_channels", learned_channels)
        super().__init__(
            query_channels=width + an_int("content_channels", content_channels, 0),
            decoded_channels=decoded_channels,
            num_channels=None if num_channels is None else an_int("num_channels", num_channels) * prod(steps),
        )
        self.positions, self.patch = positions, steps
        self.config: dict[str, Any] = {
            "axes": lengths,
            "num_channels": num_channels,
            "patch": patch if patch is None else steps,
            **positions.config,
            "learned_channels": learned_channels,
            "feature_order": one_of("feature_order", feature_order, ("axes", "kinds")),
            "sampled_positions": one_of("sampled_positions", sampled_positions, ("grid", "left_aligned")),
            "content_channels": content_channels,
            "group": group,
            "decoded_channels": decoded_channels,
        }
        self.query = None if learned_channels is None else learned_queries(prod(lengths), learned_channels)

    def queries(self, encoded: Encoded, sampled: bool) -> Tokens:
        """Return the queries: content, if any, then position features or learned vectors."""
        batch, axes, latents = encoded.latents.shape[0], self.config["axes"], encoded.latents
        group = Tokens(latents.new_empty(batch, 0, *axes))
        if self.config["content_channels"] > 0:
            group = self._content(encoded.group(self.config["group"]))
        if self.query is not None:
            learned = self.query.mT.unflatten(1, axes).expand(batch, -1, *[-1] * len(axes))
            if self.config["content_channels"] == 0:
                return Tokens(learned)
            content = group.encoded().mT.unflatten(2, axes)
            return Tokens(torch.cat([content, learned.to(content.dtype)], dim=1))
        if sampled and self.config["sampled_positions"] == "left_aligned":
            steps = [torch.arange(n, device=latents.device, dtype=torch.float64) for n in axes]
            tables = self.positions.tables_at([2 * i / len(i) - 1 for i in steps], dtype=latents.dtype)
        else:
            tables = self.positions.tables(axes, dtype=latents.dtype, device=latents.device)
        starts = None
        if self.config["feature_order"] == "kinds":
            tables, starts = by_kinds(tables), [group.content_width] * len(axes)
        return replace(group, positions=Positions(tables, starts=starts))

    def arrange(self, results: Tensor, axes: Sequence[int] | None) -> Tensor:
        """Return the results with channels first and patches merged into the axes."""
        if axes is None:
            return results.transpose(1, 2)
        results = results.unflatten(1, list(axes))
        if self.config["patch"] is None:
            return results.movedim(-1, 1)
        results = results.unflatten(-1, (*self.patch, -1))  # [B, *axes, *patch, C]
        n = len(axes)
        order = [axis for a in range(n) for axis in (2 + a, 2 + n + a)]
        results = results.movedim(-1, 1).permute(0, 1, *order)  # [B, C, axis 1, patch 1, axis 2, patch 2, ...]
        return results.reshape(*results.shape[:2], *(length * step for length, step in zip(axes, self.patch, strict=True)))

    def _content(self, tokens: Tokens) -> Tokens:
        """Return the content of a token group of the inputs, without its positions."""
        if list(tokens.content.shape[2:]) != self.config["axes"]:
            raise ValueError(
                f"axes={self.config['axes']}, but group {self.config['group']} of the inputs has axes"
                f" {list(tokens.content.shape[2:])}: they must be equal if queries contain the content of inputs"
            )
        if tokens.content_width != self.config["content_channels"]:
            raise ValueError(
                f"content_channels={self.config['content_channels']}, but the content of the inputs has"
                f" {tokens.content_width} channels"
            )
        constant = None if tokens.constant is None else tokens.constant[: tokens.content_width]
        return replace(tokens, positions=None, constant=constant)
