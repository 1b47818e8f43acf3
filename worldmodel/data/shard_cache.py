"""Decoded shards of stores in buckets, kept in a folder of this machine up to a limit of bytes.

Clips are drawn from anywhere, so a shard is read from the bucket once and decoded once, and is then mapped from its
file by all processes of the machine. When there is no room, the shards that were not used for the longest time are
deleted. The name of a file is a digest of what the commit record says of the array, so a store that grew or was
recorded again has other files. A file ends with the CRC-32C of its rows, which each process checks when it maps it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from worldmodel.data.commit_mark import extend_crc32c
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.files import write_atomic
from worldmodel.utils.settings import NotNegative, Settings

CRC_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class CacheArgs(Settings):
    """Flags of the stages that read frames again and again."""

    cache_gb: NotNegative = 50.0
    """Gigabytes of disk for decoded frames of stores in a bucket; 0 keeps none. A store in a folder has its cache
    inside."""
    cache_folder: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldmodel" / "shards"
    """Folder of this machine for them; all stores and processes share it."""

    def shard_cache(self) -> ShardCache | None:
        """The cache for stores in a bucket; None if nothing is kept."""
        if not self.cache_gb:
            return None
        return ShardCache(self.cache_folder, int(self.cache_gb * 1e9))


class ShardCache:
    """A folder of decoded shards."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Use a folder, which is created once there is something to keep.

        Args:
            folder: The folder. It has nothing but the cache.
            max_bytes: Most bytes of all files together.
        """
        self.folder, self.max_bytes = folder, max_bytes
        self._mapped: dict[Path, np.ndarray] = {}
        self._locks = [threading.Lock() for _ in range(64)]  # if several threads want the same shard, only one reads it

    def __reduce__(self) -> tuple[type[ShardCache], tuple[Path, int]]:
        return ShardCache, (self.folder, self.max_bytes)  # another process maps the files itself

    def get(
        self, key: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], load: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """The rows of a shard: from its file, or else from `load`, and then they are written to the file.

        Args:
            key: Name of the shard. It identifies everything that the rows depend on.
            shape: Its shape.
            dtype: Its type.
            load: Reads it from the bucket.

        Raises:
            UserError: If the folder cannot be written, and as `load`.
        """
        path = self.folder / f"{key}.shard"
        with self._locks[hash(key) % len(self._locks)]:
            rows = self._map(path, shape, dtype)
            if rows is None:
                rows = load()
                self._keep(path, rows)
            return rows

    def _map(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray | None:
        """Map a file and note that it is used; None if there is none, or it is damaged."""
        try:
            os.utime(path, ns=(time.time_ns(), time.time_ns()))
        except OSError:  # never kept, or deleted by this process or another
            return None
        if path not in self._mapped:
            rows = _map_if_intact(path, shape, dtype)
            if rows is None:
                return None
            self._mapped[path] = rows
        return self._mapped[path]

    def _keep(self, path: Path, rows: np.ndarray) -> None:
        """Write rows to a file, after deleting older files if there is no room; rows above the limit are not kept."""
        data = rows.tobytes() + extend_crc32c(0, rows).to_bytes(CRC_BYTES, "little")
        if len(data) > self.max_bytes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock"):
                self._make_room(len(data))
                write_atomic(path, data)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot keep frames ({one_line(error)}); free some space, lower --cache-gb, or give "
                "another --cache-folder"
            ) from None

    def _make_room(self, size: int) -> None:
        """Delete half-written files of killed processes, then old shards until there is room; unmap what is gone."""
        for part in self.folder.glob("*.part"):
            part.unlink()
        files = {path: path.stat() for path in self.folder.glob("*.shard")}
        total = size + sum(stat.st_size for stat in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
            if total <= self.max_bytes:
                break
            path.unlink()
            total -= files.pop(path).st_size
        for path in self._mapped.keys() - files.keys():  # a deleted file takes up space for as long as it is mapped
            self._mapped.pop(path, None)


def _map_if_intact(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray | None:
    """Map the rows of a file; None if they do not match its CRC."""
    with contextlib.suppress(OSError, ValueError):  # it was deleted meanwhile, or has another size
        content = np.memmap(path, np.uint8, "r")
        rows = content[:-CRC_BYTES].view(np.ndarray)
        if extend_crc32c(0, rows).to_bytes(CRC_BYTES, "little") == content[-CRC_BYTES:].tobytes():
            return rows.view(dtype).reshape(shape)
    return None
