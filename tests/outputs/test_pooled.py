"""MeanPool, written out."""

import torch
from outputs.models import build, draw
from torch.nn import functional as F


def test_mean_needs_no_decoder():
    model = build({"kind": "MeanPool", "dim": 12})
    x = draw(2, 2, 4, 6)
    assert model.decoder is None
    torch.testing.assert_close(model(x), model.encode(x).mean(1))
    head = build({"kind": "MeanPool", "dim": 12, "num_channels": 3, "final_norm": True})
    wanted = head.outputs.head(F.layer_norm(head.encode(x).mean(1), [12], head.outputs.norm.weight, head.outputs.norm.bias))
    torch.testing.assert_close(head(x), wanted)
