"""RoboNet's HDF5, written here with h5py, PyAV and Pillow in both of the published encodings."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from PIL import Image

from collect import robonet
from collect.files import BrokenFile
from tests.collect import films as shared
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


def scenes(n: int, height: int, width: int) -> list[np.ndarray]:
    """Red left, blue right, a green middle that grows brighter: smooth areas, which lossy codecs keep."""
    videos = []
    for t in range(n):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, : width // 3] = (220, 30, 30)
        picture[:, width // 3 : -(width // 3)] = (20, 80 + 20 * t, 20)
        picture[:, -(width // 3) :] = (30, 30, 220)
        videos.append(picture)
    return videos


def mp4(frames: list[np.ndarray]) -> np.ndarray:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames[0].shape[:2], "yuv420p", 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return np.frombuffer(buffer.getvalue(), np.uint8)


def jpg(frame: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write(path: Path, kind: str = "mp4", said: str = "RGB", frames: int = STEPS, **changes: np.ndarray | None) -> Path:
    """A trajectory; `said` is the file's image_format. With OpenCV's order in the file, red and blue are exchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    swapped = (kind == "mp4") == (said == "BGR")
    videos = [picture[..., ::-1] if swapped else picture for picture in scenes(frames, 48, 64)]
    arrays = {
        "env/state": np.arange(STEPS * 5, dtype=np.float64).reshape(STEPS, 5) / 8,
        "policy/actions": np.arange((STEPS - 1) * 4, dtype=np.float32).reshape(STEPS - 1, 4) / 4 - 2,
    }
    with h5py.File(path, "w") as file:
        group = file.create_group("env/cam0_video")
        if kind == "mp4":
            group.create_dataset("frames", data=mp4(videos)).attrs["image_format"] = said
        else:
            for t, picture in enumerate(videos):
                group.create_dataset(f"frame{t}", data=jpg(np.ascontiguousarray(picture))).attrs["image_format"] = said
        for name, array in (arrays | {k.replace("__", "/"): v for k, v in changes.items()}).items():
            if array is not None:
                file[name] = array
    return path


def args(source: Path, **changes: object) -> robonet.Args:
    return robonet.Args(source=source, out=source.parent / "data.zarr", num_workers=1, **changes)  # type: ignore[arg-type]


def colours(frames: np.ndarray) -> list[tuple[bool, bool]]:
    """Whether the left is red and the right is blue, in each frame."""
    left, right = frames[:, 10:-10, 3].mean(1), frames[:, 10:-10, -4].mean(1)
    return [(a[0] > 180 and a[2] < 70, b[2] > 180 and b[0] < 70) for a, b in zip(left, right, strict=True)]


@pytest.mark.parametrize("kind", ["mp4", "jpg"])
@pytest.mark.parametrize("said", ["RGB", "BGR"])
def test_pictures_in_both_encodings_and_orders(tmp_path: Path, kind: str, said: str) -> None:
    path = write(tmp_path / "hdf5/one.hdf5", kind, said)
    (episode,) = robonet.read_file(args(path.parent), path)
    frames = episode["frames"]
    assert (frames.shape, frames.dtype) == ((STEPS, 64, 64, 3), np.uint8)
    assert colours(frames) == [(True, True)] * STEPS
    green = frames[:, 20:44, 28:36, 1].mean((1, 2))
    np.testing.assert_allclose(green, 80 + 20 * np.arange(STEPS), atol=6)


def test_the_clock(tmp_path: Path) -> None:
    path = write(tmp_path / "hdf5/one.hdf5")
    (episode,) = robonet.read_file(args(path.parent), path)
    assert episode["action"].tolist() == [[t - 2, t - 1.75, t - 1.5, t - 1.25] for t in range(5)] + [[0] * 4]
    assert episode["variables"].tolist() == [[(5 * t + i) / 8 for i in range(5)] for t in range(STEPS)]
    assert episode["truncated"].tolist() == [False] * 4 + [True, False]
    assert not episode["terminated"].any() and not episode["reward"].any()


def test_what_is_longer_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "hdf5/one.hdf5", frames=4)
    (episode,) = robonet.read_file(args(path.parent), path)
    assert {len(array) for array in episode.values()} == {4}
    assert episode["action"][:, 0].tolist() == [-2, -1, 0, 0]
    assert episode["truncated"].tolist() == [False, False, True, False]


def test_the_shorter_side_is_scaled_and_the_middle_is_kept() -> None:
    picture = np.zeros((240, 320, 3), np.uint8)
    picture[:, :40], picture[:, 280:] = 255, 255  # just outside the middle square
    picture[0:15, 40:55] = (1, 2, 3)  # its corner: 4 by 4 pixels of 64
    small = robonet.crop_and_resize(Image.fromarray(picture), 64)
    assert small[:4, :4].reshape(-1, 3).tolist() == [[1, 2, 3]] * 16
    assert small[4:].max() == small[:, 4:].max() == 0


