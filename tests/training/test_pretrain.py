"""Masked self-pretraining: what is hidden is not seen, costs nothing, and is learned; fitting starts from what was learned."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from perceivers.__main__ import main
from perceivers.data import Preprocessing
from perceivers.training.datamodule import PathData
from perceivers.training.pretrain import Pretraining, hide
from training_material import KINDS, SMALL, TINY, Killed, killed_at, read_rows

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("default")]

SUPPORTED = [kind for kind in KINDS if Preprocessing.kinds[kind].mask_ratio is not None]


def losses(run):
    return [float(row["val_loss"]) for row in read_rows(f"{run}/metrics.csv")]


@pytest.mark.parametrize("kind", SUPPORTED)
def test_pretrain_then_fit(kind, capsys):
    path = str(KINDS[kind][0]())
    arguments = [*TINY, "--trainer.max_epochs=6", "--data.batch_size=16", "--model.lr=0.005"]
    assert main(["pretrain", path, "--output=pre", *arguments]) == 0
    assert "--from pre" in capsys.readouterr().out
    assert min(losses("pre")[1:]) < losses("pre")[0]
    assert main(["fit", path, "--from", "pre", "--output=run", *TINY, "--trainer.max_epochs=1", "--model.lr=0"]) == 0
    before, after = (load_file(f"{folder}/model.safetensors") for folder in ("pre", "run"))
    taken = [name for name in after if name.startswith(("inputs.", "encoder."))]
    assert len(taken) > 20
    for name in taken:  # a learning rate of zero leaves them
        assert torch.equal(before[name], after[name]), name
    assert main(["predict", "run", path]) == 0
    assert main(["fit", "--resume", "run", "--trainer.max_epochs=2"]) == 0


def model_and_batch(kind, **settings):
    data = PathData(str(KINDS[kind][0]()), task="pretraining")
    torch.manual_seed(0)
    model = Pretraining(SMALL, preprocessing=data.preprocessing.describe(), **settings)
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    examples = data.examples("train")
    return model, examples.collate([examples[i] for i in range(6)])


# Windows of audio overlap: what is hidden is a piece of the spectrum, not of the waveform.
@pytest.mark.parametrize("kind", [kind for kind in SUPPORTED if kind != "Audio"])
def test_what_is_hidden_is_not_seen(kind, monkeypatch):
    """Results do not change where what is hidden changes, and do where it is not."""
    model, (x, mask, _) = model_and_batch(kind)
    seen = []
    right = model.network.decode
    monkeypatch.setattr(model.network, "decode", lambda *given, **named: seen.append(right(*given, **named)) or seen[-1])
    model.loss((x, mask, None), 3)
    (group,) = model.network.inputs(x, mask)
    known = model.preprocessing.known(x, group)
    visible = hide(known, model.mask_ratio, 3)[2]
    hidden = known & ~visible

    def changed(where):  # of patches, the pixels that they are made of
        if isinstance(x, dict):
            split = x["numeric"].shape[1]
            numeric = torch.where(where[:, :split], x["numeric"] + 1, x["numeric"])
            return {**x, "numeric": numeric}
        if not x.is_floating_point():
            return torch.where(where, (x + 1).clamp(max=261), x)
        axes = group.content.shape[2:]
        scale = [n // m for n, m in zip(x.shape[2:], axes, strict=True)]
        spread = where.unflatten(1, axes)
        for axis, factor in enumerate(scale):
            spread = spread.repeat_interleave(factor, dim=axis + 1)
        return torch.where(spread.unsqueeze(1), x + 1, x)

    model.loss((changed(hidden), mask, None), 3)
    model.loss((changed(visible), mask, None), 3)
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2])


def test_cost_falls_with_what_is_hidden(monkeypatch):
    read = []
    for share in (0.25, 0.75):
        model, batch = model_and_batch("Images", mask_ratio=share)
        right = model.network.encoder.forward
        monkeypatch.setattr(model.network.encoder, "forward", lambda tokens, right=right: read.append(tokens) or right(tokens))
        model.loss(batch, 0)
    sizes = [tokens[0].num_inputs for tokens in read]
    assert sizes == [12, 4]  # of 16 patches of 2 x 2 pixels


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_hide(share):
    known = torch.rand(50, 20, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.05, 1, 50).unsqueeze(1)
    rows, asked, visible = hide(known, share, seed=1)
    hidden = torch.zeros_like(known).scatter(1, rows, asked)
    assert torch.equal(hidden | visible, known)
    assert not (hidden & visible).any()
    some = known.any(1)
    assert visible[some].any(1).all()  # something is always seen
    assert hidden[known.sum(1) > 1].any(1).all()  # and something asked for
    assert all(torch.equal(a, b) for a, b in zip((rows, asked, visible), hide(known, share, seed=1), strict=True))
    assert not torch.equal(visible, hide(known, share, seed=2)[2])


def test_missing_values_are_not_asked_for():
    model, (x, mask, _) = model_and_batch("Table")
    x["numeric"][:, :4] = float("nan")
    x["categorical"][:, 0] = -1
    assert torch.isfinite(model.loss((x, mask, None), 0))
    _, asked, visible = hide(torch.cat([~x["numeric"].isnan(), x["categorical"] != -1], 1), model.mask_ratio, 0)
    assert not visible[:, :4].any()
    assert asked.sum(1).max() < x["numeric"].shape[1]


def test_resumed_pretraining_ends_with_the_same_weights(monkeypatch):
    material.images(Path("digits"))
    options = [*TINY, "--every=2"]
    assert main(["pretrain", "digits", "--output=whole", *options]) == 0
    with monkeypatch.context() as patch:
        killed_at(5, Pretraining, patch)
        with pytest.raises(Killed):
            main(["pretrain", "digits", "--output=run", *options])
    assert main(["pretrain", "--resume", "run"]) == 0
    assert Path("whole/model.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()


def test_wrong_use(capsys):
    material.images(Path("digits"))
    material.arrays(Path("digits.npz"))
    assert main(["pretrain", "digits", "--output=pre", *TINY, "--trainer.max_epochs=1"]) == 0
    cases = [
        (["fit", "digits.npz", "--from", "pre", "--output=other"], "the pretrained model reads images"),
        (["fit", "digits", "--from", "nowhere", "--output=other"], "nowhere"),
        (["pretrain", "digits", "--from", "pre"], "--resume pre continues"),
        (["pretrain", "digits", "--output=other", "--model.mask_ratio=1"], "mask_ratio=1"),
        (["pretrain"], "perceivers pretrain PATH"),
        (["pretrain", "--from", "x", "--resume", "pre"], "leave out PATH and --from"),
        (["pretrain", "digits", "--resume", "pre"], "leave out PATH and --from"),
        (["validate", "pre"], "perceivers fit PATH --from pre"),
    ]
    for arguments, message in cases:
        assert main(arguments) == 2, arguments
        assert message in capsys.readouterr().err
