"""Losses against their definitions, and the values they ignore."""

import math
import re

import pytest
import torch

from perceivers import losses


def test_masked_tokens():
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0]]).bool()
    wanted = [-logits[b, i].log_softmax(-1)[targets[b, i]] for b, i in mask.nonzero().tolist()]
    torch.testing.assert_close(losses.masked_tokens(logits, targets, mask), torch.stack(wanted).mean())
    assert losses.masked_tokens(logits, targets, torch.zeros_like(mask)) == 0


def test_end_point_error():
    flow, target = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)
    lengths = ((flow - target) ** 2).sum(1).sqrt()
    torch.testing.assert_close(losses.end_point_error(flow, target), lengths.mean())
    valid = torch.rand(2, 3, 4) > 0.5
    unknown = torch.where(valid.unsqueeze(1), target, torch.nan)
    flow.requires_grad_()
    loss = losses.end_point_error(flow, unknown, valid)
    torch.testing.assert_close(loss, lengths[valid].mean())
    assert torch.autograd.grad(loss, flow)[0].isfinite().all()
    assert losses.end_point_error(flow, unknown, torch.zeros_like(valid)) == 0


def test_classification():
    logits, targets = torch.randn(3, 5), torch.tensor([4, 0, 2])
    log_p, one_hot = logits.log_softmax(-1), torch.eye(5)[targets]
    torch.testing.assert_close(losses.classification(logits, targets), -(one_hot * log_p).sum(-1).mean())
    smooth = 0.9 * one_hot + 0.1 / 5
    for wanted in (losses.classification(logits, targets, label_smoothing=0.1), losses.classification(logits, smooth)):
        torch.testing.assert_close(wanted, -(smooth * log_p).sum(-1).mean())


def test_multi_label():
    logits, targets = torch.randn(3, 5), (torch.rand(3, 5) > 0.5).float()
    p = torch.where(targets == 1, logits.sigmoid(), 1 - logits.sigmoid())  # probability of the target
    torch.testing.assert_close(losses.multi_label(logits, targets), -p.log().mean())
    torch.testing.assert_close(losses.multi_label(logits, targets.bool(), gamma=2.0), -((1 - p) ** 2 * p.log()).mean())
    weight = torch.where(targets == 1, 0.25, 0.75)
    torch.testing.assert_close(
        losses.multi_label(logits, targets, gamma=2, alpha=0.25), -(weight * (1 - p) ** 2 * p.log()).mean()
    )


def test_autoencoding_has_the_published_weights():
    out = {"audio": torch.randn(2, 1, 6), "image": torch.randn(2, 3, 2, 4, 4), "label": torch.randn(2, 5)}
    targets = {"audio": torch.randn(2, 1, 6), "image": torch.randn(2, 3, 2, 4, 4), "label": torch.tensor([3, 0])}
    audio, image = ((out[name] - targets[name]).abs().mean() for name in ("audio", "image"))
    label = -out["label"].log_softmax(-1)[[0, 1], [3, 0]].mean()
    torch.testing.assert_close(losses.autoencoding(out, targets), audio + 0.03 * image + 0.0001 * label)


@pytest.mark.parametrize("batched", [False, True])
def test_autoencoding_of_chosen_points(batched):
    """The loss of chosen queries is that of the same elements of the whole target, here with stereo audio."""
    targets = {"audio": torch.randn(2, 2, 12), "image": torch.randn(2, 3, 2, 4, 4)}
    indices = {"audio": torch.tensor([2, 0]), "image": torch.tensor([31, 5, 5])}
    if batched:
        indices = {name: torch.stack([rows, rows.flip(0)]) for name, rows in indices.items()}
    out = {"audio": torch.randn(2, 8, 2), "image": torch.randn(2, 3, 3)}
    differences = {"audio": [], "image": []}
    for name, rows in indices.items():
        for b in range(2):
            for o, row in enumerate((rows[b] if batched else rows).tolist()):
                # 4 samples per patch; in the output, audio channels vary fastest
                audio, image = targets["audio"][b, :, 4 * row : 4 * row + 4].T.flatten(), targets["image"][b].flatten(1)
                differences[name].append((out[name][b, :, o] - (audio if name == "audio" else image[:, row])).abs())
    wanted = torch.stack(differences["audio"]).mean() + 0.03 * torch.stack(differences["image"]).mean()
    torch.testing.assert_close(losses.autoencoding(out, targets, indices=indices), wanted)


FLOW = torch.zeros(1, 2, 3, 4)
BAD = [
    (lambda: losses.classification(torch.zeros(2, 3), torch.zeros(2, 4)), "targets has shape [2, 4], logits [2, 3]"),
    (lambda: losses.classification(torch.zeros(2, 3), torch.zeros(2).long(), label_smoothing=1), "label_smoothing=1 must be"),
    (
        lambda: losses.multi_label(torch.zeros(2, 3), torch.zeros(2)),
        "targets has shape [2], logits [2, 3]: they must be equal",
    ),
    (lambda: losses.multi_label(torch.zeros(2, 3), torch.zeros(2, 3), gamma=-1), "gamma=-1 must be a number of at least 0"),
    (lambda: losses.multi_label(torch.zeros(2, 3), torch.zeros(2, 3), alpha=math.nan), "alpha=nan must be a probability"),
    (
        lambda: losses.masked_tokens(torch.zeros(1, 2, 3), torch.zeros(1, 2).long(), torch.zeros(1, 2)),
        "mask is torch.float32 of shape [1, 2], targets has shape [1, 2], logits [1, 2, 3], but a bool mask [B, L]",
    ),
    (
        lambda: losses.end_point_error(FLOW, FLOW[..., 1:]),
        "flow has shape [1, 2, 3, 4], target [1, 2, 3, 3]: they must be equal",
    ),
    (lambda: losses.end_point_error(FLOW, FLOW, FLOW > 0), "valid is torch.bool of shape [1, 2, 3, 4], but a bool [1, 3, 4]"),
    (
        lambda: losses.autoencoding({"a": FLOW}, {"a": FLOW}),
        "outputs has ['a'], which weights=['audio', 'image', 'label'] or targets=['a'] lack",
    ),
    (
        lambda: losses.autoencoding({"image": FLOW}, {"image": FLOW[:, 1:]}),
        "outputs['image'] has shape [1, 2, 3, 4], its target [1, 1, 3, 4]",
    ),
    (
        lambda: losses.autoencoding({"image": FLOW[:, :, 0]}, {"image": FLOW[:, :0]}, indices={"image": torch.arange(1)}),
        "does not fit a target of shape [1, 0, 3, 4]",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
