import pytest
import torch

pytest.importorskip("kornia", reason="the training extra is not installed")
from perceivers import PerceiverIO
from perceivers.data import Arrays, Audio, Images, Videos
from perceivers.training.augment import Augmentation, change_images, mask_time

pytestmark = pytest.mark.filterwarnings("default")


def test_crops_are_whole_images_to_the_model():
    """A crop is resized, and its positions span -1 to 1; all frames of a video are cropped alike."""
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 1, 16).expand(40, 1, 12, 16)
    cropped = change_images("crop", x)
    assert cropped.shape == x.shape
    widths = (cropped[..., -1] - cropped[..., 0]).mean((1, 2)) / 2
    assert widths.min() < 0.5
    assert widths.max() > 0.8
    inputs = Images(size=[12, 16], channels=1, labels=[], task="classification").inputs(16)
    model = PerceiverIO(inputs=inputs, outputs={"kind": "LearnedQueries", "dim": 16, "num_channels": 2}, dim=16)
    (whole,), (crop,) = model.inputs(x), model.inputs(cropped)
    assert all(torch.equal(a, b) for a, b in zip(whole.tables, crop.tables, strict=True))
    video = x.unsqueeze(2).expand(-1, 3, 4, -1, -1)
    for name in ("light", "flip", "crop"):
        changed = change_images(name, video)
        assert changed.shape == video.shape
        torch.testing.assert_close(changed, changed[:, :1, :1].expand_as(changed))
        assert not torch.equal(changed, video)


@pytest.mark.parametrize("augment", ["light", "flip", "crop", "randaugment", "crop+flip"])
def test_changes_of_images(augment):
    x, targets = torch.rand(8, 1, 12, 12) * 2 - 1, torch.arange(8)
    changed, mask, same = Augmentation(Images, augment=augment)(x, None, targets)
    assert changed.shape == x.shape
    assert changed.abs().max() <= 1
    assert not torch.equal(changed, x)
    assert mask is None
    assert same is targets
    assert Augmentation(Images, augment="none")(x, None, targets)[0] is x


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Videos, {"augment": "crop+randaugment"}, "randaugment does not apply to videos: choose among light, flip, crop"),
        (Images, {"augment": "crop+turn"}, "augment='turn'"),
        (Audio, {"time_masks": -1}, "time_masks=-1"),
        (Arrays, {"mixup": -0.1}, "mixup=-0.1"),
    ],
)
def test_wrong_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(kind, **arguments)


def test_time_masks():
    """What was masked stays masked; spans have at most a tenth of the length; something is always left."""
    mask = torch.ones(50, 100, dtype=torch.bool)
    mask[:, 90:] = False
    x, masked, _ = Augmentation(Audio, time_masks=3)(torch.rand(50, 1, 100), mask, torch.zeros(50))
    assert not (masked & ~mask).any()
    hidden = (mask & ~masked).sum(1)
    assert 0 < hidden.max() <= 30
    one = torch.zeros(200, 100, dtype=torch.bool)
    one[:, 7] = True
    assert torch.equal(mask_time(one, 9), one)
    assert Augmentation(Audio, time_masks=0)(x, mask, torch.zeros(50))[1] is mask


def test_mixup_mixes_samples_and_targets_alike():
    x = torch.eye(6).reshape(6, 6, 1)  # sample i is 1 at i
    mixed, _, targets = Augmentation(Arrays, num_classes=6, mixup=1.0)(x, None, torch.arange(6))
    torch.testing.assert_close(mixed.squeeze(-1), targets)
    assert ((targets > 0) & (targets < 1)).any()
    ids = torch.arange(6).reshape(1, 6)
    assert torch.equal(Augmentation(Arrays, num_classes=6, mixup=1.0)(ids, None, torch.zeros(1))[0], ids)  # no numbers to mix


def test_cutmix_targets_are_shares_of_the_area():
    x = torch.arange(1.0, 5).reshape(4, 1, 1, 1).expand(4, 1, 10, 10)
    mixed, _, targets = Augmentation(Images, num_classes=4, augment="none", cutmix=1.0)(x, None, torch.arange(4))
    for sample, target in zip(mixed, targets, strict=True):
        shares = torch.stack([(sample == label + 1).float().mean() for label in range(4)])
        torch.testing.assert_close(shares, target)
