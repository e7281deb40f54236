"""LearnedQueries and MultiTask, written out."""

import pytest
import torch
from outputs.models import build, decode, draw


@pytest.mark.parametrize("residual", [True, False])
def test_class_written_out(residual):
    output = {"kind": "LearnedQueries", "dim": 8, "num_channels": 3}
    model = build(output, decoder_query_residual=residual, decoder_heads=2, decoder_qk_channels=6, decoder_v_channels=10)
    x = draw(2, 2, 4, 6)
    latents = model.encode(x)
    queries = model.outputs.query.expand(2, -1, -1)
    torch.testing.assert_close(model(x), model.outputs.head(decode(model, queries, latents))[:, 0])
    assert model.decoder.attention.to_v.out_features == 10


def test_learned_queries_and_tasks():
    model = build({"kind": "LearnedQueries", "dim": 8, "num_channels": 3, "num_queries": 4})
    x = draw(2, 2, 4, 6)
    assert model(x).shape == (2, 4, 3)
    torch.testing.assert_close(model(x, indices=torch.tensor([2, 0])), model(x)[:, [2, 0]])
    tasks = build({"kind": "MultiTask", "dim": 8, "tasks": {"a": 2, "b": 5}})
    decoded = decode(tasks, tasks.outputs.query.expand(2, -1, -1), tasks.encode(x))
    torch.testing.assert_close(
        tasks(x), {"a": tasks.outputs.heads["a"](decoded[:, 0]), "b": tasks.outputs.heads["b"](decoded[:, 1])}
    )
