"""How trajectories lie on disk: one Zarr 3 group that any Zarr reader opens and no power cut spoils.

    data/<name>         arrays of any type and shape, episode after episode; one equal first dimension
    meta/episode_ends   int64, cumulative: episode i is rows ends[i - 1] .. ends[i]
    zarr.json           the root's attributes: the commit mark, see `mark`

The commit mark: Zarr has no transactions, an append touches several objects, and what is missing reads as zeros.
So the mark says how many episodes and rows there are. It is one object, replaced by a rename after everything it
speaks of has reached the disk. Readers believe nothing else, and a writer that opens a store first cuts off what the
mark does not cover. Checksums, and a look for missing objects, find later damage.

Big arrays have chunks of 16 rows in shards of 1024: a clip decodes two chunks, and a million frames are a thousand
files. Zstandard at level 1 writes half again as fast as at Zarr's own level, for a tenth more bytes.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.core.sync import sync
from zarr.storage import LocalStore

from worldmodel.data.commit_mark import CURE, ArrayContents, CommitMark, from_attributes, metadata_digest
from worldmodel.utils.checkpoint import write_atomic
from worldmodel.utils.errors import UserError, is_url, one_line

SPLITS = ("train", "valid", "test")
CHUNK, SHARD, SHARD_BYTES = 16, 1024, 64 << 20
"""Rows in a chunk, rows in a shard, and the bytes at which big frames make a shard of fewer rows."""
SMALL_ROW, SMALL_CHUNK = 1024, 4096
"""Arrays with rows of fewer bytes have no shards, but chunks of this many rows."""
OTHER_VALUES = "its values are not those that were written"


def draw_splits(n_episodes: int, seed: int) -> np.ndarray:
    """The split of each episode, 8:1:1 in every ten; it stays what it is while the store grows."""
    labels = np.array(["train"] * 8 + ["valid", "test"])
    tens = [np.random.default_rng([seed, ten]).permutation(labels) for ten in range(-(-n_episodes // 10))]
    return np.concatenate([labels[:0], *tens])[:n_episodes]


class DurableStore(LocalStore):
    """A folder where no object has its name before its bytes are on the disk; Zarr alone leaves that open."""

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(write_atomic, self.root / key, value.to_bytes())


def open_root(path: str, write: bool = False) -> tuple[zarr.Group, CommitMark]:
    """A store's root and its mark."""
    if is_url(path) and "://" not in path:
        raise UserError(f"{path} is a URL that has passed through Path; give it as a string")
    try:
        root = zarr.open_group(
            DurableStore(path) if write else path, mode="r+" if write else "r", use_consolidated=False
        )
    except FileNotFoundError:
        raise UserError(f"{path} holds no store; collect one first, or give the path of one") from None
    except Exception as error:  # Zarr and every file system have errors of their own
        raise UserError(
            f"{path} cannot be opened as a store ({one_line(error)}); restore it or give another path"
        ) from None
    return root, from_attributes(path, root.attrs.asdict())


def open_array(root: zarr.Group, path: str, name: str, rows: int, contents: ArrayContents) -> zarr.Array[Any]:
    """An array that has at least the rows the mark speaks of, and otherwise the metadata that it had then."""
    try:
        same = metadata_of(root, name) == contents.metadata
        with zarr.config.set({"array.write_empty_chunks": True}):  # so that a missing chunk is always damage
            array = root[name]
        assert isinstance(array, zarr.Array)
    except Exception as error:
        raise damaged_array(path, name, error) from None
    if not same:
        raise damaged_array(path, name, "its zarr.json is not what was written")
    if array.shape[0] < rows:
        raise damaged_array(path, name, f"{array.shape[0]} rows instead of {rows}")
    return array


def metadata_of(root: zarr.Group, name: str) -> str:
    """The digest of an array's metadata as they are stored now."""
    stored = sync((root.store_path / name / "zarr.json").get())
    if stored is None:
        raise FileNotFoundError("zarr.json is missing")
    return metadata_digest(json.loads(stored.to_bytes()))


def create_array(root: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> zarr.Array[Any]:
    """An array without rows yet; each of its stored objects is one file beside its `zarr.json`."""
    row = int(np.prod(shape)) * dtype.itemsize
    shard = max(CHUNK, min(SHARD, SHARD_BYTES // max(row, 1)) // CHUNK * CHUNK)
    return root.create_array(
        name,
        shape=(0, *shape),
        dtype=dtype,
        chunks=(SMALL_CHUNK if row < SMALL_ROW else CHUNK, *shape),
        shards=None if row < SMALL_ROW else (shard, *shape),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )


def read_rows(array: zarr.Array[Any], path: str, name: str, start: int, stop: int) -> np.ndarray:
    """Rows start .. stop; `UserError` where Zarr would fill in zeros for an object that is missing."""
    if 0 in array.shape[1:]:  # rows without numbers have no objects
        return np.zeros((stop - start, *array.shape[1:]), array.dtype)
    size, rest = (array.shards or array.chunks)[0], [0] * (array.ndim - 1)
    try:
        for i in range(start // size, -(-stop // size)):
            key = array.metadata.encode_chunk_key((i, *rest))
            if not sync((array.store_path / key).exists()):
                raise FileNotFoundError(f"{key} is missing")
        return np.asarray(array[start:stop])
    except Exception as error:  # each codec and file system has errors of its own
        raise damaged_array(path, name, error) from None


def damaged_array(path: str, name: str, error: object) -> UserError:
    return UserError(f"{path}: array {name} is damaged ({one_line(error)}); {CURE}")
