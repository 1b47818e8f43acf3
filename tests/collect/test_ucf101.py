"""UCF-101 in the small, laid out as published, with videos that tell their class, group and clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from collect import ucf101
from configs import parse
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
GROUPS = range(1, 9)
"""As in the published folds, the first ones are for testing."""
FRAMES = 3


pytestmark = pytest.mark.usefixtures("here")


def write_video(path: Path, colour: tuple[int, int, int]) -> None:
    """As the real ones: MPEG-4 in AVI, 4:3, 25 frames per second; white where the centre is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((48, 64, 3), 255, np.uint8)
    picture[:, 8:56] = colour
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for _ in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def name(c: int, group: int, clip: int) -> str:
    """The videos of one class are spelled otherwise than its folder."""
    spelled = CLASSES[c].replace("Handstand", "HandStand")
    return f"{CLASSES[c]}/v_{spelled}_g{group:02}_c{clip:02}.avi"


def grey_of(c: int, group: int, clip: int) -> int:
    return 5 * (16 * c + 2 * (group - 1) + clip - 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "ucf"
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_bytes(b"".join(f"{i} {c}\r\n".encode() for i, c in enumerate(CLASSES, 1)))
    videos = [(c, g, k) for c in range(len(CLASSES)) for g in GROUPS for k in (1, 2)]
    for c, g, k in videos:
        write_video(folder / "UCF-101" / name(c, g, k), (grey_of(c, g, k),) * 3)
    for fold in (1, 2):
        test = [v for v in videos if v[1] in (2 * fold - 1, 2 * fold)]
        train = [v for v in videos if v not in test]
        ending = "\r\n" if fold == 1 else "\n"
        (lists / f"trainlist0{fold}.txt").write_bytes("".join(f"{name(*v)} {v[0] + 1}{ending}" for v in train).encode())
        (lists / f"testlist0{fold}.txt").write_bytes("".join(f"{name(*v)}{ending}" for v in test).encode())
    return folder


def args(source: Path, *flags: str) -> ucf101.Args:
    out = source.parent / "data.zarr"
    fixed = ["--source", str(source), "--out", str(out), "--num-workers", "1", "--size", "24", "--min-frames", "3"]
    return parse(ucf101.Args, "collect", [*fixed, *flags])


def recorded(store: Store) -> dict[int, tuple[int, int]]:
    """The label and the split of each video, by the grey that tells which it is."""
    found = {}
    for i in range(len(store.episode_ends)):
        episode = store.read_episode(i)
        assert all(len(set(episode[key].tolist())) == 1 for key in ("label", "split"))
        frames = episode["frames"].astype(float)
        grey = frames[:, :, 1:-1].mean()
        np.testing.assert_allclose(frames[:, :, 1:-1], grey, atol=3)
        # The margins are cut off; halving takes an eighth of an edge from beyond it.
        np.testing.assert_allclose(frames[:, :, [0, -1]], (7 * grey + 255) / 8, atol=5)
        found[round(grey / 5) * 5] = int(episode["label"][0]), int(episode["split"][0])
    return found


@pytest.mark.parametrize("fold", [1, 2])
def test_what_is_in_the_store(source: Path, fold: int) -> None:
    ucf101.main(args(source, "--fold", str(fold), "--valid", "0.2"))
    store = Store(source.parent / "data.zarr")
    assert store.env_spec.classes == CLASSES
    assert (store.env_spec.name, store.env_spec.fps, store.env_spec.frame_shape) == ("ucf101", 25.0, (24, 24, 3))
    assert store.array_names == ("frames", "label", "split")
    assert store.episode_ends.tolist() == list(range(FRAMES, FRAMES * 48 + 1, FRAMES))
    found = recorded(store)
    assert len(found) == 48
    valid = set()
    for c in range(len(CLASSES)):
        for g in GROUPS:
            (label, split), other = (found[grey_of(c, g, k)] for k in (1, 2))
            assert label == c
            assert (label, split) == other  # so a group is in one split
            assert (split == 2) == (g in (2 * fold - 1, 2 * fold))
            if split == 1:
                valid.add((c, g))
    assert len(valid) == 4  # a fifth of 18 groups, rounded up
    assert len(store.episode_indices("valid")) == 8


def test_the_seed_draws_the_groups_for_validation(source: Path) -> None:
    def valid(*flags: str) -> list[str]:
        found = ucf101.find_clips(args(source, *flags), list(CLASSES))
        return [clip.name for clip in found if clip.values["split"] == 1]

    assert valid("--valid", "0.3") == valid("--valid", "0.3", "--seed", "0")
    assert valid("--valid", "0.3") != valid("--valid", "0.3", "--seed", "1")
    assert len(valid()) == 2  # two hundredths of 18 groups are still one
    assert valid("--valid", "0") == []


def test_videos_that_are_missing_or_broken_are_named(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone, torn = name(0, 3, 1), name(2, 1, 2)
    (source / "UCF-101" / gone).unlink()
    (source / "UCF-101" / torn).write_bytes((source / "UCF-101" / torn).read_bytes()[:3000])
    ucf101.main(args(source))
    out = source.parent / "data.zarr"
    assert f"46 episodes, {46 * FRAMES} frames; 2 of 48 files were skipped" in capsys.readouterr().out
    lines = (out / "skipped.txt").read_text().splitlines()
    assert lines[0] == f"{gone}: No such file or directory"
    assert lines[1].startswith(f"{torn}: ")
    found = recorded(Store(out))
    assert grey_of(0, 3, 1) not in found
    assert found[grey_of(2, 1, 1)] == (2, 2)
    for path in (source / "UCF-101").rglob("*.avi"):
        path.write_text("broken")
    with pytest.raises(UserError, match="none of the 48 files"):
        ucf101.main(replace(args(source), out=source.parent / "other"))


def test_lists_that_are_wrong_or_not_there(source: Path, tmp_path: Path) -> None:
    train = source / "ucfTrainTestlist" / "trainlist01.txt"
    right = train.read_text()
    train.write_text(right.replace(f"{name(1, 3, 1)} 2", f"{name(1, 3, 1)} 3"))
    with pytest.raises(UserError, match=r"v_HandStandPushups_g03_c01.avi has label 3, but its class is 2"):
        ucf101.main(args(source))
    train.write_text(right + "Unknown/v_Unknown_g01_c01.avi 4\n")
    with pytest.raises(UserError, match=r"has a class that is not in classInd.txt"):
        ucf101.main(args(source))
    for text, told in (
        (right + right.splitlines()[0], "is listed twice for fold 1"),
        ("", "trainlist01.txt is empty; download it"),
    ):
        train.write_text(text)
        with pytest.raises(UserError, match=told):
            ucf101.main(args(source))
    train.write_text(right + f"{name(0, 1, 1)} 1\n")  # which is for testing
    with pytest.raises(UserError, match=r"v_ApplyEyeMakeup_g01_c01.avi is listed twice for fold 1; download the lists"):
        ucf101.main(args(source))
    train.unlink()
    with pytest.raises(UserError, match=r"trainlist01.txt does not exist; give the folder that contains UCF-101/"):
        ucf101.main(args(source))
    (source / "ucfTrainTestlist" / "classInd.txt").write_text("1 A\n3 B\n")
    with pytest.raises(UserError, match=r"classInd.txt should have lines such as"):
        ucf101.main(args(source))
    with pytest.raises(UserError, match=r"classInd.txt does not exist"):
        ucf101.main(args(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="fold cannot be 4"):
        ucf101.Args(fold=4)
    with pytest.raises(UserError, match="valid must be a fraction"):
        ucf101.Args(valid=1.0)


def test_cut_short_it_goes_on_to_the_same_store(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = args(source)
    ucf101.main(whole)
    from collect import video_reader

    usual, cut = video_reader.decode, replace(whole, out=source.parent / "cut")

    def stops(path: Path, called: str, settings: video_reader.VideoArgs) -> np.ndarray:
        if called == name(1, 5, 2):
            raise KeyboardInterrupt
        return usual(path, called, settings)

    monkeypatch.setattr(video_reader, "decode", stops)
    with pytest.raises(KeyboardInterrupt):
        ucf101.main(cut)
    assert 0 < len(Store(cut.out).episode_ends) < 48
    monkeypatch.setattr(video_reader, "decode", usual)
    ucf101.main(cut)
    a, b = Store(whole.out), Store(cut.out)
    for key in a.array_names:
        np.testing.assert_array_equal(a.read(key, 0, a.n_rows), b.read(key, 0, b.n_rows))
    assert len(a.episode_ends) == len(b.episode_ends) == 48
