"""Losses of the published models, as functions of the outputs and targets.

Letters: B batch, C classes or channels, L tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import a_number, a_probability

# Weights of the L1 losses of video and audio and the cross-entropy of labels (Perceiver IO, appendix; released Kinetics code).
KINETICS_WEIGHTS = {"image": 0.03, "audio": 1.0, "label": 0.0001}


def classification(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of classes.

    Args:
        logits: `[B, C]`, or `[B, C, *axes]` for segmentation.
        targets: Class ids `[B]` or `[B, *axes]`, integer; or probabilities with the shape of `logits`, for example from mixup.
        label_smoothing: Probability that is distributed evenly over all classes; 0.1 for the published ImageNet models.

    Returns:
        A scalar.
    """
    smoothing = a_probability("label_smoothing", label_smoothing)
    if targets.is_floating_point() and targets.shape != logits.shape:
        raise ValueError(
            f"targets has shape {list(targets.shape)}, logits {list(logits.shape)}: they must be equal, or targets integer"
        )
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def multi_label(logits: Tensor, targets: Tensor, *, gamma: float = 0.0, alpha: float | None = None) -> Tensor:
    """Return the mean binary cross-entropy of several labels, or the focal loss (Lin et al., 2017).

    The focal loss gives less weight to labels that are already predicted well.

    Args:
        logits: `[B, C]`.
        targets: `[B, C]`, 0 or 1, or probabilities.
        gamma: Exponent of |p - target| in the focal loss; 0 gives binary cross-entropy.
        alpha: Weight of positive labels; negative ones have 1 - alpha. `None` for no weights.

    Returns:
        A scalar.
    """
    if targets.shape != logits.shape:
        raise ValueError(f"targets has shape {list(targets.shape)}, logits {list(logits.shape)}: they must be equal")
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
    """Return the mean cross-entropy of masked tokens.

    Args:
        logits: `[B, L, C]`.
        targets: Ids of the original tokens, `[B, L]`, integer.
        mask: `[B, L]`, bool, True where the token was masked.

    Returns:
        A scalar, the mean over masked tokens; 0 if there are none.
    """
    if mask.dtype != torch.bool or mask.shape != targets.shape or logits.shape[:2] != targets.shape:
        raise ValueError(
            f"mask is {mask.dtype} of shape {list(mask.shape)}, targets has shape {list(targets.shape)}, logits"
            f" {list(logits.shape)}, but a bool mask [B, L], targets [B, L] and logits [B, L, C] are needed"
        )
    loss = F.cross_entropy(logits.transpose(1, 2), targets.masked_fill(~mask, -100), reduction="sum")
    return loss / mask.sum().clamp_min(1)


def end_point_error(flow: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean end-point error of optical flow, the Euclidean norm of its difference from the target.

    Args:
        flow: `[B, 2, H, W]`, in the unit of the target, usually pixels.
        target: `[B, 2, H, W]`.
        valid: `[B, H, W]`, bool, True where the target is known; its values elsewhere, including NaN, have no effect.

    Returns:
        A scalar, the mean over valid pixels; 0 if there are none.
    """
    if flow.shape != target.shape:
        raise ValueError(f"flow has shape {list(flow.shape)}, target {list(target.shape)}: they must be equal")
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
    """Return the weighted sum of the modalities' losses: cross-entropy for class ids, L1 for arrays.

    Args:
        outputs: Output of the model for each modality.
        targets: Target for each modality: arrays `[B, C, *axes]` as given to the input module, or class ids `[B]`, integer.
        indices: Indices of the decoded queries, `[O]` or `[B, O]`, as passed to the model; modalities without were decoded as
            a whole. If an output has more channels than its target, each query decoded a patch along the target's last axis.
        weights: Weight of each modality. Defaults to those of the published Kinetics model.

    Returns:
        A scalar.
    """
    if unknown := [name for name in outputs if name not in weights or name not in targets]:
        raise ValueError(f"outputs has {unknown}, which weights={sorted(weights)} or targets={sorted(targets)} lack: add them")
    total = next(iter(outputs.values())).new_zeros(())
    for name, out in outputs.items():
        target, rows = targets[name], None if indices is None else indices.get(name)
        if not target.is_floating_point():
            loss = F.cross_entropy(out, target)
        else:
            target = target if rows is None else _chosen(target, rows, out.shape[1])
            if out.shape != target.shape:
                raise ValueError(
                    f"outputs[{name!r}] has shape {list(out.shape)}, its target {list(target.shape)}: they must be equal"
                )
            loss = F.l1_loss(out, target)
        total = total + a_number("weights", weights[name]) * loss
    return total


def _chosen(target: Tensor, rows: Tensor, channels: int) -> Tensor:
    """Return the elements of a target `[B, C, *axes]` that the queries `rows` decode, `[B, channels, O]`."""
    patch = channels // max(target.shape[1], 1)
    if patch == 0 or channels != patch * target.shape[1] or target.shape[-1] % patch:
        raise ValueError(
            f"an output with {channels} channels does not fit a target of shape {list(target.shape)}: it must have the"
            " channels of whole patches along the target's last axis"
        )
    patches = target.flatten(2).unflatten(-1, (-1, patch)).movedim(-1, 1).flatten(1, 2)  # [B, patch C, queries]
    return patches.take_along_dim(rows.expand(len(target), -1).unsqueeze(1), dim=-1)
