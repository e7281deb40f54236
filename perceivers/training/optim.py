"""Optimisers, learning rates and parameter groups of the papers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from perceivers._checks import one_of

OPTIMIZERS = ("adamw", "lamb")
SCHEDULES = ("cosine", "flat_cosine", "steps", "constant")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of an optimiser and its schedule.

    Attributes:
        optimizer: "adamw" or "lamb".
        lr: Highest learning rate.
        betas: Decay of the optimiser's averages of gradients and of their squares.
        weight_decay: Weight decay of matrices; biases, norms, embeddings and latents do not decay, see `parameter_groups`.
        layer_decay: Factor of the learning rate per layer below the last, such as 0.75 for fine-tuning; 1 turns it off.
        schedule: "cosine", "flat_cosine", "steps" or "constant", see `learning_rate_factor`.
        warmup_steps: Steps over which the learning rate rises; a value below 1 is a share of all steps.

    Raises:
        ValueError: If one is out of range.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    schedule: str = "cosine"
    warmup_steps: float = 0.05

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)
        for name in ("lr", "weight_decay", "warmup_steps"):
            check_not_negative(name, getattr(self, name))
        check_betas(self.betas)
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay!r} must be a number above 0 and at most 1, which turns it off")

    def make(self, model: nn.Module, steps: int) -> dict[str, Any]:
        """Return the optimiser of a model and its schedule over so many steps, as Lightning takes them."""
        groups = parameter_groups(model, lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)
        optimizer = {"adamw": torch.optim.AdamW, "lamb": Lamb}[self.optimizer](groups, lr=self.lr, betas=self.betas)
        warmup = self.warmup_steps * steps if self.warmup_steps < 1 else self.warmup_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(self.schedule, step, steps, warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Group parameters by weight decay and learning rate.

    Vectors (biases and the weights of norms) do not decay, nor do the parameters that `model.no_weight_decay()` names, if the
    model has this method, as models of timm do.

    Args:
        model: The model.
        lr: Learning rate of the last layer.
        weight_decay: Weight decay of the parameters that decay.
        layer_decay: Factor of the learning rate per layer below the last, by `model.parameter_depths()`, which gives 0 for the
            inputs and the latents (BEiT, Bao et al., 2021). Defaults to one learning rate for all.

    Raises:
        ValueError: If layer_decay is given for a model that does not know the depths of its parameters.
    """
    constant = getattr(model, "no_weight_decay", set)()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if layer_decay == 1:
        depths = dict.fromkeys(trained, 0)
    elif not hasattr(model, "parameter_depths"):
        raise ValueError(f"layer_decay={layer_decay} needs a model with the method parameter_depths(): leave it out")
    else:
        depths: dict[str, int] = model.parameter_depths()  # pyright: ignore[reportAssignmentType, reportCallIssue]
    last = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in trained.items():
        decays = parameter.ndim > 1 and name not in constant
        settings = {"lr": lr * layer_decay ** (last - depths[name]), "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((depths[name], decays), {"params": [], **settings})["params"].append(parameter)
    return list(groups.values())


def learning_rate_factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Return what the learning rate is multiplied by at a step.

    Args:
        schedule: "cosine" to zero; "flat_cosine", constant for the first half (Perceiver IO, ImageNet); "steps", divided by 10
            after 70, 85 and 95% (Perceiver, ImageNet: 84, 102 and 114 of 120 epochs); or "constant".
        step: The step, from 0.
        steps: Number of steps.
        warmup: Steps over which the rate rises linearly from near zero; this factor multiplies the schedule.
    """
    done = min(step / max(steps, 1), 1.0)
    match one_of("schedule", schedule, SCHEDULES):
        case "cosine":
            factor = (1 + math.cos(math.pi * done)) / 2
        case "flat_cosine":
            factor = (1 + math.cos(math.pi * max(0.0, 2 * done - 1))) / 2
        case "steps":
            factor = 0.1 ** sum(done >= milestone for milestone in (0.7, 0.85, 0.95))
        case _:
            factor = 1.0
    return factor * (min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0)


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., 2020, arXiv 1904.00962, algorithm 2), with which the published ImageNet models were trained.

    Adam with bias correction and decoupled weight decay, whose update of each parameter is scaled to the norm of the
    parameter, unless either norm is zero. The steps are those of optax.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay of the averages of gradients and of their squares.
        eps: Added to the root of the averaged squares.
        weight_decay: Share of the parameter that is added to its update, before it is scaled.

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
            check_not_negative(name, value)
        check_betas(betas)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one step; return what the closure returns."""
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


def check_not_negative(name: str, value: float) -> None:
    """Check that a setting is a finite number of at least 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r} must be a number of at least 0")


def check_betas(betas: tuple[float, float]) -> None:
    """Check that these are two numbers of at least 0 and below 1."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={betas!r} must be two numbers of at least 0 and below 1")
