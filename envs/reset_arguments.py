"""What callers of an environment may ask for: each is checked when it is asked, and in a sentence.

Gymnasium says little of what `reset` is given. Here whatever is wrong is a `UserError` before anything has changed, so
that an environment can be used on after a call that it refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Range, as_array, check_value, short_repr

Seed = Annotated[int, Range(0, 2**64 - 1)]
"""Of numpy's generators."""


def is_int_at_least(value: Any, least: int) -> bool:
    """Is it a whole number of at least so much, and not beyond all bounds?"""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(least <= value < 10**100)


def check_seed(seed: Any) -> int | None:
    return check_value(Seed | None, seed, "seed")


def check_seeds(seed: Any, n: int) -> list[int | None]:
    """A seed for each of n lanes, from as many or from that of the first."""
    if not isinstance(seed, Sequence | np.ndarray) or isinstance(seed, str | bytes):
        first = check_seed(seed)
        return [None if first is None else check_seed(first + i) for i in range(n)]
    if len(seed) != n:
        raise UserError(f"{n} lanes need as many seeds, not {len(seed)}")
    return [check_seed(each) for each in seed]


def check_options(options: Any, known: Sequence[str]) -> dict[str, Any]:
    """The options of a reset, a copy."""
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise UserError(f"options should be a dictionary, not {short_repr(options)}")
    if unknown := [name for name in options if name not in known]:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise UserError(f"reset takes no option {short_repr(unknown[0])}; {takes}")
    return dict(options)


def check_mask(mask: Any, n: int) -> np.ndarray:
    """The lanes that are reset."""
    found = as_array(mask)
    if found.dtype != bool or found.shape != (n,) or not found.any():
        raise UserError(f"reset_mask must be {n} booleans, at least one of them true")
    return found


def check_context_numbers(context: Any, n: int, there_are: int) -> np.ndarray:
    """The starting context of each of n lanes, from its number or one for each."""
    found = as_array(context)
    if found.shape not in ((), (n,)):
        raise UserError(f"context is a number, or {n} of them, not of shape {found.shape}")
    if found.dtype.kind not in "iu" or not 0 <= found.min() <= found.max() < there_are:
        raise UserError(f"there are starting contexts 0 to {there_are - 1}, but {short_repr(context)} was asked for")
    return np.broadcast_to(found, (n,))


def check_render_mode(mode: Any, known: Sequence[str]) -> str | None:
    if mode is not None and (not isinstance(mode, str) or mode not in known):
        raise UserError(f"it is rendered as {' or '.join(known)}, not {short_repr(mode)}; or give no render_mode")
    return mode
