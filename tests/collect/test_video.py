"""Videos written here, GIFs byte for byte; what is in the store is worked out by hand."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collect import images, video, video_reader
from collect.files import BrokenFile
from collect.pool import WorkerPool
from tests.collect.films import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    YELLOW,
    Options,
    block,
    check_quadrants,
    gif,
    grey,
    levels,
    quadrants,
    ramp,
    torn,
    write,
)
from tests.collect.here import Here
from tests.scripts import run_script
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def decode(path: Path, **settings: Any) -> np.ndarray:
    return video_reader.decode(path, path.name, video.Args(**({"min_frames": 1} | settings)))


def same(a: Path, b: Path) -> None:
    one, other = Store(a), Store(b)
    np.testing.assert_array_equal(one.episode_ends, other.episode_ends)
    assert one.array_names == other.array_names
    for name in one.array_names:
        np.testing.assert_array_equal(one.read(name, 0, one.n_rows), other.read(name, 0, other.n_rows))


def test_a_square_is_cut_and_filtered_as_worked_out_by_hand() -> None:
    row = [0, 0, 10, 80, 150, 220, 0, 0]  # the square is the middle four
    picture = Image.fromarray(np.tile(np.array(row, np.uint8)[None, :, None], (4, 1, 3)))
    left, right = (0 + 3 * 10 + 3 * 80 + 150) / 8, (80 + 3 * 150 + 3 * 220 + 0) / 8  # a triangle four pixels wide
    expected = np.floor([left + 0.5, right + 0.5])[None, :, None] * np.ones((2, 2, 3))
    np.testing.assert_array_equal(images.center_square(picture, 2), expected)
    np.testing.assert_array_equal(images.center_square(picture, 4)[0, :, 0], [10, 80, 150, 220])
    tall = picture.transpose(Image.Transpose.TRANSPOSE)
    np.testing.assert_array_equal(images.center_square(tall, 2), expected.transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.MOV", "mpeg4")],
)
@pytest.mark.parametrize("shape", [(48, 80), (96, 48)])
def test_the_picture_of_every_kind_of_file(tmp_path: Path, name: str, codec: str, shape: tuple[int, int]) -> None:
    path = write(tmp_path / name, [quadrants(*shape)] * 3, codec=codec)
    frames = decode(path, size=24)
    assert (frames.shape, frames.dtype) == ((3, 24, 24, 3), np.uint8)
    check_quadrants(frames[-1], (RED, GREEN, BLUE, YELLOW), 12)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    """Pixels twice as wide as high: 48 rows and 24 columns are the square, and white lies left and right of it."""
    wide = quadrants(48, 80)[:, ::2]
    frames = decode(write(tmp_path / "a.mp4", [wide] * 2, aspect=Fraction(2)), size=24)
    check_quadrants(frames[-1], (RED, GREEN, BLUE, YELLOW), 12)


def test_which_frames_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", ramp(24), rate=30)
    assert levels(decode(path)) == list(range(24))
    assert levels(decode(path, fps=30)) == list(range(24))
    assert levels(decode(path, fps=10)) == [1, 4, 7, 10, 13, 16, 19, 22]  # on screen at 0.05, 0.15, ...
    assert levels(decode(path, fps=60)) == sorted([*range(24), *range(24)])
    assert levels(decode(path, frame_stride=5)) == [0, 5, 10, 15, 20]
    assert levels(decode(path, frame_stride=5, max_frames=3)) == [0, 5, 10]
    assert levels(decode(path, fps=10, frame_stride=2, max_frames=9)) == [1, 7, 13, 19]


def test_time_stamps_count_and_not_the_rate(tmp_path: Path) -> None:
    """Rounded to milliseconds they are one frame each; a picture that stays long is taken often."""
    rounded = [round(1000 * i / 29.97) for i in range(20)]
    path = write(tmp_path / "a.mkv", ramp(20), rate=29.97, codec="libx264", times=rounded)
    assert levels(decode(path, fps=29.97)) == list(range(20))
    path = write(tmp_path / "b.mkv", ramp(4), rate=10, codec="libx264", times=[500, 600, 900, 1000])
    assert levels(decode(path, fps=10)) == [0, 1, 1, 1, 2, 3]


def test_time_stamps_that_are_damaged_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Of a tenth of a second each frame, but for the third, which comes after weeks."""
    path = write(tmp_path / "b.mkv", ramp(4), rate=10, codec="libx264", times=[0, 100, 2**31, 2**31 + 100])
    with pytest.raises(BrokenFile, match=r"b\.mkv: its frames would last for 597 hours"):
        decode(path, fps=10)
    assert len(decode(path)) == 4


