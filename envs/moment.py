"""What a snapshot of a dream must be, since it may come from a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.attention import Cache
from worldmodel.dream import Dream
from worldmodel.lanes import Lanes

STATE = ("frames", "variables", "elapsed", "ended", "rngs")
"""What an environment knows beside its lanes."""
PARTS = {*STATE, "made_of", "lanes", "memory"}


def whole(moment: dict[str, Any], dream: Dream, n: int) -> bool:
    """Has it all that n lanes of this dream know, in the form that they know it?"""
    return _state(moment, dream, n) and _lanes(moment["lanes"], dream, n) and _memory(moment["memory"], dream, n)


def _state(moment: dict[str, Any], dream: Dream, n: int) -> bool:
    world = dream.world
    form: dict[str, np.ndarray] = {
        "frames": np.zeros((n, *world.frame_shape), np.uint8),
        "variables": np.zeros((n, len(world.variables)), np.float32),
        "elapsed": np.zeros(n, int),
        "ended": np.zeros(n, bool),
    }
    rngs = moment["rngs"]
    arrays = all(isinstance(moment[k], np.ndarray) and _like(moment[k], array) for k, array in form.items())
    return arrays and isinstance(rngs, list) and _each(rngs, np.random.Generator, n)


def _lanes(lanes: Any, dream: Dream, n: int) -> bool:
    if (
        not isinstance(lanes, Lanes)
        or not isinstance(lanes.cache, Cache)
        or not _each(lanes.generators, torch.Generator, n)
    ):
        return False
    empty, width = dream.prior.empty(1), dream.outcome.config.width
    cached = zip(lanes.cache.tensors(), empty.tensors(), strict=True)
    known = (lanes.hidden.shape, lanes.variables.shape) == ((1, n, width), (n, len(dream.world.variables)))
    return known and all(a.dtype == b.dtype and a.shape == (n, *b.shape[1:]) for a, b in cached)


def _memory(memory: Any, dream: Dream, n: int) -> bool:
    known = isinstance(memory, dict) and memory.keys() <= dream.layers.keys()
    return known and all(isinstance(past, Tensor) and len(past) == n for past in memory.values())


def _like(array: np.ndarray, other: np.ndarray) -> bool:
    return array.dtype == other.dtype and array.shape == other.shape


def _each(items: list[Any], kind: type, n: int) -> bool:
    return len(items) == n and all(isinstance(item, kind) for item in items)
