"""perceivers: the Perceiver family in PyTorch.

Importing this package imports nothing else: a public name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Perceiver": "perceivers.perceiver",
    "PerceiverBlock": "perceivers.layers.block",
    "PerceiverIO": "perceivers.perceiver_io",
    "create_model": "perceivers.factory",
    "from_pretrained": "perceivers.checkpoints.detect",
    "list_models": "perceivers.factory",
}

if TYPE_CHECKING:
    from perceivers.checkpoints.detect import from_pretrained
    from perceivers.factory import create_model, list_models
    from perceivers.layers.block import PerceiverBlock
    from perceivers.perceiver import Perceiver
    from perceivers.perceiver_io import PerceiverIO

__all__ = ["Perceiver", "PerceiverBlock", "PerceiverIO", "__version__", "create_model", "from_pretrained", "list_models"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'perceivers' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
