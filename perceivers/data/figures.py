"""How `perceivers explain` draws a sample and maps of it, on panels of matplotlib: images, series, or bars."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


def draw_image(panels: Sequence[Any], image: Tensor, maps: Tensor) -> None:
    """Draw an image `[C, H, W]` on the first panel and maps `[k, h, w]` on the others."""
    pixels = image[:3].movedim(0, -1)
    low, high = pixels.min(), pixels.max()
    panels[0].imshow(((pixels - low) / (high - low).clamp_min(1e-6)).squeeze(-1).numpy(), cmap="gray")
    for panel, one in zip(panels[1:], maps, strict=True):
        panel.imshow(one.numpy(), cmap="magma")
    for panel in panels:
        panel.axis("off")


def draw_series(panels: Sequence[Any], series: Tensor, maps: Tensor, *, length: float | None = None, label: str) -> None:
    """Draw a series `[n]`, and on the other panels maps `[k, ...]` as bars along the same axis.

    Args:
        panels: The panels.
        series: Its values.
        maps: Any number of values per map.
        length: What the axis ends at. Defaults to the number of values of a map.
        label: Name of the axis.
    """
    length = maps[0].numel() if length is None else length
    panels[0].plot(np.linspace(0, length, len(series)), series.float().numpy(), linewidth=0.6)
    panels[0].set_xlabel(label, fontsize=7)
    draw_bars(panels[1:], maps, length)


def draw_bars(panels: Sequence[Any], maps: Tensor, length: float) -> None:
    """Draw maps `[k, ...]` as bars, evenly spaced from 0 to `length`."""
    for panel, one in zip(panels, maps.flatten(1).numpy(), strict=True):
        panel.bar(np.arange(len(one)) * length / len(one), one, width=length / len(one), align="edge")
