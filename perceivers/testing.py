"""The laws that every input module and every Perceiver IO keeps, to check modules of your own.

```python
from perceivers.testing import check_input, check_model

check_input(MyInput(), data, mask, hidden=data_with_nan_under_the_mask)
check_model(PerceiverIO(inputs=MyInput(), outputs=MyOutput(), ...), data)
```

Each draws every parameter at random, because a head of zeros would make every law hold, in a copy: the module given is left
as it is. The first law that is broken raises `AssertionError`, which names it.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perceivers._registry import Part, describe
from perceivers.layers import CrossAttention
from perceivers.ops.cross_attention import IMPLEMENTATIONS
from perceivers.ops.tokens import Tokens
from perceivers.perceiver_io import PerceiverIO

# "encoded_queries" computes queries that are not projected yet, those of some decoders; "auto" selects it there.
_FOR_PROJECTED_QUERIES = [name for name in IMPLEMENTATIONS if name != "encoded_queries"]


def check_input(
    module: nn.Module, x: Any, mask: Any = None, *, hidden: Any = None, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Checks an input module.

    The laws: groups have `num_channels` channels and finite values; samples differ, and a batch is its samples one by one;
    gradients reach every parameter; every implementation of attention gives the same; what lies under False has no effect;
    a `Part` is described by JSON and made again.

    Args:
        module: The input module.
        x: Its data, a batch of at least two samples: a tensor, or tensors in dicts, lists and tuples.
        mask: A mask for them.
        hidden: The data again with rubbish, such as NaN, wherever `mask` is False; `None` leaves that law out.
        rtol: Relative tolerance, of laws that rounding may disturb.
        atol: Absolute tolerance.

    Raises:
        AssertionError: If a law is broken; the message names it.
        ValueError: If there are fewer than two samples, or `hidden` is given without `mask`.
    """
    batch = _batch_size(x)
    if hidden is not None and mask is None:
        raise ValueError("hidden is given but mask is None: give the mask under which the data are hidden")
    module = _drawn(module)
    channels: Any = getattr(module, "num_channels", None)
    _law(isinstance(channels, int), "num_channels", f"num_channels={channels!r} is no whole number")
    groups = module(x, mask)
    for group in groups:
        _law(isinstance(group, Tokens), "token groups", f"a group is a {type(group).__name__}, no Tokens")
        got = group.num_channels
        _law(got == channels, "num_channels", f"a group has {got} channels, the module says {channels}")
        _law(bool(group.encoded().isfinite().all()), "finite values", "an encoded input is not finite")
    encoded = torch.cat([group.encoded() for group in groups], dim=1)
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
    for name in _FOR_PROJECTED_QUERIES:
        attention.set_attention_implementation(name)
        _equal(attend(x, mask), whole, f"implementations agree ({name})", rtol, atol)
    if hidden is not None:
        attention.set_attention_implementation("reference")
        same = bool(torch.equal(attend(hidden, mask), whole))
        _law(same, "masked is absent", "what lies under False changes what latents gather")
        _law(not torch.equal(attend(x, None), whole), "masked is absent", "the mask has no effect")
    if isinstance(module, Part):
        again = type(module).create(json.loads(json.dumps(describe(module))))
        again.load_state_dict(module.state_dict())
        remade = torch.cat([group.encoded() for group in again.to(encoded.device).eval()(x, mask)], dim=1)
        _equal(remade, encoded, "described and made again", rtol, atol)


def check_model(
    model: PerceiverIO, x: Any, mask: Any = None, *, queries: Any = None, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Checks a `PerceiverIO`, and with it its output module.

    The laws: results are finite; samples differ, and a batch is its samples one by one; decoding in chunks gives the same;
    gradients reach every parameter; every implementation of attention gives the same; the description makes the model again.

    Args:
        model: The model. Small is enough.
        x: What it takes, a batch of at least two samples.
        mask: A mask for them.
        queries: Queries for each sample, for an output that has none of its own.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        AssertionError: If a law is broken; the message names it.
        ValueError: If there are fewer than two samples.
    """
    batch = _batch_size(x)
    model = _drawn(model)
    whole = _named(model(x, mask, queries=queries))
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
    for implementation in _FOR_PROJECTED_QUERIES:
        model.set_attention_implementation(implementation)
        for name, out in _named(model(x, mask, queries=queries)).items():
            _equal(out, whole[name], f"implementations agree ({implementation})", rtol, atol)
    again = type(model)(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    for name, out in _named(again.to(next(model.parameters())).eval()(x, mask, queries=queries)).items():
        _equal(out, whole[name], "described and made again", rtol, atol)


def _drawn(module: nn.Module) -> Any:
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=(parameter.shape[-1] if parameter.ndim > 1 else 4) ** -0.5)
    return module


def _on_tensors(x: Any, change: Callable[[Tensor], Any]) -> Any:
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
        raise ValueError(f"x holds tensors of {sizes} samples: give a batch of at least two, the same number everywhere")
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
    _law(varies, law, "the first two give the same, so that nothing else would be tested")


def _gradients(module: nn.Module, out: Tensor) -> None:
    parameters = dict(module.named_parameters())
    if not parameters:
        return
    found = torch.autograd.grad(out.square().sum(), list(parameters.values()), allow_unused=True)
    for name, grad in zip(parameters, found, strict=True):
        if name.endswith("to_k.bias"):
            continue  # it cancels in the softmax
        reached = grad is not None and bool(grad.isfinite().all()) and bool(grad.abs().max() > 0)
        _law(reached, "gradients reach every parameter", f"{name} has none, or it is zero or not finite")
