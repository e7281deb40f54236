"""Checks of arguments; each raises `ValueError` with the argument's name, its value and what is allowed.

`True` is an `int` in Python but never a meaningful size, so bools are refused as numbers.
"""

import difflib
import inspect
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST_AXES = 64


def an_int(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int that is at least `minimum`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {minimum}")
    return number


def a_number(name: str, value: Any) -> float:
    """Return `value` as a finite number greater than zero; whole numbers become ints."""
    try:
        number = None if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name}={value!r} must be a finite number greater than 0")
    return int(number) if number.is_integer() else number


def a_probability(name: str, value: Any) -> float:
    """Return `value` as a float in [0, 1); a dropout probability of 1 would remove everything."""
    try:
        number = None if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or not 0.0 <= number < 1.0:
        raise ValueError(f"{name}={value!r} must be a probability in [0, 1)")
    return number


def a_bool(name: str, value: Any) -> bool:
    """Return `value` if it is a bool, and not just truthy or falsy."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")
    return value


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of the strings `choices`."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
    return value


def a_list(name: str, value: Any, what: str) -> list[Any]:
    """Return the items of an iterable as a list; numbers and strings are refused."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{name}={value!r} must be a list of {what}")
    return list(value)


def one_each(name: str, value: Any, axes: int) -> list[Any]:
    """Return a list with one entry per axis; a scalar `value` is repeated."""
    if axes > MOST_AXES:
        raise ValueError(f"{name}={value!r} cannot be given for {axes} axes: at most {MOST_AXES} are allowed")
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return [value] * axes
    if len(value) != axes:
        raise ValueError(f"{name}={value!r} has {len(value)} entries for {axes} axes: give one each")
    return list(value)


def check_arguments(where: str, cls: type, arguments: Mapping[str, Any]) -> None:
    """Raise `ValueError`, with a message that starts with `where`, if `cls` cannot be called with these keyword arguments."""
    parameters = inspect.signature(cls).parameters
    if unexpected := sorted(arguments.keys() - parameters.keys()):
        close = difflib.get_close_matches(unexpected[0], parameters, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else "remove them, or update perceivers"
        raise ValueError(f"{where}: unexpected keys {unexpected} for {cls.__name__}; {remedy}")
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise ValueError(f"{where}: {parameter.name} of {cls.__name__} is missing")
