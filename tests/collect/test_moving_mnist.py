"""Moving MNIST: the published file in the small, digits from each kind of file, and flights worked out by hand."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect import moving_mnist as mm
from configs import parse
from tests.collect.here import Here
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError


def args(tmp_path: Path, *flags: str, out: str = "data.zarr") -> mm.Args:
    return parse(mm.Args, "collect", ["--out", str(tmp_path / out), "--num-workers", "1", *flags])


def frames_of(path: Path) -> np.ndarray:
    store = Store(path)
    assert store.array_names == ("frames",)
    frames = store.read("frames", 0, store.n_rows)
    return frames.reshape(len(store.episode_ends), -1, *frames.shape[1:])


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """(time, video, height, width), as published."""
    videos = np.random.default_rng(0).integers(0, 256, (5, 120, 16, 12), np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", videos)
    return tmp_path / "mnist_test_seq.npy", videos


@pytest.mark.parametrize("channels", [1, 3])
def test_the_published_file(here: None, tmp_path: Path, published: tuple[Path, np.ndarray], channels: int) -> None:
    path, videos = published
    mm.main(args(tmp_path, "--source", str(path), "--channels", str(channels)))
    frames = frames_of(tmp_path / "data.zarr")
    assert frames.shape == (120, 5, 16, 12, channels)
    for c in range(channels):
        np.testing.assert_array_equal(frames[..., c], videos.transpose(1, 0, 2, 3))
    store = Store(tmp_path / "data.zarr")
    assert [len(store.episode_indices(split)) for split in ("train", "valid", "test")] == [96, 12, 12]


def stored(tmp_path: Path, array: np.ndarray, *flags: str) -> np.ndarray:
    """What comes of an array in a .npy: videos (n, t, h, w)."""
    np.save(tmp_path / "a.npy", array)
    mm.main(args(tmp_path, "--source", str(tmp_path / "a.npy"), "--channels", "1", *flags))
    return frames_of(tmp_path / "data.zarr")[..., 0]


VIDEOS = np.random.default_rng(1).integers(0, 256, (55, 20, 6, 4), np.uint8)
"""(video, time, height, width)"""


@pytest.mark.parametrize("axes", ["tnhw", "nthw"])
def test_far_more_videos_than_frames_tell_them_apart(here: None, tmp_path: Path, axes: str) -> None:
    videos = VIDEOS.reshape(220, 5, 6, 4)
    np.testing.assert_array_equal(stored(tmp_path, videos.transpose([axes.index(a) for a in "nthw"])), videos)


@pytest.mark.parametrize("channel", [None, 2, 4])
@pytest.mark.parametrize("first", ["time", "videos"])
def test_an_array_with_its_axes_in_another_order(here: None, tmp_path: Path, first: str, channel: int | None) -> None:
    array = VIDEOS if first == "videos" else VIDEOS.swapaxes(0, 1)
    array = array if channel is None else np.expand_dims(array, channel)
    np.testing.assert_array_equal(stored(tmp_path, array), VIDEOS)


AMBIGUOUS = {"tnhw": (12, 11, 6, 5), "nthw": (11, 12, 6, 5), "htnwc": (6, 12, 11, 5, 1), "nhwt": (200, 6, 6, 12)}


@pytest.mark.parametrize("axes", AMBIGUOUS)
def test_axes_that_the_shape_does_not_tell_are_asked_for(here: None, tmp_path: Path, axes: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, AMBIGUOUS[axes], np.uint8)
    with pytest.raises(UserError, match=r"the time axis of .*a.npy, \(.*\), is ambiguous; give --axes, such as nthw"):
        stored(tmp_path, array)
    expected = array.squeeze(-1) if "c" in axes else array
    expected = expected.transpose([axes.index(axis) for axis in "nthw"])
    np.testing.assert_array_equal(stored(tmp_path, array, "--axes", axes), expected)
    with pytest.raises(UserError, match=r"axes 'tnh' do not fit .*a.npy of .*; give one letter per axis"):
        stored(tmp_path, array, "--axes", "tnh")


def test_as_many_videos_as_frames_are_asked_about(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --axes"):
        stored(tmp_path, VIDEOS[:20])


def clips(n: int, given: int, future: int) -> np.ndarray:
    begin = (given + future) * np.arange(n)
    return np.stack([np.stack([begin + s, np.full(n, k)], -1) for s, k in ((0, given), (given, future))])


@pytest.mark.parametrize("kind", ["published", "compressed", "bytes", "floats", "no clips"])
def test_a_npz(here: None, tmp_path: Path, kind: str) -> None:
    path, frames = tmp_path / "a.npz", VIDEOS.reshape(-1, 1, 6, 4)
    about = {"clips": clips(55, 8, 12).astype(np.int32), "dims": np.array([[1, 6, 4]], np.int32)}
    if kind == "published":
        np.savez(path, VIDEOS.swapaxes(0, 1))
    elif kind == "compressed":
        np.savez_compressed(path, VIDEOS)
    elif kind == "bytes":
        np.savez(path, input_raw_data=frames, **about)
    elif kind == "floats":
        np.savez_compressed(path, input_raw_data=(frames / 255).astype(np.float32), **about)
    else:
        np.savez(path, input_raw_data=frames)
    mm.main(args(tmp_path, "--source", str(path), "--channels", "1"))
    np.testing.assert_array_equal(frames_of(tmp_path / "data.zarr")[..., 0], VIDEOS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "data.zarr"]  # what was unpacked is gone


def test_frames_that_are_no_pictures_are_skipped(here: None, tmp_path: Path) -> None:
    """Floats are from 0 to 1; of these batches of 50 videos the second has one that is not."""
    frames = (VIDEOS.reshape(-1, 1, 6, 4) / 255).astype(np.float32)
    frames[-1, 0, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", input_raw_data=frames, clips=clips(55, 10, 10))
    mm.main(args(tmp_path, "--source", str(tmp_path / "a.npz")))
    assert len(Store(tmp_path / "data.zarr").episode_ends) == 50
    text = (tmp_path / "data.zarr" / "skipped.txt").read_text()
    assert text == f"{tmp_path}/a.npz: videos from 50 on are not between 0 and 1; download it again\n"


def test_a_npz_of_something_else(tmp_path: Path) -> None:
    frames = VIDEOS.reshape(-1, 1, 6, 4)
    wrong = clips(55, 10, 10)
    wrong[0, 3, 0] += 1
    for arrays, text in (
        ({"x_train": VIDEOS, "labels": VIDEOS[0]}, "has x_train, labels, but no arr_0 or input_raw_data"),
        ({}, "has nothing, but no arr_0"),
        ({"arr_0": VIDEOS / 2}, "holds float64 .*, but Moving MNIST is uint8"),
        ({"input_raw_data": frames, "clips": clips(50, 10, 10)}, "but its clips need 50 videos of 20 frames"),
        ({"input_raw_data": frames, "clips": wrong}, "are not videos of one length"),
        ({"input_raw_data": frames, "clips": clips(55, 10, 10) / 2}, "are not videos of one length"),
        ({"input_raw_data": frames[:-1]}, r"holds \(1099, 1, 6, 4\), which are not videos of 20 frames; .*--length"),
        ({"arr_0": np.array([{}])}, "cannot be read"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(UserError, match=text):
            mm.main(args(tmp_path, "--source", str(tmp_path / "a.npz")))
    np.savez(tmp_path / "a.npz", VIDEOS)
    whole = (tmp_path / "a.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:-100], bytes(flipped), b"", b"text"):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a.npz cannot be read \(.*\); download it again"):
            mm.main(args(tmp_path, "--source", str(tmp_path / "a.npz")))


def test_a_file_that_is_not_the_published_one(tmp_path: Path, published: tuple[Path, np.ndarray]) -> None:
    path, videos = published
    np.save(tmp_path / "float.npy", videos / 2)
    np.save(tmp_path / "flat.npy", videos[0])
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "torn.npy").write_bytes(path.read_bytes()[:-100])
    (tmp_path / "more.npy").write_bytes(path.read_bytes().replace(b"(5, 120,", b"(4, 120,", 1))
    for name, text in (
        ("float", r"holds float64 \(5, 120, 16, 12\), but Moving MNIST is uint8"),
        ("flat", r"holds uint8 \(120, 16, 12\), but"),
        ("text", "cannot be read"),
        ("empty", "cannot be read"),
        ("torn", "cannot be read"),
        ("more", "is longer than the uint8 .* that it says it holds"),
        ("missing", "is not a file; give mnist_test_seq.npy"),
    ):
        with pytest.raises(UserError, match=rf"{name}.npy {text}"):
            mm.main(args(tmp_path, "--source", str(tmp_path / f"{name}.npy")))


def test_a_flight_bounces_as_worked_out_by_hand() -> None:
    """In a room of 10 by 4: down to 8, 11 is mirrored to 9, then back; sideways from 1 through 0 and on."""
    path = mm.bounce(np.array([[5.0, 1.0]]), np.array([[3.0, -1.5]]), 6, np.array([10.0, 4.0]))
    assert path[0, :, 0].tolist() == [5, 8, 9, 6, 3, 0]
    assert path[0, :, 1].tolist() == [1, 0.5, 2, 3.5, 3, 1.5]  # 1, -0.5, -2, -3.5, -5, -6.5, mirrored at 0 and 4
    still = mm.bounce(np.array([[0.0, 3.0]]), np.array([[2.0, 0.0]]), 3, np.array([0.0, 4.0]))
    np.testing.assert_allclose(still, [[[0, 3]] * 3], atol=1e-8)  # a digit as big as the frame


def test_digits_are_drawn_where_they_are_and_the_brighter_one_counts() -> None:
    frames = np.zeros((2, 2, 5, 6), np.uint8)
    first = np.array([[[9, 1], [2, 3]], [[5, 5], [5, 5]]], np.uint8)
    mm.draw_digits(frames, first, np.array([[[0, 0], [3, 4]], [[1, 1], [1, 1]]]))
    mm.draw_digits(frames, np.full((2, 2, 2), 4, np.uint8), np.array([[[0, 1], [0, 0]], [[0, 0], [3, 3]]]))
    expected = np.zeros((2, 2, 5, 6), int)
    expected[0, 0, :2, :3] = [[9, 4, 4], [2, 4, 4]]
    expected[0, 1, :2, :2] = 4
    expected[0, 1, 3:, 4:] = [[9, 1], [2, 3]]
    expected[1, 0, :3, :3] = [[4, 4, 0], [4, 5, 5], [0, 5, 5]]
    expected[1, 1, 1:3, 1:3] = 5
    expected[1, 1, 3:, 3:5] = 4
    np.testing.assert_array_equal(frames, expected)


def test_a_single_digit_flies_at_its_speed_in_every_direction(here: None, tmp_path: Path) -> None:
    """One lit pixel tells where the digit is; no wall is passed, and between walls the steps are of one length."""
    np.save(tmp_path / "digits.npy", np.pad(np.array([[[200]]], np.uint8), ((0, 0), (0, 3), (0, 1))))
    flags = ["--digits", str(tmp_path / "digits.npy"), "--per-video", "1", "--episodes", "60", "--length", "30"]
    mm.main(args(tmp_path, *flags, "--channels", "1", "--speed", "2.5", "--size", "160"))
    frames = frames_of(tmp_path / "data.zarr")[..., 0]
    assert frames.shape == (60, 30, 160, 160)
    assert set(np.unique(frames)) == {0, 200}
    assert (np.count_nonzero(frames, (2, 3)) == 1).all()
    where = np.stack(np.nonzero(frames)[2:], -1).reshape(60, 30, 2)
    assert where[..., 0].max() <= 156
    assert where[..., 1].max() <= 158
    straight = (where.min((1, 2)) > 1) & (where[..., 0].max(1) < 155) & (where[..., 1].max(1) < 157)
    far = where[straight, -1] - where[straight, 0]
    assert len(far) > 15
    np.testing.assert_allclose(np.hypot(*far.T), 2.5 * 29, atol=1.5)  # of rounding
    assert len(set(zip(*np.sign(far).T, strict=True)) & {(1, 1), (1, -1), (-1, 1), (-1, -1)}) == 4


def idx(images: np.ndarray) -> bytes:
    return struct.pack(">BBBB3I", 0, 0, 8, 3, *images.shape) + images.tobytes()


def test_digits_of_each_kind_of_file(here: None, tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(1, 256, (7, 28, 28), np.uint8)
    np.save(tmp_path / "digits.npy", images)
    (tmp_path / "digits-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "digits-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    for i, name in enumerate(("digits.npy", "digits-idx3-ubyte", "digits-idx3-ubyte.gz")):
        digits = str(tmp_path / name)
        np.testing.assert_array_equal(mm.load_digits(args(tmp_path, "--digits", digits)), images)
        mm.main(args(tmp_path, "--digits", digits, "--episodes", "3", "--length", "4", "--per-video", "1", out=str(i)))
    frames = frames_of(tmp_path / "0")
    np.testing.assert_array_equal(frames, frames_of(tmp_path / "1"))
    np.testing.assert_array_equal(frames, frames_of(tmp_path / "2"))
    seen = set()
    for frame in frames.reshape(-1, 64, 64, 3):
        np.testing.assert_array_equal(frame, np.repeat(frame[..., :1], 3, -1))
        rows, columns = np.nonzero(frame[..., 0])  # no pixel of these digits is dark
        y, x = rows.min(), columns.min()
        shown = frame[y : y + 28, x : x + 28, 0]
        seen.add(images.tobytes().index(shown.tobytes()))  # one of the digits, whole
        assert np.count_nonzero(frame[..., 0]) == 28 * 28
    assert seen <= set(range(0, 7 * 784, 784))
    assert len(seen) > 1


def test_digits_that_cannot_be_used(tmp_path: Path) -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    whole = idx(images)
    bad = {
        "labels": (struct.pack(">II", 0x801, 3) + b"\1\2\3" + bytes(20), "not a complete idx3-ubyte file"),
        "torn": (whole[:-1], "not a complete idx3-ubyte"),
        "torn.gz": (gzip.compress(whole)[:-9], "cannot be read"),
        "garbled.gz": (gzip.compress(whole)[:10] + b"\xff" * 30, "cannot be read"),
        "empty": (b"", "cannot be read"),
        "text.npy": (b"hello", "cannot be read"),
        "missing": (None, 'does not exist; give a file of digits, or "font"'),
    }
    for name, (data, told) in bad.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} .*{told}|{name} {told}"):
            mm.main(args(tmp_path, "--digits", str(tmp_path / name)))
    np.save(tmp_path / "big.npy", np.zeros((2, 28, 70), np.uint8))
    with pytest.raises(UserError, match=r"2 digits of \(28, 70\) do not fit into frames of 64"):
        mm.main(args(tmp_path, "--digits", str(tmp_path / "big.npy")))
    for settings in ({"channels": 2}, {"episodes": 0}, {"speed": -1.0}):
        with pytest.raises(UserError, match=next(iter(settings))):
            mm.Args(**settings)  # type: ignore[arg-type]


def test_the_digits_of_the_font_are_ten_and_whole() -> None:
    digits = mm.font_digits()
    assert (digits.shape, digits.dtype) == ((30, 28, 28), np.uint8)
    assert len({digit.tobytes() for digit in digits}) == 30
    assert (digits.max((1, 2)) == 255).all()
    assert not digits[:, [0, -1]].any()  # nothing is cut off
    assert not digits[:, :, [0, -1]].any()


def test_the_seed_decides_and_the_number_of_processes_does_not(
    forked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--episodes", "120", "--length", "6"]
    mm.main(replace(args(tmp_path, *flags, out="b"), num_workers=2))
    monkeypatch.setattr("collect.files.WorkerPool", Here)
    for out, seed in (("a", "0"), ("other", "1")):
        mm.main(args(tmp_path, *flags, "--seed", seed, out=out))
    a, b, other = (frames_of(tmp_path / name) for name in ("a", "b", "other"))
    assert a.shape == (120, 6, 64, 64, 3)
    np.testing.assert_array_equal(a, b)
    assert len({video.tobytes() for video in [*a, *other]}) == 240
    with pytest.raises(UserError, match=r"recorded with settings.episodes = 120, but 130 was asked for"):
        mm.main(args(tmp_path, "--episodes", "130", "--length", "6", out="a"))


def test_cut_short_it_goes_on_to_the_same_store(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--episodes", "130", "--length", "4"]
    mm.main(args(tmp_path, *flags, out="whole"))
    usual = mm.make_videos

    def stops(settings: mm.Args, digits: np.ndarray, batch: int) -> Any:
        if batch == 2:
            raise KeyboardInterrupt
        return usual(settings, digits, batch)

    monkeypatch.setattr(mm, "make_videos", stops)
    with pytest.raises(KeyboardInterrupt):
        mm.main(args(tmp_path, *flags, out="cut"))
    assert len(Store(tmp_path / "cut").episode_ends) == 2 * mm.BATCH
    monkeypatch.setattr(mm, "make_videos", usual)
    mm.main(args(tmp_path, *flags, out="cut"))
    np.testing.assert_array_equal(frames_of(tmp_path / "cut"), frames_of(tmp_path / "whole"))
    assert len(Store(tmp_path / "cut").episode_ends) == 130
