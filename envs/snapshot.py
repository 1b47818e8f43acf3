"""Checks of a snapshot of a dream before it is restored, since it may come from a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.generation.dream import Dream
from worldmodel.generation.dream_state import DreamState
from worldmodel.models.kv_cache import KVCache

STATE = ("frames", "variables", "elapsed", "done", "rngs")
"""Attributes of the environment in a snapshot, besides its lanes."""
SNAPSHOT_KEYS = {*STATE, "model_digests", "lanes", "memory"}


def is_made_of(digests: Any) -> bool:
    """Whether the digests are a dict of strings, so that they can be compared."""
    return isinstance(digests, dict) and all(isinstance(text, str) for item in digests.items() for text in item)


def is_valid(moment: dict[str, Any], dream: Dream, n: int) -> bool:
    """Whether a snapshot has every entry of n lanes of this dream, with the right types and shapes."""
    return _state(moment, dream, n) and _lanes(moment["lanes"], dream, n) and _memory(moment["memory"], dream, n)


def _state(moment: dict[str, Any], dream: Dream, n: int) -> bool:
    env_spec = dream.env_spec
    form: dict[str, np.ndarray] = {
        "frames": np.zeros((n, *env_spec.frame_shape), np.uint8),
        "variables": np.zeros((n, len(env_spec.variables)), np.float32),
        "elapsed": np.zeros(n, int),
        "done": np.zeros(n, bool),
    }
    rngs = moment["rngs"]
    arrays = all(isinstance(moment[k], np.ndarray) and _like(moment[k], array) for k, array in form.items())
    return arrays and (moment["elapsed"] >= 0).all() and isinstance(rngs, list) and _each(rngs, np.random.Generator, n)


def _lanes(lanes: Any, dream: Dream, n: int) -> bool:
    if not isinstance(lanes, DreamState) or not isinstance(lanes.kv_cache, KVCache):
        return False
    random: Any = getattr(lanes, "random", None)  # which snapshots of an earlier version do not have
    tensors = [*lanes.kv_cache.tensors(), lanes.hidden, lanes.variables, random]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return False
    empty = dream.prior.empty_cache(1)
    known = [(n, *like.shape[1:]) for like in empty.tensors()]
    known += [(1, n, dream.outcome.config.hidden_dim), (n, len(dream.env_spec.variables)), (n, 2)]
    kinds = [*(like.dtype for like in empty.tensors()), *[dream.outcome.codebook.dtype] * 2, torch.int64]
    as_known = [(tensor.shape, tensor.dtype) for tensor in tensors] == list(zip(known, kinds, strict=True))
    return as_known and all(bool(tensor.isfinite().all()) for tensor in tensors)


def _memory(memory: Any, dream: Dream, n: int) -> bool:
    known = isinstance(memory, dict) and memory.keys() <= dream.memory_layers.keys()
    return known and all(isinstance(past, Tensor) and len(past) == n for past in memory.values())


def _like(array: np.ndarray, other: np.ndarray) -> bool:
    return array.dtype == other.dtype and array.shape == other.shape


def _each(items: list[Any], kind: type, n: int) -> bool:
    return len(items) == n and all(isinstance(item, kind) for item in items)
