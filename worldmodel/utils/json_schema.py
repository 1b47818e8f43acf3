"""JSON as a dataclass, each value of the type that its field declares.

Python checks no types: a string where a number should be fails far from the file that it came from, or not at all. So
what is read from a file goes through here, and what does not fit is one sentence that names the place.
"""

from __future__ import annotations

import reprlib
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from worldmodel.utils.errors import UserError

T = TypeVar("T")


def from_json(kind: type[T], data: Any, place: str, cure: str) -> T:
    """A dataclass; `UserError` names the first value that is unknown, missing or of another type, then the cure."""
    if not isinstance(data, dict):
        raise UserError(f"{place} should be a group of values, not {reprlib.repr(data)}; {cure}")
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise UserError(f"{place} has a value {name!r} that this version does not know; {cure}")
    for name, needed in known.items():
        if needed and name not in data:
            raise UserError(f"{place} has no {name}; {cure}")
    hints = get_type_hints(kind)
    values = {name: _value(hints[name], value, f"{place}.{name}", cure) for name, value in data.items()}
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{place}: {error}; {cure}") from None


def _value(hint: Any, value: Any, place: str, cure: str) -> Any:
    """A value of a declared type; JSON has lists where a dataclass has tuples, and 1 where it has 1.0."""
    origin, inside = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return from_json(hint, value, place, cure)  # type: ignore[arg-type]
    if hint is Any or (origin is Literal and value in inside):
        return value
    if origin is dict and isinstance(value, dict):
        return {key: _value(inside[1], item, f"{place}.{key}", cure) for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inside[0]] * len(value) if inside[-1] is Ellipsis else inside
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_value(kind, item, f"{place}[{i}]", cure) for i, (kind, item) in pairs)
    if type(value) in ((int, float) if hint is float else (hint,)):
        return value
    raise UserError(f"{place} cannot be {reprlib.repr(value)}; {cure}")
