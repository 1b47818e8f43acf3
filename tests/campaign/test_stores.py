"""The area is clean, and its judge finds what it is there to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.campaign import stores
from worldmodel.data import array_cache
from worldmodel.data.store import Store


def test_the_area_is_clean() -> None:
    tally = stores.run(3, 0)
    assert tally.clean, tally.faults
    assert tally.counts.total() >= 22
    assert min(tally.counts["right"], tally.counts["sentence"]) > 3


def test_a_cache_that_is_believed_by_its_name_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def believed(store: Store, name: str, path: Path) -> np.ndarray | None:
        return np.load(path, mmap_mode="r") if path.exists() else None

    monkeypatch.setattr(array_cache, "_map_if_intact", believed)
    monkeypatch.setattr(stores, "ANYHOW", (stores.cache, stores.header))
    monkeypatch.setattr(stores, "USES", ("disk", "disk", "disk", "disk"))
    monkeypatch.setattr(stores, "WAYS", ("flip", "cut"))
    tally = stores.run(0, 0)
    assert {"silent", "traceback"} <= tally.counts.keys()
    assert any("cache/frames-1200.npy" in fault for fault in tally.faults)
