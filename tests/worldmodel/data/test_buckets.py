"""Stores in a bucket: what was committed stays, whenever the writer was killed, and what goes wrong is a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import s3fs
from fsspec.registry import _registry as LOADED
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from tests.bucket import Killed, Requests
from worldmodel.data import storage, zarr_format
from worldmodel.data.array_cache import decode_array
from worldmodel.data.clips import Clips
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.storage import Bucket, open_storage
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError

BYTES = default_buffer_prototype().buffer.from_bytes(b"x")
ROOT = Path(__file__).parents[3]
WORLD = EnvSpec(name="toy", frame_shape=(24, 24, 3))
LENGTHS = (3, 4, 40, 5)
"""Rows of the episodes of a recording. Two episodes are committed, then two more, which go over a shard's end."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_format, "SHARD", 32)


def episode(i: int) -> dict[str, np.ndarray]:
    rows = np.arange(LENGTHS[i], dtype=np.uint8)
    return {"frames": np.broadcast_to(rows[:, None, None, None] + np.uint8(i), (LENGTHS[i], *WORLD.frame_shape))}


def record(address: str | Path) -> None:
    """Record, or go on, committing after every second episode."""
    with StoreWriter(address, WORLD, {"epsilon": 0.25}) as writer:
        for i in range(writer.n_episodes, len(LENGTHS)):
            writer.append(episode(i), progress=[i])
            if i % 2:
                writer.commit()


def mark(address: str) -> bytes:
    return fsspec.open(f"{address}/zarr.json").open().read()


def frames(episodes: int) -> np.ndarray:
    return np.concatenate([episode(i)["frames"] for i in range(episodes)])


def n_committed(address: str) -> int:
    """The number of episodes of a store, all of which were compared; 0 if it says that it has none."""
    try:
        store = Store(address)
    except UserError as error:
        assert "holds no store" in str(error) or "has no episodes yet" in str(error)
        return 0
    n = len(store.episode_ends)
    assert store.episode_ends.tolist() == np.cumsum(LENGTHS[:n]).tolist()
    np.testing.assert_array_equal(decode_array(store, "frames"), frames(n))
    return n


@pytest.mark.parametrize("scheme", ["s3", "memory", "file"])
def test_a_store_at_a_url_is_the_store_in_a_folder(scheme: str, bucket: str, tmp_path: Path) -> None:
    address = {"s3": f"{bucket}/a/s", "memory": f"memory:/{tmp_path}/s", "file": f"file://{tmp_path}/s"}[scheme]
    record(tmp_path / "local")
    record(address)
    assert n_committed(address) == 4
    assert mark(address) == (tmp_path / "local/zarr.json").read_bytes()
    assert (tmp_path / "s/zarr.json").exists() == (scheme == "file")
    batches = [Clips(Store(path), "all", 3).fixed_sample(9) for path in (tmp_path / "local", address)]
    for name, values in batches[0].items():
        np.testing.assert_array_equal(values, batches[1][name])


