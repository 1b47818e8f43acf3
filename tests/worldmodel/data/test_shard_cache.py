"""Shards that are kept are what the bucket has, within the limit, and the last used ones stay."""

from __future__ import annotations

import pickle
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.bucket import Requests
from worldmodel.data import store as store_module
from worldmodel.data import zarr_format
from worldmodel.data.clips import Clips
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.shard_cache import CRC_BYTES, CacheArgs, ShardCache
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError

WORLD = EnvSpec(name="toy", frame_shape=(24, 24, 3))
SIZE = 100 + CRC_BYTES
"""Bytes of a file of `rows`."""


def rows(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (10, 10), dtype=np.uint8)


def get(cache: ShardCache, i: int, loaded: list[int] | None = None) -> np.ndarray:
    """Shard i; what had to be loaded is noted."""

    def load() -> np.ndarray:
        if loaded is not None:
            loaded.append(i)
        return rows(i)

    return cache.get(str(i), (10, 10), np.dtype(np.uint8), load)


def kept(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.shard")}


def test_a_shard_is_loaded_once_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    loaded: list[int] = []
    for cache in (ShardCache(tmp_path, 10 * SIZE), ShardCache(tmp_path, 10 * SIZE)):
        for i in (0, 1, 0, 1):
            np.testing.assert_array_equal(get(pickle.loads(pickle.dumps(cache)), i, loaded), rows(i))
            found = get(cache, i, loaded)
            np.testing.assert_array_equal(found, rows(i))
    assert loaded == [0, 1]
    assert not found.flags.writeable


def test_the_limit_holds_and_the_shards_used_last_stay(tmp_path: Path) -> None:
    cache, loaded = ShardCache(tmp_path, 3 * SIZE), list[int]()
    for i in (0, 1, 2, 0, 3, 0, 4, 1):
        np.testing.assert_array_equal(get(cache, i, loaded), rows(i))
        assert sum(path.stat().st_size for path in tmp_path.glob("*.shard")) <= 3 * SIZE
    assert loaded == [0, 1, 2, 3, 4, 1]
    assert kept(tmp_path) == {"0", "4", "1"}


def test_another_process_may_delete_or_use_what_is_kept(tmp_path: Path) -> None:
    ours, theirs, loaded = ShardCache(tmp_path, 2 * SIZE), ShardCache(tmp_path, 2 * SIZE), list[int]()
    for i in (0, 1):
        get(ours, i)
        get(ours, i)  # mapped
    get(theirs, 0)
    get(theirs, 2)  # deletes 1, since 0 was used after it
    assert kept(tmp_path) == {"0", "2"}
    assert len(ours._mapped) == 2
    np.testing.assert_array_equal(get(ours, 1, loaded), rows(1))
    assert loaded == [1]
    assert kept(tmp_path) == {"1", "2"}
    assert not ours._mapped, "deleted files would keep their space"


@pytest.mark.parametrize("harm", ["turn", "cut", "empty", "more"])
def test_a_damaged_file_is_loaded_again(tmp_path: Path, harm: str) -> None:
    get(ShardCache(tmp_path, 3 * SIZE), 0)
    path, loaded = tmp_path / "0.shard", list[int]()
    content = bytearray(path.read_bytes())
    content[40] ^= 4
    path.write_bytes({"turn": content, "cut": content[:50], "empty": b"", "more": path.read_bytes() + b"x"}[harm])
    for _ in range(2):
        np.testing.assert_array_equal(get(ShardCache(tmp_path, 3 * SIZE), 0, loaded), rows(0))
    assert loaded == [0]


def test_what_a_killed_process_left_goes_and_a_shard_above_the_limit_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "0.shard.1234abcd.part").write_bytes(b"x" * 1000)
    get(ShardCache(tmp_path, SIZE), 0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.shard", "lock"]
    np.testing.assert_array_equal(get(ShardCache(tmp_path, SIZE - 1), 1), rows(1))
    assert kept(tmp_path) == {"0"}


def test_threads_that_want_the_same_shard_load_it_once(tmp_path: Path) -> None:
    cache, loaded, wait = ShardCache(tmp_path, 3 * SIZE), list[int](), threading.Barrier(4)

    def want(_: int) -> np.ndarray:
        wait.wait()
        return get(cache, 0, loaded)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(want, range(4)):
            np.testing.assert_array_equal(found, rows(0))
    assert loaded == [0]


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, usual[1]))
    try:
        with pytest.raises(
            UserError, match=r"cannot keep frames .*; free some space, lower --cache-gb, or give another"
        ):
            get(ShardCache(tmp_path, 3 * SIZE), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert kept(tmp_path) == set()


def fill(address: str | Path, first: int, last: int) -> None:
    with StoreWriter(address, WORLD, {}) as writer:
        for i in range(first, last):
            frames = np.random.default_rng(i).integers(0, 256, (20, 24, 24, 3), dtype=np.uint8)
            writer.append({"frames": frames, "action": np.arange(20)})


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_format, "SHARD", 32)
    monkeypatch.setattr(store_module, "KEPT_BYTES", 3000)


