"""Checks of the arguments of preprocessing: each raises `ValueError` with the argument's name, its value and the remedy."""

import math
from typing import Any

from perceivers._checks import a_list, an_int

MAX_SIZE = 2**28  # elements of a sample


def check_names(name: str, value: Any) -> None:
    """Check that `value` is a list of strings."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name}={value!r} must be a list of names")


def check_numbers(name: str, value: Any, count: int, *, positive: bool = False) -> None:
    """Check that `value` is a list of `count` finite numbers."""
    numbers = [one for one in a_list(name, value, "numbers") if isinstance(one, int | float) and math.isfinite(one)]
    if len(numbers) != len(value) or len(value) != count or (positive and min(numbers, default=1) <= 0):
        raise ValueError(f"{name}={value!r} must be {count} {'positive ' if positive else ''}numbers")


def check_lengths(name: str, value: Any, count: int | None = None) -> None:
    """Check that `value` holds the axis lengths of a sample that is not too large to be made."""
    lengths = [an_int(name, n) for n in a_list(name, value, "whole numbers")]
    if not lengths or len(lengths) != (count or len(lengths)) or math.prod(lengths) > MAX_SIZE:
        raise ValueError(f"{name}={value!r} must be {count or 'some'} whole numbers, with a product of at most {MAX_SIZE:,}")
