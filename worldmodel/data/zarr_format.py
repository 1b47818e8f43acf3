"""Trajectories on disk: a Zarr 3 group that any Zarr reader can open and that survives power cuts.

    data/<name>         arrays of any type and shape, episode after episode; all with the same first dimension
    meta/episode_ends   int64, cumulative: episode i is rows ends[i - 1] .. ends[i]
    zarr.json           the root's attributes are the commit record, see `commit_mark`
    waiting/            while recording into a folder: episodes that are not committed yet, see `waiting`

Zarr has no transactions: an append changes several objects, and missing objects read as zeros. So the commit record
says how many episodes and rows there are. It is a single object, which is replaced as a whole after everything it
covers is on the disk or in the bucket (see `storage`). Readers trust only the record, and a writer that opens a store
first deletes what the record does not cover, and commits waiting episodes. Checksums, and a check for missing objects,
detect later damage.

Large arrays have chunks of 16 rows in shards of 1024. A clip then decodes two chunks, and a million frames are a
thousand files. Zstandard at level 1 writes 1.5 times as fast as at Zarr's default level, for 10% more bytes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.sync import sync
from zarr.storage import StorePath

from worldmodel.data.commit_mark import CURE, ArrayContents, CommitMark, from_attributes, metadata_digest
from worldmodel.data.storage import Bucket, open_storage, read_object
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.settings import MAX_INT

SPLITS = ("train", "valid", "test")
CHUNK, SHARD, SHARD_BYTES = 16, 1024, 64 << 20
"""Rows of a chunk, rows of a shard, and most bytes of a shard, for which large frames have fewer rows."""
SMALL_ROW, SMALL_CHUNK = 1024, 4096
"""Arrays whose rows have fewer than `SMALL_ROW` bytes have no shards, and chunks of `SMALL_CHUNK` rows."""
OTHER_VALUES = "its values do not match its checksum"


def draw_splits(n_episodes: int, seed: int) -> np.ndarray:
    """The split of each episode: 8:1:1 in every ten. It does not change when the store grows."""
    labels = np.array(["train"] * 8 + ["valid", "test"])
    tens = [np.random.default_rng([seed, ten]).permutation(labels) for ten in range(-(-n_episodes // 10))]
    return np.concatenate([labels[:0], *tens])[:n_episodes]


def open_root(path: str, write: bool = False) -> tuple[zarr.Group, CommitMark]:
    """Open the root group of a store.

    Args:
        path: Folder or URL of the store.
        write: Whether to open it for writing.

    Returns:
        The root group and the commit record.

    Raises:
        UserError: If it cannot be opened or is not a store.
    """
    storage = open_storage(path, write)
    try:
        root = zarr.open_group(storage, mode="r+" if write else "r", zarr_format=3, use_consolidated=False)
    except FileNotFoundError:
        why = storage.why_missing("zarr.json") if isinstance(storage, Bucket) else ""
        raise UserError(f"{path} holds no store{why}; collect one first, or give the path of one") from None
    except UserError:
        raise
    except Exception as error:  # Zarr and each file system have their own errors
        raise UserError(
            f"{path} cannot be opened as a store ({one_line(error)}); restore it or give another path"
        ) from None
    return root, from_attributes(path, root.attrs.asdict())


def open_array(root: zarr.Group, path: str, name: str, rows: int, contents: ArrayContents) -> zarr.Array[Any]:
    """Open an array of a store.

    Args:
        root: Root group.
        path: Path of the store, for messages.
        name: Path of the array in the store.
        rows: Number of rows that it must have at least.
        contents: Its checksums in the commit record.

    Raises:
        UserError: If rows are missing or its metadata has changed since the commit.
    """
    try:
        document = _metadata(root, name)
        same = metadata_digest(document) == contents.metadata
        with zarr.config.set({"array.write_empty_chunks": True}):  # so that a missing chunk always means damage
            array = zarr.Array.from_dict(root.store_path / name, document)
    except UserError:
        raise
    except Exception as error:
        raise damaged_array(path, name, error) from None
    if not same:
        raise damaged_array(path, name, "its zarr.json has been changed")
    if not rows <= array.shape[0] <= MAX_INT:  # an append that was interrupted leaves some more
        raise damaged_array(path, name, f"{array.shape[0]} rows instead of {rows}")
    return array


def metadata_of(root: zarr.Group, name: str) -> str:
    """The digest of an array's current `zarr.json`."""
    return metadata_digest(_metadata(root, name))


def _metadata(root: zarr.Group, name: str) -> dict[str, Any]:
    stored = read_object(root.store_path.store, f"{name}/zarr.json")
    if stored is None:
        raise FileNotFoundError("zarr.json is missing")
    return json.loads(stored)


def create_array(root: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> zarr.Array[Any]:
    """Create an array without rows; each of its objects is one file next to its `zarr.json`."""
    _delete_array(root, name)
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


def _delete_array(root: zarr.Group, name: str) -> None:
    """Delete an array that an interrupted first commit has left.

    Its `zarr.json` has at least as many rows as were written, so the names of its objects follow from it.
    """
    place = root.store_path / name / "zarr.json"
    if sync(place.get()) is not None:
        array = root[name]
        assert isinstance(array, zarr.Array)
        array.resize((0, *array.shape[1:]))
        sync(place.delete())


def read_rows(
    array: zarr.Array[Any], path: str, name: str, start: int, stop: int, once_more: bool = True
) -> np.ndarray:
    """Read rows start .. stop; `UserError` for a damaged or missing object, which Zarr would read as zeros.

    A shard is read in several requests, and a writer that appends may replace it between two of them. So what cannot
    be read is read once more.
    """
    if 0 in array.shape[1:]:  # rows without numbers have no objects
        return np.zeros((stop - start, *array.shape[1:]), array.dtype)
    size, rest = (array.shards or array.chunks)[0], [0] * (array.ndim - 1)
    keys = [array.metadata.encode_chunk_key((i, *rest)) for i in range(start // size, -(-stop // size))]
    try:
        for key, there in zip(keys, sync(_have_objects(array.store_path, keys)), strict=True):
            if not there:
                raise FileNotFoundError(f"{key} is missing")
        return np.asarray(array[start:stop])
    except UserError:
        raise
    except Exception as error:  # each codec and file system has its own errors
        if once_more:
            return read_rows(array, path, name, start, stop, once_more=False)
        raise damaged_array(path, name, error) from None


async def _have_objects(folder: StorePath, keys: Sequence[str]) -> list[bool]:
    return await asyncio.gather(*((folder / key).exists() for key in keys))


def damaged_array(path: str, name: str, error: object) -> UserError:
    """The error of a damaged array."""
    return UserError(f"{path}: array {name} is damaged ({one_line(error)}); {CURE}")
