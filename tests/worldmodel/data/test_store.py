"""Stores keep what was committed, whatever happens to writer or files, and clips come from where they say."""

from __future__ import annotations

import pickle
import shutil
import tracemalloc
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from worldmodel.data.clips import Clips, read_windows_clamped
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.storage import DurableStore
from worldmodel.data.store import Store, draw_splits
from worldmodel.data.waiting import WaitingEpisodes
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError

WORLD = EnvSpec(
    name="toy", frame_shape=(24, 24, 3), action=ActionSpec(kind="Discrete", nvec=(4,)), variables=("HEALTH",)
)


def episode(i: int, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([i, rows])
    return {
        "frames": rng.integers(0, 256, (rows, *WORLD.frame_shape), dtype=np.uint8),
        "action": rng.integers(0, 4, rows),
        "terminated": np.zeros(rows, bool),
        "where": np.arange(rows) + 10_000 * i,
    }


def fill(path: Path, lengths: list[int], first: int = 0) -> None:
    with StoreWriter(path, WORLD, {"epsilon": 0.2}) as writer:
        for i, rows in enumerate(lengths, first):
            writer.append(episode(i, rows), progress=i)


def assert_holds(path: Path | str, lengths: list[int]) -> None:
    store = Store(path)
    assert len(store.episode_ends) == len(lengths)
    for i, rows in enumerate(lengths):
        for name, values in episode(i, rows).items():
            read = store.read_episode(i)[name]
            assert read.dtype == values.dtype
            np.testing.assert_array_equal(read, values)


def test_episodes_come_back_bit_for_bit_over_shards_and_sessions(tmp_path: Path) -> None:
    lengths = [700, 5, 1500, 1, 300]
    for i, rows in enumerate(lengths):
        fill(tmp_path / "s", [rows], first=i)
        assert_holds(tmp_path / "s", lengths[: i + 1])
    store = Store(tmp_path / "s")
    assert (store.n_rows, store.episode_bounds(2), store.env_spec, store.settings) == (
        2506,
        (705, 2205),
        WORLD,
        {"epsilon": 0.2},
    )
    assert (
        zarr.open_group(str(tmp_path / "s"), mode="r")["meta/episode_ends"][:].tolist() == store.episode_ends.tolist()
    )


def test_an_interrupted_with_block_commits_whole_episodes_and_its_progress(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "s", WORLD, {}) as writer:
        writer.append(episode(0, 7), progress={"file": "a"})
        raise KeyboardInterrupt
    assert_holds(tmp_path / "s", [7])
    with StoreWriter(tmp_path / "s", WORLD, {}) as writer:
        assert (writer.progress, writer.n_episodes, writer.n_rows) == ({"file": "a"}, 1, 7)


@pytest.mark.parametrize("before", [[], [600, 300]])
def test_a_commit_cut_off_at_any_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[int]
) -> None:
    """Stop at the first write, at the second, and so on, as a kill would; each time the store is what it was."""
    write, allowed = DurableStore.set, 0

    async def stopping(self: DurableStore, key: str, value: object) -> None:
        nonlocal allowed
        allowed -= 1
        if allowed < 0:
            raise OSError("killed")
        await write(self, key, value)  # type: ignore[arg-type]

    fill(tmp_path / "before", before)
    for cut in range(100):
        path = shutil.copytree(tmp_path / "before", tmp_path / str(cut))
        with monkeypatch.context() as patch:
            patch.setattr(DurableStore, "set", stopping)
            allowed = cut
            try:
                writer = StoreWriter(path, WORLD, {"epsilon": 0.2})
                writer.append(episode(len(before), 200))
                writer.close()
                break  # no write was left to be stopped
            except UserError:
                writer._lock.close()
        if before:
            assert_holds(path, before)
        else:
            with pytest.raises(UserError, match="no episodes yet"):
                Store(path)
        if not (path / "waiting").exists():  # stopped before there was an episode
            fill(path, [200], first=len(before))
        fill(path, [50], first=len(before) + 1)
        assert_holds(path, [*before, 200, 50])
        assert not (path / "waiting").exists()
    assert cut > 8


