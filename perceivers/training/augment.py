"""Random augmentation of training batches, drawn from torch's generator, which `Training` seeds at every step.

Images by kornia; audio by masking spans of time (SpecAugment, Park et al., 2019), through the mask, so that the rest is not
affected; mixup and cutmix for every kind of data whose samples are one array without a mask. The attribute `augmentations` of
a kind of data names those that apply.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import a_number, an_int, one_of
from perceivers.data import Preprocessing

IMAGE_CHANGES = ("light", "flip", "crop", "randaugment")
Batch = tuple[Any, Tensor | None, Tensor]  # x, its mask, and targets


class Augmentation:
    """Random changes of a batch.

    Args:
        kind: Kind of data, which says what applies to it.
        num_classes: Number of classes; 0 if the targets are not classes.
        augment: Changes of images `[B, C, H, W]` and videos `[B, C, T, H, W]` in [-1, 1]: "none", or several of these joined
            by "+". "light": rotation by at most 10 degrees, translation and scaling by a tenth. "flip": left to right.
            "crop": a random 8 to 100% of the area at an aspect ratio of 3:4 to 4:3, resized (Szegedy et al., 2015); positions
            span -1 to 1 over the crop, without which a Perceiver overfits (Jaegle et al., 2021, appendix). "randaugment": two
            operations of RandAugment (Cubuk et al., 2019), for images only. All frames of a video change alike.
        time_masks: For audio, how many spans of at most a tenth of the length are masked.
        mixup: Parameter of the Beta distribution of mixup (Zhang et al., 2017); 0 turns it off.
        cutmix: The same for cutmix (Yun et al., 2019); if both are given, each is used for half of the batches.

    Raises:
        ValueError: If an argument is out of range, or the kind of data does not have a change.
    """

    def __init__(
        self,
        kind: type[Preprocessing],
        *,
        num_classes: int = 0,
        augment: str = "light",
        time_masks: int = 2,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        changes = [] if augment == "none" else [one_of("augment", one, IMAGE_CHANGES) for one in augment.split("+")]
        supported = [name for name in IMAGE_CHANGES if name in kind.augmentations]
        if supported and (unsupported := set(changes) - set(supported)):
            raise ValueError(
                f"augment={augment!r}: {', '.join(sorted(unsupported))} does not apply to {kind.plural}: choose among"
                f" {', '.join(supported)}"
            )
        self.changes = changes if supported else []
        self.time_masks = an_int("time_masks", time_masks, 0) if "time_masks" in kind.augmentations else 0
        self.mixup, self.cutmix = (value and a_number(name, value) for name, value in (("mixup", mixup), ("cutmix", cutmix)))
        self.num_classes = num_classes

    def __call__(self, x: Any, mask: Tensor | None, targets: Tensor) -> Batch:
        """Change a batch.

        Args:
            x: What the model takes.
            mask: Its mask, or `None`.
            targets: Classes `[B]`, or labels or numbers `[B, k]`.

        Returns:
            The same three; targets are probabilities `[B, num_classes]` if classes were mixed.
        """
        for name in self.changes:
            x = change_images(name, x)
        if self.time_masks and mask is not None:
            mask = mask_time(mask, self.time_masks)
        if (self.mixup or self.cutmix) and isinstance(x, Tensor) and x.is_floating_point() and mask is None:
            x, targets = self._mix(x, targets)
        return x, mask, targets

    def _mix(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.num_classes:
            targets = F.one_hot(targets, self.num_classes).to(x.dtype)
        cut = self.cutmix > 0 and x.ndim == 4 and (self.mixup == 0 or bool(torch.rand(()) < 0.5))
        strength = a_number("cutmix" if cut else "mixup", self.cutmix if cut else self.mixup)
        share = float(torch.distributions.Beta(strength, strength).sample())
        other = torch.randperm(len(x), device=x.device)
        if cut:
            height, width = x.shape[2:]
            tall, wide = (round(n * (1 - share) ** 0.5) for n in (height, width))
            top, left = (int(torch.randint(0, n - m + 1, ())) for n, m in ((height, tall), (width, wide)))
            x = x.clone()
            x[:, :, top : top + tall, left : left + wide] = x[other, :, top : top + tall, left : left + wide]
            share = 1 - tall * wide / (height * width)
        else:
            x = share * x + (1 - share) * x[other]
        return x, share * targets + (1 - share) * targets[other]


def change_images(name: str, x: Tensor) -> Tensor:
    """Apply one of "light", "flip", "crop" and "randaugment" to images or videos in [-1, 1]."""
    shape = x.shape
    if x.ndim == 5:
        x = x.flatten(1, 2)  # frames as channels, which all change alike
    x = (x + 1) / 2
    if name == "randaugment":  # its operations need colours
        x = _change(name)(x.expand(-1, 3, -1, -1))
        x = x.mean(1, keepdim=True) if shape[1] == 1 else x
    elif name == "crop":
        x = _change(name, *x.shape[2:])(x)
    else:
        x = _change(name)(x)
    return (x.clamp(0, 1) * 2 - 1).reshape(shape)


@cache
def _change(name: str, height: int = 0, width: int = 0) -> Callable[[Tensor], Tensor]:
    from kornia import augmentation

    match name:
        case "light":
            return augmentation.RandomAffine(10.0, (0.1, 0.1), (0.9, 1.1), p=1.0)
        case "flip":
            return augmentation.RandomHorizontalFlip()
        case "crop":
            return augmentation.RandomResizedCrop((height, width), (0.08, 1.0), (3 / 4, 4 / 3), p=1.0)
        case _:
            return augmentation.auto.RandAugment(2, 10)


def mask_time(mask: Tensor, spans: int) -> Tensor:
    """Mask random spans of at most a tenth of the length, but never all that is left of a sample."""
    batch, length = mask.shape
    longest, places = max(1, length // 10), torch.arange(length, device=mask.device)
    hidden = torch.zeros_like(mask)
    for _ in range(spans):
        start = torch.randint(0, length, (batch, 1), device=mask.device)
        span = torch.randint(0, longest + 1, (batch, 1), device=mask.device)
        hidden |= (places >= start) & (places < start + span)
    kept = mask & ~hidden
    return torch.where(kept.any(1, keepdim=True), kept, mask)