def test_gifs_of_partial_frames_that_are_transparent_and_taken_away_again(tmp_path: Path) -> None:
    r, g, b, y, k, c = 0, 1, 2, 3, 4, 9
    hole = block(g, 4, 4)
    hole[0, 0] = c
    frames = [
        {"pixels": block(r), "delay": 10},
        {"pixels": hole, "at": (0, 4), "delay": 3, "clear": c, "disposal": 2},  # then its place is cleared
        {"pixels": block(b, 2, 2), "at": (6, 0), "delay": 20, "clear": c, "disposal": 3},  # then what was before
        {"pixels": block(y, 1, 8), "at": (7, 0), "delay": 0},
    ]
    path = tmp_path / "a.gif"
    path.write_bytes(gif(frames))
    expected = np.full((4, 8, 8, 3), RED, np.uint8)
    expected[1, :4, 4:] = GREEN
    expected[1, 0, 4] = RED
    expected[2:, :4, 4:] = WHITE
    expected[2, 6:, :2] = BLUE
    expected[3, 7] = YELLOW
    np.testing.assert_array_equal(decode(path, size=8), expected)
    # They end at 0.1, 0.13, 0.33 and, since browsers take a tenth for none, 0.43 seconds.
    np.testing.assert_array_equal(decode(path, size=8, fps=10), expected[[0, 2, 2, 3]])
    assert video_reader.fps_of([video_reader.Clip(path, "a")]) == pytest.approx(4 / 0.43, rel=1e-3)
    path.write_bytes(gif([frames[0], {"pixels": block(g, 4, 4), "disposal": 2}, frames[2]]))  # cleared without a colour
    expected[0, :4, :4], expected[0, 6:, :2] = WHITE, BLUE
    np.testing.assert_array_equal(decode(path, size=8)[2], expected[0])
    see_through = [{"pixels": np.where(np.eye(8) > 0, c, k), "clear": c}]
    path.write_bytes(gif(see_through))
    np.testing.assert_array_equal(decode(path, size=8)[0, :, :, 0], 255 * np.eye(8))


@pytest.fixture
def noise() -> list[np.ndarray]:
    """Frames that take about the same number of bytes each."""
    return list(np.random.default_rng(0).integers(0, 255, (30, 48, 80, 3), np.uint8))


def broken(folder: Path, noise: list[np.ndarray]) -> dict[str, str]:
    """Files that cannot be read, and what is said of them."""
    torn(write(folder / "half.avi", noise), 0.5)
    torn(write(folder / "half.mkv", noise, codec="libx264"), 0.5)
    torn(write(folder / "half.mp4", noise), 0.5)
    (folder / "half.gif").write_bytes(gif([{"pixels": block(0)}, {"pixels": block(1, 60, 60)}], 60, 60)[:2000])
    (folder / "text.gif").write_text("not found\n" * 50)
    (folder / "text.avi").write_text("not found\n" * 50)
    (folder / "empty.mp4").touch()
    write(folder / "short.avi", ramp(3))
    return {
        "empty.mp4": "Invalid data",
        "half.avi": r"it ends after 1\d of 30 frames",
        "half.gif": "truncated",
        "half.mkv": r"it ends after 0.\d of 1.2 seconds",
        "half.mp4": "Invalid data",
        "short.avi": "it has 3 frames, fewer than min_frames, 5",
        "text.avi": "Invalid data",
        "text.gif": "cannot identify image",
    }


