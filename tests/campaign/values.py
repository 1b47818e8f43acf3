"""Hostile values, and what makes a value good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

NAN, INF = float("nan"), float("inf")
VALUES: list[Any] = [
    *(None, True, False, NAN, INF, -INF, -1, 0, 1, 2, 2.5, 1e300, 10**6, 10**23, 10**5000, -(10**23), 1j),
    *("", "x", "no", "1", "ü\U0001f916", "x" * 5000, "a\0b", b"x", [], [1], [[1], [1, 2]], (), (1, 2, 3), {}, {1: 2}),
    *({"a": NAN}, object(), len, np.int64(2), np.float32(NAN), np.array([NAN]), np.array([]), np.zeros((3, 3))),
    *(np.array(["a"] * 3), np.array([1, 10**23], object), torch.tensor(1), torch.tensor([NAN]), range(3), {1, 2}),
    *(Path("x"), np.ones(3, bool), np.array([0, 2, 1]), "rgb_array", "human", "cpu", "bfloat16", "Disabled"),
    AutoresetMode.SAME_STEP,
]
Good = Callable[[Any], bool]


def whole(least: int, most: float = 2**31 - 1) -> Good:
    """A whole number between bounds."""
    return lambda x: isinstance(x, int | np.integer) and not isinstance(x, bool) and least <= x <= most


def real(good: Callable[[float], bool]) -> Good:
    """A number of float32 for which something holds."""
    number = (int, float, np.integer, np.floating)
    return lambda x: isinstance(x, number) and not isinstance(x, bool) and abs(x) < 3e38 and good(x)


def among(*known: Any) -> Good:
    return lambda x: any(x is k or (isinstance(x, str) and isinstance(k, str) and x == k) for k in known)


def optional(good: Good) -> Good:
    return lambda x: x is None or good(x)


def numbers(value: Any) -> np.ndarray | None:
    """A value as an array of numbers, if it is one."""
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return array if array.dtype.kind in "biuf" else None


def array(shapes: tuple[tuple[int, ...], ...], kinds: str, below: float = INF) -> Good:
    """Numbers of some shapes and kinds, not negative, below a bound."""

    def good(value: Any) -> bool:
        found = numbers(value)
        fits = found is not None and found.shape in shapes and found.dtype.kind in kinds
        return fits and bool((found >= 0).all() and (found < below).all())

    return good


def shown(value: Any) -> str:
    return repr(value)[:60] if not isinstance(value, int) or abs(value) < 1e30 else "10**5000"
