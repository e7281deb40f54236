"""Grid, written out, and the memory of chunked decoding."""

import pytest
import torch
from outputs.models import SMALL, build, coordinates, decode, draw, features
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from perceivers import PerceiverIO, inputs, outputs


def test_grid_written_out():
    model = build({"kind": "Grid", "axes": [3, 5], "num_channels": 2, "num_bands": 2, "resolution": [4, 7]})
    x = draw(2, 2, 4, 6)
    rows, columns = features(coordinates(3), 4), features(coordinates(5), 7)
    queries = torch.cat([rows[:, None].expand(-1, 5, -1), columns.expand(3, -1, -1)], dim=-1).flatten(0, 1)
    wanted = model.outputs.head(decode(model, queries.expand(2, -1, -1), model.encode(x)))
    torch.testing.assert_close(model(x), wanted.unflatten(1, (3, 5)).movedim(-1, 1))
    chosen = torch.tensor([[14, 0, 7], [3, 3, 1]])
    torch.testing.assert_close(model(x, indices=chosen)[1], wanted[1, chosen[1]].T)
    torch.testing.assert_close(model(x, indices=chosen[0])[1], wanted[1, chosen[0]].T)


def test_left_aligned_samples_are_not_the_grid():
    """In DeepMind's code chosen points have coordinates -1 + 2 i / n, while those of the grid end at 1."""
    output = {"kind": "Grid", "axes": [3, 5], "num_channels": 2, "num_bands": 2, "sampled_positions": "left_aligned"}
    model = build(output)
    x = draw(2, 2, 4, 6)
    latents = model.encode(x)
    chosen = torch.tensor([14, 0, 7])
    at = lambda i, n: features(-1 + 2 * i.double() / n, n)  # noqa: E731
    queries = torch.cat([at(chosen // 5, 3), at(chosen % 5, 5)], dim=-1)
    wanted = model.outputs.head(decode(model, queries.expand(2, -1, -1), latents)).mT
    torch.testing.assert_close(model(x, indices=chosen), wanted)
    grid = PerceiverIO(inputs=model.inputs, outputs={**output, "sampled_positions": "grid"}, **SMALL).double().eval()
    grid.load_state_dict(model.state_dict())
    assert torch.equal(grid(x), model(x))
    assert (grid(x, indices=chosen) - wanted).abs().max() > 1e-3


def test_feature_order_is_a_permutation():
    output = {"kind": "Grid", "axes": [3, 5], "num_channels": 2, "num_bands": 2}
    axes, kinds = build(output), build({**output, "feature_order": "kinds"})
    kinds.load_state_dict(axes.state_dict())
    order = [0, 5, 1, 2, 6, 7, 3, 4, 8, 9]  # coordinates, sines, cosines of both axes
    block = kinds.decoder
    with torch.no_grad():
        for parameter in (
            block.attention_norm.weight,
            block.attention_norm.bias,
            block.feed_forward_norm.weight,
            block.feed_forward_norm.bias,
            block.attention.to_q.weight,
            block.feed_forward.linear_in.weight,
            kinds.outputs.head.weight,
        ):
            parameter.copy_(parameter[..., order])
        for parameter in (block.attention.to_out, block.feed_forward.linear_out):
            parameter.weight.copy_(parameter.weight[order])
            parameter.bias.copy_(parameter.bias[order])
    x = draw(2, 2, 4, 6)
    torch.testing.assert_close(kinds(x), axes(x))
    assert order != sorted(order)


def test_patches_lie_side_by_side():
    """Each query decodes its patch from channels of the head: result channels vary fastest, then the last axis."""
    model = build({"kind": "Grid", "axes": [3, 5], "num_channels": 2, "patch": [2, 3], "num_bands": 2})
    x = draw(2, 2, 4, 6)
    out, parts = model(x), model(x, indices=torch.arange(15))
    assert out.shape == (2, 2, 6, 15)
    for query in (0, 7, 14):
        i, j = divmod(query, 5)
        patch = out[:, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
        torch.testing.assert_close(patch, parts[:, :, query].unflatten(1, (2, 3, 2)).movedim(-1, 1))


def test_content_of_queries_is_the_preprocessed_input():
    source = {"kind": "Patches", "data_shape": [1, 4, 6], "patch_size": 2, "embed_dim": 3, "num_bands": 2}
    output = {"kind": "Grid", "axes": [2, 3], "num_channels": 2, "num_bands": 2, "content_channels": 3}
    model = build(output, source)
    x = draw(2, 1, 4, 6)
    patches = F.unfold(x, 2, stride=2).mT  # [B, 6, 4]
    rows, columns = features(coordinates(2), 2), features(coordinates(3), 3)
    positions = torch.cat([rows[:, None].expand(-1, 3, -1), columns.expand(2, -1, -1)], dim=-1).flatten(0, 1)
    queries = torch.cat([model.inputs.linear(patches), positions.expand(2, -1, -1)], dim=-1)
    wanted = model.outputs.head(decode(model, queries, model.encode(x)))
    torch.testing.assert_close(model(x), wanted.mT.unflatten(-1, (2, 3)))


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that is created."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("chosen", [False, True])
def test_memory_of_chunks_is_constant(chosen):
    """The largest tensor is the queries of a chunk, with 69 channels each; the result has one value per query."""
    size, chunk_size = 300_000, 5_000
    output = outputs.Grid(axes=[3, 100, 1000], num_channels=1, num_bands=11)
    source = inputs.Pixels(data_shape=[2, 4, 6], num_bands=2)
    model = PerceiverIO(inputs=source, outputs=output, **SMALL).eval()
    indices = torch.arange(size) if chosen else None
    with torch.no_grad(), Largest() as largest:
        out = model.decode(torch.randn(1, 5, 12), indices=indices, chunk_size=chunk_size)
    assert out.numel() == size
    assert size < largest.numel == chunk_size * output.query_channels
