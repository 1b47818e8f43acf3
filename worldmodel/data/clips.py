"""Clips for training: a fixed number of consecutive rows from anywhere in a split's episodes.

Decoding a clip of 16 frames takes a millisecond, copying it a twentieth of that. So the arrays that are used are
decoded once: into `<store>/cache/<name>-<rows>.npy` (see `array_cache`), or into RAM if the store's folder cannot be
written. A store in a bucket may be larger than this machine: its clips are read one by one, and `shard_cache` keeps
what was read.

Codes of a recurrent VQ-VAE describe what changes relative to the previous reconstructions. So a store of such codes
also holds the reconstructions. Its clips do not start at the first row of an episode, which has no previous one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from worldmodel.data.array_cache import decode_array, memory_map
from worldmodel.data.joined import JoinedRows, JoinedStore
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

CacheMode = Literal["disk", "memory", "off"]
ALL = slice(None)
"""The whole batch, as a share."""
RECONSTRUCTION = "reconstruction"
"""Array of a store of codes: the reconstruction of each row by a recurrent VQ-VAE."""
READERS = 8
"""Clips that are read in parallel if no arrays are kept; a bucket answers several requests at once."""


class Clips:
    """Clips of `length` rows that are wholly inside episodes of a split."""

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
        """Find the clips of a split.

        Args:
            store: The store.
            split: As in `Store.episode_indices`.
            length: Rows of a clip.
            array_names: Arrays of a clip, by default all.
            cache: Where decoded arrays are kept: "disk" by default if the store's folder can be written, else "memory".
                "off" keeps no arrays, for a store that is larger than both; it is the default in a bucket, where the
                store itself may keep shards.
            align: Clips start at rows of their episode that are multiples of this.
            terminal_frames: Whether clips may contain the last row of an episode that terminated.

        Raises:
            UserError: If no episode of the split is long enough.
        """
        self.store, self.split, self.length, self.align = store, split, length, align
        self.array_names = tuple(array_names) or store.array_names
        self.cache: CacheMode = cache or _default_cache(store)
        episodes = store.episode_indices(split)
        bounds = np.array([store.episode_bounds(i) for i in episodes])
        if not terminal_frames:
            bounds[:, 1] -= read_windows(store, "done", bounds[:, 1] - 1, 1, self.cache)[:, 0]
        self._skipped = n_given_rows(store)
        first = bounds[:, 0] + self._skipped
        self._starts = (bounds[:, 1] - first - length) // align + 1  # number of starts in each episode
        if length < 1 or self._starts.max() < 1:
            longest = (bounds[:, 1] - first).max()
            raise UserError(
                f"no episode in split {split!r} of {store.path} has {length} rows for a clip, but at most {longest}; "
                "ask for shorter clips"
            )
        keep = self._starts > 0
        self._episodes, self._first, self._starts = episodes[keep], first[keep], self._starts[keep]
        self._ends = self._starts.cumsum()

    def __len__(self) -> int:
        """The number of different clips."""
        return int(self._ends[-1])

    def sample(self, rng: np.random.Generator, n: int, share: slice = ALL) -> dict[str, np.ndarray]:
        """Sample n clips uniformly, and read a share of them.

        Args:
            rng: Draws the clips.
            n: Number of clips.
            share: Which of the n are read.

        Returns:
            Arrays (n, length, ...) by name. In addition, "episode" (n,) is the index of each clip's episode in the
            store, "start" (n,) the row of the episode at which the clip starts, and "row" (n,) that row of the store.
        """
        return self._read(rng.integers(len(self), size=n)[share])

    def fixed_sample(self, n: int, seed: int = 0) -> dict[str, np.ndarray]:
        """The same n clips every time, spread evenly over the split; they overlap only if n do not fit side by side.

        Args:
            n: Number of clips.
            seed: Another seed gives other clips.

        Returns:
            As `sample`.

        Raises:
            UserError: If the split has fewer than n clips.
        """
        if n > len(self):
            raise UserError(
                f"split {self.split!r} of {self.store.path} has {len(self)} clips of {self.length} rows, not {n}; "
                "ask for fewer, or collect more data"
            )
        rng, spacing = np.random.default_rng(seed), -(-self.length // self.align)
        slack = rng.integers((self._starts - 1) % spacing + 1)  # random offset within the rows that are left over
        counts = (self._starts - 1 - slack) // spacing + 1  # clips of each episode that do not overlap
        ends = counts.cumsum()
        chosen = _evenly_spaced(int(ends[-1]), n, rng)
        of = np.searchsorted(ends, chosen, side="right")
        chosen = (self._ends - self._starts + slack)[of] + (chosen - (ends - counts)[of]) * spacing
        if len(chosen) < n:
            others = np.setdiff1d(np.arange(len(self)), chosen)
            chosen = np.concatenate([chosen, others[_evenly_spaced(len(others), n - len(chosen), rng)]])
        return self._read(np.sort(chosen))

    def first_of_episodes(self, n: int) -> dict[str, np.ndarray]:
        """The first clip of n episodes that are spread evenly over the split, or of all if there are fewer.

        Returns:
            As `sample`.
        """
        few = np.linspace(0, len(self._ends) - 1, min(n, len(self._ends))).round().astype(int)
        return self._read((self._ends - self._starts)[few])

    def _read(self, clips: np.ndarray) -> dict[str, np.ndarray]:
        at = np.searchsorted(self._ends, clips, side="right")
        start = (clips - (self._ends - self._starts)[at]) * self.align
        rows = self._first[at] + start
        batch = {name: read_windows(self.store, name, rows, self.length, self.cache) for name in self.array_names}
        return batch | {"episode": self._episodes[at], "start": start + self._skipped, "row": rows}


def n_given_rows(store: Store) -> int:
    """Rows at an episode's start that no clip may start at: the first one, if the codes are a recurrent VQ-VAE's."""
    return int(RECONSTRUCTION in store.array_names)


def read_windows(
    store: Store, name: str, starts: np.ndarray, length: int, cache: CacheMode | None = None
) -> np.ndarray:
    """Read `length` rows of an array from each start on: (len(starts), length, ...)."""
    cache = cache or _default_cache(store)
    if cache == "off":
        with ThreadPoolExecutor(READERS) as pool:
            return np.stack(list(pool.map(lambda s: store.read(name, s, s + length), starts.tolist())))
    return decoded(store, name, cache).windows(starts, length)


def decoded(store: Store, name: str, cache: CacheMode) -> JoinedRows:
    """A decoded array, which is kept for later calls. Of joined stores, each has its own cache."""
    if name not in store.decoded:
        decode = memory_map if cache == "disk" else decode_array
        parts = store.parts if isinstance(store, JoinedStore) else (store,)
        store.decoded[name] = JoinedRows([decode(part, name) for part in parts])
    return store.decoded[name]


def read_state(store: Store, rows: np.ndarray, start: np.ndarray, past_frames: int) -> np.ndarray:
    """The state of a recurrent VQ-VAE before rows (n,) of a store of codes.

    Args:
        store: The store of codes.
        rows: Rows of the store; none of them is the first one of an episode.
        start: For each of them, how many rows of its episode are before it.
        past_frames: As in the VQ-VAE's config.

    Returns:
        Pictures (n, past_frames + 1, H, W, channels): the last reconstructions, then the first one of the episode.
    """
    back = np.minimum(np.arange(1, past_frames + 1), start[:, None])
    at = np.concatenate([rows[:, None] - back, (rows - start)[:, None]], axis=1)
    pictures = read_windows(store, RECONSTRUCTION, at.ravel(), 1)[:, 0]
    return pictures.reshape(*at.shape, *pictures.shape[1:])


def read_windows_clamped(store: Store, name: str, starts: np.ndarray, length: int, stops: np.ndarray) -> np.ndarray:
    """Like `read_windows`, but from its stop on, a window repeats the last row before it, as train/tokens.py does."""
    assert (starts < stops).all()
    size = min(length, store.n_rows)
    first = np.minimum(starts, store.n_rows - size)  # of windows that are wholly in the store
    at = np.minimum(starts[:, None] + np.arange(length), stops[:, None] - 1)
    return read_windows(store, name, first, size)[np.arange(len(at))[:, None], at - first[:, None]]


def _default_cache(store: Store) -> CacheMode:
    if store.folder is None:
        return "off"
    parts = store.parts if isinstance(store, JoinedStore) else (store,)
    return "disk" if all(part.folder and os.access(part.folder, os.W_OK) for part in parts) else "memory"


def _evenly_spaced(size: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most n of the numbers below `size`, evenly spaced with a random offset."""
    n = min(n, size)
    return ((np.arange(n) + rng.random()) * size / max(n, 1)).astype(int)
