"""Clips: the same number of consecutive rows, from anywhere in a split's episodes, as training wants them.

Decoding a clip of 16 frames takes a millisecond, copying it a twentieth of one. So the arrays that are asked for
are decoded once: into `<store>/cache/<name>-<rows>.npy`, see `cache`, or into RAM for a store that cannot be written
beside (a URL, a read-only folder).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from worldmodel.cache import decode, map_array
from worldmodel.errors import UserError
from worldmodel.store import Store

Cache = Literal["disk", "memory", "off"]


class Clips:
    """Clips of `length` rows that lie wholly inside episodes of a split.

    They begin at rows of their episode that are multiples of `align`. `names` are the arrays of a clip, by default
    all. Without `ends` no clip holds a row with which an episode ended. `cache` is "disk" where the store's folder can
    be written and else "memory", unless it is given; "off" decodes each clip anew, for a store larger than both.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        length: int,
        names: Sequence[str] = (),
        cache: Cache | None = None,
        align: int = 1,
        ends: bool = True,
    ) -> None:
        self.store, self.split, self.length, self.align = store, split, length, align
        self.names = tuple(names) or store.names
        self.cache: Cache = cache or _usual(store)
        episodes = store.episodes(split)
        bounds = np.array([store.bounds(i) for i in episodes])
        if not ends:
            bounds[:, 1] -= rows_of(store, "ended", bounds[:, 1] - 1, 1, self.cache)[:, 0]
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

    def fixed(self, n: int, seed: int = 0) -> dict[str, np.ndarray]:
        """The same n clips every time, spread over the split; they overlap only where n do not fit side by side."""
        if n > len(self):
            raise UserError(
                f"the {self.split} split of {self.store.path} has {len(self)} clips of {self.length} rows, not {n}"
            )
        rng, spacing = np.random.default_rng(seed), -(-self.length // self.align)
        slack = rng.integers((self._starts - 1) % spacing + 1)  # of the rows left over by clips side by side
        start = np.arange(len(self)) - np.repeat(self._ends - self._starts + slack, self._starts)
        apart = (start >= 0) & (start % spacing == 0)
        chosen = _spread(np.flatnonzero(apart), n, rng)
        chosen = np.concatenate([chosen, _spread(np.flatnonzero(~apart), n - len(chosen), rng)])
        return self._read(np.sort(chosen))

    def _read(self, clips: np.ndarray) -> dict[str, np.ndarray]:
        at = np.searchsorted(self._ends, clips, side="right")
        start = (clips - (self._ends - self._starts)[at]) * self.align
        rows = self._first[at] + start
        batch = {name: rows_of(self.store, name, rows, self.length, self.cache) for name in self.names}
        return batch | {"episode": self._episodes[at], "start": start}


def rows_of(store: Store, name: str, starts: np.ndarray, length: int, cache: Cache | None = None) -> np.ndarray:
    """(len(starts), length, ...) rows of an array from each start on."""
    cache = cache or _usual(store)
    if cache == "off":
        return np.stack([store.read(name, s, s + length) for s in starts.tolist()])
    if name not in store.decoded:
        store.decoded[name] = (map_array if cache == "disk" else decode)(store, name)
    return np.stack([store.decoded[name][s : s + length] for s in starts.tolist()])


def held_rows(store: Store, name: str, starts: np.ndarray, length: int, stops: np.ndarray) -> np.ndarray:
    """The same, but from its stop on the row before stays, as where train/tokens.py fills a last latent frame."""
    assert (starts < stops).all()
    at = np.minimum(starts[:, None] + np.arange(length), stops[:, None] - 1)
    rows = rows_of(store, name, at.ravel(), 1)[:, 0]
    return rows.reshape(*at.shape, *rows.shape[1:])


def _usual(store: Store) -> Cache:
    """On disk where the store's folder can be written."""
    return "disk" if os.access(store.path, os.W_OK) else "memory"


def _spread(candidates: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most n of the candidates, at even distances from a random first."""
    n = min(n, len(candidates))
    return candidates[((np.arange(n) + rng.random()) * len(candidates) / max(n, 1)).astype(int)]
