"""Filling a store from files: in order, by several processes, interrupted, and with broken ones among them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from collect.files import SKIPPED_FILE, BrokenFile, ReaderArgs, draw_validation, fill_store, with_labels
from tests.bucket import Killed, Requests
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import Episode, StoreWriter
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address

WORLD = EnvSpec(name="text", frame_shape=(2, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Args(ReaderArgs):
    source: Path = Path("nowhere")
    out: Address = Address("data.zarr")


def read(path: Path) -> Sequence[Episode]:
    """A file of numbers is that many episodes, each of so many frames; letters cannot be read."""
    try:
        lengths = [int(word) for word in path.read_text().split()]
    except ValueError as error:
        raise BrokenFile(f"{path}:\n{error}") from None
    start = int(path.stem) * 10
    return [{"frames": np.full((n, 2, 2, 3), start + i, np.uint8)} for i, n in enumerate(lengths)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five files: 700 rows at a time, so that episodes are committed in the midst of a file."""
    folder = tmp_path / "source"
    folder.mkdir()
    for i, text in enumerate(["700 700 700", "no", "700 700 700 700", "", "bad"]):
        (folder / f"{i}.txt").write_text(text)
    return folder


def args(source: Path, out: str = "data.zarr", workers: int = 1) -> Args:
    return Args(source=source, out=str(source.parent / out), num_workers=workers)


def run(a: Args) -> None:
    fill_store(a, WORLD, sorted(a.source.iterdir()), read, version=1)


def content(store: Path) -> dict[str, str]:
    """Every file of a store but its lock."""
    paths = [p for p in store.rglob("*") if p.is_file() and p.name != "writer.lock"]
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_episodes_come_in_the_order_of_the_files_and_broken_ones_are_told(
    source: Path, forked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run(args(source, workers=2))
    out, progress = capsys.readouterr()
    assert "7 episodes, 4,900 frames; 2 of 5 files were skipped" in out
    assert "skipped: " in out + progress and "files" in progress
    store = Store(source.parent / "data.zarr")
    assert store.read("frames", 0, store.n_rows)[::700, 0, 0, 0].tolist() == [0, 1, 2, 20, 21, 22, 23]
    told = (source.parent / "data.zarr" / SKIPPED_FILE).read_text().splitlines()
    assert [line.partition(": ")[0] for line in told] == [str(source / "1.txt"), str(source / "4.txt")]


def read_or_die(path: Path) -> Sequence[Episode]:
    """A library that crashes takes its process with it."""
    if path.read_text() == "no":
        os._exit(1)
    return read(path)


def test_a_file_that_ends_the_processes_which_read_it_is_skipped(source: Path, forked: None) -> None:
    a = args(source)
    fill_store(a, WORLD, sorted(a.source.iterdir()), read_or_die, version=1)
    assert Store(a.out).n_rows == 4_900
    told = Path(a.out, SKIPPED_FILE).read_text().splitlines()
    assert told[0] == f"{source / '1.txt'}: reading it ended the process (killed)"
    assert len(told) == 2


def test_a_store_in_a_bucket_has_what_one_in_a_folder_has(source: Path, here: None, bucket: str) -> None:
    run(args(source))
    there = replace(args(source), out=f"{bucket}/data.zarr")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        Requests(patch, killed_at=4)
        run(there)
    run(there)
    assert (
        fsspec.open(f"{there.out}/{SKIPPED_FILE}").open().read()
        == (source.parent / "data.zarr" / SKIPPED_FILE).read_bytes()
    )
    ours, theirs = Store(there.out), Store(source.parent / "data.zarr")
    assert ours.crc32c("frames") == theirs.crc32c("frames")
    assert ours.settings == theirs.settings


def test_names_that_are_no_text_can_be_told(source: Path, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A file's name is bytes; Python holds those that are no UTF-8 as halves of characters, which cannot be printed."""
    (source / "1.txt").rename(source / os.fsdecode(b"1\xff\n.txt"))
    run(args(source))
    assert "2 of 5 files were skipped" in capsys.readouterr().out
    told = (source.parent / "data.zarr" / SKIPPED_FILE).read_text().splitlines()
    assert told[0].startswith(rf"{source}/1\udcff .txt: invalid literal")


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 4, 5, 6])
def test_interrupted_anywhere_it_ends_with_the_same_bytes(
    source: Path, here: None, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run(args(source, "whole.zarr"))
    append, count = StoreWriter.append, 0

    def stops(self: StoreWriter, *arguments: object) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise Interrupted
        append(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreWriter, "append", stops)
    with pytest.raises(Interrupted):
        run(args(source, "cut.zarr"))
    monkeypatch.setattr(StoreWriter, "append", append)
    run(args(source, "cut.zarr"))
    assert content(source.parent / "cut.zarr") == content(source.parent / "whole.zarr")


def test_the_same_command_again_changes_nothing(source: Path, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    run(args(source))
    before = content(source.parent / "data.zarr")
    run(args(source))
    assert content(source.parent / "data.zarr") == before
    assert capsys.readouterr().out.count("2 of 5 files were skipped") == 2


def test_other_settings_are_refused(source: Path, here: None) -> None:
    run(args(source))
    with pytest.raises(UserError, match="version"):
        fill_store(args(source), WORLD, sorted(source.iterdir()), read, version=2)


def test_nothing_that_can_be_read_is_an_error(source: Path, here: None) -> None:
    for path in source.iterdir():
        path.write_text("bad")
    with pytest.raises(UserError, match=rf"none of the 5 files of {source} could be read; see .*skipped.txt"):
        run(args(source))
    assert len((source.parent / "data.zarr" / SKIPPED_FILE).read_text().splitlines()) == 5
    (source / "3.txt").write_text("5")  # mended, the same command goes on
    run(args(source))
    assert Store(source.parent / "data.zarr").n_rows == 5


def test_no_files_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match="has no files of this kind"):
        run(args(tmp_path / "source"))
    with pytest.raises(UserError, match="does not exist"):
        fill_store(args(tmp_path / "nowhere"), WORLD, [], read)
    with pytest.raises(UserError, match="workers must be from 1 to 1024, not 0"):
        args(tmp_path, workers=0)


def test_labels_and_published_splits() -> None:
    (episode,) = ({"frames": np.zeros((3, 2, 2, 3), np.uint8)},)
    out = with_labels(episode, label=4, split=2)
    assert (out["label"].tolist(), out["split"].tolist(), out["split"].dtype) == ([4] * 3, [2] * 3, np.int64)
    assert set(episode) == {"frames"}
    drawn = draw_validation(10_000, 0.1, seed=1)
    assert abs(drawn.mean() - 0.1) < 5 * np.sqrt(0.09 / 10_000)
    np.testing.assert_array_equal(drawn, draw_validation(10_000, 0.1, seed=1))
    assert (drawn != draw_validation(10_000, 0.1, seed=2)).any()
    assert not draw_validation(100, 0.0, seed=1).any()
