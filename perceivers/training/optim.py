"""Optimisers, learning rates and parameter groups of the papers."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from perceivers._checks import one_of

SCHEDULES = ("cosine", "flat_cosine", "steps", "constant")


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., 2020, arXiv 1904.00962, algorithm 2), with which the published ImageNet models were trained.

    Adam with bias correction and decoupled decay, whose step of each parameter is scaled to the norm of the parameter; where
    either norm is zero, it is not. The steps are those of optax.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the averages of gradients and of their squares.
        eps: Added to the root of the averaged squares.
        weight_decay: Share of the parameter that is added to its step, before the step is scaled.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} must be a number of at least 0")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas!r} must be two numbers of at least 0 and below 1")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
                state["step"] += 1
                mean, square = state["mean"], state["square"]
                mean.lerp_(parameter.grad, 1 - beta1)
                square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                unbiased = square / (1 - beta2 ** state["step"])
                update = mean / (1 - beta1 ** state["step"]) / (unbiased.sqrt() + group["eps"])
                update.add_(parameter, alpha=group["weight_decay"])
                sizes = parameter.norm(), update.norm()
                trust = torch.where((sizes[0] > 0) & (sizes[1] > 0), sizes[0] / sizes[1], 1.0)
                parameter.sub_(group["lr"] * trust * update)
        return loss


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits parameters into those that decay and, without decay, biases and the vectors of norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(schedule: str, step: int, total: int, warm_up: float) -> float:
    """What the learning rate is multiplied by at a step.

    Args:
        schedule: "cosine" to zero; "flat_cosine", the first half constant (Perceiver IO, ImageNet); "steps", a tenth after
            70, 85 and 95 % (Perceiver, ImageNet: 84, 102 and 114 of 120 epochs); or "constant".
        step: The step, from 0.
        total: Number of steps.
        warm_up: Share of the steps in which the rate rises from near zero; it multiplies the schedule.
    """
    done = min(step / max(total, 1), 1.0)
    match one_of("schedule", schedule, SCHEDULES):
        case "cosine":
            factor = (1 + math.cos(math.pi * done)) / 2
        case "flat_cosine":
            factor = (1 + math.cos(math.pi * max(0.0, 2 * done - 1))) / 2
        case "steps":
            factor = 0.1 ** sum(done >= milestone for milestone in (0.7, 0.85, 0.95))
        case _:
            factor = 1.0
    rising = warm_up * total
    return factor * (min(1.0, (step + 1) / rising) if rising > 0 else 1.0)


def make_optimizer(
    name: str, model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Makes "adamw" or "lamb" with `parameter_groups`."""
    kind = {"adamw": torch.optim.AdamW, "lamb": Lamb}[one_of("optimizer", name, ("adamw", "lamb"))]
    return kind(parameter_groups(model, weight_decay), lr=lr, betas=betas)
