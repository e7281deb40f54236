"""Checks of the laws that all input modules and all Perceiver IO models keep, for modules of your own.

```python
from perceivers.testing import check_input, check_model

check_input(MyInput(), data, mask, hidden=data_with_nan_under_the_mask)
check_model(PerceiverIO(inputs=MyInput(), outputs=MyOutput(), ...), data)
```

Both work on a copy of the module with random parameters, because a head of zeros would satisfy every law. They raise
`AssertionError`, which names the law, for the first law that is broken.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perceivers._registry import Configurable, describe
from perceivers.inputs import InputModule
from perceivers.layers import CrossAttention
from perceivers.layers.linear import Linear
from perceivers.ops.cross_attention import IMPLEMENTATIONS
from perceivers.ops.tokens import Tokens
from perceivers.perceiver_io import PerceiverIO

ALWAYS_TESTED = {"reference", "dense", "separable"}  # implementations that accept any input of these checks


def check_input(
    module: nn.Module, x: Any, mask: Any = None, *, hidden: Any = None, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Check an input module.

    The laws: token groups have `num_channels` channels and finite values; samples differ; a batch gives the same as its
    samples one by one; gradients reach every parameter; forward hooks of linear and embedding layers are honoured; all
    attention implementations agree; masked values have no effect; `example` gives input that the module accepts; the
    description of an `InputModule` can be written to JSON and re-creates it.

    Args:
        module: The input module.
        x: Its data, a batch of at least two samples: a tensor, or tensors in dicts, lists and tuples.
        mask: A mask for the data.
        hidden: The same data with other values, such as NaN, where `mask` is False; `None` skips this law.
        rtol: Relative tolerance of the laws that hold up to rounding.
        atol: Absolute tolerance of these laws, relative to the largest value if that exceeds 1.

    Raises:
        AssertionError: If a law is broken; the message names it.
        ValueError: If there are fewer than two samples, or `hidden` is given without `mask`.
    """
    batch = _batch_size(x)
    if hidden is not None and mask is None:
        raise ValueError("hidden is given, but mask=None: give the mask under which the values differ")
    module = _drawn(module)
    channels: Any = getattr(module, "num_channels", None)
    _law(isinstance(channels, int), "num_channels", f"num_channels={channels!r} is not an int")
    encoded = _encoded(module(x, mask), channels)
    _differ(encoded, "samples differ")

    torch.manual_seed(1)
    attention = _drawn(CrossAttention(dim=8, kv_dim=channels, heads=2, head_dim=4).to(encoded.dtype))
    latents = torch.randn(batch, 3, 8, dtype=encoded.dtype, device=encoded.device)
    attention.to(encoded.device).set_attention_implementation("reference")
    attend = lambda x, mask, latents=latents: attention(latents, module(x, mask))  # noqa: E731
    whole = attend(x, mask)
    for b in range(batch):
        alone = attend(_sample(x, b), _sample(mask, b), latents[b : b + 1])
        _equal(alone, whole[b : b + 1], "a batch is its samples", rtol, atol)
    _gradients(module, whole)
    _hooks(module, lambda: {f"group {g}": _visible(group) for g, group in enumerate(module(x, mask))}, rtol, atol)
    _implementations(attention, lambda: {"": attend(x, mask)}, {"": whole}, rtol, atol)
    attention.set_attention_implementation("reference")
    if hidden is not None:
        same = bool(torch.equal(attend(hidden, mask), whole))
        _law(same, "masked is absent", "values under False affect the result")
        _law(not torch.equal(attend(x, None), whole), "masked is absent", "the mask has no effect")
    if isinstance(module, InputModule) and (example := module.example(2)) is not None:
        try:
            groups = module(example)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"law broken, example: the module does not accept its example: {error}") from error
        _law(len(_encoded(groups, channels)) == 2, "example", "example(2) does not have two samples")
    if isinstance(module, Configurable):
        again = type(module).create(json.loads(json.dumps(describe(module))))
        again.load_state_dict(module.state_dict())
        remade = _encoded(again.to(encoded.device).eval()(x, mask), channels)
        _equal(remade, encoded, "re-created from its description", rtol, atol)


