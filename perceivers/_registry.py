"""Modules that a model is made of and that its `config.json` describes: the name of their class and its arguments.

Names are looked up among classes that exist; nothing is imported because a file says so.
"""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import nn


class Configurable(nn.Module):
    """A module with a description, `{"kind": name of its class, **config}`.

    Attributes:
        argument: Name of the argument of a model that takes such parts, for messages.
        kinds: The classes that may be described, by name.
        config: All arguments of the constructor, every default resolved, ready for JSON.
    """

    argument: ClassVar[str]
    kinds: ClassVar[dict[str, type["Configurable"]]]
    config: dict[str, Any]

    def __init_subclass__(cls, *, argument: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if argument is not None:  # a new sort of parts
            cls.argument, cls.kinds = argument, {}
        else:
            cls.kinds.setdefault(cls.__name__, cls)

    @classmethod
    def create(cls, part: Any) -> Self:
        """Makes a module from its description, such as `{"kind": "MeanPool", "dim": 64}`; returns a module as it is.

        Raises:
            ValueError: If it is neither, the kind is unknown, or an argument is unknown, missing or does not fit.
        """
        if isinstance(part, nn.Module):
            return part  # pyright: ignore[reportReturnType] whatever it is, the model that takes it checks what it needs
        name = cls.argument
        if not isinstance(part, Mapping) or "kind" not in part:
            raise ValueError(f"{name}={part!r} must be a module, or a description: a dict with 'kind' and its arguments")
        arguments = {key: value for key, value in part.items() if key != "kind"}
        known = {kind: part for kind, part in cls.kinds.items() if not inspect.isabstract(part)}
        if part["kind"] not in known:
            raise ValueError(
                f"{name}: kind={part['kind']!r} is none of {sorted(known)}: make the module yourself and pass it as {name}=..."
            )
        kind = known[part["kind"]]
        parameters = inspect.signature(kind).parameters
        if unknown := arguments.keys() - parameters.keys():
            raise ValueError(f"{name}: unknown keys {sorted(unknown)}, no arguments of {kind.__name__}: update perceivers")
        for parameter in parameters.values():
            if parameter.default is parameter.empty and parameter.name not in arguments:
                raise ValueError(f"{name}: {parameter.name} of {kind.__name__} is missing")
        return kind(**arguments)  # pyright: ignore[reportReturnType]


def describe(part: nn.Module) -> dict[str, Any]:
    """Returns the description of a module; of one that no `create` knows, only its name."""
    cls: Any = type(part)
    if getattr(cls, "kinds", {}).get(cls.__name__) is cls:
        return {"kind": cls.__name__, **part.config}  # pyright: ignore[reportGeneralTypeIssues]
    return {"kind": f"{cls.__module__}.{cls.__qualname__}"}
