"""Whole numbers as callers give them: ints, and numpy's and torch's own."""

from operator import index
from typing import Any


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is no whole number, or less than `least`; the message calls it `name`.
    """
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} = {value!r} must be a whole number, {least} or more")
    return number
