"""Checks of arguments: each raises `ValueError` with the argument's name, its value and the remedy.

`True` is an `int` to Python but never a size to a reader, so bools are refused wherever a number is asked for.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

MOST_AXES = 64


def an_int(name: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as an int that is at least `minimum`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {minimum}")
    return number


def a_number(name: str, value: Any) -> float:
    """Returns `value` as a finite number greater than zero; whole numbers stay whole."""
    try:
        number = None if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name}={value!r} must be a finite number greater than 0")
    return int(number) if number.is_integer() else number


def a_probability(name: str, value: Any) -> float:
    """Returns `value` as a float in [0, 1): a dropout of 1 would remove everything."""
    try:
        number = None if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or not 0.0 <= number < 1.0:
        raise ValueError(f"{name}={value!r} must be a probability in [0, 1)")
    return number


def a_bool(name: str, value: Any) -> bool:
    """Returns `value` if it is True or False, and not something that merely behaves like it."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")
    return value


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """Returns `value` if it is among the strings `choices`."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
    return value


def a_list(name: str, value: Any, what: str) -> list[Any]:
    """Returns the items of an iterable as a list; a bare number or string is refused."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{name}={value!r} must be a list of {what}")
    return list(value)


def one_each(name: str, value: Any, axes: int) -> list[Any]:
    """Returns a list with an entry for each axis: `value` itself, which may be one entry for all."""
    if axes > MOST_AXES:
        raise ValueError(f"{name}={value!r} cannot be for {axes} axes, which are more than {MOST_AXES}")
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return [value] * axes
    if len(value) != axes:
        raise ValueError(f"{name}={value!r} has {len(value)} entries for {axes} axes: give one each")
    return list(value)
