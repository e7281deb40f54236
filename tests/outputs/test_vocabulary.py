"""TokenLogits: tied and masked."""

import torch
from outputs.models import build, decode


def test_vocabulary_is_tied():
    source = {"kind": "TokenIds", "vocab_size": 7, "max_length": 9, "dim": 6}
    model = build({"kind": "TokenLogits", "vocab_size": 7, "max_length": 9, "dim": 6}, source, decoder_query_residual=False)
    ids = torch.randint(7, (2, 5))
    decoded = decode(model, model.outputs.query[:5].expand(2, -1, -1), model.encode(ids))
    wanted = decoded @ model.inputs.embeddings.weight.T + model.outputs.bias
    torch.testing.assert_close(model(ids), wanted)
    torch.testing.assert_close(model.decode(model.encode(ids)).shape, torch.Size([2, 9, 7]))
    assert {name for name in model.state_dict() if name.startswith("outputs")} == {"outputs.query", "outputs.bias"}
    assert sum(p.shape == (7, 6) for p in model.parameters()) == 1
    own = build({"kind": "TokenLogits", "vocab_size": 7, "max_length": 9, "dim": 4, "tied_to": None}, source)
    assert own.outputs.head.weight.shape == (7, 4)


def test_masked_queries_gather_zeros():
    """As in DeepMind's code: zero before the output projection, so that its bias is left."""
    source = {"kind": "TokenIds", "vocab_size": 7, "max_length": 9, "dim": 6}
    model = build({"kind": "TokenLogits", "vocab_size": 7, "max_length": 9, "dim": 6}, source, decoder_query_residual=False)
    ids, mask = torch.randint(7, (2, 6)), torch.arange(6) < torch.tensor([[4], [6]])
    out, plain = model(ids, mask, query_mask=mask), model(ids, mask)
    assert torch.equal(out[mask], plain[mask])
    y = model.decoder.attention.to_out.bias
    y = y + model.decoder.feed_forward(model.decoder.feed_forward_norm(y))
    hidden = y @ model.inputs.embeddings.weight.T + model.outputs.bias
    torch.testing.assert_close(out[~mask], hidden.expand(2, -1))
    chosen = torch.tensor([[5, 0], [1, 5]])
    some = model(ids, mask, query_mask=mask, indices=chosen, chunk_size=1)
    torch.testing.assert_close(some, torch.stack([out[b, rows] for b, rows in enumerate(chosen)]))
