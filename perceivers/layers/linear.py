"""The linear layer with the initialisation of the published models, and what is known of linear layers that are not ours."""

import math

import torch
from torch import Tensor, nn

from perceivers.ops.linear import linear, why_not

# Standard deviation of a standard normal distribution truncated to two standard deviations.
TRUNCATED_STD = 0.87962566103423978
IDENTITY_SCALE = 1024.0  # a power of two, so that it costs no accuracy; in f(scale I) weights stand out from the bias


class Linear(nn.Linear):
    """`nn.Linear`, initialised to a LeCun truncated normal (variance 1 / fan_in, truncated at 2 sigma), biases to zero.

    Source: `VarianceScaling(1.0)` of DeepMind's released Perceiver code.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        why_not()  # so that the result is known before a graph is compiled

    def forward(self, input: Tensor) -> Tensor:
        """Project `[..., in_features]` to `[..., out_features]`."""
        return linear(input, self.weight, self.bias)

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        std = 1 / math.sqrt(self.in_features) / TRUNCATED_STD
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def known_affine(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return the weight and bias of a module that computes x W^T + b, or `None` if they are not known.

    Known are linear layers, also parametrised ones (`torch.nn.utils.parametrize`), and LoRA adapters of peft on them, DoRA
    included, unless their dropout is active: their weight is computed from the images of the identity, so gradients reach
    the adapters. Not known are modules of other classes, and modules with hooks of their own or a replaced `forward`, which
    have to be called; `why_opaque` says which. Hooks on all modules (`register_module_forward_hook`) are not considered.
    """
    if why_opaque("", module) is not None:
        return None
    if not _is_lora(module):
        return module.weight, module.bias  # pyright: ignore[reportReturnType]
    base: nn.Module = module.base_layer  # pyright: ignore[reportAssignmentType]
    if bool(module.merged) != bool(module.disable_adapters):  # the layer below is what it computes
        return known_affine(base)
    weight, bias = base.weight, base.bias
    assert isinstance(weight, Tensor)
    with torch.autocast(weight.device.type, enabled=False):
        identity = IDENTITY_SCALE * torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        zero = module(torch.zeros_like(identity[:1]))
        return (module(identity) - zero).mT / IDENTITY_SCALE, None if bias is None else zero.squeeze(0)


def why_opaque(name: str, module: nn.Module) -> str | None:
    """Return why weight and bias of a linear layer are not known, such as "to_k is a MyLinear", or `None` if they are."""
    if (reason := why_touched(name, module)) is not None:
        return reason
    if type(module).forward in (nn.Linear.forward, Linear.forward):
        return None
    if not _is_lora(module):
        return f"{name} is {a_kind(module)}"
    for part in module.modules():
        if isinstance(part, nn.Dropout) and part.training and part.p > 0:
            return f"{name} has an adapter with dropout"
        if (reason := why_touched(name, part)) is not None:
            return reason
    variants = {type(variant).__name__ for variant in getattr(module, "lora_variant", {}).values()}
    if unknown := variants - {"DoraLinearVariant"}:
        return f"{name} has an adapter of kind {', '.join(sorted(unknown))}"
    return why_opaque(name, module.base_layer)  # pyright: ignore[reportArgumentType]


def why_touched(name: str, module: nn.Module) -> str | None:
    """Return a reason if a module itself has hooks or a replaced `forward`."""
    if "forward" in module.__dict__:
        return f"{name} is {a_kind(module)} with its forward replaced"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return f"{name} is {a_kind(module)} with hooks"
    return None


def a_kind(module: nn.Module) -> str:
    """Return the class of a module with its article; with its place if others are called the same."""
    kind = type(module)
    if kind.__name__ == "Linear" and kind not in (nn.Linear, Linear):
        return f"a {kind.__module__}.Linear"
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _is_lora(module: nn.Module) -> bool:
    """Return True for peft's LoRA on a linear layer; recognised without peft, by its place and name."""
    return type(module).__module__ == "peft.tuners.lora.layer" and type(module).__name__ == "Linear"
