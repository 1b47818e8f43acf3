"""Reading JSON into a dataclass, with the type and range of every field checked.

Python does not check types, so a string in place of a number would fail far from the file that it came from, or not at
all. Everything read from a file is checked here, and a wrong value raises a `UserError` that names its place.
"""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin

from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import check_value, declared_types

T = TypeVar("T")


def from_json(kind: type[T], data: Any, place: str, cure: str) -> T:
    """Build a dataclass from JSON.

    Args:
        kind: The dataclass.
        data: Parsed JSON.
        place: Where the data is from, for messages.
        cure: How to fix a wrong value, for messages.

    Raises:
        UserError: Naming the first value that is unknown, missing, or of another type.
    """
    if not isinstance(data, dict):
        raise UserError(f"{place} should be a group of values, not {reprlib.repr(data)}; {cure}")
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise UserError(f"{place} has a value {name!r} that this version does not know; {cure}")
    for name, needed in known.items():
        if needed and name not in data:
            raise UserError(f"{place} has no {name}; {cure}")
    kinds = declared_types(kind)
    values = {name: _value(kinds[name], value, f"{place}.{name}", cure) for name, value in data.items()}
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{place}: {error}; {cure}") from None


def _value(kind: Any, value: Any, place: str, cure: str) -> Any:
    """A value of a declared type."""
    if is_dataclass(kind):
        return from_json(kind, value, place, cure)  # type: ignore[arg-type]
    if get_origin(kind) is dict and isinstance(value, dict):
        inside = get_args(kind)[1]
        return {key: _value(inside, item, f"{place}.{key}", cure) for key, item in value.items()}
    try:
        return check_value(kind, value, place)
    except UserError as error:
        raise UserError(f"{error}; {cure}") from None


def load_json(text: str | bytes) -> Any:
    """Parse JSON; `ValueError` for NaN, Infinity and numbers such as 1e400, which Python would accept."""

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is not a finite number")
        return value

    return json.loads(text, parse_constant=number, parse_float=number)
