"""Settings that are checked when they are built, wherever they come from: flags, a preset, a checkpoint, Python.

What a setting may be stands in its type: `layers: Layers`, `dropout: ShareBelow1`, `precision: Precision`. A number is
always finite: NaN passes every comparison, and would be found in a model's weights hours later. A dataclass of settings
derives from `Settings`, which gives each field the type that it declares (JSON has lists where there are tuples, numpy
has integers of its own), or raises a `UserError` that names the field. Rules between settings are in the class's own
`__post_init__`, after `super().__post_init__()`.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from worldmodel.utils.errors import UserError

Address = NewType("Address", str)
"""Where a store is read: a folder or any URL that fsspec knows, of which `Path` would lose a slash."""
MAX_INT = 2**31 - 1
"""Of whole numbers that have no bound of their own."""
MAX_FLOAT32 = 3.4e38
"""Nearly the largest number that torch calculates with here."""


class Range(NamedTuple):
    """The numbers that a setting may be, the bounds included unless they are `exclude_minimum` or `exclude_maximum`."""

    minimum: float = -math.inf
    maximum: float = math.inf
    exclude_minimum: bool = False
    exclude_maximum: bool = False

    def holds(self, number: float) -> bool:
        low = number > self.minimum if self.exclude_minimum else number >= self.minimum
        return low and (number < self.maximum if self.exclude_maximum else number <= self.maximum)

    def __str__(self) -> str:
        low = "above" if self.exclude_minimum else "from"
        if self.maximum < math.inf:
            return f"{low} {self.minimum} to {'below ' * self.exclude_maximum}{self.maximum}"
        return f"{'above' if self.exclude_minimum else 'at least'} {self.minimum}" if self.minimum > -math.inf else ""

    def rule(self, kind: type[int] | type[float]) -> str:
        """What a number of that type must be, in words."""
        if self[:2] == (0, 1):
            return f"is a share, {self}"
        what = "" if kind is int else "a finite number of " if str(self).startswith("at") else "a finite number "
        return f"must be {what}{self}".rstrip()


Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
AtLeast2 = Annotated[int, Range(2)]
Pixels = Annotated[int, Range(1, 4096)]
"""Height and width of a frame."""
PixelsOr0 = Annotated[int, Range(0, 4096)]
Channels = Annotated[int, Range(1, 2**16)]
"""Of a layer. Products of three of them do not overflow."""
Layers = Annotated[int, Range(0, 1024)]
Workers = Annotated[int, Range(1, 1024)]
"""Processes side by side."""
Seed = Annotated[int, Range(0, MAX_INT)]
NotNegative = Annotated[float, Range(0)]
AboveZero = Annotated[float, Range(0, exclude_minimum=True)]
Fraction = Annotated[float, Range(0, 1)]
FractionBelow1 = Annotated[float, Range(0, 1, exclude_maximum=True)]
T = TypeVar("T")
NonEmpty = Annotated[tuple[T, ...], Range(1)]
"""One or more."""


class Settings:
    """Base of a dataclass of settings: every field has the type that it declares, or there is a `UserError`."""

    def __post_init__(self) -> None:
        for name, kind in declared_types(type(self)).items():
            object.__setattr__(self, name, check_value(kind, getattr(self, name), name))


def declared_types(kind: type) -> dict[str, Any]:
    """The fields of a dataclass with their types, ranges included."""
    return get_type_hints(kind, include_extras=True)


def check_value(kind: Any, value: Any, name: str) -> Any:
    """A value as the type `kind` that a setting is declared to have, or a `UserError` that begins with its name."""
    notes: Sequence[Any] = ()
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
    kind = getattr(kind, "__supertype__", kind)  # of a NewType
    origin, inside = get_origin(kind), get_args(kind)
    if isinstance(value, np.generic):
        value = value.item()
    if origin in (Union, UnionType):
        return None if value is None else check_value(next(k for k in inside if k is not NoneType), value, name)
    if origin is Literal:
        if not any(type(value) is type(known) and value == known for known in inside):
            word, words = value if isinstance(value, str) else short_repr(value), [str(known) for known in inside]
            raise UserError(f"{name} cannot be {short_repr(value)}; {suggestion(word, words)}")
        return value
    if kind is Any:
        return value
    kind = origin if origin is dict else kind
    within = next((note for note in notes if isinstance(note, Range)), Range())
    if origin is tuple:
        return _listed(inside, value, name, within)
    if kind in (int, float):
        return _number(kind, value, name, within)
    if kind is str and isinstance(value, Path):
        value = str(value)
    wanted = str if kind is Path and isinstance(value, str) else kind
    if not isinstance(value, wanted):
        raise UserError(f"{name} should be of type {'str' if kind is Path else kind.__name__}, not {short_repr(value)}")
    return Path(value) if kind is Path else value


def _listed(kinds: Sequence[Any], value: Any, name: str, length: Range) -> tuple[Any, ...]:
    """A tuple of so many values of their own types, or, where the types end with `...`, of any number of one type."""
    variable = kinds[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (variable or len(value) == len(kinds)):
        raise UserError(
            f"{name} should be {'a list' if variable else f'a list of {len(kinds)}'}, not {short_repr(value)}"
        )
    if variable and not (value or length == Range()):
        raise UserError(f"{name} should have one value or more")
    each = [kinds[0]] * len(value) if variable else kinds
    return tuple(check_value(kind, item, name) for kind, item in zip(each, value, strict=True))


def _number(kind: type[int] | type[float], value: Any, name: str, within: Range) -> int | float:
    """A number that is of its type, finite and in its range."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise UserError(f"{name} should be of type {kind.__name__}, not {short_repr(value)}")
    largest = MAX_INT if kind is int else MAX_FLOAT32
    if not within.holds(value) or math.inf in (value, -value):
        raise UserError(f"{name} {within.rule(kind)}, not {short_repr(value)}")
    if within.maximum == math.inf and abs(value) > largest:
        bound = f"at most {largest}" if value > 0 else f"at least {-largest}"
        raise UserError(f"{name} must be {bound}, not {short_repr(value)}")
    return kind(value)


def short_repr(value: Any) -> str:
    """A value in a message: short, however large it is."""
    with suppress(ValueError):  # which an integer of more than 4,300 digits raises
        return reprlib.repr(value)
    return f"a very long {type(value).__name__}"


def as_array(value: Any) -> np.ndarray:
    """A value as numbers of one shape; whatever is none, such as lists of different lengths, is a single object."""
    try:
        found = np.asarray(value)
    except Exception:  # of any kind, by whatever object was given
        found = np.empty((), object)
    return found if found.dtype.kind in "biuf" else np.empty((), object)


def suggestion(word: str, known: Sequence[str]) -> str:
    """', did you mean X?' for the known word nearest to a mistyped one, else the list of all."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