@pytest.mark.usefixtures("small_shards")
def test_clips_through_a_cache_are_those_of_a_folder_and_ask_the_bucket_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (tmp_path / "s", f"{bucket}/s"):
        fill(address, 0, 10)
    whole = 10 * 20 * (24 * 24 * 3 + 8)
    requests = Requests(monkeypatch)
    for limit, enough in ((2 * whole, True), (whole // 3, False)):
        folder = tmp_path / str(enough)
        local = Clips(Store(tmp_path / "s"), "train", 7)
        remote = Clips(Store(f"{bucket}/s", ShardCache(folder, limit)), "train", 7)
        counts = []
        for seed in range(3):
            batches = [clips.sample(np.random.default_rng(seed), 30) for clips in (local, remote)]
            for name, values in batches[0].items():
                assert batches[1][name].dtype == values.dtype
                np.testing.assert_array_equal(batches[1][name], values)
            assert 0 < sum(path.stat().st_size for path in folder.glob("*.shard")) <= limit
            counts.append(len(requests.sent))
        assert (counts[1] == counts[2]) == enough
    for i in (0, 9):
        for name, values in Store(f"{bucket}/s", ShardCache(tmp_path / "True", 2 * whole)).read_episode(i).items():
            np.testing.assert_array_equal(values, Store(tmp_path / "s").read_episode(i)[name])


@pytest.mark.usefixtures("small_shards")
def test_a_store_that_grew_or_was_recorded_again_has_other_shards(bucket: str, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10**9)
    fill(f"{bucket}/s", 0, 2)
    old = Store(f"{bucket}/s", cache).read("frames", 0, 40)
    fill(f"{bucket}/s", 2, 3)
    new = Store(f"{bucket}/s", cache).read("frames", 0, 60)
    np.testing.assert_array_equal(new[:40], old)
    np.testing.assert_array_equal(new, Store(f"{bucket}/s").read("frames", 0, 60))
    fsspec.filesystem("s3").rm(f"{bucket}/s", recursive=True)
    fill(f"{bucket}/s", 3, 6)
    other = Store(f"{bucket}/s", cache).read("frames", 0, 60)
    np.testing.assert_array_equal(other, Store(f"{bucket}/s").read("frames", 0, 60))
    assert not np.array_equal(other, new)


def test_flags_make_a_cache(tmp_path: Path) -> None:
    cache = CacheArgs(cache_gb=1.5, cache_folder=tmp_path).shard_cache()
    assert cache is not None
    assert (cache.folder, cache.max_bytes) == (tmp_path, 1_500_000_000)
    assert CacheArgs(cache_gb=0).shard_cache() is None
    with pytest.raises(UserError, match="cache_gb must be a finite number of at least 0, not -1"):
        CacheArgs(cache_gb=-1)
