"""Streams read every episode from its first row on, in an order that the seed gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TOY, fill, toy_episode
from worldmodel.data.store import Store
from worldmodel.data.streams import Streams
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Episodes of 5, 9 and 3 steps, among others; action and variables tell where a row is."""
    with StoreWriter(tmp_path / "s", TOY, {}) as writer:
        for i, steps in enumerate((5, 9, 3, 6, 7, 4, 8, 5, 6, 9)):
            episode = toy_episode(np.random.default_rng(i), steps)
            episode["variables"] = (100 * i + np.arange(steps + 1, dtype=np.float32))[:, None]
            writer.append(episode)
    return Store(tmp_path / "s")


def rows(streams: Streams, step: int) -> np.ndarray:
    return streams.read(step)["variables"][..., 0].astype(int)


def test_a_lane_reads_on_where_it_was_until_an_episode_is_over(store: Store) -> None:
    streams = Streams(store, "all", 3, 2, ["variables"], seed=1)
    before = rows(streams, 0)
    for step in range(1, 3 * streams.epoch):
        now, fresh = rows(streams, step), streams.read(step)["fresh"]
        assert (np.diff(now) == 1).all(), "rows follow one another"
        assert (now[~fresh, 0] == before[~fresh, -1]).all()
        assert (now[fresh, 0] % 100 == 0).all(), "an episode begins with its first row"
        before = now


def test_an_epoch_has_every_batch_once(store: Store) -> None:
    streams = Streams(store, "all", 1, 2, ["variables"])
    begin = streams.epoch - int(np.random.default_rng([0, 0]).integers(streams.epoch))  # of the lane's second epoch
    seen = [int(rows(streams, begin + step)[0, 0]) for step in range(streams.epoch)]
    lengths = {i: (store.episode_bounds(i)[1] - store.episode_bounds(i)[0] - 1) // 2 for i in range(10)}
    assert sorted(seen) == sorted(100 * i + 2 * k for i, n in lengths.items() for k in range(n))
    assert streams.epoch == sum(lengths.values())


def test_lanes_read_whole_episodes_pieces_or_starts(tmp_path: Path) -> None:
    """So a model is also given first frames that are not those of an episode."""
    with StoreWriter(tmp_path / "s", TOY, {}) as writer:
        for i in range(3):
            writer.append(toy_episode(np.random.default_rng(i), 100))
    streams = Streams(Store(tmp_path / "s"), "all", 16, 2, ["frames"])
    places = np.array([[streams._place(lane, step) for step in range(150)] for lane in range(16)])
    rows, batches = places[..., 0] % 101, places[..., 1]
    starts, pieces = [7, 15], [1, 3, 5, 9, 11, 13]
    assert (batches.max(1) == [15 if i in starts else 31 if i in pieces else 49 for i in range(16)]).all()
    for lane in range(16):
        fresh = set(rows[lane, batches[lane] == 0].tolist())
        assert fresh == ({0, 64} if lane in pieces else {0}), "a piece of 64 steps, and the rest of its episode"
    assert ((batches[starts] == 0).sum(1) >= 9).all(), "a new episode every 16 batches"


def test_what_is_read_depends_on_seed_lane_and_step_alone(store: Store) -> None:
    first, again = (Streams(store, "all", 4, 2, ["variables"], seed=3) for _ in range(2))
    later = [rows(first, step) for step in range(6)]
    assert np.array_equal(rows(again, 5), later[5])
    assert np.array_equal(rows(Streams(store, "all", 2, 2, ["variables"], seed=3), 5), later[5][:2])
    assert not np.array_equal(rows(Streams(store, "all", 4, 2, ["variables"], seed=4), 5), later[5])
    assert len({int(row) for row in rows(first, 0)[:, 0]}) > 1, "lanes are at different places"
    assert first.read(0)["fresh"].all()


def test_episodes_that_are_too_short_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no episode in split \'train\' of .* has 41 rows; lower --model\.n-frames"):
        Streams(Store(fill(tmp_path / "s")), "train", 2, 40, ["frames"])
