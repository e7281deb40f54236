"""GivenQueries: against learned queries, inside Multimodal, and bad input."""

import pytest
import torch
from outputs.models import build, decode, draw

from perceivers import PerceiverIO


def test_given_queries():
    """They give the same as equal learned queries, also if chosen, chunked, masked, or decoded from stored latents."""
    learned = build({"kind": "LearnedQueries", "dim": 8, "num_channels": 3, "num_queries": 4})
    given = PerceiverIO(**{**learned.config, "outputs": {"kind": "GivenQueries", "dim": 8, "num_channels": 3}}).double()
    given.load_state_dict({name: w for name, w in learned.state_dict().items() if name != "outputs.query"})
    x, queries = draw(2, 2, 4, 6), learned.outputs.query
    torch.testing.assert_close(given(x, queries=queries), learned(x))
    apart = torch.stack([queries, queries.flip(0)])
    wanted = torch.stack([learned(x)[0], learned(x)[1].flip(0)])
    torch.testing.assert_close(given(x, queries=apart, chunk_size=3), wanted)
    torch.testing.assert_close(given.decode(given.encode(x), queries=apart), wanted)
    rows = torch.tensor([[3, 0], [1, 1]])
    torch.testing.assert_close(given(x, queries=apart, indices=rows), torch.stack([wanted[0, [3, 0]], wanted[1, [1, 1]]]))
    torch.testing.assert_close(given(x, queries=queries, indices=rows), learned(x, indices=rows))
    mask = torch.tensor([[True, False, True, True], [False, True, True, True]])
    torch.testing.assert_close(given(x, queries=queries, query_mask=mask), learned(x, query_mask=mask))


def test_given_queries_among_others():
    own, given = {"kind": "LearnedQueries", "dim": 8, "num_channels": 3}, {"kind": "GivenQueries", "dim": 5, "num_channels": 2}
    modalities = {name: {**part, "decoded_channels": 10} for name, part in (("own", own), ("given", given))}
    model = build({"kind": "Multimodal", "modalities": modalities})
    x, queries = draw(2, 2, 4, 6), draw(2, 3, 5)
    out = model(x, queries={"given": queries})
    padded = torch.cat([queries, model.outputs.padding["given"].expand(2, 3, -1)], dim=-1)
    wanted = model.outputs.modalities["given"].head(decode(model, padded, model.encode(x)))
    torch.testing.assert_close(out["given"], wanted)
    assert out["own"].shape == (2, 3)
    for wrong, message in (
        ({"own": queries}, "queries must be None: LearnedQueries makes its own"),
        (queries, r"queries is Tensor, but a dict with some of the keys \['own', 'given'\]"),
        (None, "queries=None, but GivenQueries makes none of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            model(x, queries=wrong)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (None, r"queries=None, .* \[O, 8\] or \[2, O, 8\]"),
        ([1.0], "queries is a list, not a tensor"),
        (draw(8), r"queries has shape \[8\], 1 axes"),
        (draw(2, 3, 7), r"queries has shape \[2, 3, 7\], but \[O, 8\] or \[2, O, 8\] with O > 0 is needed"),
        (draw(3, 4, 8), r"queries has shape \[3, 4, 8\]"),
        (draw(0, 8), r"queries has shape \[0, 8\].* with O > 0 is needed"),
        (torch.zeros(3, 8).long(), "queries is torch.int64, not floating point"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_queries_that_do_not_fit(queries, message):
    model = build({"kind": "GivenQueries", "dim": 8, "num_channels": 3})
    with pytest.raises(ValueError, match=message):
        model(draw(2, 2, 4, 6), queries=queries)
    with pytest.raises(ValueError, match=r"queries is torch\.float64 but the model is torch\.float32"):
        model.float()(torch.randn(2, 2, 4, 6), queries=draw(3, 8))
    with pytest.raises(ValueError, match="queries must be None: MeanPool makes its own"):
        build({"kind": "MeanPool", "dim": 12})(draw(2, 2, 4, 6), queries=draw(3, 8))
