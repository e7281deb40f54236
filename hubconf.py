"""Entry points of `torch.hub`: every name of `list_models()`, and the functions imported here.

```python
model = torch.hub.load("owner/perceivers", "perceiver_io_imagenet_fourier", num_classes=10)
model = torch.hub.load("owner/perceivers", "from_pretrained", "folder or repository on the hub")
```
"""

import typing  # not `from typing`: torch.hub takes every callable of this module for an entry point

from perceivers import create_model, from_pretrained, list_models

__all__ = ["create_model", "dependencies", "from_pretrained", "list_models"]

dependencies = ["torch", "einops", "numpy", "safetensors", "huggingface_hub"]


def _entry_point(name: str) -> typing.Callable[..., typing.Any]:
    def entry_point(**overrides: typing.Any) -> typing.Any:
        return create_model(name, **overrides)

    entry_point.__name__ = name
    entry_point.__doc__ = f"Create {name} with random weights; the arguments are the overrides of perceivers.create_model."
    return entry_point


globals().update({name: _entry_point(name) for name in list_models()})