def killed(path: Path, rows: list[int], first: int = 0) -> None:
    """Append episodes, and stop as a kill would."""
    writer = StoreWriter(path, WORLD, {"epsilon": 0.2})
    for i, n in enumerate(rows, first):
        writer.append(episode(i, n), progress={"next": i + 1})
    writer._lock.close()


@pytest.mark.parametrize("before", [[], [600, 300]])
def test_a_writer_that_is_killed_loses_no_episode(tmp_path: Path, before: list[int]) -> None:
    fill(tmp_path / "s", before)
    killed(tmp_path / "s", [30, 40], first=len(before))
    with StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.2}) as writer:
        assert (writer.n_episodes, writer.progress) == (len(before) + 2, {"next": len(before) + 2})
        writer.append(episode(len(before) + 2, 50))
    assert_holds(tmp_path / "s", [*before, 30, 40, 50])
    assert not (tmp_path / "s" / "waiting").exists()


@pytest.mark.parametrize("left", [0, 1, 500, -100])
def test_an_episode_that_was_cut_short_on_the_disk_is_recorded_again(tmp_path: Path, left: int) -> None:
    killed(tmp_path / "s", [30, 40, 50])
    file = tmp_path / "s" / "waiting" / "1.npz"
    file.write_bytes(file.read_bytes()[:left])
    with StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.2}) as writer:
        assert (writer.n_episodes, writer.progress) == (1, {"next": 1})
    killed(tmp_path / "s", [60], first=1)
    StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.2}).close()
    assert_holds(tmp_path / "s", [30, 60])


def test_episodes_of_a_killed_writer_keep_their_settings(tmp_path: Path) -> None:
    killed(tmp_path / "s", [30])
    with pytest.raises(UserError, match=r"settings\.epsilon = 0.2, but 0.3 was asked for"):
        StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.3}, wait_in_files=False)
    assert_holds(tmp_path / "s", [30])


