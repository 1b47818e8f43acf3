"""Decoded arrays of a store, in memory or in a cache file that all processes of the machine map.

A cache file is used only if its size, its header and the CRC-32C of all its rows match the store's commit record. A
cache that is damaged, half-written, or from another recording under the same name is detected and written again.

Each process checks the file once, when it maps it. Reading all of it takes about a second for 10 GB in the page cache.
From a disk it takes about as long as the first epoch would, but the reads are sequential. Comparing file sizes and
modification times would be cheaper, but would not detect a bad disk. Checking each shard at its first use would slow
down every read, and damage would only be found in the middle of a run.

While it is filled, the file is written and not mapped, and its space is reserved first: on a full disk a write raises
an error, but writing to a mapped page kills the process.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
from filelock import FileLock

from worldmodel.data.commit_mark import extend_crc32c
from worldmodel.data.store import Store
from worldmodel.data.zarr_format import OTHER_VALUES, SHARD, damaged_array
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.progress import Progress

BLOCK = 1 << 20
"""Bytes that are read and checked at a time; they fit into the processor's cache."""


def decode_array(store: Store, name: str) -> np.ndarray:
    """Decode a whole array into memory; `UserError` if it is damaged."""
    out = np.empty(*store.array_layout(name))
    for start, rows in _shards(store, name):
        out[start : start + len(rows)] = rows
    return out


def memory_map(store: Store, name: str) -> np.ndarray:
    """Map a whole array from the store's cache, which is filled first if necessary.

    Args:
        store: A store in a local folder.
        name: Name of the array.

    Raises:
        UserError: If the array is damaged, or the cache cannot be written.
    """
    path = Path(store.path) / "cache" / f"{name}-{store.n_rows}.npy"
    array = _map_if_intact(store, name, path)
    if array is not None:
        return array
    try:
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.parent / "lock"):  # of several processes that start together, only one decodes
            array = _map_if_intact(store, name, path)
            if array is None:
                _fill_cache(store, name, path)
                array = _map_if_intact(store, name, path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({one_line(error)}); free some space, delete its folder, or in Python pass "
            "cache='memory' or cache='off'"
        ) from None
    if array is None:
        raise UserError(f"{path} does not hold what was just written to it; check the disk, or use cache='memory'")
    return array


def _shards(store: Store, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows of an array shard by shard, each with the index of its first row; check their CRC at the end."""
    crc32c = 0
    for start in Progress(range(0, store.n_rows, SHARD), desc=f"decoding {name}", unit="shard", delay=2, leave=False):
        rows = store.read(name, start, start + SHARD)
        crc32c = extend_crc32c(crc32c, rows)
        yield start, rows
    if crc32c != store.crc32c(name):
        raise damaged_array(store.path, f"data/{name}", OTHER_VALUES)


def _header(store: Store, name: str) -> bytes:
    """The header of the .npy file of an array."""
    (shape, dtype), file = store.array_layout(name), io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def _size(store: Store, name: str) -> int:
    """The size of the .npy file of an array, in bytes."""
    shape, dtype = store.array_layout(name)
    return len(_header(store, name)) + math.prod(shape) * dtype.itemsize


def _map_if_intact(store: Store, name: str, path: Path) -> np.ndarray | None:
    """Map the array in a file; None if the file does not match the commit record."""
    header, (shape, dtype) = _header(store, name), store.array_layout(name)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != _size(store, name) or file.read(len(header)) != header:
                return None
            crc32c, block = 0, np.empty(BLOCK, np.uint8)
            while n := file.readinto(block.data):
                crc32c = google_crc32c.extend(crc32c, block[:n])
            if crc32c != store.crc32c(name):
                return None
            return np.memmap(file, dtype, "r", len(header), shape).view(np.ndarray)
    except OSError:  # the file does not exist or cannot be read
        return None


def _fill_cache(store: Store, name: str, path: Path) -> None:
    """Decode an array into its cache file; files for fewer rows are deleted."""
    if path.exists():
        Progress.write(f"{path} does not match the store; decoding it again")
    for leftover in path.parent.glob("*.part"):
        leftover.unlink()
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            if hasattr(os, "posix_fallocate"):  # on other systems the first write that does not fit raises
                os.posix_fallocate(file.fileno(), 0, _size(store, name))
            file.write(_header(store, name))
            for _, rows in _shards(store, name):
                file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    for old in path.parent.iterdir():
        if old != path and re.fullmatch(rf"{re.escape(name)}-\d+\.npy", old.name):
            old.unlink()
