"""perceiver-pytorch's `PerceiverIO` and `PerceiverLM` with random weights: outputs, gradients, masks, and older names."""

import re

import pytest
import torch

from accuracy import assert_varies, draw_parameters
from perceivers import from_pretrained

pytestmark = pytest.mark.peer("perceiver_pytorch")
SIZES = {
    "depth": 3,
    "num_latents": 5,
    "latent_dim": 12,
    "cross_heads": 2,
    "latent_heads": 3,
    "cross_dim_head": 5,
    "latent_dim_head": 4,
}
HEADS = {"cross_heads": 2, "latent_heads": 3}


def drawn(model):
    return draw_parameters(model).double().eval()


def assert_same(ours, theirs):
    assert_varies(theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def assert_same_gradients(ours, theirs, pairs):
    """Also with as many parameters, so that training goes on as it would there."""
    (our_model, our_out), (their_model, their_out) = ours, theirs
    cotangent = torch.randn_like(their_out)
    our_grads = torch.autograd.grad(our_out, [pair[0] for pair in pairs], cotangent)
    their_grads = torch.autograd.grad(their_out, [pair[1] for pair in pairs], cotangent)
    for our_grad, their_grad in zip(our_grads, their_grads, strict=True):
        assert their_grad.abs().max() > 0
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-8, atol=1e-10)
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert count(our_model) == count(their_model)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight_tie_layers": True},
        {"decoder_ff": True},
        {"logits_dim": None},
        {"depth": 0},
        {"depth": 1, "weight_tie_layers": True, "decoder_ff": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_io(peer, tmp_path, changes, masked):
    theirs = drawn(peer.PerceiverIO(**{**SIZES, "dim": 7, "queries_dim": 8, "logits_dim": 6, **changes}))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = from_pretrained(tmp_path / "theirs.pt", **HEADS)
    x, queries = torch.randn(3, 9, 7, dtype=torch.float64), torch.randn(3, 4, 8, dtype=torch.float64)
    x.requires_grad_(), queries.requires_grad_()
    mask = torch.rand(3, 9) > 0.3 if masked else None
    our_out, their_out = ours(x, mask, queries=queries), theirs(x, mask=mask, queries=queries)
    assert_same(our_out, their_out)
    assert_same(ours(x, mask, queries=queries[0]), theirs(x, mask=mask, queries=queries[0]))
    assert_same(ours.encode(x, mask), theirs(x, mask=mask))
    decoder = theirs.decoder_cross_attn
    pairs = [
        (x, x),
        (queries, queries),
        (ours.encoder.latents, theirs.latents),
        (ours.decoder.attention_norm.weight, decoder.norm.weight),
        (ours.decoder.attention.to_out.bias, decoder.fn.to_out.bias),
        (ours.encoder.cross_attentions[0].attention.to_q.weight, theirs.cross_attend_block.cross_attn.fn.to_q.weight),
    ]
    if "depth" not in changes:
        last = ours.config["latent_layers_indice"][-1], ours.config["num_latent_transformers_in_layers"][-1] - 1
        pairs.append(
            (
                ours.encoder.latent_transformers[last[0]][last[1]].feed_forward.linear_in.weight,
                theirs.layers[-1].self_attns[0][1].fn.net[0].weight,
            )
        )
    assert_same_gradients((ours, our_out), (theirs, their_out), pairs)


@pytest.mark.parametrize("changes", [{}, {"weight_tie_layers": True, "decoder_ff": True}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_language_model(peer, tmp_path, changes, masked):
    theirs = drawn(peer.PerceiverLM(dim=7, num_tokens=11, max_seq_len=9, **SIZES, **changes))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = from_pretrained(tmp_path / "theirs.pt", **HEADS)
    ids, mask = torch.randint(11, (3, 8)), torch.rand(3, 8) > 0.3
    mask[:, 0] = True
    if masked:  # under False the peer queries with the id itself, ours with nothing
        our_out, their_out = ours(ids, mask)[mask], theirs(ids, mask=mask)[mask]
    else:
        our_out, their_out = ours(ids), theirs(ids)
        assert our_out.shape == (3, 8, 11)
    assert_same(our_out, their_out)
    pairs = [
        (ours.inputs.embeddings.weight, theirs.token_emb.weight),
        (ours.inputs.positions.embeddings, theirs.pos_emb.weight),
        (ours.outputs.head.weight, theirs.perceiver_io.to_logits.weight),
    ]
    assert_same_gradients((ours, our_out), (theirs, their_out), pairs)


BEFORE_0_11 = [
    (r"cross_attend_block\.cross_attn\.", "cross_attend_blocks.0."),
    (r"cross_attend_block\.cross_ff\.", "cross_attend_blocks.1."),
    (r"layers\.(\d)\.self_attns\.0\.", r"layers.\1."),
]


@pytest.mark.parametrize("kind", ["PerceiverIO", "PerceiverLM"])
def test_names_before_0_11(peer, tmp_path, kind):
    own = {"num_tokens": 11, "max_seq_len": 9} if kind == "PerceiverLM" else {"queries_dim": 8}
    theirs = drawn(getattr(peer, kind)(dim=7, **own, **SIZES, decoder_ff=True))
    state = theirs.state_dict()
    for old, new in BEFORE_0_11:
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    assert not any("block." in name or "self_attns" in name for name in state)
    torch.save(state, tmp_path / "old.pt")
    ours = from_pretrained(tmp_path / "old.pt", **HEADS)
    if kind == "PerceiverLM":
        ids = torch.randint(11, (3, 8))
        assert_same(ours(ids), theirs(ids))
    else:
        x, queries = torch.randn(3, 9, 7, dtype=torch.float64), torch.randn(3, 4, 8, dtype=torch.float64)
        assert_same(ours(x, queries=queries), theirs(x, queries=queries))


@pytest.mark.parametrize("tied", [False, True])
def test_repeated_cross_attention_before_0_7(peer, tmp_path, tied):
    """The layers were those of `Perceiver`."""
    sizes = {**SIZES, "num_freq_bands": 0, "max_freq": 1, "input_axis": 1, "input_channels": 7, "self_per_cross_attn": 2}
    encoder = drawn(peer.Perceiver(**sizes, fourier_encode_data=False, final_classifier_head=False, weight_tie_layers=tied))
    decoder = drawn(peer.PerceiverIO(**SIZES, dim=7, queries_dim=8, logits_dim=6))
    state = encoder.state_dict()
    for old, new in ((r"\.cross_attn\.", ".0."), (r"\.cross_ff\.", ".1."), (r"\.self_attns\.", ".2.")):
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    state |= {name: w for name, w in decoder.state_dict().items() if name.startswith(("decoder", "to_logits"))}
    torch.save(state, tmp_path / "old.pt")
    ours = from_pretrained(tmp_path / "old.pt", **HEADS)
    assert ours.config["layers_indice"] == ([0, 1, 1] if tied else [0, 1, 2])
    x, queries = torch.randn(3, 9, 7, dtype=torch.float64), torch.randn(3, 4, 8, dtype=torch.float64)
    wanted = decoder.to_logits(decoder.decoder_cross_attn(queries, context=encoder(x)))
    assert_same(ours(x, queries=queries), wanted)
    torch.save({**state, "decoder_ff.norm.weight": torch.ones(8)}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"decoder_ff of versions before 0\.7"):
        from_pretrained(tmp_path / "old.pt", **HEADS)


def test_refused(peer, tmp_path):
    path, sizes = tmp_path / "theirs.pt", {**SIZES, "dim": 7, "queries_dim": 8}
    torch.save(peer.PerceiverIO(**sizes, attn_residual=True).state_dict(), path)
    with pytest.raises(ValueError, match="belongs to attn_residual=True"):
        from_pretrained(path, **HEADS)
    state = peer.PerceiverIO(**sizes).state_dict()
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"without Fourier features, which \['max_freq'\] are about"):
        from_pretrained(path, max_freq=10, **HEADS)
    with pytest.raises(ValueError, match="cross_heads=3 does not divide 10"):
        from_pretrained(path, **{**HEADS, "cross_heads": 3})
    torch.save({name: w for name, w in state.items() if name != "decoder_cross_attn.norm.bias"}, path)
    with pytest.raises(ValueError, match=r"decoder_cross_attn\.norm\.bias is missing"):
        from_pretrained(path, **HEADS)
    lm = peer.PerceiverLM(dim=7, num_tokens=11, max_seq_len=9, **SIZES).state_dict()
    torch.save({name: w for name, w in lm.items() if "to_logits" not in name}, path)
    with pytest.raises(ValueError, match=r"to_logits.weight is missing"):
        from_pretrained(path, **HEADS)