def test_waiting_files_that_could_not_be_deleted_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer may also be killed between its commit and their deletion."""
    killed(tmp_path / "s", [30, 40])
    shutil.copytree(tmp_path / "s" / "waiting", tmp_path / "copy")
    StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.2}).close()
    (tmp_path / "copy").rename(tmp_path / "s" / "waiting")
    fill(tmp_path / "s", [50], first=2)
    assert_holds(tmp_path / "s", [30, 40, 50])

    def busy(self: WaitingEpisodes) -> None:
        raise OSError("busy")

    with StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.2}) as writer:
        monkeypatch.setattr(WaitingEpisodes, "delete", busy)
        writer.append(episode(3, 60))
        writer.commit()
    assert_holds(tmp_path / "s", [30, 40, 50, 60])


def test_data_that_is_quickly_made_again_does_not_wait_in_files(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", WORLD, {}, wait_in_files=False)
    writer.append(episode(0, 30))
    assert not (tmp_path / "s" / "waiting").exists()
    writer.close()
    assert_holds(tmp_path / "s", [30])


def test_what_killed_writers_left_half_written_is_no_obstacle_and_goes(tmp_path: Path) -> None:
    """Under names of their own: beside the first mark, and beside later objects."""
    (tmp_path / "zarr.json.0123abcd.part").touch()
    fill(tmp_path, [7])
    for name in ("zarr.json", "data/frames/zarr.json", "meta/episode_ends/zarr.json"):
        (tmp_path / f"{name}.0123abcd.part").touch()
    fill(tmp_path, [8], first=1)
    assert not list(tmp_path.rglob("*.part"))
    assert_holds(tmp_path, [7, 8])


def test_a_failed_commit_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(self: DurableStore, key: str, value: object) -> None:
        raise OSError("no space left")

    with StoreWriter(tmp_path / "s", WORLD, {}) as writer:
        writer.append(episode(0, 40))
        with monkeypatch.context() as patch:
            patch.setattr(DurableStore, "set", full)
            with pytest.raises(UserError, match="no space left"):
                writer.commit()
    assert_holds(tmp_path / "s", [40])


def test_one_writer_at_a_time_with_the_same_world_and_settings(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.2}) as writer:
        writer.append(episode(0, 5))
        with pytest.raises(UserError, match="is being written by process"):
            StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.2})
    with pytest.raises(UserError, match=r"settings.epsilon = 0.2, but 0.3 was asked for"):
        StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.3})
    other = EnvSpec(name="toy", frame_shape=(32, 32, 3), action=WORLD.action, variables=("HEALTH",))
    with pytest.raises(UserError, match=r"world.frame_shape = \[24, 24, 3\], but \[32, 32, 3\]"):
        StoreWriter(tmp_path / "s", other, {"epsilon": 0.2})
    with pytest.raises(UserError, match="split_seed"):
        StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.2}, split_seed=1)
    assert_holds(tmp_path / "s", [5])
    StoreWriter(tmp_path / "s", WORLD, {"epsilon": 0.2}).close()


def test_a_store_without_episodes_takes_other_settings(tmp_path: Path) -> None:
    """As where no file could be read, and the flags are corrected."""
    StoreWriter(tmp_path / "s", WORLD, {"min_frames": 16}).close()
    with StoreWriter(tmp_path / "s", WORLD, {"min_frames": 8}) as writer:
        writer.append(episode(0, 9))
    assert Store(tmp_path / "s").settings == {"min_frames": 8}
    assert_holds(tmp_path / "s", [9])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"frames": np.zeros((5, 32, 32, 3), np.uint8)}, "frames of toy are uint8"),
        ({"action": np.zeros(4, np.int64)}, "must have one length"),
        ({"action": np.array(0)}, "must have one length of at least 1"),
        ({"action": np.zeros(5, np.float64)}, "holds int64 action"),
        ({"extra": np.zeros(5)}, "extra"),
        ({"where": np.full(5, None)}, "where holds Python objects; give arrays of numbers"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, np.ndarray], told: str) -> None:
    with StoreWriter(tmp_path / "s", WORLD, {}) as writer:
        writer.append(episode(0, 5))
        with pytest.raises(UserError, match=told):
            writer.append(episode(1, 5) | change)
    assert_holds(tmp_path / "s", [5])


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    zarr.open_group(str(tmp_path / "other"), mode="w")
    fill(tmp_path / "torn", [5])
    (tmp_path / "torn" / "zarr.json").write_text('{"zarr_format": 3, "attri')
    for name, text in {
        "none": "holds no store",
        "photos": "holds no store",
        "other": "not a store of",
        "torn": "cannot",
    }.items():
        with pytest.raises(UserError, match=text):
            Store(tmp_path / name)
    for name in ("photos", "other", "torn"):
        with pytest.raises(UserError, match=name):
            StoreWriter(tmp_path / name, WORLD, {})
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("name", ["frames/c.0.0.0.0", "terminated/c.0"])
def test_damage_is_found_and_named(tmp_path: Path, harm: str, name: str) -> None:
    fill(tmp_path / "s", [600, 600])
    file = tmp_path / "s" / "data" / name
    content = bytearray(file.read_bytes())
    if harm == "remove":
        file.unlink()
    elif harm == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 3] ^= 1
        file.write_bytes(content)
    store, array = Store(tmp_path / "s"), name.split("/")[0]
    with pytest.raises(UserError, match=f"array data/{array} is damaged"):
        store.read(array, 0, 1024)
    np.testing.assert_array_equal(store.read_episode(1, ["where"])["where"], episode(1, 600)["where"])


def test_splits_are_eight_one_one_in_every_ten_and_never_change() -> None:
    labels = draw_splits(95, seed=3)
    for start in range(0, 90, 10):
        assert sorted(labels[start : start + 10]) == ["test"] + ["train"] * 8 + ["valid"]
    assert len({tuple(labels[start : start + 10]) for start in range(0, 90, 10)}) > 1
    for n in (0, 1, 9, 10, 41):
        assert draw_splits(n, seed=3).tolist() == labels[:n].tolist()
    assert draw_splits(95, seed=4).tolist() != labels.tolist()


@pytest.mark.parametrize(("split", "at"), [("test", [6]), ("valid", [8]), ("held-out", [6, 8])])
def test_an_empty_split_says_how_many_episodes_it_needs(split: str, at: list[int], tmp_path: Path) -> None:
    fill(tmp_path / "s", [3])
    with pytest.raises(UserError, match=f"no episodes in split '{split}'; collect at least {at[0]} more"):
        Store(tmp_path / "s").episode_indices(split)
    fill(tmp_path / "s", [3] * 9, first=1)
    assert Store(tmp_path / "s").episode_indices(split).tolist() == at


def test_clips_lie_in_their_episodes_and_every_start_is_as_likely(tmp_path: Path) -> None:
    lengths = [3, 5, 9, 4, 5, 6, 2, 12, 5, 7]
    fill(tmp_path / "s", lengths)
    store = Store(tmp_path / "s")
    clips = Clips(store, "train", 4, ["where"])
    starts = {(i, s) for i in store.episode_indices("train").tolist() for s in range(lengths[i] - 3)}
    assert len(clips) == len(starts)
    n = 400 * len(starts)
    batch = clips.sample(np.random.default_rng(0), n)
    np.testing.assert_array_equal(batch["where"], (10_000 * batch["episode"] + batch["start"])[:, None] + np.arange(4))
    drawn, counts = np.unique(np.stack([batch["episode"], batch["start"]]), axis=1, return_counts=True)
    assert set(map(tuple, drawn.T.tolist())) == starts
    assert ((counts - 400) ** 2 / 400).sum() < len(starts) + 5 * np.sqrt(2 * len(starts))  # chi squared, 5 sigma
    assert set(Clips(store, "train", 4, ["where"], align=2).fixed_sample(len(starts) // 4)["start"] % 2) == {0}


def test_the_last_row_of_an_episode_stays_where_a_clip_goes_beyond_it(tmp_path: Path) -> None:
    fill(tmp_path / "s", [3, 5])
    rows = read_windows_clamped(Store(tmp_path / "s"), "where", np.array([1, 3, 6]), 4, np.array([3, 8, 8]))
    assert rows.tolist() == [[1, 2, 2, 2], [10_000, 10_001, 10_002, 10_003], [10_003, 10_004, 10_004, 10_004]]
    rows = read_windows_clamped(Store(tmp_path / "s"), "where", np.array([0, 7]), 9, np.array([3, 8]))
    assert rows.tolist() == [[0, 1, *[2] * 7], [10_004] * 9]


def test_fixed_clips_are_the_same_every_time_and_overlap_only_when_they_must(tmp_path: Path) -> None:
    lengths = [20, 31, 9, 44, 25, 16, 22, 12, 35, 17]
    fill(tmp_path / "s", lengths)
    clips = Clips(Store(tmp_path / "s"), "train", 8)
    apart = sum(lengths[i] // 8 for i in clips.store.episode_indices("train"))
    batch = clips.fixed_sample(apart)
    where = np.unique(batch["where"])
    assert where.size == apart * 8
    for name, values in clips.fixed_sample(apart).items():
        np.testing.assert_array_equal(values, batch[name])
    assert not np.array_equal(clips.fixed_sample(apart, seed=1)["start"], batch["start"])
    assert len(set(clips.fixed_sample(5)["episode"].tolist())) > 2
    firsts = clips.first_of_episodes(100)
    assert (firsts["start"] == 0).all() and len(firsts["episode"]) == len(set(firsts["episode"].tolist())) > 2
    assert clips.first_of_episodes(2)["episode"].tolist() == [firsts["episode"][0], firsts["episode"][-1]]
    everything = clips.fixed_sample(len(clips))
    assert len(np.unique(everything["where"][:, 0])) == len(clips)
    with pytest.raises(UserError, match=f"{len(clips)} clips"):
        clips.fixed_sample(len(clips) + 1)


class LongStore:
    """The bounds of ten million rows, and no arrays."""

    path, array_names, episode_ends = "long", (), np.arange(250, 10_000_001, 250)

    def episode_indices(self, split: str) -> np.ndarray:
        return np.arange(len(self.episode_ends))

    def episode_bounds(self, i: int) -> tuple[int, int]:
        return 250 * i, 250 * (i + 1)


def test_fixed_clips_of_a_long_store_take_little_memory() -> None:
    """They are those of a list of all clips, which would take a hundred megabytes."""
    tracemalloc.start()
    clips = Clips(LongStore(), "all", 16, cache="off")  # type: ignore[arg-type]
    batch = clips.fixed_sample(1000, seed=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    rng = np.random.default_rng(3)
    slack = rng.integers(np.full(40_000, 235 - 1) % 16 + 1)
    apart = np.concatenate([np.arange(o, 235, 16) + 250 * i for i, o in enumerate(slack.tolist())])
    listed = apart[((np.arange(1000) + rng.random()) * len(apart) / 1000).astype(int)]
    np.testing.assert_array_equal(batch["row"], listed)


def test_caches_agree_and_follow_the_store(tmp_path: Path) -> None:
    fill(tmp_path / "s", [40] * 10)
    fsspec.filesystem("memory").put(f"{tmp_path}/s/", "/clips/s", recursive=True)
    stores = [(Store(tmp_path / "s"), cache) for cache in ("off", "memory", "disk")] + [
        (Store("memory://clips/s"), None)
    ]
    batches = [Clips(s, "valid", 16, cache=c).sample(np.random.default_rng(0), 20) for s, c in stores]  # type: ignore[arg-type]
    for batch in batches[1:]:
        for name, values in batches[0].items():
            np.testing.assert_array_equal(batch[name], values)
    clips = Clips(stores[2][0], "train", 16)
    assert clips.cache == "disk"
    copy = pickle.loads(pickle.dumps(clips))
    np.testing.assert_array_equal(copy.fixed_sample(5)["frames"], clips.fixed_sample(5)["frames"])
    fill(tmp_path / "s", [40], first=10)
    newer = Clips(Store(tmp_path / "s"), "all", 16).fixed_sample(22)
    assert 10 in newer["episode"]
    np.testing.assert_array_equal(newer["frames"][-1], episode(10, 40)["frames"][newer["start"][-1] :][:16])
    assert sorted(p.name for p in (tmp_path / "s/cache").glob("frames*")) == ["frames-440.npy"]


def test_clips_longer_than_every_episode_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "s", [5, 6, 7])
    with pytest.raises(UserError, match="has 8 rows for a clip, but at most 7"):
        Clips(Store(tmp_path / "s"), "all", 8)


def test_rows_without_numbers_and_a_published_split(tmp_path: Path) -> None:
    """A world without variables has rows of width 0; data that came with a split keeps it."""
    with StoreWriter(tmp_path / "s", EnvSpec(name="x"), {}) as writer:
        for i in range(4):
            label = np.full(3, 0 if i < 3 else 2)
            writer.append({"variables": np.zeros((3, 0), np.float32), "split": label, "value": np.full(3, i)})
    store = Store(tmp_path / "s")
    assert store.read_episode(1)["variables"].shape == (3, 0)
    assert store.episode_indices("train").tolist() == [0, 1, 2]
    assert store.episode_indices("test").tolist() == store.episode_indices("held-out").tolist() == [3]
    assert Clips(store, "test", 2).fixed_sample(2)["value"].tolist() == [[3, 3], [3, 3]]
    with pytest.raises(UserError, match="without a split 'valid'"):
        store.episode_indices("valid")