def test_files_that_are_broken_are_named(
    here: None, tmp_path: Path, noise: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    why = broken(folder, noise)
    for name, text in why.items():
        with pytest.raises(BrokenFile, match=rf"^{re.escape(name)}: .*{text}"):
            decode(folder / name, min_frames=5)
    args = video.Args(source=folder, out=out, num_workers=1, size=16, min_frames=5)
    with pytest.raises(UserError, match=rf"none of the {len(why)} files of .* could be read; see .*skipped.txt"):
        video.main(args)
    write(folder / "good.avi", ramp(6))
    out = tmp_path / "other"
    video.main(replace(args, out=out))
    assert f"1 episodes, 6 frames; {len(why)} of {len(why) + 1} files were skipped" in capsys.readouterr().out
    skipped = (out / "skipped.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in skipped] == sorted(why)
    assert levels(Store(out).read("frames", 0, 6)) == list(range(6))


def test_a_folder_of_classes(here: None, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for i, name in enumerate(("run/b.avi", "deep/er/jump/a.mp4", "run/a.mkv")):
        write(folder / name, ramp(6, first=6 * i), rate=20, codec="libx264" if name.endswith("mkv") else "mpeg4")
    (folder / "run" / "c.gif").write_bytes(gif([{"pixels": block(i)} for i in range(5)]))
    (folder / "notes.txt").write_text("not a video")
    args = video.Args(
        source=folder, out=tmp_path / "out", num_workers=1, size=16, min_frames=5, labels=True, frame_stride=2
    )
    video.main(replace(args, min_frames=3))
    store = Store(tmp_path / "out")
    assert (store.env_spec.name, store.env_spec.classes, store.env_spec.frame_shape) == (
        "in",
        ("jump", "run"),
        (16, 16, 3),
    )
    assert store.env_spec.fps == 10  # every other one of the first video's
    assert store.env_spec.action.encoded_dim == 0
    assert store.array_names == ("frames", "label", "split")  # too few to split, and too short to cut
    assert store.episode_ends.tolist() == [3, 6, 9, 12]
    assert store.read("label", 0, 12).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert levels(store.read("frames", 0, 9)) == [6, 8, 10, 12, 14, 16, 0, 2, 4]
    np.testing.assert_array_equal(store.read("frames", 9, 12)[:, 8, 8], [RED, BLUE, (0, 0, 0)])
    write(folder / "loose.avi", ramp(6))
    with pytest.raises(UserError, match=r"loose.avi has no class"):
        video.main(args)


def test_pieces_stay_in_the_split_of_their_video(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for i in range(10):
        write(folder / f"{i}.avi", [grey(20 * i)] * (7 if i else 5))
    args = video.Args(source=folder, out=tmp_path / "out", num_workers=1, size=16, min_frames=1, length=3)
    video.main(args)
    store = Store(tmp_path / "out")
    assert np.diff(store.episode_ends, prepend=0).tolist() == [3] * 19  # of 5 frames one piece, of 7 two
    whose = np.rint(store.read("frames", 0, store.n_rows).mean((1, 2, 3)) / 20).astype(int)
    assert whose.tolist() == [0] * 3 + np.repeat(range(1, 10), 6).tolist()
    split = store.read("split", 0, store.n_rows)
    assert len(set(zip(whose, split, strict=True))) == 10
    assert sorted(split[whose == i][0] for i in range(10)) == [0] * 8 + [1, 2]
    for i in range(9):
        (folder / f"{i}.avi").unlink()
    write(folder / "9.avi", ramp(20))
    video.main(replace(args, out=tmp_path / "one", length=2))
    assert "1 videos are too few to split" in capsys.readouterr().out
    one = Store(tmp_path / "one")
    assert one.array_names == ("frames",)
    assert [len(one.episode_indices(split)) for split in ("train", "valid", "test")] == [8, 1, 1]


def test_few_videos_are_cut_by_time(here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        write(tmp_path / "in" / f"{i}.avi", [grey(3 * k) for k in range(80)])
    video.main(video.Args(source=tmp_path / "in", out=tmp_path / "out", num_workers=1, size=16))
    assert "there are too few videos to split (2); each with at least 48 frames is cut by" in capsys.readouterr().out
    store = Store(tmp_path / "out")
    assert np.diff(store.episode_ends, prepend=0).tolist() == [32, 16, 16, 16] * 2
    assert [len(store.episode_indices(split)) for split in ("train", "valid", "test")] == [4, 2, 2]
    assert np.abs(store.read("frames", 0, 80).mean((1, 2, 3)) - 3 * np.arange(80)).max() < 3
    video.main(video.Args(source=tmp_path / "in", out=tmp_path / "long", num_workers=1, size=16, min_frames=30))
    assert "each with at least 90 frames is cut by time" in capsys.readouterr().out
    assert np.diff(Store(tmp_path / "long").episode_ends, prepend=0).tolist() == [80, 80], "too short for three of 30"


def many(folder: Path) -> None:
    for i in range(6):
        write(folder / f"{i}.avi", ramp(8, first=2 * i))
    (folder / "2.avi").write_text("broken")
    (folder / "5.gif").write_text("broken")


def test_cut_short_it_goes_on_to_the_same_store(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    many(folder)
    args = video.Args(source=folder, out=tmp_path / "whole", num_workers=1, size=16, min_frames=1, length=3)
    video.main(args)
    decoded: list[str] = []
    usual = video_reader.decode

    def stops(path: Path, name: str, settings: video_reader.VideoArgs) -> np.ndarray:
        decoded.append(name)
        if len(decoded) == 4:
            raise KeyboardInterrupt
        return usual(path, name, settings)

    monkeypatch.setattr(video_reader, "decode", stops)
    cut = replace(args, out=tmp_path / "cut")
    with contextlib.suppress(KeyboardInterrupt):
        video.main(cut)
    assert len(Store(cut.out).episode_ends) == 4  # of files 0 and 1
    video.main(cut)
    assert decoded == ["0.avi", "1.avi", "2.avi", "3.avi", "2.avi", "3.avi", "4.avi", "5.avi", "5.gif"]
    same(args.out, cut.out)
    assert Path(cut.out, "skipped.txt").read_text() == Path(args.out, "skipped.txt").read_text()
    assert [line[:5] for line in Path(cut.out, "skipped.txt").read_text().splitlines()] == ["2.avi", "5.gif"]
    write(folder / "0a.avi", ramp(8))
    with pytest.raises(UserError, match=r"recorded with settings.files = \w+, but \w+ was asked for"):
        video.main(cut)


def test_two_processes_make_the_same_store_and_the_script_says_what_it_did(
    forked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    flags = "--source in --out two --num-workers 2 --size 16 --min-frames 2"
    run_script("collect/video.py", flags.split(), WorkerPool)
    few, first, second, size, last = capsys.readouterr().out.splitlines()
    assert few.startswith("there are too few videos to split (7)")
    assert first.startswith("skipped: 2.avi: Invalid data found")
    assert second.startswith("skipped: 5.gif: cannot identify image")
    assert size == "data: two: 5 episodes, 40 frames; 2 of 7 files were skipped"
    assert last == "written: two (next: python train/vqvae.py --data two)"
    monkeypatch.setattr("collect.files.WorkerPool", Here)
    video.main(video.Args(source=tmp_path / "in", out=tmp_path / "one", num_workers=1, size=16, min_frames=2))
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": 0}, "size must be from 1 to 4096, not 0"),
        ({"frame_stride": 0}, "frame_stride must be at least 1"),
        ({"fps": -1.0}, "fps must be a finite number of at least 0, not -1.0"),
        ({"length": -1}, "length must be at least 0"),
        ({"max_frames": 4}, "max_frames 4 is below min_frames 16"),
    ],
)
def test_settings_that_make_no_sense(settings: Options, told: str) -> None:
    with pytest.raises(UserError, match=told):
        video.Args(**settings)


def test_a_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no files of this kind"):
        video.main(video.Args(source=tmp_path, out=tmp_path / "out"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        video.main(video.Args(source=tmp_path / "nowhere", out=tmp_path / "out"))
