"""What each output module asks and how its results are arranged, written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from accuracy import draw_parameters
from perceivers import PerceiverIO, inputs, outputs
from perceivers.layers import CrossAttentionBlock
from perceivers.ops.tokens import Tokens
from perceivers.outputs.gather import take, unravel

SMALL = {"num_latent_tokens": 5, "dim": 12, "heads": 2, "num_latent_transformers_in_layers": [1]}
PIXELS = {"kind": "Pixels", "data_shape": [2, 4, 6], "num_bands": 2}
draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731


def build(output, source=PIXELS, **changes) -> PerceiverIO:
    model = PerceiverIO(inputs=source, outputs=output, **{**SMALL, **changes})
    return draw_parameters(model.double().eval())  # pyright: ignore


def decode(model: PerceiverIO, queries, latents):
    """The decoder with modules of PyTorch."""
    block: CrossAttentionBlock = model.decoder
    a = block.attention
    q, x = a.to_q(block.attention_norm(queries)), a.inputs_norm(latents)
    heads = lambda y: y.unflatten(-1, (a.heads, -1)).transpose(1, 2)  # noqa: E731
    gathered = F.scaled_dot_product_attention(heads(q), heads(a.to_k(x)), heads(a.to_v(x)), scale=a.scale)
    gathered = a.to_out(gathered.transpose(1, 2).flatten(2))
    y = queries + gathered if block.query_residual else gathered
    return y + block.feed_forward(block.feed_forward_norm(y))


def coordinates(n):
    return torch.linspace(-1, 1, n, dtype=torch.float64)


def features(positions, resolution, bands=2):
    """As in the paper: coordinate, sines, cosines; resolution / 2 is the highest of the frequencies from 1."""
    angles = torch.pi * positions[..., None] * torch.linspace(1, resolution / 2, bands, dtype=torch.float64)
    return torch.cat([positions[..., None], angles.sin(), angles.cos()], dim=-1)


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
    """In DeepMind's code chosen points are at -1 + 2 i / n; all of them, too, while the grid ends at 1."""
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
    """Each query gives its patch; the parts of a patch are channels of the head, the last axis fastest, channels last."""
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


def test_given_queries():
    """What learned queries give that are the same; also some of them, in chunks, masked, and asked of kept latents."""
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
        (None, "queries=None, but this output has none of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            model(x, queries=wrong)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (None, r"queries=None, .* \[O, 8\] or \[2, O, 8\]"),
        ([1.0], "queries is a list, not a tensor"),
        (draw(8), r"queries has shape \[8\], 1 axes"),
        (draw(2, 3, 7), r"queries has shape \[2, 3, 7\], but \[O, 8\] or \[2, O, 8\] is needed"),
        (draw(3, 4, 8), r"queries has shape \[3, 4, 8\]"),
        (draw(0, 8), r"queries has shape \[0, 8\].* at least one"),
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
    decoded = decode(model, torch.cat(queries).expand(2, -1, -1), model.encode(x))  # all at once: they do not see one another
    decoded = model.outputs.projection(decoded)
    wanted = {
        "audio": parts["audio"].head(decoded[:, :4]).flatten(1).unsqueeze(1),
        "label": parts["label"].head(decoded[:, 4]),
    }
    torch.testing.assert_close(model(x), wanted)
    some = model(x, indices={"audio": torch.tensor([3, 1])})
    torch.testing.assert_close(some["audio"], wanted["audio"].unflatten(-1, (4, 3))[:, 0, [3, 1]].mT)
    torch.testing.assert_close(some["label"], wanted["label"])


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


def test_several_masks():
    grid = {"kind": "Grid", "axes": [3, 5], "num_channels": 2, "num_bands": 2, "decoded_channels": 12}
    model = build({"kind": "Multimodal", "modalities": {"a": grid, "b": grid}})
    x, mask = draw(2, 2, 4, 6), torch.rand(2, 3, 5) > 0.5
    plain, out = model(x), model(x, query_mask={"b": mask})
    assert torch.equal(out["a"], plain["a"])
    assert torch.equal(out["b"].movedim(1, -1)[mask], plain["b"].movedim(1, -1)[mask])
    assert not torch.equal(out["b"], plain["b"])


def test_mean_needs_no_decoder():
    model = build({"kind": "MeanPool", "dim": 12})
    x = draw(2, 2, 4, 6)
    assert model.decoder is None
    torch.testing.assert_close(model(x), model.encode(x).mean(1))
    head = build({"kind": "MeanPool", "dim": 12, "num_channels": 3, "final_norm": True})
    wanted = head.outputs.head(F.layer_norm(head.encode(x).mean(1), [12], head.outputs.norm.weight, head.outputs.norm.bias))
    torch.testing.assert_close(head(x), wanted)


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("chosen", [False, True])
def test_memory_of_chunks_is_constant(chosen):
    """The queries of a chunk, 69 numbers each, are the largest that is made; the result has one number a query."""
    size, chunk_size = 300_000, 5_000
    output = outputs.Grid(axes=[3, 100, 1000], num_channels=1, num_bands=11)
    source = inputs.Pixels(data_shape=[2, 4, 6], num_bands=2)
    model = PerceiverIO(inputs=source, outputs=output, **SMALL).eval()
    indices = torch.arange(size) if chosen else None
    with torch.no_grad(), Largest() as largest:
        out = model.decode(torch.randn(1, 5, 12), indices=indices, chunk_size=chunk_size)
    assert out.numel() == size
    assert size < largest.numel == chunk_size * output.query_channels


def test_rows_of_a_grid():
    i = torch.arange(24).reshape(4, 6)
    rows = torch.tensor([5, 23, 0])
    assert torch.equal(i[tuple(unravel(rows, [4, 6]))], rows)
    (tokens,) = inputs.Pixels(data_shape=[2, 4, 6], num_bands=2)(torch.randn(2, 2, 4, 6), torch.rand(2, 4, 6) > 0.5)
    for chosen in (rows, torch.stack([rows, rows + 0 * 1])):
        torch.testing.assert_close(take(tokens, chosen).encoded(), tokens.encoded()[:, rows])
    again = take(take(tokens, rows), torch.tensor([2, 1]))  # of a list of indices
    torch.testing.assert_close(again.encoded(), tokens.encoded()[:, [0, 23]])
    plain = Tokens.of(torch.randn(2, 5, 3))
    torch.testing.assert_close(take(plain, torch.tensor([4])).encoded(), plain.encoded()[:, 4:])


class Mine(nn.Module):
    """An input module that is not the library's."""

    num_channels = 3

    def forward(self, x, mask=None):
        return [Tokens.of(x, mask)]


def test_parts_of_others(tmp_path):
    model = build({"kind": "LearnedQueries", "dim": 8, "num_channels": 3}, Mine())
    x = draw(2, 5, 3)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"kind='.*Mine' is not one of"):
        PerceiverIO.from_pretrained(tmp_path)
    torch.testing.assert_close(PerceiverIO.from_pretrained(tmp_path, inputs=Mine())(x), model(x))
