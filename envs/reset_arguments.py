"""Checks of the arguments of `reset`, which Gymnasium itself hardly checks.

An invalid argument is a `UserError` before any state changes, so the environment can still be used after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Range, as_array, check_value, short_repr

Seed = Annotated[int, Range(0, 2**64 - 1)]
"""Seed of a numpy generator."""


def is_int_at_least(value: Any, least: int) -> bool:
    """Whether a value is an integer of at least `least`, and below 10**100."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(least <= value < 10**100)


def check_seed(seed: Any) -> int | None:
    return check_value(Seed | None, seed, "seed")


def check_seeds(seed: Any, n: int) -> list[int | None]:
    """A seed for each of n lanes: as given, or counting up from a single seed."""
    if not isinstance(seed, Sequence | np.ndarray) or isinstance(seed, str | bytes):
        first = check_seed(seed)
        return [None if first is None else check_seed(first + i) for i in range(n)]
    if len(seed) != n:
        raise UserError(f"{n} lanes need {n} seeds, not {len(seed)}")
    return [check_seed(each) for each in seed]


def check_options(options: Any, known: Sequence[str]) -> dict[str, Any]:
    """A copy of the options of a reset; `UserError` for one that is not in `known`."""
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise UserError(f"options must be a dictionary, not {short_repr(options)}")
    if unknown := [name for name in options if name not in known]:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise UserError(f"reset has no option {short_repr(unknown[0])}; {takes}")
    return dict(options)


def check_mask(mask: Any, n: int) -> np.ndarray:
    """The mask (n,) of the lanes to reset."""
    found = as_array(mask)
    if found.dtype != bool or found.shape != (n,) or not found.any():
        raise UserError(f"reset_mask must be {n} booleans, at least one of them true")
    return found


def check_context_numbers(context: Any, n: int, there_are: int) -> np.ndarray:
    """The number of the starting context of each of n lanes, from one number for all or one per lane."""
    found = as_array(context)
    if found.shape not in ((), (n,)):
        raise UserError(f"context must be one number or {n} numbers, not of shape {found.shape}")
    if found.dtype.kind not in "iu" or not 0 <= found.min() <= found.max() < there_are:
        raise UserError(f"context must be from 0 to {there_are - 1}, not {short_repr(context)}")
    return np.broadcast_to(found, (n,))


def check_render_mode(mode: Any, known: Sequence[str]) -> str | None:
    if mode is not None and (not isinstance(mode, str) or mode not in known):
        raise UserError(f"render_mode must be {' or '.join(known)}, or not given, not {short_repr(mode)}")
    return mode