def test_a_folder_by_two_processes_broken_files_by_name(
    tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "hdf5"
    for i in range(3):
        write(source / f"berkeley/sawyer_{i}.hdf5", ("mp4", "jpg")[i % 2])
    write(source / "penn/baxter_0.hdf5", policy__actions=np.zeros((STEPS - 1, 5), np.float32))
    whole = (source / "berkeley/sawyer_1.hdf5").read_bytes()
    (source / "berkeley/sawyer_1.hdf5").write_bytes(whole[: len(whole) // 2])
    (source / "berkeley/empty.hdf5").touch()
    monkeypatch.chdir(tmp_path)
    robonet.main(robonet.Args(source=Path("hdf5"), out=Address("data.zarr"), num_workers=2, size=32))
    said = capsys.readouterr().out
    assert "2 episodes, 12 frames; 3 of 5 files were skipped" in said
    assert "actions range from [-2.0" in said
    skipped = (tmp_path / "data.zarr/skipped.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in skipped] == [
        "hdf5/berkeley/empty.hdf5", "hdf5/berkeley/sawyer_1.hdf5", "hdf5/penn/baxter_0.hdf5",
    ]  # fmt: skip
    assert "shape (5, 5), not (t, 4); give --action-width" in skipped[2]
    assert Store(tmp_path / "data.zarr").env_spec.frame_shape == (32, 32, 3)


def test_five_numbers_of_another_robot_and_a_pattern(tmp_path: Path, here: None) -> None:
    path = write(tmp_path / "hdf5/baxter_0.hdf5", policy__actions=np.full((STEPS - 1, 5), 2.5))
    write(tmp_path / "hdf5/sawyer_0.hdf5")
    robonet.main(args(path.parent, action_width=5, pattern="*baxter*.hdf5"))
    store = Store(tmp_path / "data.zarr")
    assert (len(store.episode_ends), store.env_spec.action.encoded_dim) == (1, 5)
    assert store.read("action", 0, 9).tolist() == [[2.5] * 5] * 5 + [[0] * 5]


def drop_a_frame(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["env/cam0_video/frame3"]


def drop_the_camera(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.move("env/cam0_video", "env/cam2_video")


def spoil(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "a") as file:
            file[f"env/cam0_video/{name}"][:] = 7

    return change


BROKEN: dict[str, tuple[dict, Callable[[Path], None] | None, str]] = {
    "no actions": ({"policy__actions": None}, None, "there is no policy/actions"),
    "no states": ({"env__state": None}, None, "there is no env/state"),
    "narrow states": ({"env__state": np.zeros((STEPS, 3))}, None, r"env/state has shape \(6, 3\).*--state-width"),
    "no step": ({"policy__actions": np.zeros((0, 4))}, None, "too few for a step"),
    "a wild action": ({"policy__actions": np.full((5, 4), 101.0)}, None, "action 101.0 is outside .*other bounds"),
    "not a number": ({"policy__actions": np.full((5, 4), np.nan)}, None, "policy/actions is not finite"),
    "too great a number": ({"env__state": np.full((STEPS, 5), 1e39)}, None, "env/state is not finite"),
    "a missing frame": ({"kind": "jpg"}, drop_a_frame, "has 5 frames, but no frame3"),
    "another camera": ({}, drop_the_camera, "there is no camera 0, only 2"),
    "no picture": ({"kind": "jpg"}, spoil("frame2"), "cannot identify image frame2; download it again"),
    "no film": ({}, spoil("frames"), "Invalid data found when processing input; download it again"),
    "an unknown order": ({"said": "YUV"}, None, "image_format is 'YUV'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    how, change, why = BROKEN[case]
    path = write(tmp_path / "hdf5/one.hdf5", **how)
    if change:
        change(path)
    with pytest.raises(BrokenFile, match=rf"^{re.escape(str(path))}: .*{why}"):
        robonet.read_file(args(path.parent), path)


def test_a_film_is_shown_as_a_player_shows_it_and_a_torn_one_is_told(tmp_path: Path) -> None:
    noise = list(np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8))
    path = shared.write(tmp_path / "a.mp4", noise, options={"movflags": "faststart"})
    straight = [np.asarray(picture) for picture in robonet.decode_mp4(path.read_bytes())]
    turned = [np.asarray(picture) for picture in robonet.decode_mp4(shared.turned(path, (0, 1, 1, 0)).read_bytes())]
    np.testing.assert_array_equal(turned, np.swapaxes(straight, 1, 2))
    with pytest.raises(ValueError, match=r"it ends after \d+ of 30 frames"):
        robonet.decode_mp4(shared.torn(path, 0.5).read_bytes())


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    for wrong in ({"size": 0}, {"camera": -1}, {"action_width": 0}, {"low": 3.0, "high": 2.0}):
        with pytest.raises(UserError, match="must "):
            args(tmp_path, **wrong)
