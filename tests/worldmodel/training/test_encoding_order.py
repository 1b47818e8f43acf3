"""Windows hold whole groups and are as large as allowed; groups are of similar length; errors end all threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worldmodel.data.test_store import WORLD, episode
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.training import encoding_order
from worldmodel.training.encoding_order import encode_window, windows
from worldmodel.utils.errors import UserError

LENGTHS = [5, 9, 4, 30, 6, 5, 28, 7, 4, 31, 6, 5, 8]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    with StoreWriter(tmp_path / "data.zarr", WORLD, {}) as writer:
        for i, length in enumerate(LENGTHS):
            writer.append(episode(i, length))
    return Store(tmp_path / "data.zarr")


def test_windows_follow_one_another(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [store.episode_length(i) for i in range(len(LENGTHS))] == LENGTHS
    assert list(windows(store, 0, 13, 4)) == [range(13)]
    frame = store.read_episode(0)["frames"][0].nbytes
    monkeypatch.setattr(encoding_order, "WINDOW_BYTES", 50 * frame)
    found = list(windows(store, 2, 13, 2))
    assert [i for window in found for i in window] == list(range(2, 13))
    assert found[0] == range(2, 6), "4 + 30 + 6 + 5 frames; 28 more are too many"
    assert all(len(window) >= 2 or window.stop == 13 for window in found)


@pytest.mark.parametrize("n", [1, 3])
def test_rows_come_in_order_from_groups_of_similar_length(store: Store, n: int) -> None:
    groups, threads = [], set()

    def encode(group: encoding_order.Episodes, check) -> list[encoding_order.Rows]:
        groups.append([len(rows["frames"]) for _, rows in group])
        threads.add(threading.get_ident())
        assert torch.get_num_threads() == max(1, before // n)
        if n > 1:
            together.wait(30)  # all groups at the same time
        check()
        return [{"codes": np.array([i, len(rows["frames"])])} for i, rows in group]

    before, together = torch.get_num_threads(), threading.Barrier(3)
    rows = encode_window(encode, store, range(1, 13), 4, n)
    assert [row["codes"].tolist() for row in rows] == [[i, LENGTHS[i]] for i in range(1, 13)]
    assert sorted(groups, reverse=True) == [[31, 30, 28, 9], [8, 7, 6, 6], [5, 5, 4, 4]]
    assert len(threads) == n and torch.get_num_threads() == before


def test_an_error_ends_all_threads_soon(store: Store) -> None:
    ended = []

    def encode(group: encoding_order.Episodes, check) -> list[encoding_order.Rows]:
        if len(group[0][1]["frames"]) == 8:  # the second group
            raise UserError("it broke")
        try:
            for _ in range(200):
                time.sleep(0.05)
                check()
        except InterruptedError:
            ended.append(True)
            raise
        return [{}] * len(group)

    start = time.monotonic()
    with pytest.raises(UserError, match="it broke"):
        encode_window(encode, store, range(1, 13), 4, 2)
    assert ended and time.monotonic() - start < 5
