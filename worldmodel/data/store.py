"""Reading stores of trajectories; `StoreWriter` appends to them, and `zarr_format` describes the files.

The clock: row t holds frame f_t, the action a_t taken at it, and the reward r_t and flags of that step. An episode of n
steps has n + 1 rows. Its last row has a frame, but a zero action, a zero reward and flags False. The code here does not
depend on this: a store of codes has other arrays and uses the same code.

Two arrays have the same value in all rows of an episode. `label` is the number of its class. `split` is for data sets
that were published with a split: 0, 1 or 2 for train, valid or test. Otherwise the split is 8:1:1, drawn with
`split_seed`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from worldmodel.data.commit_mark import EPISODE_ENDS, extend_crc32c, json_digest
from worldmodel.data.shard_cache import ShardCache
from worldmodel.data.storage import local_folder
from worldmodel.data.writer import StoreWriter
from worldmodel.data.zarr_format import (
    OTHER_VALUES,
    SPLITS,
    damaged_array,
    draw_splits,
    open_array,
    open_root,
    read_rows,
)
from worldmodel.utils.errors import UserError

__all__ = ["Store", "StoreWriter", "draw_splits"]

KEPT_BYTES = 8 << 20
"""Small shards of an array are cached together, in files of about this many bytes."""


def in_split(labels: np.ndarray, split: str) -> np.ndarray:
    """Whether episodes with the labels (n,) of `draw_splits` are in a split; "held-out" is all but "train"."""
    return labels != "train" if split == "held-out" else labels == split


class Store:
    """A store opened for reading. Episodes that are appended later are visible in a new `Store`."""

    def __init__(self, path: str | Path, shards: ShardCache | None = None) -> None:
        """Open a store.

        Args:
            path: A folder, or any URL that fsspec supports.
            shards: Keeps the shards that are read, for a store in a bucket; by default every read asks the bucket.

        Raises:
            UserError: If there is no store, it is damaged, or it has no episodes yet.
        """
        self.folder = local_folder(path)
        """Its folder; None if it is in a bucket."""
        self.path, self._shards = str(self.folder or path), None if self.folder else shards
        self._root, mark = open_root(self.path)
        commit = mark.commit
        if not commit.episodes:
            raise UserError(f"{self.path} has no episodes yet; collect some first")
        self.env_spec, self.settings, self.split_seed = mark.world, mark.settings, mark.split_seed
        self.n_rows, self._contents = commit.rows, commit.arrays
        self.array_names = tuple(sorted(name.removeprefix("data/") for name in commit.arrays if name != EPISODE_ENDS))
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._split: np.ndarray | None = None
        self.decoded: dict[str, Any] = {}  # decoded arrays, shared by all `Clips` of this store
        self.episode_ends = self._read(EPISODE_ENDS, 0, commit.episodes)
        if extend_crc32c(0, self.episode_ends) != commit.arrays[EPISODE_ENDS].crc32c:
            raise damaged_array(self.path, EPISODE_ENDS, OTHER_VALUES)
        if self.episode_ends[-1] != self.n_rows:
            raise damaged_array(
                self.path, EPISODE_ENDS, f"it ends at row {self.episode_ends[-1]} instead of {self.n_rows}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"decoded": {}}  # another process maps the cache itself

    def episode_indices(self, split: str = "all") -> np.ndarray:
        """Indices of the episodes of a split.

        Args:
            split: "train", "valid", "test", "held-out" for the last two together, or "all".

        Raises:
            UserError: If the split is unknown or has no episodes.
        """
        n = len(self.episode_ends)
        if split == "all":
            return np.arange(n)
        if split not in (*SPLITS, "held-out"):
            raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}, held-out, all")
        (indices,) = np.nonzero(in_split(self.episode_splits(), split))
        if not len(indices):
            raise self.missing_split(split)
        return indices

    def missing_split(self, split: str) -> UserError:
        """The error that there are no episodes of a split."""
        if "split" in self.array_names:
            return UserError(f"{self.path} was recorded without a split {split!r}; record one, or use another split")
        n = len(self.episode_ends)
        more = next(k for k in itertools.count(1) if in_split(draw_splits(n + k, self.split_seed), split).any())
        return UserError(f"{self.path} has no episodes in split {split!r}; collect at least {more} more")

    def episode_splits(self) -> np.ndarray:
        """The name of each episode's split: as it was published with the data, or drawn."""
        if self._split is None and "split" in self.array_names:
            self._split = np.array(SPLITS)[self.read("split", 0, self.n_rows)[self.episode_ends - 1]]
        elif self._split is None:
            self._split = draw_splits(len(self.episode_ends), self.split_seed)
        return self._split

    def episode_bounds(self, i: int) -> tuple[int, int]:
        """The first row of episode i, and the row after its last; `UserError` if there is no such episode."""
        if not 0 <= i < len(self.episode_ends):
            raise UserError(f"{self.path} has no episode {i}; its episodes are 0 to {len(self.episode_ends) - 1}")
        return int(self.episode_ends[i - 1]) if i else 0, int(self.episode_ends[i])

    def episode_length(self, i: int) -> int:
        """Number of rows of episode i."""
        start, stop = self.episode_bounds(i)
        return stop - start

    def read_episode(self, i: int, array_names: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Read an episode.

        Args:
            i: Index of the episode.
            array_names: Arrays to read, by default all.

        Returns:
            Arrays (rows, ...) by name.

        Raises:
            UserError: If there is no such episode or array, or a read array is damaged.
        """
        start, stop = self.episode_bounds(i)
        return {name: self.read(name, start, stop) for name in array_names or self.array_names}

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read rows of an array.

        Args:
            name: The array, such as "frames".
            start: First row.
            stop: Row after the last one; rows beyond the last commit are left out.

        Returns:
            (rows, ...).

        Raises:
            UserError: If there is no such array, or it is damaged.
        """
        path, stop = self._array_path(name), min(stop, self.n_rows)
        if self._shards is None or stop <= start:
            return self._read(path, start, stop)
        return self._read_kept(self._shards, path, start, stop)

    def _read_kept(self, shards: ShardCache, name: str, start: int, stop: int) -> np.ndarray:
        """Like `_read`, but from cached shards; small shards are cached together."""
        array = self._open(name, self.n_rows)
        size = (array.shards or array.chunks)[0]
        size *= max(1, KEPT_BYTES // max(1, size * math.prod(array.shape[1:]) * array.dtype.itemsize))
        key = json_digest({"store": self.path, "name": name, "rows": self.n_rows, **asdict(self._contents[name])})
        parts = []
        for i in range(start // size, -(-stop // size)):
            first, last = i * size, min((i + 1) * size, self.n_rows)
            shape, load = (last - first, *array.shape[1:]), partial(self._read, name, first, last)
            rows = shards.get(f"{key}-{i}", shape, array.dtype, load)
            parts.append(rows[max(start - first, 0) : stop - first])
        return np.concatenate(parts)

    def array_layout(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of a whole array."""
        array = self._open(self._array_path(name), self.n_rows)
        return (self.n_rows, *array.shape[1:]), array.dtype

    def crc32c(self, name: str) -> int:
        """CRC-32C of all rows of an array, from the commit record."""
        return self._contents[self._array_path(name)].crc32c

    @property
    def checksums(self) -> dict[str, int]:
        """`crc32c` of every array."""
        return {name: self.crc32c(name) for name in self.array_names}

    def _array_path(self, name: str) -> str:
        """An array's name in the store."""
        if name not in self.array_names:
            raise UserError(f"{self.path} has no array {name!r}; it has {', '.join(self.array_names)}")
        return f"data/{name}"

    def _open(self, name: str, rows: int) -> zarr.Array[Any]:
        if name not in self._arrays:
            self._arrays[name] = open_array(self._root, self.path, name, rows, self._contents[name])
        return self._arrays[name]

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        return read_rows(self._open(name, stop), self.path, name, start, stop)
