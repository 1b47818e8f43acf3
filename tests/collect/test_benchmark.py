"""Stores of the sizes that were asked for are read and timed, and deleted; one process does it here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from collect import benchmark
from worldmodel.data.opening import open_store
from worldmodel.utils.errors import UserError


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> benchmark.Args:
    def here(work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)

    monkeypatch.setattr(benchmark, "in_new_process", here)
    return benchmark.Args(
        rows=(700, 4000), n_stores=3, frame_size=4, batch_size=2, rounds=2, seconds=0.01, folder=tmp_path / "frames",
        results=tmp_path / "reading.json",
    )  # fmt: skip


def test_every_store_has_its_rows(args: benchmark.Args) -> None:
    stores = benchmark.make_stores(args)
    rows = {name: open_store(path).n_rows for name, path in stores.items()}
    assert rows == {"700 frames": 700, "4,000 frames": 4000, "4,000 frames in 3 stores": 3999}
    assert len(open_store(stores["700 frames"]).episode_ends) == 3, "episodes of 300 rows, and what is left"
    written = {path: path.stat().st_mtime_ns for path in args.folder.rglob("c*")}
    assert any("cache" in path.parts for path in args.folder.rglob("frames-*.npy"))
    benchmark.make_stores(args)
    assert {path: path.stat().st_mtime_ns for path in args.folder.rglob("c*")} == written, "written once"
    with pytest.raises(UserError, match="was recorded with"):
        benchmark.make_stores(replace(args, frame_size=5))


def test_a_row_for_every_store_and_mode(args: benchmark.Args, capsys: pytest.CaptureFixture) -> None:
    benchmark.main(args)
    rows = json.loads(args.results.read_text())["rows"]
    stores = ["700 frames", "4,000 frames", "4,000 frames in 3 stores"]
    assert [(row["store"], row["mode"]) for row in rows] == [(name, mode) for mode in args.modes for name in stores]
    for row in rows:
        assert min(row["rate"], row["cpu_seconds"], row["memory"]) > 0
        assert ("copy_seconds" in row) == (row["mode"] == "disk")
    assert rows[0]["memory_share"] == rows[3]["cpu_seconds_share"] == 1, "the first store of each mode"
    assert capsys.readouterr().out.count("4,000 frames in 3 stores") == 2
    assert list(args.folder.iterdir()) == [], "deleted"


def test_a_full_disk_is_noticed_first(args: benchmark.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"has 0\.0 GB of free space, but the stores take"):
        benchmark.make_stores(args)
