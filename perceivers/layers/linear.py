"""The linear layer with the initialisation of the published models."""

import math

from torch import Tensor, nn

from perceivers.ops.linear import linear

# Standard deviation of a standard normal cut at two standard deviations.
TRUNCATED_STD = 0.87962566103423978


class Linear(nn.Linear):
    """`nn.Linear`, initialised to a LeCun truncated normal (variance 1 / fan_in after the cut at 2 sigma), biases to zero.

    Source: `VarianceScaling(1.0)` of DeepMind's released Perceiver code.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps `[..., in_features]` to `[..., out_features]`."""
        return linear(input, self.weight, self.bias)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        std = 1 / math.sqrt(self.in_features) / TRUNCATED_STD
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def known_affine(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return the weight and bias of a module that computes x W^T + b, or `None` if they are not known.

    They are known for a plain linear layer. Hooks, a replaced `forward` or any other class may compute something else, so such
    a module has to be called.
    """
    if type(module) not in (Linear, nn.Linear) or why_touched("", module) is not None:
        return None
    return module.weight, module.bias  # pyright: ignore[reportReturnType]


def why_touched(name: str, module: nn.Module) -> str | None:
    """Return a reason if a module itself has hooks or a replaced `forward`."""
    if "forward" in module.__dict__:
        return f"{name} is a {type(module).__name__} with its forward replaced"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return f"{name} is a {type(module).__name__} with hooks"
    return None
