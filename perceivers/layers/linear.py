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
    """Return the weight and bias that `module` computes, or `None` if they are not known.

    They are known for a plain linear layer. Hooks, a replaced `forward` or any other class may compute something else, so such
    a module must be called.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if type(module) not in (Linear, nn.Linear) or any(hooks) or "forward" in vars(module):
        return None
    return module.weight, module.bias  # pyright: ignore[reportReturnType]
