"""Videos with a table of actions beside each."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collect import action_tables, video
from tests.collect.films import grey, levels, ramp, write
from worldmodel.data.env_spec import ActionSpec
from worldmodel.data.store import Store
from worldmodel.data.zarr_format import SPLITS
from worldmodel.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("here")


def films(folder: Path, n: int = 11, rows: int = 6) -> Path:
    """Videos of 6 frames; the table of video i has steer = i / 10 + t, gear, a name and a score."""
    for i in range(n):
        write(folder / f"{i:02}.mp4", ramp(6), rate=5)
        text = "steer,gear,name,score\n" + "".join(f"{i / 10 + t},{t % 3},x,{t}\n" for t in range(rows))
        (folder / f"{i:02}.csv").write_text(text)
    return folder


def read(tmp_path: Path, source: Path, kind: str = "csv", **how: Any) -> Store:
    args = {"out": tmp_path / "out.zarr", "size": 16, "min_frames": 2, "num_workers": 1} | how
    video.main(video.Args(source=source, actions_table=kind, **args))
    return Store(args["out"])


def test_a_row_for_each_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = read(tmp_path, films(tmp_path / "films"), rewards="score")
    assert "actions are the columns steer, gear" in capsys.readouterr().out
    rows = store.read_episode(10)
    assert levels(rows["frames"]) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(rows["action"], [[1, 0], [2, 1], [3, 2], [4, 0], [5, 1], [0, 0]])
    assert rows["reward"].tolist() == [0, 1, 2, 3, 9, 0]
    assert rows["truncated"].tolist() == [False] * 4 + [True, False]
    assert store.env_spec.action == ActionSpec(kind="Box", low=(0, 0), high=(6, 2))
    assert store.env_spec.fps == 5 and "split" not in store.array_names


def test_columns_by_name_are_choices_if_they_are_whole(tmp_path: Path) -> None:
    store = read(tmp_path, films(tmp_path / "films"), actions=("gear",))
    assert store.env_spec.action == ActionSpec(kind="Discrete", nvec=(3,))
    assert store.read_episode(0)["action"].tolist() == [0, 1, 2, 0, 1, 0]


def test_parquet(tmp_path: Path) -> None:
    for i in range(11):
        write(tmp_path / "films" / f"{i:02}.mp4", ramp(6))
        table = pa.table({"a": np.arange(6) % 2, "text": ["x"] * 6, "b": np.arange(6) == i})
        pq.write_table(table, tmp_path / "films" / f"{i:02}.parquet")
    store = read(tmp_path, tmp_path / "films", "parquet")
    assert store.env_spec.action == ActionSpec(kind="MultiDiscrete", nvec=(2, 2))
    assert store.read_episode(3)["action"].tolist() == [[0, 0], [1, 0], [0, 0], [1, 1], [0, 0], [0, 0]]


def test_few_videos_are_cut_by_time_and_segments_have_their_actions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "films/long.mp4", [grey(t) for t in range(60)])
    (tmp_path / "films/long.csv").write_text("\n".join(str(t) for t in range(60)))  # no names
    store = read(tmp_path, tmp_path / "films", max_frames=50)
    assert "there are too few episodes to split (1)" in capsys.readouterr().out
    assert store.episode_splits().tolist() == ["train", "valid", "test"]
    assert store.read_episode(1)["action"][:3].tolist() == [16, 17, 18]
    store = read(tmp_path, tmp_path / "films", out=tmp_path / "b.zarr", length=20)
    rows = Store(tmp_path / "b.zarr").read_episode(2)
    assert rows["action"].tolist() == [*range(40, 59), 0]


def test_tables_that_do_not_fit_are_named_and_the_other_videos_kept(tmp_path: Path) -> None:
    folder = films(tmp_path / "films", 14)
    (folder / "00.csv").unlink()
    (folder / "01.csv").write_text("steer,gear,name,score\n1,2,x,3\n")
    (folder / "02.csv").write_text("steer,gear\n1,2\n1\n")
    (folder / "03.csv").write_text("steer,name\n" + "1,x\n" * 6)
    (folder / "04.csv").write_text("steer,gear\n" + "nan,1\n" * 6)
    (folder / "05.csv").write_bytes(b"\xff\xfe")
    (folder / "06.csv").write_text("steer,gear\n" + "fast,1\n" * 6)
    assert len(read(tmp_path, folder, actions=("steer", "gear")).episode_ends) == 7
    why = (tmp_path / "out.zarr/skipped.txt").read_text().splitlines()
    for line, text in zip(
        why,
        (
            "00.mp4: there is no 00.csv beside the video; give each video a table",
            "it has 6 frames and 1 actions",
            "line 3 of .*02.csv has another number of columns",
            "03.csv has no column gear; name one of steer, name",
            "action nan is outside",
            "is not UTF-8 text",
            "column steer of .*06.csv is not of numbers only",
        ),
        strict=True,
    ):
        assert re.search(text, line), (text, line)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"actions": ("brake",)}, "00.csv has no column brake; name one of steer, gear, name, score"),
        ({"actions": ("name",)}, "column name of .*00.csv is not of numbers only"),
        ({"rewards": "return"}, "has no column return"),
        ({"kind": "parquet"}, "there is no 00.parquet beside the video"),
        ({"fps": 2.0}, "fps and frame_stride would leave out frames that have an action"),
        ({"length": 1}, "length must be 0 or at least 2, not 1"),
        ({"kind": "", "actions": ("steer",)}, "actions and rewards are columns of a table; set actions_table too"),
    ],
)
def test_what_fits_no_video_is_one_sentence(tmp_path: Path, how: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        read(tmp_path, films(tmp_path / "films", 2), **how)
    assert not (tmp_path / "out.zarr").exists()


def test_damaged_or_empty_tables(tmp_path: Path) -> None:
    for name, data, why in (
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.csv", b"", "is empty; give a row for each frame"),
        ("c.csv", b"<html>404 Not Found</html>\n", "has no rows; give a row for each frame"),
        ("b.csv", b"name\nx\n", "has no column of numbers, only name"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name} {why}"):
            action_tables.choose_columns([tmp_path / name], (), "")


def test_the_columns_are_those_of_most_tables(tmp_path: Path) -> None:
    """One damaged number in the first table leaves out no column of the others."""
    folder = films(tmp_path / "films", 3)
    (folder / "00.csv").write_text("steer,gear,name,score\n" + "1,\0,x,3\n" * 6)
    tables = sorted(folder.glob("*.csv"))
    assert action_tables.choose_columns(tables, (), "score") == ("steer", "gear")


def test_without_pyarrow_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow is not installed; run pip install 'worldmodel\[parquet\]'"):
        action_tables.read_table(tmp_path / "a.parquet")


def test_few_videos_are_cut_by_time_into_parts_of_min_frames(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "films" / f"{i}.mp4", [ramp(1)[0]] * 64)
        (tmp_path / "films" / f"{i}.csv").write_text("steer\n" + "1.5\n2.5\n" * 32)
    for least, blocks in ((2, 4), (20, 3)):  # a block has 16 frames at least, or min_frames
        out = tmp_path / f"{least}.zarr"
        store = read(tmp_path, tmp_path / "films", out=out, min_frames=least)
        assert store.n_rows == 128 and set(store.episode_splits().tolist()) == set(SPLITS)
        assert min(store.episode_length(i) for i in range(len(store.episode_ends))) == 64 // blocks
