"""Trajectories to read and, by `StoreWriter`, to append to; `layout` says how they lie on disk.

The clock: row t holds frame f_t, the action a_t taken at it, and the reward r_t and flags of that step. An episode
of n steps has n + 1 rows; its last row has a frame, but a zero action, a zero reward and flags False. Nothing here
depends on it, nor on there being frames: a store of tokens has other arrays and the same code.

Two arrays have the same value in all rows of an episode. `label` is the number of its class. `split` is for data that
was published with one: 0, 1 or 2 for train, valid or test. Without it the split is 8:1:1, drawn by `split_seed`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from worldmodel.errors import UserError
from worldmodel.layout import OTHER, SPLITS, damaged, open_array, open_root, read_rows, split_of
from worldmodel.mark import ENDS, extended
from worldmodel.writer import StoreWriter

__all__ = ["Store", "StoreWriter", "split_of"]


class Store:
    """A store to read, from a path or any URL that fsspec knows; what is appended later, a new one sees."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._root, mark = open_root(self.path)
        commit = mark.commit
        if not commit.episodes:
            raise UserError(f"{self.path} holds no episodes yet; go on collecting")
        self.world, self.settings, self.split_seed = mark.world, mark.settings, mark.split_seed
        self.rows, self._contents = commit.rows, commit.arrays
        self.names = tuple(sorted(name.removeprefix("data/") for name in commit.arrays if name != ENDS))
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._split: np.ndarray | None = None
        self.decoded: dict[str, np.ndarray] = {}  # arrays as `Clips` keeps them, for all clips of this store
        self.ends = self._read(ENDS, 0, commit.episodes)
        if extended(0, self.ends) != commit.arrays[ENDS].crc32c:
            raise damaged(self.path, ENDS, OTHER)
        if self.ends[-1] != self.rows:
            raise damaged(self.path, ENDS, f"it ends at row {self.ends[-1]} instead of {self.rows}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"decoded": {}}  # another process maps the cache itself

    def episodes(self, split: str = "all") -> np.ndarray:
        """The indices of the episodes of "train", "valid", "test" or "all"."""
        n = len(self.ends)
        if split == "all":
            return np.arange(n)
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; known are {', '.join(SPLITS)}, all")
        if "split" in self.names:
            return self._published(split)
        (indices,) = np.nonzero(split_of(n, self.split_seed) == split)
        if not len(indices):
            more = next(k for k in itertools.count(1) if split in split_of(n + k, self.split_seed))
            raise UserError(f"{self.path} has no episodes in split {split!r}; collect at least {more} more")
        return indices

    def _published(self, split: str) -> np.ndarray:
        """The episodes of a split that came with the data."""
        if self._split is None:
            self._split = self.read("split", 0, self.rows)[self.ends - 1]
        (indices,) = np.nonzero(self._split == SPLITS.index(split))
        if not len(indices):
            raise UserError(f"{self.path} was recorded without a {split} split; record one")
        return indices

    def bounds(self, i: int) -> tuple[int, int]:
        """The first row of episode i, and the row after its last."""
        if not 0 <= i < len(self.ends):
            raise UserError(f"{self.path} has no episode {i}; its episodes are 0 to {len(self.ends) - 1}")
        return int(self.ends[i - 1]) if i else 0, int(self.ends[i])

    def episode(self, i: int, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """The arrays of an episode, by default all of them."""
        start, stop = self.bounds(i)
        return {name: self.read(name, start, stop) for name in names or self.names}

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop of an array, at most to the last committed one."""
        return self._read(self._known(name), start, min(stop, self.rows))

    def layout(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape of a whole array, and its type."""
        array = self._open(self._known(name), self.rows)
        return (self.rows, *array.shape[1:]), array.dtype

    def crc32c(self, name: str) -> int:
        """The CRC of all rows of an array, one after another, as the mark has it."""
        return self._contents[self._known(name)].crc32c

    def _known(self, name: str) -> str:
        """An array's name in the store."""
        if name not in self.names:
            raise UserError(f"{self.path} has no array {name!r}; it has {', '.join(self.names)}")
        return f"data/{name}"

    def _open(self, name: str, rows: int) -> zarr.Array[Any]:
        if name not in self._arrays:
            self._arrays[name] = open_array(self._root, self.path, name, rows, self._contents[name])
        return self._arrays[name]

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        return read_rows(self._open(name, stop), self.path, name, start, stop)


def frames_of(tokens: Store, path: str | Path) -> Store:
    """The store at a path, if it is the one that a store of codes was made of; `UserError` if not."""
    store = Store(path)
    if tokens.settings["data"] != store.settings:
        raise UserError(
            f"{tokens.path} holds codes of other frames than those of {path}; give --data the store that they were made"
            " of, or encode this one by train/tokens.py --restart"
        )
    return store
