"""Several ranks record the episodes that one would, each into its own store, and a manifest joins them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest

from collect import record
from tests.collect.here import Here
from tests.ranks import on_ranks, only_sentence, restarting
from tests.worldmodel.data.test_store import WORLD, episode
from worldmodel.data.opening import open_store
from worldmodel.data.store import Store
from worldmodel.data.writer import Episode
from worldmodel.utils.ranks import rank

TOTAL, GROUP = 14, 3


@contextmanager
def players(dies: Path | None = None) -> Iterator[Callable[[int], list[Episode]]]:
    """Plays groups; the process that plays group 3 dies once if asked to."""

    def play(group: int) -> list[Episode]:
        if dies is not None:
            with dies.with_name("played").open("a") as file:
                file.write(f"{group}\n")
            if group == 3 and not dies.exists():
                dies.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return [episode(group * GROUP + i, 4 + (group + i) % 3) for i in range(GROUP)]

    yield play


def work(out: str, total: int = TOTAL, dies: Path | None = None) -> None:
    record.WorkerPool = lambda *_: Here(lambda: players(dies), 1, print)  # type: ignore[assignment,misc]
    record.record_store(out, WORLD, {"epsilon": 0.2}, record.RecordArgs(), players, GROUP, total)


def numbers(store: Store) -> list[int]:
    """The number of each episode."""
    return [int(store.read_episode(i)["where"][0]) // 10_000 for i in range(len(store.episode_ends))]


def assert_complete(out: str | Path) -> None:
    store = open_store(out)
    splits = [part.episode_splits().tolist() for part in store.parts]  # type: ignore[attr-defined]
    assert splits[0][:6] != splits[1], "each rank draws its own"
    assert numbers(store) == [0, 1, 2, 6, 7, 8, 12, 13, 3, 4, 5, 9, 10, 11], "groups go to the ranks in turn"
    for i, number in enumerate(numbers(store)):
        rows = store.episode_bounds(i)[1] - store.episode_bounds(i)[0]
        np.testing.assert_array_equal(store.read_episode(i)["frames"], episode(number, rows)["frames"])


def test_two_ranks_record_what_one_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data.zarr"
    for total in (4, TOTAL):  # resumed, for more
        found = on_ranks(tmp_path / f"logs-{total}", 2, work, str(out), total)
        assert [status for status, _ in found] == [0, 0], found
    assert "data.zarr joins the stores of 2 ranks" in found[0][1] and found[1][1] == ""
    assert_complete(out)
    monkeypatch.setattr(record, "WorkerPool", record.WorkerPool)  # `work` changes it
    work(str(tmp_path / "alone"))
    assert sorted(numbers(open_store(out))) == numbers(Store(tmp_path / "alone")) == list(range(TOTAL))


def differing(out: str) -> None:
    record.WorkerPool = lambda *_: Here(players, 1, print)  # type: ignore[assignment,misc]
    settings = {"epsilon": 0.5 if rank() else 0.2}
    record.record_store(out, WORLD, settings, record.RecordArgs(), players, GROUP, TOTAL)


def test_ranks_that_differ_are_told_and_write_nothing(tmp_path: Path) -> None:
    said = only_sentence(on_ranks(tmp_path / "logs", 2, differing, str(tmp_path / "data.zarr")))
    assert "rank 1 has settings.epsilon = 0.5, but rank 0 has 0.2; start all ranks with the same command" in said
    assert not (tmp_path / "data.zarr").exists()


def test_a_rank_that_dies_loses_only_the_group_that_it_plays(tmp_path: Path) -> None:
    out = tmp_path / "data.zarr"
    said = restarting(tmp_path / "logs", 2, 1, work, str(out), TOTAL, tmp_path / "died")
    assert (tmp_path / "died").exists(), said
    assert_complete(out)
    played = (tmp_path / "played").read_text().split()
    assert (played.count("1"), played.count("3")) == (1, 2), "rank 1 plays groups 1 and 3"


def into_bucket(out: str, endpoint: str, total: int = TOTAL, dies: Path | None = None) -> None:
    os.environ["NO_PROXY"] = "127.0.0.1"  # the process that this one is forked from may lack it
    fsspec.config.conf["s3"] = {"endpoint_url": endpoint, "key": "somebody", "secret": "something"}
    work(out, total, dies)


def test_what_a_rank_that_dies_had_not_committed_to_a_bucket_is_played_again(
    bucket: str, s3_endpoint: str, tmp_path: Path
) -> None:
    """Group 1 may be among it."""
    out = f"{bucket}/data.zarr"
    said = restarting(tmp_path / "logs", 2, 1, into_bucket, out, s3_endpoint, TOTAL, tmp_path / "died")
    assert (tmp_path / "died").exists(), said
    assert_complete(out)
    played = (tmp_path / "played").read_text().split()
    assert played.count("3") == 2 and played.count("1") in (1, 2)


def test_another_number_of_ranks_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "data.zarr"
    on_ranks(tmp_path / "two", 2, work, str(out))
    found = on_ranks(tmp_path / "three", 3, work, str(out))
    assert {status for status, _ in found} == {2}
    assert any("was recorded with settings.rank" in said for _, said in found), found
    assert_complete(out)
    Store(out / "0")
    found = on_ranks(tmp_path / "inside", 2, work, str(out / "0"))
    assert any("0 is a store itself, so others cannot be put into it" in said for _, said in found), found
    assert_complete(out)
