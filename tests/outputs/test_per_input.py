"""PerInput and PerToken, written out."""

import torch
from outputs.models import build, decode, draw


def test_inputs_are_the_queries():
    model = build({"kind": "PerInput", "dim": 12, "num_channels": 2, "divisor": 4})
    x = draw(2, 2, 4, 6)
    (tokens,) = model.inputs(x)
    wanted = model.outputs.head(decode(model, tokens.encoded(), model.encode(x))) / 4
    torch.testing.assert_close(model(x), wanted.mT.unflatten(-1, (4, 6)))
    torch.testing.assert_close(model(x, indices=torch.tensor([23, 0])), wanted[:, [23, 0]].mT)
    torch.testing.assert_close(model(draw(2, 2, 3, 9)).shape, torch.Size([2, 2, 3, 9]))


def test_each_token_is_its_query():
    source = {"kind": "TokenIds", "vocab_size": 7, "max_length": 9, "dim": 6}
    model = build({"kind": "PerToken", "dim": 6, "num_channels": 7}, source, decoder_query_residual=False)
    ids = torch.randint(7, (2, 5))
    queries = model.inputs.embeddings(ids) + model.inputs.positions.embeddings[:5]
    wanted = model.outputs.head(decode(model, queries, model.encode(ids)))
    torch.testing.assert_close(model(ids), wanted)
    torch.testing.assert_close(model(ids, indices=torch.tensor([[4, 0], [1, 1]]))[1], wanted[1, [1, 1]])