def test_a_writer_killed_at_any_request_loses_nothing_that_was_committed(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies before each request that changes something; the others leave what was there before."""
    record(f"{bucket}/whole")
    whole, found = mark(f"{bucket}/whole"), []
    for number in range(100):
        address = f"{bucket}/{number}"
        with monkeypatch.context() as patch:
            requests = Requests(patch, killed_at=number)
            with contextlib.suppress(Killed):
                record(address)
                break  # no request was left
            requests.settle()
        marks = [key for method, key in requests.sent if method == "put_object" and key == f"{number}/zarr.json"]
        found.append(n_committed(address))
        assert found[-1] == max(0, 2 * (len(marks) - 1))  # the first mark has no episodes
        record(address)
        assert n_committed(address) == 4
        assert mark(address) == whole
    assert sorted(set(found)) == [0, 2]
    assert len(found) > 15


def test_a_writer_killed_again_and_again_comes_to_the_same_end(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It also dies while it deletes what the one before it left, each time a bit later."""
    record(f"{bucket}/whole")
    before = 0
    for number in range(100):
        with monkeypatch.context() as patch:
            requests = Requests(patch, killed_at=number)
            with contextlib.suppress(Killed):
                record(f"{bucket}/s")
                break
            requests.settle()
        now = n_committed(f"{bucket}/s")
        assert now >= before
        before = now
    assert number > 5
    assert n_committed(f"{bucket}/s") == 4
    assert mark(f"{bucket}/s") == mark(f"{bucket}/whole")


def test_a_killed_first_commit_does_not_spoil_a_recording_of_other_arrays(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object that it left has the name of one that is written now, but another layout."""
    some = np.arange(3000, dtype=np.uint8).reshape(5, 600)
    with monkeypatch.context() as patch:
        requests = Requests(patch, killed_at=7)
        with pytest.raises(Killed), StoreWriter(f"{bucket}/s", WORLD, {}) as writer:
            writer.append({"some": some})
        requests.settle()
    assert fsspec.filesystem("s3").exists(f"{bucket}/s/data/some/c.0.0")
    with StoreWriter(f"{bucket}/s", WORLD, {}) as writer:
        writer.append({"some": some.astype(np.float64)})
    np.testing.assert_array_equal(Store(f"{bucket}/s").read("some", 0, 5), some.astype(np.float64))


def test_a_process_that_ends_in_the_middle_of_a_commit_can_go_on(bucket: str) -> None:
    """Really ended, without any handler, before the mark of the second commit."""
    code = """
import os, sys
import pytest
from tests import bucket
from tests.worldmodel.data import test_buckets as here
from worldmodel.data import storage, zarr_format
zarr_format.SHARD = 32
class Ended(bucket.Killed):
    def __init__(self): os._exit(9)
bucket.Killed = Ended
bucket.Requests(pytest.MonkeyPatch(), killed_at=int(sys.argv[2]))
here.record(sys.argv[1])
"""
    record(f"{bucket}/whole")
    ended = subprocess.run([sys.executable, "-c", code, f"{bucket}/s", "14"], cwd=ROOT)
    assert ended.returncode == 9
    assert n_committed(f"{bucket}/s") == 2
    record(f"{bucket}/s")
    assert mark(f"{bucket}/s") == mark(f"{bucket}/whole")


@pytest.mark.parametrize("number", [0, 1, 6, 9, 11, 15])
def test_a_change_whose_answer_is_lost_is_made_once(bucket: str, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The mark, the metadata and the shards of the first and the second commit; the writer tries again at its end."""
    record(f"{bucket}/whole")
    with monkeypatch.context() as patch:
        requests = Requests(patch, unanswered=number)
        with pytest.raises(UserError, match="the answer was lost"):
            record(f"{bucket}/s")
    assert requests.changes > number
    assert n_committed(f"{bucket}/s") == (0 if not number else 2 if number < 10 else 4)
    record(f"{bucket}/s")
    assert n_committed(f"{bucket}/s") == 4
    assert mark(f"{bucket}/s") == mark(f"{bucket}/whole")


def test_a_writer_stops_where_another_one_has_committed(bucket: str) -> None:
    with StoreWriter(f"{bucket}/s", WORLD, {"epsilon": 0.25}) as late:
        record(f"{bucket}/s")
        late.append(episode(1))
        with pytest.raises(UserError, match="was also written by another process; stop all but one, and run"):
            late.commit()
        late._buffer.clear()
    assert n_committed(f"{bucket}/s") == 4


def test_nothing_is_listed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        requests = Requests(patch, killed_at=12)
        with pytest.raises(Killed):
            record(f"{bucket}/s")
        requests.settle()
    requests = Requests(monkeypatch)
    monkeypatch.setattr(s3fs.S3FileSystem, "_lsdir", None)
    record(f"{bucket}/s")
    assert n_committed(f"{bucket}/s") == 4
    assert {method for method, _ in requests.sent} == {"get_object", "put_object", "delete_object"}


def test_a_shard_that_is_replaced_while_it_is_read_is_no_damage(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer commits after the index of the shard was read, and before its chunks are."""
    with StoreWriter(f"{bucket}/s", WORLD, {"epsilon": 0.25}) as writer:
        writer.append(episode(0))
        writer.append(episode(1))
    store, send, replaced = Store(f"{bucket}/s"), s3fs.S3FileSystem._call_s3, threading.Event()

    async def replace(fs: Any, method: str, *args: Any, **how: Any) -> Any:
        if method == "get_object" and how["Key"].endswith("frames/c.0.0.0.0") and "=-" in how.get("Range", ""):
            answer = await send(fs, method, *args, **how)
            if not replaced.is_set():
                replaced.set()
                await asyncio.to_thread(record, f"{bucket}/s")
            return answer
        return await send(fs, method, *args, **how)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", replace)
    np.testing.assert_array_equal(store.read("frames", 2, 6), frames(2)[2:6])
    assert replaced.is_set()
    assert n_committed(f"{bucket}/s") == 4


def told(address: str) -> list[str]:
    """What a reader and a writer say of a store that they cannot open."""
    said = []
    for kind in (Store, lambda address: StoreWriter(address, WORLD, {"epsilon": 0.25})):
        with pytest.raises(UserError) as error:
            kind(address)
        said.append(str(error.value))
        assert "\n" not in said[-1]
        assert address in said[-1]
    return said


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    read, write = told("s3://no-such-bucket/s")
    assert "holds no store (The specified bucket does not exist); collect one first" in read
    assert "cannot be written (The specified bucket does not exist); check the endpoint, the keys and" in write
    with pytest.raises(UserError, match="s holds no store"):
        Store(f"{bucket}/s")


def test_a_bucket_without_rights_is_named(bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record(f"{bucket}/s")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3_endpoint, "anon": True})
    for said in told(f"{bucket}/s"):
        assert "cannot be read (Forbidden); check the endpoint, the keys and their rights" in said


def test_rights_that_are_lost_later_are_no_damage(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record(f"{bucket}/s")
    store = Store(f"{bucket}/s")
    with StoreWriter(f"{bucket}/s", WORLD, {"epsilon": 0.25}) as writer:
        writer.append(episode(1))
        with monkeypatch.context() as patch:
            patch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on it asks for keys
            for use in (lambda: store.read("frames", 0, 3), writer.commit):
                with pytest.raises(
                    UserError, match=r"^s3://bucket[^ ]* cannot be read \(The AWS.*\); check the endpoint"
                ):
                    use()
        writer._buffer.clear()
    assert n_committed(f"{bucket}/s") == 4


@pytest.mark.parametrize("answers", [False, True])
def test_an_endpoint_that_does_not_answer_is_an_error_and_no_hang(
    bucket: str, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """Nobody listens, or somebody who says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:
            listener.listen(100)
        soon = {"connect_timeout": 0.1, "read_timeout": 0.1, "retries": {"total_max_attempts": 1}}
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options = {"endpoint_url": address, "key": "a", "secret": "b", "config_kwargs": soon}
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        for said in told("s3://bucket/s"):
            assert f'endpoint URL: "{address}/bucket/s/zarr.json"); check the endpoint' in said


@pytest.mark.parametrize("request_name", ["_cat_file", "_pipe_file", "_rm_file"])
def test_a_file_system_without_limits_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.sleep(600)

    monkeypatch.setattr(storage, "LONGEST", 0.05)
    where = open_storage(f"memory:/{tmp_path}/s", write=True)
    assert isinstance(where, Bucket)
    monkeypatch.setattr(where.fs, request_name, hang)
    use = {"_cat_file": where.exists, "_pipe_file": lambda key: where.set(key, BYTES), "_rm_file": where.delete}
    with pytest.raises((UserError, TimeoutError)):
        sync(use[request_name]("zarr.json"))


def test_times_are_limited_unless_the_user_sets_others(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def limits() -> tuple[int, int, int]:
        where = open_storage(f"{bucket}/s")
        assert isinstance(where, Bucket)
        config = where.fs.config_kwargs
        return config["connect_timeout"], config["read_timeout"], where.fs.retries

    assert limits() == (5, 10, 2)
    monkeypatch.setitem(fsspec.config.conf["s3"], "config_kwargs", {"connect_timeout": 2, "read_timeout": 3})
    assert limits() == (2, 3, 2)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(LOADED, "s3", raising=False)
    for said in told("s3://bucket/s"):
        assert said.endswith("cannot be opened (Install s3fs to access S3); pip install 'worldmodel[s3]'")
    for said in told("nonsense://bucket/s"):
        assert "cannot be opened (Protocol not known: nonsense); give another URL" in said


@pytest.mark.parametrize("name", ["data/frames/c.0.0.0.0", "data/frames/zarr.json", "meta/episode_ends/c.0"])
def test_half_a_store_is_damaged(bucket: str, name: str) -> None:
    record(f"{bucket}/s")
    fsspec.filesystem("s3").rm_file(f"{bucket}/s/{name}")
    array = name.rpartition("/")[0]
    with pytest.raises(
        UserError, match=f"s: array {array} is damaged .* is missing.*; restore it, or delete the store"
    ):
        Store(f"{bucket}/s").read("frames", 0, 3)


def test_half_a_store_without_its_mark_is_no_store(bucket: str) -> None:
    record(f"{bucket}/s")
    fsspec.filesystem("s3").rm_file(f"{bucket}/s/zarr.json")
    with pytest.raises(UserError, match=r"holds no store \(The specified key does not exist\)"):
        Store(f"{bucket}/s")
