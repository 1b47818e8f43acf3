"""The mark vouches for itself and for all metadata, and what it says has the types that it should have."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.data.commit_mark import json_digest
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError

BOX = {"kind": "Box", "low": [0.0], "high": [1.0]}
ROOT = Path(__file__).parents[3]
WORLD = EnvSpec(name="x", frame_shape=(24, 24, 3), action=ActionSpec(kind="Discrete", nvec=(2,)), classes=("a",))
FRAMES = np.arange(30 * 24 * 24 * 3).reshape(30, 24, 24, 3).astype(np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.25}, split_seed=3) as writer:
        for start in (0, 10):
            writer.append({"frames": FRAMES[start : start + 10]}, progress=[start])
    return tmp_path / "s"


def told(path: Path) -> str:
    """What a reader and a writer say of a store, or nothing if it is what was recorded."""
    try:
        store = Store(path)
        np.testing.assert_array_equal(store.read("frames", 0, 20), FRAMES[:20])
        assert (store.env_spec, store.settings, store.split_seed) == (WORLD, {"epsilon": 0.25}, 3)
        assert store.episode_ends.tolist() == [10, 20]
    except UserError as error:
        with pytest.raises(UserError):
            StoreWriter(path, WORLD, {"epsilon": 0.25}, split_seed=3)
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["", "data/frames", "meta/episode_ends"])
def test_no_bit_of_any_metadata_turns_unseen(store: Path, name: str) -> None:
    """Every 41st bit of each zarr.json; a bit is unseen only if it changes nothing."""
    path = store / name / "zarr.json"
    whole, quiet = path.read_bytes(), 0
    for bit in range(0, 8 * len(whole), 41):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        quiet += not told(store)
    path.write_bytes(whole)
    assert not told(store)
    assert quiet < len(whole) / 100  # the number of rows of an array may be larger than the mark's


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("data/frames", '"uint8"', '"int8"'),
        ("data/frames", '"level": 1', '"level": 2'),
        ("meta/episode_ends", '"little"', '"big"'),
        ("meta/episode_ends", '"int64"', '"uint64"'),
    ],
)
def test_metadata_that_can_be_read_but_are_others_are_refused(store: Path, name: str, before: str, after: str) -> None:
    path = store / name / "zarr.json"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    assert f"array {name} is damaged (its zarr.json has been changed)" in told(store)


def test_where_other_episodes_end_is_not_believed(store: Path, tmp_path: Path) -> None:
    """An object of another store with as many rows."""
    with StoreWriter(tmp_path / "other", WORLD, {}) as writer:
        for rows in (5, 15):
            writer.append({"frames": FRAMES[:rows]})
    shutil.copyfile(tmp_path / "other/meta/episode_ends/c.0", store / "meta/episode_ends/c.0")
    with pytest.raises(UserError, match=r"episode_ends is damaged \(its values do not match its checksum\)"):
        Store(store)


def resealed(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the mark, and let its checksum fit again."""
    document = json.loads((path / "zarr.json").read_text())
    attributes = document["attributes"]
    change(attributes)
    attributes["checksum"] = json_digest({k: v for k, v in attributes.items() if k != "checksum"})
    (path / "zarr.json").write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda mark: mark.pop("world"), "zarr.json has no world"),
        (lambda mark: mark.pop("commit"), "zarr.json has no commit"),
        (lambda mark: mark.pop("settings"), "zarr.json has no settings"),
        (lambda mark: mark.pop("split_seed"), "zarr.json has no split_seed"),
        (lambda mark: mark.update(newer=1), "has a value 'newer' that this version does not know"),
        (lambda mark: mark["world"].update(newer=1), "zarr.json.world has a value 'newer' that this version does"),
        (lambda mark: mark["world"].update(fps="x"), "zarr.json.world.fps should be of type float, not 'x'"),
        (lambda mark: mark["world"].update(fps=0), "zarr.json.world.fps must be a finite number from 1e-06"),
        (
            lambda mark: mark["world"].update(frame_shape=[24, 24]),
            "frame_shape should be a list of 3",
        ),
        (
            lambda mark: mark["world"].update(frame_shape=[24, 24, "3"]),
            "frame_shape should be of type int",
        ),
        (lambda mark: mark["world"].update(fps=10**400), "world.fps must be a finite number from"),
        (lambda mark: mark["world"].update(max_episode_steps=10**400), "max_episode_steps must be at most"),
        (lambda mark: mark["world"]["action"].update(nvec=[10**9]), "action.nvec must be from 1 to 65536"),
        (lambda mark: mark["world"].update(action=BOX | {"low": [2.0]}), "of a Box must not be above"),
        (lambda mark: mark["world"].update(action=BOX | {"low": [-(10**400)]}), "action.low must be at least"),
        (lambda mark: mark["world"]["action"].update(kind="Tuple"), "world.action.kind cannot be 'Tuple'"),
        (
            lambda mark: mark["world"]["action"].update(nvec=[]),
            r"world.action: a Discrete space cannot have nvec = \(\)",
        ),
        (lambda mark: mark["world"].update(action=None), "world.action should be a group of values, not None"),
        (lambda mark: mark.update(split_seed=-1), "split_seed must be at least 0, not -1"),
        (lambda mark: mark.update(split_seed=True), "split_seed should be of type int, not True"),
        (lambda mark: mark.update(commit=[]), r"commit should be a group of values, not \[\]"),
        (lambda mark: mark["commit"].update(rows=20.0), "commit.rows should be of type int, not 20.0"),
        (
            lambda mark: mark["commit"].update(arrays=["frames"]),
            "commit.arrays should be of type dict",
        ),
        (lambda mark: mark["commit"].update(arrays={}), "commit.arrays has no meta/episode_ends"),
        (lambda mark: mark["commit"].update(episodes=1), "episode_ends is damaged"),
        (lambda mark: mark["commit"].update(rows=19), "episode_ends is damaged"),
        (lambda mark: mark.update(format="2"), "not a store of this toolkit"),
        (lambda mark: mark.update(format=1), "a store of format 1, but this version reads format 2; collect it again"),
        (lambda mark: mark.update(format=3), "of format 3, but this version reads format 2; update the toolkit"),
    ],
)
def test_a_mark_with_other_values_is_a_sentence(
    store: Path, change: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        Store(resealed(store, change))


@pytest.mark.parametrize("rows", [3, 2**40, 10**30])
def test_an_array_of_other_rows_is_refused_before_it_is_cut(store: Path, rows: int) -> None:
    metadata = store / "data" / "frames" / "zarr.json"
    document = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(document | {"shape": [rows, *document["shape"][1:]]}))
    with pytest.raises(UserError, match=r"frames.* is damaged"):
        StoreWriter(store, WORLD, {"epsilon": 0.25}, split_seed=3)


