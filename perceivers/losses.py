"""Losses of the published models, as functions of what the models return and what was wanted.

Letters: B batch, C classes or channels, L tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import a_number, a_probability

# Of L1 for video and sound and of cross-entropy for the label (Perceiver IO, appendix; released Kinetics code).
KINETICS_WEIGHTS = {"image": 0.03, "audio": 1.0, "label": 0.0001}


def classification(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of classes.

    Args:
        logits: `[B, C]`, or `[B, C, *axes]` for segmentation.
        targets: Classes `[B]` or `[B, *axes]`, integer; or probabilities of the shape of `logits`, such as of mixed pictures.
        label_smoothing: Part of the probability that goes to all classes evenly; 0.1 for the published ImageNet models.

    Returns:
        The mean, a scalar.
    """
    smoothing = a_probability("label_smoothing", label_smoothing)
    if targets.is_floating_point() and targets.shape != logits.shape:
        raise ValueError(f"targets has shape {list(targets.shape)}, logits {list(logits.shape)}: make them equal, or give ids")
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def multi_label(logits: Tensor, targets: Tensor, *, gamma: float = 0.0, alpha: float | None = None) -> Tensor:
    """Binary cross-entropy of many labels at once, or focal loss (Lin et al., 2017), which weights what is already right less.

    Args:
        logits: `[B, C]`.
        targets: 0 or 1, or probabilities, `[B, C]`.
        gamma: Exponent of 1 - p, the distance to the target; 0 is binary cross-entropy.
        alpha: Weight of labels that are there, 1 - alpha of the others; `None` for no weights.

    Returns:
        The mean, a scalar.
    """
    if targets.shape != logits.shape:
        raise ValueError(f"targets has shape {list(targets.shape)}, logits {list(logits.shape)}: make them equal")
    if isinstance(gamma, bool) or gamma < 0:
        raise ValueError(f"gamma={gamma!r} must be a number of at least 0")
    targets = targets.to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if gamma > 0:
        loss = loss * (logits.sigmoid() - targets).abs() ** gamma
    if alpha is not None:
        alpha = a_probability("alpha", alpha)
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss.mean()


def masked_tokens(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the tokens that were hidden from the model.

    Args:
        logits: `[B, L, C]`.
        targets: The tokens that are there, `[B, L]`, integer.
        mask: `[B, L]`, bool, True where a token was hidden.

    Returns:
        The mean over hidden tokens, a scalar; 0 where there are none.
    """
    if mask.dtype != torch.bool or mask.shape != targets.shape or logits.shape[:2] != targets.shape:
        raise ValueError(
            f"mask is {mask.dtype} of shape {list(mask.shape)}, targets has shape {list(targets.shape)}, logits"
            f" {list(logits.shape)}, but a bool [B, L], [B, L] and [B, L, C] are needed"
        )
    loss = F.cross_entropy(logits.transpose(1, 2), targets.masked_fill(~mask, -100), reduction="sum")
    return loss / mask.sum().clamp_min(1)


def end_point_error(flow: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Length of the difference of two optical flows.

    Args:
        flow: `[B, 2, H, W]`, in pixels, or in whatever unit the target has.
        target: `[B, 2, H, W]`.
        valid: `[B, H, W]`, bool, True where the target is known; what it holds elsewhere, even NaN, has no effect.

    Returns:
        The mean over known pixels, a scalar; 0 where there are none.
    """
    if flow.shape != target.shape:
        raise ValueError(f"flow has shape {list(flow.shape)}, target {list(target.shape)}: make them equal")
    difference = flow - target
    if valid is None:
        return torch.linalg.vector_norm(difference, dim=1).mean()
    if valid.dtype != torch.bool or valid.shape != flow[:, 0].shape:
        raise ValueError(f"valid is {valid.dtype} of shape {list(valid.shape)}, but a bool {list(flow[:, 0].shape)} is needed")
    difference = difference.movedim(1, -1)[valid]
    return torch.linalg.vector_norm(difference, dim=-1).sum() / valid.sum().clamp_min(1)


def autoencoding(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    *,
    indices: Mapping[str, Tensor | None] | None = None,
    weights: Mapping[str, float] = KINETICS_WEIGHTS,
) -> Tensor:
    """Weighted sum of each modality's loss: cross-entropy where the targets are classes, L1 elsewhere.

    Args:
        outputs: For each modality what the model returned.
        targets: What was wanted: arrays `[B, C, *axes]`, as they went in, or classes, `[B]`, integer.
        indices: The indices that were decoded, as the model took them, `[O]` or `[B, O]`. Modalities without are whole. A
            target's elements are cut into as many patches side by side as fill an output's channels, on its last axis.
        weights: For each modality its weight; those of the published Kinetics model by default.

    Returns:
        A scalar.
    """
    if unknown := [name for name in outputs if name not in weights or name not in targets]:
        raise ValueError(f"outputs has {unknown}, but weights has {sorted(weights)} and targets {sorted(targets)}: add them")
    total = next(iter(outputs.values())).new_zeros(())
    for name, out in outputs.items():
        target, rows = targets[name], None if indices is None else indices.get(name)
        if not target.is_floating_point():
            loss = F.cross_entropy(out, target)
        else:
            target = target if rows is None else _chosen(target, rows, out.shape[1])
            if out.shape != target.shape:
                raise ValueError(f"{name!r}: the output has shape {list(out.shape)}, the target {list(target.shape)}")
            loss = F.l1_loss(out, target)
        total = total + a_number("weights", weights[name]) * loss
    return total


def _chosen(target: Tensor, rows: Tensor, channels: int) -> Tensor:
    """The elements of `[B, C, *axes]` that queries with the numbers `rows` stand for, `[B, channels, O]`."""
    patch = channels // max(target.shape[1], 1)
    if patch == 0 or channels != patch * target.shape[1] or target.shape[-1] % patch:
        raise ValueError(
            f"an output of {channels} channels fits no target of shape {list(target.shape)}: patches of its last axis"
        )
    patches = target.flatten(2).unflatten(-1, (-1, patch)).movedim(-1, 1).flatten(1, 2)  # [B, patch C, queries]
    return patches.take_along_dim(rows.expand(len(target), -1).unsqueeze(1), dim=-1)
