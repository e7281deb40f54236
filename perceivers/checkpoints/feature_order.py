"""Position features in the order of DeepMind's code, which transformers kept: all coordinates, all sines, all cosines."""

from collections.abc import Sequence

CROSS = "encoder.cross_attentions.0.attention"
MEETING_INPUTS = (f"{CROSS}.inputs_norm", f"{CROSS}.to_k.weight", f"{CROSS}.to_v.weight")
MEETING_QUERIES = ("decoder.attention_norm", "decoder.attention.to_q.weight")


def orders(content: int, axes: int, bands: int, *, as_queries: bool = False) -> dict[str, Sequence[int]]:
    """For what the names of our tensors start with that meet encoded inputs, their column for each of ours.

    Args:
        content: Channels in front of the position features.
        axes: Number of axes.
        bands: Frequencies of each.
        as_queries: Whether encoded inputs are also the queries of the decoder.
    """
    return dict.fromkeys((*MEETING_INPUTS, *(MEETING_QUERIES if as_queries else ())), columns(content, axes, bands))


def columns(content: int, axes: int, bands: int) -> list[int]:
    """For each of our channels theirs; the arguments are those of `orders`."""
    order = list(range(content))
    for a in range(axes):
        sines = content + axes + a * bands
        order += [content + a, *range(sines, sines + bands), *range(sines + axes * bands, sines + (axes + 1) * bands)]
    return order
