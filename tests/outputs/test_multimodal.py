"""Multimodal, written out."""

import torch
from outputs.models import build, coordinates, decode, draw, features


def test_multimodal_written_out():
    audio = {"kind": "Grid", "axes": [4], "num_channels": 1, "patch": [3], "num_bands": 2, "decoded_channels": 7}
    label = {"kind": "LearnedQueries", "dim": 8, "num_channels": 3, "decoded_channels": 7}
    output = {"kind": "Multimodal", "modalities": {"audio": audio, "label": label}, "decoded_channels": 7}
    model = build(output, decoder_query_residual=False)
    assert {name: len(padding) for name, padding in model.outputs.padding.items()} == {"audio": 5, "label": 2}
    x = draw(2, 2, 4, 6)
    parts, padding = model.outputs.modalities, model.outputs.padding
    queries = [features(coordinates(4), 4), parts["label"].query]
    queries = [torch.cat([q, padding[name].expand(len(q), -1)], -1) for q, name in zip(queries, padding, strict=True)]
    decoded = decode(model, torch.cat(queries).expand(2, -1, -1), model.encode(x))  # at once: queries do not interact
    decoded = model.outputs.projection(decoded)
    wanted = {
        "audio": parts["audio"].head(decoded[:, :4]).flatten(1).unsqueeze(1),
        "label": parts["label"].head(decoded[:, 4]),
    }
    torch.testing.assert_close(model(x), wanted)
    some = model(x, indices={"audio": torch.tensor([3, 1])})
    torch.testing.assert_close(some["audio"], wanted["audio"].unflatten(-1, (4, 3))[:, 0, [3, 1]].mT)
    torch.testing.assert_close(some["label"], wanted["label"])


def test_several_masks():
    grid = {"kind": "Grid", "axes": [3, 5], "num_channels": 2, "num_bands": 2, "decoded_channels": 12}
    model = build({"kind": "Multimodal", "modalities": {"a": grid, "b": grid}})
    x, mask = draw(2, 2, 4, 6), torch.rand(2, 3, 5) > 0.5
    plain, out = model(x), model(x, query_mask={"b": mask})
    assert torch.equal(out["a"], plain["a"])
    assert torch.equal(out["b"].movedim(1, -1)[mask], plain["b"].movedim(1, -1)[mask])
    assert not torch.equal(out["b"], plain["b"])
