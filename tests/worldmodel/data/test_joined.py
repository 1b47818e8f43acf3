"""Stores that a manifest names read as one: same rows, same clips, and every episode in its own split."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.worldmodel.data.test_store import WORLD, episode, fill
from worldmodel.data.clips import Clips, read_windows
from worldmodel.data.joined import MANIFEST, JoinedStore
from worldmodel.data.opening import open_store, write_manifest
from worldmodel.data.store import Store
from worldmodel.data.streams import Streams
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError

LENGTHS = ([30, 7, 700], [12] * 11, [40, 5])


def make(folder: str) -> list[int]:
    """Three stores and their manifest; the lengths of all episodes."""
    write_manifest(folder, ["0", "1", "2"])
    for i, lengths in enumerate(LENGTHS):
        fill(f"{folder}/{i}", lengths, first=sum(map(len, LENGTHS[:i])))  # type: ignore[arg-type]
    return [*itertools.chain(*LENGTHS)]


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_rows_are_those_of_all_stores(where: str, tmp_path: Path) -> None:
    path = str(tmp_path / "all") if where == "folder" else "memory://joined/all"
    lengths = make(path)
    store = open_store(path)
    assert isinstance(store, JoinedStore)
    assert (store.n_rows, len(store.episode_ends)) == (sum(lengths), len(lengths))
    for i, rows in enumerate(lengths):
        for name, values in episode(i, rows).items():
            np.testing.assert_array_equal(store.read_episode(i)[name], values)
    whole = np.concatenate([episode(i, rows)["where"] for i, rows in enumerate(lengths)])
    rng = np.random.default_rng(0)
    for start, stop in np.sort(rng.integers(0, store.n_rows + 1, (200, 2)), axis=1).tolist():
        np.testing.assert_array_equal(store.read("where", start, stop), whole[start:stop])
    for cache in ("memory", "off", *(["disk"] if where == "folder" else [])):
        opened, starts = open_store(path), rng.integers(0, store.n_rows - 50, 60)
        windows = read_windows(opened, "where", starts, 50, cache)  # type: ignore[arg-type]
        np.testing.assert_array_equal(windows, whole[starts[:, None] + np.arange(50)])
    assert store.array_layout("frames") == ((sum(lengths), 24, 24, 3), np.dtype(np.uint8))
    if where == "bucket":
        fsspec.filesystem("memory").rm("/joined", recursive=True)


def test_an_episode_keeps_its_split_when_a_store_is_added(tmp_path: Path) -> None:
    make(str(tmp_path))
    before = open_store(tmp_path)
    splits = {i: Store(tmp_path / str(i)).episode_splits().tolist() for i in range(3)}
    assert before.episode_splits().tolist() == splits[0] + splits[1] + splits[2]
    fill(tmp_path / "more", [9] * 10)
    write_manifest(str(tmp_path), ["0", "1", "2", "more"])
    after = open_store(tmp_path)
    assert after.episode_splits().tolist()[: len(before.episode_ends)] == before.episode_splits().tolist()
    assert before.checksums != {name: after.crc32c(name) for name in before.array_names}
    for split in ("train", "valid"):
        clips = Clips(after, split, 5)
        batch = clips.fixed_sample(6)
        assert np.isin(batch["episode"], after.episode_indices(split)).all()
        for k, (i, start) in enumerate(zip(batch["episode"], batch["start"], strict=True)):
            rows = after.read_episode(i)["frames"][start : start + 5]
            np.testing.assert_array_equal(batch["frames"][k], rows)
    streams = Streams(after, "train", 3, 4, ["where"])
    assert (np.diff(streams.read(0)["where"], axis=1) == 1).all()
    again = pickle.loads(pickle.dumps(after))
    np.testing.assert_array_equal(again.read("where", 0, 9), after.read("where", 0, 9))


def test_a_split_without_episodes_is_told_of_all_stores(tmp_path: Path) -> None:
    for i in range(2):
        fill(tmp_path / str(i), [9] * 2)
    write_manifest(str(tmp_path), ["0", "1"])
    (missing,) = {"valid", "test"} - set(open_store(tmp_path).episode_splits()) - {"test"} or {"test"}
    with pytest.raises(UserError, match=rf"no store of .* has episodes in split '{missing}'; collect more into one of"):
        open_store(tmp_path).episode_indices(missing)


def test_only_the_last_store_may_grow_without_being_another(tmp_path: Path) -> None:
    make(str(tmp_path))
    settings = open_store(tmp_path).settings
    fill(tmp_path / "2", [8], first=99)
    assert open_store(tmp_path).settings == settings
    fill(tmp_path / "1", [8], first=99)
    assert open_store(tmp_path).settings != settings


def test_mistakes_are_told_in_a_sentence(tmp_path: Path) -> None:
    make(str(tmp_path / "all"))
    with StoreWriter(tmp_path / "all" / "other", WORLD, {}) as writer:
        writer.append({"frames": episode(0, 5)["frames"]})
    write_manifest(str(tmp_path / "all"), ["0", "other"])
    with pytest.raises(UserError, match=r"other does not have the arrays of .*0, so they cannot be read as one"):
        open_store(tmp_path / "all")
    write_manifest(str(tmp_path / "all"), ["0", "nowhere"])
    with pytest.raises(UserError, match=r"nowhere holds no store"):
        open_store(tmp_path / "all")
    for text in ("{", "[]", '{"stores": []}', '{"stores": [3]}', '{"stores": "0"}'):
        (tmp_path / "all" / MANIFEST).write_text(text)
        with pytest.raises(UserError, match=r'manifest\.json must have \{"stores": \[names\]\}; write it anew'):
            open_store(tmp_path / "all")
    with pytest.raises(UserError, match="0 is a store itself, so others cannot be put into it"):
        write_manifest(str(tmp_path / "all" / "0"), ["1"])
