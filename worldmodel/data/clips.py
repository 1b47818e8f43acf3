"""Clips: the same number of consecutive rows, from anywhere in a split's episodes, as training wants them.

Decoding a clip of 16 frames takes a millisecond, copying it a twentieth of one. So the arrays that are asked for are
decoded once: into `<store>/cache/<name>-<rows>.npy`, see `array_cache`, or into RAM for a store that cannot be written
beside (a URL, a read-only folder).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from worldmodel.data.array_cache import decode_array, memory_map
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

CacheMode = Literal["disk", "memory", "off"]


class Clips:
    """Clips of `length` rows that lie wholly inside episodes of a split.

    They begin at rows of their episode that are multiples of `align`. `array_names` are the arrays of a clip, by
    default all. Without `terminal_frames` no clip holds a row with which an episode ended. `cache` is "disk" where the
    store's folder can be written and else "memory", unless it is given; "off" decodes each clip anew, for a store
    larger than both.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        length: int,
        array_names: Sequence[str] = (),
        cache: CacheMode | None = None,
        align: int = 1,
        terminal_frames: bool = True,
    ) -> None:
        self.store, self.split, self.length, self.align = store, split, length, align
        self.array_names = tuple(array_names) or store.array_names
        self.cache: CacheMode = cache or _default_cache(store)
        episodes = store.episode_indices(split)
        bounds = np.array([store.episode_bounds(i) for i in episodes])
        if not terminal_frames:
            bounds[:, 1] -= read_windows(store, "done", bounds[:, 1] - 1, 1, self.cache)[:, 0]
        self._starts = (bounds[:, 1] - bounds[:, 0] - length) // align + 1  # number of starts in each episode
        if length < 1 or self._starts.max() < 1:
            longest = (bounds[:, 1] - bounds[:, 0]).max()
            raise UserError(
                f"no {split} episode of {store.path} has {length} rows, but at most {longest}; ask for shorter clips"
            )
        keep = self._starts > 0
        self._episodes, self._first, self._starts = episodes[keep], bounds[keep, 0], self._starts[keep]
        self._ends = self._starts.cumsum()

    def __len__(self) -> int:
        """The number of different clips."""
        return int(self._ends[-1])

    def sample(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        """n clips, each start as likely as any other: arrays (n, length, ...).

        "episode" (n) says which episode of the store a clip is from, "start" (n) at which of its rows it begins.
        """
        return self._read(rng.integers(len(self), size=n))

    def fixed_sample(self, n: int, seed: int = 0) -> dict[str, np.ndarray]:
        """The same n clips every time, spread over the split; they overlap only where n do not fit side by side."""
        if n > len(self):
            raise UserError(
                f"the {self.split} split of {self.store.path} has {len(self)} clips of {self.length} rows, not {n}"
            )
        rng, spacing = np.random.default_rng(seed), -(-self.length // self.align)
        slack = rng.integers((self._starts - 1) % spacing + 1)  # of the rows left over by clips side by side
        start = np.arange(len(self)) - np.repeat(self._ends - self._starts + slack, self._starts)
        apart = (start >= 0) & (start % spacing == 0)
        chosen = _evenly_spaced(np.flatnonzero(apart), n, rng)
        chosen = np.concatenate([chosen, _evenly_spaced(np.flatnonzero(~apart), n - len(chosen), rng)])
        return self._read(np.sort(chosen))

    def _read(self, clips: np.ndarray) -> dict[str, np.ndarray]:
        at = np.searchsorted(self._ends, clips, side="right")
        start = (clips - (self._ends - self._starts)[at]) * self.align
        rows = self._first[at] + start
        batch = {name: read_windows(self.store, name, rows, self.length, self.cache) for name in self.array_names}
        return batch | {"episode": self._episodes[at], "start": start}


def read_windows(
    store: Store, name: str, starts: np.ndarray, length: int, cache: CacheMode | None = None
) -> np.ndarray:
    """(len(starts), length, ...) rows of an array from each start on."""
    cache = cache or _default_cache(store)
    if cache == "off":
        return np.stack([store.read(name, s, s + length) for s in starts.tolist()])
    if name not in store.decoded:
        store.decoded[name] = (memory_map if cache == "disk" else decode_array)(store, name)
    return np.stack([store.decoded[name][s : s + length] for s in starts.tolist()])


def read_windows_clamped(store: Store, name: str, starts: np.ndarray, length: int, stops: np.ndarray) -> np.ndarray:
    """The same, but from its stop on the row before stays, as where train/tokens.py fills a last latent frame."""
    assert (starts < stops).all()
    at = np.minimum(starts[:, None] + np.arange(length), stops[:, None] - 1)
    rows = read_windows(store, name, at.ravel(), 1)[:, 0]
    return rows.reshape(*at.shape, *rows.shape[1:])


def _default_cache(store: Store) -> CacheMode:
    """On disk where the store's folder can be written."""
    return "disk" if os.access(store.path, os.W_OK) else "memory"


def _evenly_spaced(candidates: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most n of the candidates, at even distances from a random first."""
    n = min(n, len(candidates))
    return candidates[((np.arange(n) + rng.random()) * len(candidates) / max(n, 1)).astype(int)]
