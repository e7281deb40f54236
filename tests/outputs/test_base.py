"""The decoder of outputs, and input modules that are not the library's."""

import pytest
import torch
from outputs.models import build, draw
from torch import nn

from perceivers import PerceiverIO
from perceivers.ops.tokens import Tokens


@pytest.mark.parametrize("pre_norm", [True, False])
def test_decoder_without_feed_forward(pre_norm):
    model = build({"kind": "LearnedQueries", "dim": 8, "num_channels": 3}, decoder_ff_dim=0, pre_norm=pre_norm)
    x, block, queries = draw(2, 2, 4, 6), model.decoder, model.outputs.query.expand(2, -1, -1)
    assert model.config["decoder_ff_dim"] == 0
    assert not any(name.startswith("decoder.feed_forward") for name in model.state_dict())
    asked = block.attention_norm(queries) if pre_norm else queries
    y = queries + block.attention(asked, [Tokens.of(model.encode(x))])
    torch.testing.assert_close(model(x), model.outputs.head(y if pre_norm else block.attention_norm(y))[:, 0])
    with_one = build({"kind": "LearnedQueries", "dim": 8, "num_channels": 3}, pre_norm=pre_norm)
    assert model.flops(x) < with_one.flops(x)
    assert block.flops(1, 5) == with_one.decoder.attention.flops(1, 5)


class Mine(nn.Module):
    """An input module that is not the library's."""

    num_channels = 3

    def forward(self, x, mask=None):
        return [Tokens.of(x, mask)]


def test_parts_of_others(tmp_path):
    model = build({"kind": "LearnedQueries", "dim": 8, "num_channels": 3}, Mine())
    x = draw(2, 5, 3)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"kind='.*Mine' is none of"):
        PerceiverIO.from_pretrained(tmp_path)
    torch.testing.assert_close(PerceiverIO.from_pretrained(tmp_path, inputs=Mine())(x), model(x))
