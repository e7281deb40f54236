"""Random changes of batches to train on, drawn from torch's generator, which `Training` seeds at every step.

Pictures by kornia; sound by leaving out spans of time (SpecAugment, Park et al., 2019), which the mask does here, so that
what is left out costs no accuracy of the rest; mixtures of two samples for anything that is one array.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import a_number, an_int, one_of

PICTURES = ("light", "flip", "crop", "randaugment")


def augmented(
    x: Any,
    mask: Tensor | None,
    targets: Tensor,
    *,
    kind: str,
    classes: int,
    pictures: str,
    time_spans: int,
    mixup: float,
    cutmix: float,
) -> tuple[Any, Tensor | None, Tensor]:
    """Changes a batch.

    Args:
        x: What the model takes.
        mask: Its mask, or `None`.
        targets: Classes `[B]`, or labels or numbers `[B, k]`.
        kind: The kind of preprocessing, such as "Images".
        classes: Number of classes; 0 where the targets are no classes.
        pictures: For pictures `[B, C, H, W]` and videos `[B, C, T, H, W]` in [-1, 1], "none" or several with "+" between:
            "light", turned by at most 10 degrees, moved and scaled by a tenth; "flip", mirrored left to right; "crop", a
            random part of 8 to 100 % of the area, in a shape of 3:4 to 4:3, resized (Szegedy et al., 2015), whose positions
            span -1 to 1 as those of a whole picture do: coordinates relative to the crop, without which a Perceiver learns
            pictures by heart (Jaegle et al., 2021, appendix); "randaugment" (Cubuk et al., 2019), two of its changes,
            for pictures only. All frames of a video change alike.
        time_spans: For sound, how many spans of a tenth of its length are left out.
        mixup: Parameter of the Beta distribution that two samples are mixed by (Zhang et al., 2017); 0 for none.
        cutmix: The same for rectangles put into another picture (Yun et al., 2019); where both are given, each is used for
            half of the batches.

    Returns:
        The same three; targets as probabilities `[B, classes]` where classes were mixed.
    """
    if kind in ("Images", "Videos"):
        for name in changes_of(pictures):
            x = _changed(name, x)
    if kind == "Audio" and mask is not None:
        mask = _without_spans(mask, an_int("time_spans", time_spans, 0))
    mixed = isinstance(x, Tensor) and x.is_floating_point() and mask is None
    if not mixed or (mixup == 0 and cutmix == 0):
        return x, mask, targets
    if classes:
        targets = F.one_hot(targets, classes).to(x.dtype)
    cut = cutmix > 0 and x.ndim == 4 and (mixup == 0 or bool(torch.rand(()) < 0.5))
    strength = a_number("cutmix" if cut else "mixup", cutmix if cut else mixup)
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
    return x, None, share * targets + (1 - share) * targets[other]


def changes_of(pictures: str) -> list[str]:
    """The names in `pictures`, see `augmented`.

    Raises:
        ValueError: If one is unknown.
    """
    return [] if pictures == "none" else [one_of("pictures", name, (*PICTURES, "none")) for name in pictures.split("+")]


def _changed(name: str, x: Tensor) -> Tensor:
    shape = x.shape
    if x.ndim == 5:
        x = x.flatten(1, 2)  # frames as channels, which all change alike
    x = (x + 1) / 2
    if name == "randaugment":  # its changes need colours
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


def _without_spans(mask: Tensor, spans: int) -> Tensor:
    batch, length = mask.shape
    longest, places = max(1, length // 10), torch.arange(length, device=mask.device)
    hidden = torch.zeros_like(mask)
    for _ in range(spans):
        start = torch.randint(0, length, (batch, 1), device=mask.device)
        span = torch.randint(0, longest + 1, (batch, 1), device=mask.device)
        hidden |= (places >= start) & (places < start + span)
    kept = mask & ~hidden
    return torch.where(kept.any(1, keepdim=True), kept, mask)  # never nothing at all
