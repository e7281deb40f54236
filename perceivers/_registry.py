"""Modules that a model is made of and that its `config.json` describes by the name of their class and its arguments.

Names are looked up among the classes that exist: a file cannot cause an import.
"""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import nn

from perceivers._checks import check_arguments


class Configurable(nn.Module):
    """A module with a description, `{"kind": class name, **config}`.

    A subclass is registered under its name when it is defined. Defining the same class again, as re-running a notebook cell
    does, replaces the earlier one; another class of that name is refused.

    Attributes:
        argument: Name of the model's argument that takes these modules, for error messages.
        kinds: The registered classes, by name.
        config: All constructor arguments with their defaults resolved, ready for JSON.
    """

    argument: ClassVar[str]
    kinds: ClassVar[dict[str, type["Configurable"]]]
    config: dict[str, Any]

    def __init_subclass__(cls, *, argument: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if argument is not None:  # a new family with a registry of its own
            cls.argument, cls.kinds = argument, {}
            return
        known = cls.kinds.get(cls.__name__)
        if known is not None and _place(known) != _place(cls):
            raise ValueError(f"the name {cls.__name__!r} of {_place(cls)} is taken by {_place(known)}: rename the class")
        cls.kinds[cls.__name__] = cls

    @classmethod
    def create(cls, part: Any) -> Self:
        """Create a module from its description, such as `{"kind": "MeanPool", "dim": 64}`; return a module unchanged.

        Raises:
            ValueError: If `part` is neither, its kind is unknown, or an argument is unknown, missing or out of range.
        """
        if isinstance(part, nn.Module):
            return part  # pyright: ignore[reportReturnType] the model that takes it checks what it needs
        name = cls.argument
        if not isinstance(part, Mapping) or "kind" not in part:
            raise ValueError(f"{name}={part!r} must be a module, or a description: a dict with 'kind' and its arguments")
        arguments = {key: value for key, value in part.items() if key != "kind"}
        known = {kind: part for kind, part in cls.kinds.items() if not inspect.isabstract(part)}
        if part["kind"] not in known:
            raise ValueError(
                f"{name}: kind={part['kind']!r} is not one of {sorted(known)}: import the module that defines the class, or"
                f" pass an instance as {name}=..."
            )
        kind = known[part["kind"]]
        check_arguments(name, kind, arguments)
        return kind(**arguments)  # pyright: ignore[reportReturnType]


def describe(part: nn.Module) -> dict[str, Any]:
    """Return the description of a module, or only its qualified name if `Configurable.create` does not know its class."""
    known = getattr(part, "kinds", {}).get(type(part).__name__)
    if known is not None and _place(known) == _place(type(part)):
        return {"kind": known.__name__, **part.config}  # pyright: ignore[reportGeneralTypeIssues]
    return {"kind": _place(type(part))}


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
