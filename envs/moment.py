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


def is_made_of(digests: Any) -> bool:
    """Can it be compared with what a dream is made of?"""
    return isinstance(digests, dict) and all(isinstance(text, str) for item in digests.items() for text in item)


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
    if not isinstance(lanes, Lanes) or not isinstance(lanes.cache, Cache):
        return False
    tensors, empty = [*lanes.cache.tensors(), lanes.hidden, lanes.variables], dream.prior.empty(1)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return False
    known = [(n, *like.shape[1:]) for like in empty.tensors()]
    known += [(1, n, dream.outcome.config.width), (n, len(dream.world.variables))]
    kinds = [*(like.dtype for like in empty.tensors()), *[dream.outcome.codebook.dtype] * 2]
    as_known = [(tensor.shape, tensor.dtype) for tensor in tensors] == list(zip(known, kinds, strict=True))
    finite = all(bool(tensor.isfinite().all()) for tensor in tensors)
    return as_known and finite and isinstance(lanes.generators, list) and _each(lanes.generators, torch.Generator, n)


def _memory(memory: Any, dream: Dream, n: int) -> bool:
    known = isinstance(memory, dict) and memory.keys() <= dream.layers.keys()
    return known and all(isinstance(past, Tensor) and len(past) == n for past in memory.values())


def _like(array: np.ndarray, other: np.ndarray) -> bool:
    return array.dtype == other.dtype and array.shape == other.shape


def _each(items: list[Any], kind: type, n: int) -> bool:
    return len(items) == n and all(isinstance(item, kind) for item in items)