def test_a_mark_that_was_edited_is_refused(store: Path) -> None:
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["settings"]["epsilon"] = 0.5
    (store / "zarr.json").write_text(json.dumps(document))
    assert "zarr.json is damaged (its content does not match its checksum); restore it" in told(store)


def test_settings_and_progress_of_any_json_are_the_same_mark_when_read(tmp_path: Path) -> None:
    """Tuples become lists and numbers strings, and keys have another order then."""
    settings = {10: "a", 9: (1, 2), "inf": float("inf"), "é": "\ud800", "deep": {"x": [{}, None]}}
    for i in range(2):
        with StoreWriter(tmp_path / "s", WORLD, settings) as writer:
            writer.append({"frames": FRAMES}, progress={10: (i,), 9: i})
    assert Store(tmp_path / "s").settings["9"] == [1, 2]
    with StoreWriter(tmp_path / "s", WORLD, settings) as writer:
        assert writer.progress == {"10": [1], "9": 1}


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from worldmodel.data.env_spec import EnvSpec\n"
        "from worldmodel.data.writer import StoreWriter\n"
        "writer = StoreWriter(sys.argv[1], EnvSpec(name='x'), {}); print('open', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "s"], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder, holder.stdout as output:
        assert output.readline() == b"open\n"
        for _ in range(2):  # the second finds the number still there
            with pytest.raises(UserError, match=f"s is being written by process {holder.pid}; wait for it, or stop it"):
                StoreWriter(tmp_path / "s", EnvSpec(name="x"), {})
        os.kill(holder.pid, signal.SIGKILL)
    StoreWriter(tmp_path / "s", EnvSpec(name="x"), {}).close()
    assert [p.name for p in (tmp_path / "s").iterdir() if p.name != "zarr.json"] == ["writer.lock"]


def test_leftovers_of_killed_writes_go_and_foreign_files_stay(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/zarr.json.7f3a.part").touch()
    StoreWriter(tmp_path / "s", WORLD, {}).close()
    assert not list((tmp_path / "s").glob("*.part"))
    (tmp_path / "films").mkdir()
    (tmp_path / "films/film.mp4.part").touch()
    with pytest.raises(UserError, match="films holds something other than a store"):
        StoreWriter(tmp_path / "films", WORLD, {})
    assert (tmp_path / "films/film.mp4.part").exists()


@pytest.mark.parametrize("name", ["writer.lock", "writer.pid", "x.part"])
def test_what_cannot_be_written_is_a_sentence(store: Path, name: str) -> None:
    if (store / name).exists():
        (store / name).unlink()
    (store / name).mkdir()
    with pytest.raises(UserError, match=r"cannot be written .*Is a directory"):
        StoreWriter(store, WORLD, {"epsilon": 0.25}, split_seed=3)


@pytest.mark.parametrize("kind", [Store, lambda url: StoreWriter(url, WORLD, {})])
def test_a_url_is_no_path(kind: Callable[[str | Path], object]) -> None:
    for url, shown in ((Path("memory://a/b"), "memory:/a/b"), ("http:/a", "http:/a")):
        with pytest.raises(UserError, match=f"{shown} is a URL that was shortened by Path; give it as a string"):
            kind(url)
