"""What outputs share: the decoder, layers that are called rather than read, and input modules of other libraries."""

import pytest
import torch
from outputs.models import PIXELS, build, draw
from torch import nn

from perceivers import PerceiverIO
from perceivers.ops.tokens import Tokens
from perceivers.position import LearnedPositions


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


class Foreign(nn.Module):
    """An input module that does not derive from `InputModule`."""

    num_channels = 3

    def forward(self, x, mask=None):
        return [Tokens.of(x, mask)]


def test_foreign_input_modules(tmp_path):
    model = build({"kind": "LearnedQueries", "dim": 8, "num_channels": 3}, Foreign())
    x = draw(2, 5, 3)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"kind='.*Foreign' is "):
        PerceiverIO.from_pretrained(tmp_path)
    torch.testing.assert_close(PerceiverIO.from_pretrained(tmp_path, inputs=Foreign())(x), model(x))


TEXT = {"kind": "TokenIds", "vocab_size": 7, "max_length": 6, "dim": 6}
OUTPUTS = {
    "queries": ({"kind": "LearnedQueries", "dim": 8, "num_channels": 3}, PIXELS),
    "tasks": ({"kind": "MultiTask", "dim": 8, "tasks": {"a": 2, "b": 5}}, PIXELS),
    "mean": ({"kind": "MeanPool", "dim": 12, "num_channels": 3, "final_norm": True}, PIXELS),
    "inputs": ({"kind": "PerInput", "dim": 12, "num_channels": 2}, PIXELS),
    "tokens": ({"kind": "PerToken", "dim": 6, "num_channels": 7}, TEXT),
    "tied": ({"kind": "TokenLogits", "vocab_size": 7, "max_length": 6, "dim": 6}, TEXT),
    "several": (
        {
            "kind": "Multimodal",
            "modalities": {"grid": {"kind": "Grid", "axes": [3], "num_channels": 2, "num_bands": 1, "decoded_channels": 7}},
            "decoded_channels": 7,
        },
        PIXELS,
    ),
}
LAYERS = [
    (name, path)
    for name, (output, source) in OUTPUTS.items()
    for path, layer in build(output, source).named_modules()
    if path.startswith(("inputs.", "outputs."))
    and isinstance(layer, nn.Linear | nn.Embedding | nn.LayerNorm | LearnedPositions)
]


def test_layers_are_found():
    assert {path for _, path in LAYERS} == {
        "inputs.embeddings",
        "inputs.positions",
        "outputs.head",
        "outputs.heads.a",
        "outputs.heads.b",
        "outputs.modalities.grid.head",
        "outputs.norm",
        "outputs.projection",
    }


@pytest.mark.parametrize(("name", "path"), LAYERS, ids=["-".join(pair) for pair in LAYERS])
def test_forward_hooks_are_honoured(name, path):
    """A hook that doubles the output of a layer has the effect of doubling its parameters, also for a tied embedding."""
    model = build(*OUTPUTS[name])
    x = torch.randint(7, (2, 6)) if OUTPUTS[name][1] is TEXT else draw(2, 2, 4, 6)

    def run():
        out = model(x)
        return torch.cat([part.flatten() for part in (out.values() if isinstance(out, dict) else [out])])

    plain, layer = run(), model.get_submodule(path)
    handle = layer.register_forward_hook(lambda layer, args, out: 2 * out)
    hooked = run()
    handle.remove()
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    torch.testing.assert_close(hooked, run())
    assert (hooked - plain).abs().max() > 1e-3
