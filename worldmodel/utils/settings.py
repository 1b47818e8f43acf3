"""Settings that are checked when they are built, wherever they come from: flags, a preset, a checkpoint, or Python.

The type of a setting says which values it accepts: `n_layers: Layers`, `dropout: FractionBelow1`. A number must be
finite, because NaN passes comparisons unnoticed and would show up in a model's weights hours later. A dataclass of
settings derives from `Settings`, which converts each field to its declared type (JSON has lists instead of tuples,
numpy has its own integers) or raises a `UserError` that names the field. Rules between several settings go into the
class's `__post_init__`, after `super().__post_init__()`.
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
"""Address of a store: a folder or any URL that fsspec supports. `Path` would drop one of a URL's slashes."""
MAX_INT = 2**31 - 1
"""Bound of integers whose type has none."""
MAX_FLOAT32 = 3.4e38
"""Bound of floats whose type has none: about the largest float32."""


class Range(NamedTuple):
    """The interval of numbers that a setting accepts; the bounds are included unless `exclude_...` says otherwise."""

    minimum: float = -math.inf
    maximum: float = math.inf
    exclude_minimum: bool = False
    exclude_maximum: bool = False

    def holds(self, number: float) -> bool:
        """Whether a number is in the interval."""
        low = number > self.minimum if self.exclude_minimum else number >= self.minimum
        return low and (number < self.maximum if self.exclude_maximum else number <= self.maximum)

    def __str__(self) -> str:
        low = "above" if self.exclude_minimum else "from"
        if self.maximum < math.inf:
            return f"{low} {self.minimum} to {'below ' * self.exclude_maximum}{self.maximum}"
        return f"{'above' if self.exclude_minimum else 'at least'} {self.minimum}" if self.minimum > -math.inf else ""

    def rule(self, kind: type[int] | type[float]) -> str:
        """Describe, for a message, what a number of that type must be."""
        if self[:2] == (0, 1):
            return f"must be a fraction {self}"
        what = "" if kind is int else "a finite number of " if str(self).startswith("at") else "a finite number "
        return f"must be {what}{self}".rstrip()


Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
AtLeast2 = Annotated[int, Range(2)]
Pixels = Annotated[int, Range(1, 4096)]
"""Height and width of a frame."""
PixelsOr0 = Annotated[int, Range(0, 4096)]
Channels = Annotated[int, Range(1, 2**16)]
"""Channels of a layer; the product of three of them does not overflow."""
Layers = Annotated[int, Range(0, 1024)]
Workers = Annotated[int, Range(1, 1024)]
"""Number of parallel processes."""
Seed = Annotated[int, Range(0, MAX_INT)]
NotNegative = Annotated[float, Range(0)]
AboveZero = Annotated[float, Range(0, exclude_minimum=True)]
Fraction = Annotated[float, Range(0, 1)]
FractionBelow1 = Annotated[float, Range(0, 1, exclude_maximum=True)]
T = TypeVar("T")
NonEmpty = Annotated[tuple[T, ...], Range(1)]
"""One or more."""


class Settings:
    """Base class of settings: converts every field to its declared type, or raises a `UserError`."""

    def __post_init__(self) -> None:
        for name, kind in declared_types(type(self)).items():
            object.__setattr__(self, name, check_value(kind, getattr(self, name), name))


def declared_types(kind: type) -> dict[str, Any]:
    """The fields of a dataclass with their types, ranges included."""
    return get_type_hints(kind, include_extras=True)


def check_value(kind: Any, value: Any, name: str) -> Any:
    """Convert a value to a declared type.

    Args:
        kind: The type, with its `Range` if it has one.
        value: The value.
        name: Name of the setting, with which the message starts.

    Raises:
        UserError: If the value is not of that type, or out of range.
    """
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
    """Convert to a tuple with one value for each type, or with any number of values where the types end with `...`."""
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
    """Check that a number has its type, is finite and in range."""
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
    """A short representation of a value for a message, however large the value is."""
    with suppress(ValueError):  # raised for an integer of more than 4,300 digits
        return reprlib.repr(value)
    return f"a very long {type(value).__name__}"


def as_array(value: Any) -> np.ndarray:
    """Convert a value to an array of numbers; anything else, such as a ragged list, becomes an array of one object."""
    try:
        found = np.asarray(value)
    except Exception:  # an arbitrary object may raise anything
        found = np.empty((), object)
    return found if found.dtype.kind in "biuf" else np.empty((), object)


def suggestion(word: str, known: Sequence[str]) -> str:
    """'did you mean X?' for the known word closest to a mistyped one; if none is close, the list of known words."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(sorted(known))}"