def check_model(
    model: PerceiverIO, x: Any, mask: Any = None, *, queries: Any = None, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Check a `PerceiverIO` model, and with it its input and output modules.

    The laws: results are finite; samples differ; a batch gives the same as its samples one by one; decoding in chunks gives
    the same as decoding at once; gradients reach every parameter; forward hooks of linear and embedding layers in the input
    and output modules are honoured; all attention implementations agree; the configuration re-creates the model.

    Args:
        model: The model. Use a small one.
        x: Data for its input module, a batch of at least two samples.
        mask: A mask for the data.
        queries: Queries for each sample, for outputs without queries of their own.
        rtol: Relative tolerance, as in `check_input`.
        atol: Absolute tolerance, as in `check_input`.

    Raises:
        AssertionError: If a law is broken; the message names it.
        ValueError: If there are fewer than two samples.
    """
    batch = _batch_size(x)
    model = _drawn(model)
    run = lambda: _named(model(x, mask, queries=queries))  # noqa: E731
    whole = run()
    for name, out in whole.items():
        _law(bool(out.isfinite().all()), "finite values", f"{name} is not finite")
        _differ(out, "samples differ")
    for b in range(batch):
        for name, out in _named(model(_sample(x, b), _sample(mask, b), queries=_sample(queries, b))).items():
            _equal(out, whole[name][b : b + 1], "a batch is its samples", rtol, atol)
    for chunk_size in (1, 3):
        for name, out in _named(model(x, mask, queries=queries, chunk_size=chunk_size)).items():
            _equal(out, whole[name], "chunks are the whole", rtol, atol)
    _gradients(model, torch.cat([out.flatten() for out in whole.values()]))
    for part in (model.inputs, model.outputs):
        _hooks(part, run, rtol, atol)
    _implementations(model, run, whole, rtol, atol)
    again = type(model)(**json.loads(json.dumps(model.config))).to(next(model.parameters())).eval()
    again.load_state_dict(model.state_dict())
    for name, out in _named(again(x, mask, queries=queries)).items():
        _equal(out, whole[name], "re-created from its description", rtol, atol)


def _implementations(
    module: Any, run: Callable[[], dict[str, Tensor]], whole: dict[str, Tensor], rtol: float, atol: float
) -> None:
    """Check that all attention implementations that accept the call agree with `whole`."""
    for implementation in IMPLEMENTATIONS:
        module.set_attention_implementation(implementation)
        law = f"implementations agree ({implementation})"
        try:
            results = run()
        except ValueError as error:
            if "cannot do this" not in str(error):  # the refusal of `cross_attention`
                raise
            _law(implementation not in ALWAYS_TESTED, law, str(error))
            continue
        for name, out in results.items():
            _equal(out, whole[name], law, rtol, atol)


def _hooks(module: nn.Module, run: Callable[[], dict[str, Tensor]], rtol: float, atol: float) -> None:
    """Check that a forward hook that doubles the output of a layer has the same effect as doubling its parameters.

    A module that reads the weight of a layer instead of calling it would ignore hooks, adapters and replaced layers.
    """
    for name, layer in module.named_modules():
        if type(layer) not in (Linear, nn.Linear, nn.Embedding):  # PyTorch itself reads the weights of some subclasses
            continue
        handle = layer.register_forward_hook(lambda layer, args, out: 2 * out)
        hooked = run()
        handle.remove()
        before = [parameter.detach().clone() for parameter in layer.parameters()]
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(2)
            wanted = run()
            for parameter, value in zip(layer.parameters(), before, strict=True):
                parameter.copy_(value)
        for key, out in hooked.items():
            _equal(out, wanted[key], f"forward hooks are honoured: {name}", rtol, atol)


def _encoded(groups: Any, channels: int) -> Tensor:
    """Return the encoded inputs of all token groups, `[B, M, C]`, after checking their type, channels and values."""
    for group in groups:
        _law(isinstance(group, Tokens), "token groups", f"a group is a {type(group).__name__}, not Tokens")
        got = group.num_channels
        _law(got == channels, "num_channels", f"a group has {got} channels, but num_channels={channels}")
        _law(bool(group.encoded().isfinite().all()), "finite values", "an encoded input is not finite")
    return torch.cat([group.encoded() for group in groups], dim=1)


def _visible(group: Tokens) -> Tensor:
    """Return the encoded inputs of a group with zeros where they are masked."""
    return group.encoded() * group.flat_mask().unsqueeze(-1)


def _drawn(module: nn.Module) -> Any:
    """Return a copy of the module in evaluation mode with random parameters."""
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=(parameter.shape[-1] if parameter.ndim > 1 else 4) ** -0.5)
    return module


def _on_tensors(x: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return nested data with `change` applied to every tensor."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, Mapping):
        return {name: _on_tensors(part, change) for name, part in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_on_tensors(part, change) for part in x))
    if isinstance(x, Sequence) and not isinstance(x, str):
        return type(x)(_on_tensors(part, change) for part in x)  # pyright: ignore[reportCallIssue]
    return x


def _sample(x: Any, b: int) -> Any:
    return _on_tensors(x, lambda tensor: tensor[b : b + 1])


def _batch_size(x: Any) -> int:
    sizes = []
    _on_tensors(x, lambda tensor: sizes.append(len(tensor)))
    if not sizes or min(sizes) < 2 or len(set(sizes)) > 1:
        raise ValueError(f"x has tensors with {sizes} samples: give at least two samples, the same number in all tensors")
    return sizes[0]


def _named(out: Any) -> dict[str, Tensor]:
    return dict(out) if isinstance(out, Mapping) else {"the result": out}


def _law(kept: bool, law: str, message: str) -> None:
    if not kept:
        raise AssertionError(f"law broken, {law}: {message}")


def _equal(ours: Tensor, wanted: Tensor, law: str, rtol: float, atol: float) -> None:
    _law(ours.shape == wanted.shape, law, f"{list(ours.shape)} instead of {list(wanted.shape)}")
    close = bool(torch.isclose(ours, wanted, rtol, atol * max(1.0, wanted.abs().max().item())).all())
    _law(close, law, f"the largest difference is {(ours - wanted).abs().max().item():.2g}")


def _differ(out: Tensor, law: str) -> None:
    varies = bool((out[0] - out[1]).abs().max() > 1e-4 * out.abs().max())
    _law(varies, law, "the first two samples give the same result, so that the other laws would hold trivially")


def _gradients(module: nn.Module, out: Tensor) -> None:
    """Check that every parameter has a finite gradient that is not zero."""
    parameters = dict(module.named_parameters())
    if not parameters:
        return
    found = torch.autograd.grad(out.square().sum(), list(parameters.values()), allow_unused=True)
    for name, grad in zip(parameters, found, strict=True):
        if name.endswith("to_k.bias"):
            continue  # it cancels in the softmax
        reached = grad is not None and bool(grad.isfinite().all()) and bool(grad.abs().max() > 0)
        _law(reached, "gradients reach every parameter", f"the gradient of {name} is missing, zero or not finite")
