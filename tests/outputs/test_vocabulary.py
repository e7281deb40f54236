"""TokenLogits: tied and masked."""

import pytest
import torch
from outputs.models import build, decode, draw


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
    """As in DeepMind's code, they are zero before the output projection, so its bias remains."""
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


@pytest.mark.peer("peft")
def test_lora_of_the_tied_embedding(peer):
    """The logits use the adapted embedding, merged or not, and gradients reach the adapter through them."""
    source = {"kind": "TokenIds", "vocab_size": 7, "max_length": 9, "dim": 6}
    model = build({"kind": "TokenLogits", "vocab_size": 7, "max_length": 9, "dim": 6}, source, decoder_query_residual=False)
    latents = draw(2, 5, 12)
    before = model.decode(latents)
    config = peer.LoraConfig(r=3, target_modules=["embeddings"], init_lora_weights=False)
    peer.inject_adapter_in_model(config, model.inputs)
    decoded = decode(model, model.outputs.query.expand(2, -1, -1), latents)
    out = model.decode(latents)
    torch.testing.assert_close(out, decoded @ model.inputs.embeddings(torch.arange(7)).T + model.outputs.bias)
    assert (out - before).abs().max() > 1e-3
    out.square().sum().backward()
    adapters = [parameter.grad for name, parameter in model.inputs.named_parameters() if "lora_" in name]
    assert len(adapters) == 2
    assert all(grad is not None and grad.abs().max() > 0 for grad in adapters)
    model.inputs.embeddings.merge()
    torch.testing.assert_close(model.decode(latents), out)


def test_what_an_embedding_cannot_be_tied_to():
    source = {"kind": "TokenIds", "vocab_size": 7, "max_length": 9, "dim": 6}
    output = {"kind": "TokenLogits", "vocab_size": 7, "max_length": 9, "dim": 6}
    for tied_to, message in [
        (
            "embedding.weight",
            r"tied_to='embedding.weight' is not a parameter of the inputs: choose from \['embeddings.weight'",
        ),
        ("embeddings", "tied_to='embeddings' is not a parameter"),
        ("positions.embeddings", r"tied_to='positions.embeddings' has shape \[9, 6\], but \[7, 6\] is needed"),
    ]:
        with pytest.raises(ValueError, match=message):
            build({**output, "tied_to": tied_to}, source)
