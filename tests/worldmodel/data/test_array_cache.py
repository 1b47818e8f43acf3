"""A cache is believed only if it holds what was recorded, and a full disk is a sentence."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from worldmodel.data import array_cache
from worldmodel.data.array_cache import decode_array, memory_map
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError


def frames(seed: int, rows: int = 70) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 24, 24, 3), dtype=np.uint8)


def store(path: Path, seed: int = 0, **more: np.ndarray) -> Path:
    with StoreWriter(path, EnvSpec(name="x", frame_shape=(24, 24, 3)), {}) as writer:
        writer.append({"frames": frames(seed), **more})
    return path


def turned(at: int) -> object:
    def turn(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 4
        path.write_bytes(content)

    return turn


@pytest.mark.parametrize(
    "damage",
    [
        turned(3),
        turned(40),
        turned(128),
        turned(-1),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:5000] + bytes(path.stat().st_size - 5000)),
        lambda path: np.save(path, frames(0).astype(np.int16)),
        lambda path: shutil.copyfile(path.parents[2] / "other/cache/frames-70.npy", path),
    ],
)
def test_a_cache_that_is_not_what_was_recorded_is_filled_again_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    memory_map(Store(store(tmp_path / "other", seed=1)), "frames")
    path = store(tmp_path / "s")
    np.testing.assert_array_equal(memory_map(Store(path), "frames"), frames(0))
    memory_map(Store(path), "frames")
    assert capsys.readouterr().out == ""
    damage(path / "cache/frames-70.npy")  # type: ignore[operator]
    read = memory_map(Store(path), "frames")
    np.testing.assert_array_equal(read, frames(0))
    assert not read.flags.writeable
    assert capsys.readouterr().out.count("frames-70.npy does not match the store; decoding it again\n") == 1
    np.testing.assert_array_equal(np.load(path / "cache/frames-70.npy"), frames(0))


def test_old_objects_under_new_metadata_are_found_where_all_rows_are_decoded(tmp_path: Path) -> None:
    """As in a copy that was made while the store grew: what is missing in a chunk reads as zeros."""
    path = store(tmp_path / "s")
    shutil.copytree(path / "data/frames", tmp_path / "before")
    with StoreWriter(path, EnvSpec(name="x", frame_shape=(24, 24, 3)), {}) as writer:
        writer.append({"frames": frames(2)})
    shutil.copyfile(tmp_path / "before/c.0.0.0.0", path / "data/frames/c.0.0.0.0")
    for read in (decode_array, memory_map):
        with pytest.raises(UserError, match=r"data/frames is damaged \(its values do not match its checksum"):
            read(Store(path), "frames")
    assert [p.name for p in (path / "cache").iterdir()] == ["lock"]


def test_other_arrays_keep_their_caches_and_leftovers_go(tmp_path: Path) -> None:
    path = store(tmp_path / "s", **{"frames-2": np.arange(70)})
    for name in ("frames-2", "frames"):
        (path / "cache").mkdir(exist_ok=True)
        (path / "cache/frames-9.npy.1234.part").touch()
        (path / "cache/frames-9.npy").touch()
        memory_map(Store(path), name)
    assert sorted(p.name for p in (path / "cache").iterdir()) == ["frames-2-70.npy", "frames-70.npy", "lock"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk with so much room: a write beyond it fails."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize("size", [50, 60_000])
def test_a_full_disk_is_a_sentence_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve: bool, size: int
) -> None:
    if not reserve:
        monkeypatch.delattr(os, "posix_fallocate")
    path = store(tmp_path / "s")
    with (
        files_of_at_most(size),
        pytest.raises(
            UserError, match=r"frames-70.npy could not be written .*; free some space, .*cache='memory' or cache='off'"
        ),
    ):
        memory_map(Store(path), "frames")
    assert [p.name for p in (path / "cache").iterdir()] == ["lock"]
    np.testing.assert_array_equal(memory_map(Store(path), "frames"), frames(0))


def test_space_is_reserved_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, size: int) -> None:
        assert (start, size) == (0, 128 + frames(0).nbytes)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(array_cache, "_shards", None)  # which is what decodes
    path = store(tmp_path / "s")
    with pytest.raises(UserError, match="No space left on device"):
        memory_map(Store(path), "frames")


def test_a_cache_that_does_not_keep_what_is_written_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_cache, "_map_if_intact", lambda *_: None)
    with pytest.raises(UserError, match="does not hold what was just written to it"):
        memory_map(Store(store(tmp_path / "s")), "frames")
