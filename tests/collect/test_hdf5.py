"""HDF5 files of three layouts, and keys that are not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from collect import hdf5
from worldmodel.data.env_spec import ActionSpec
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("here")


def pictures(n: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)


def write(path: Path, arrays: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return path


def read(tmp_path: Path, source: Path, **how: Any) -> Store:
    hdf5.main(hdf5.Args(source=source, out=tmp_path / "out.zarr", size=0, num_workers=1, **how))
    return Store(tmp_path / "out.zarr")


def robomimic(path: Path, demos: int = 12, after: bool = False) -> Path:
    arrays: dict[str, Any] = {"mask/train": np.array([b"demo_0"])}
    for i in range(demos):
        n, group = 4 + i, f"data/demo_{i}"
        arrays |= {
            f"{group}/obs/agentview_image": pictures(n, i),
            f"{group}/obs/robot0_eef_pos": np.full((n, 3), i, np.float64),
            f"{group}/actions": np.full((n, 2), i / 20),
            f"{group}/rewards": np.append(np.zeros(n - 1), 1),
            f"{group}/dones": np.append(np.zeros(n - 1), 1),
        }
        if after:
            arrays[f"{group}/next_obs/agentview_image"] = pictures(n, i + 1)
            arrays[f"{group}/next_obs/robot0_eef_pos"] = np.full((n, 3), i + 0.5)
    return write(path, arrays)


def test_robomimic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = read(
        tmp_path, robomimic(tmp_path / "demos.hdf5"), layout="robomimic", variables=("obs/robot0_eef_pos",), fps=20
    )
    assert len(store.episode_ends) == 12 and "split" not in store.array_names
    rows = store.read_episode(10)  # demo_10, which is not the third
    assert rows["frames"][:, 0, 0, 0].tolist() == list(range(10, 24))
    assert rows["action"][:, 0].tolist() == [0.5] * 13 + [0]
    assert rows["reward"].tolist() == [0] * 12 + [1, 0] and rows["terminated"][-2]
    assert rows["variables"].tolist() == [[10, 10, 10]] * 14
    assert store.env_spec.variables == tuple(f"obs/robot0_eef_pos_{i}" for i in range(3))
    assert (store.env_spec.name, store.env_spec.fps) == ("demos", 20)
    assert store.env_spec.action == ActionSpec(kind="Box", low=(0, 0), high=(float(np.float32(0.55)),) * 2)
    assert "too few" not in capsys.readouterr().out


def test_robomimic_with_a_published_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = robomimic(tmp_path / "demos.hdf5")
    with h5py.File(path, "a") as file:
        del file["mask/train"]
        file["mask/train"] = np.array([f"demo_{i}".encode() for i in range(9)])
        file["mask/valid"] = np.array([b"demo_9", b"demo_10"])
    with pytest.raises(UserError, match="demo_11 is neither in mask/train nor in mask/valid; add it to one"):
        read(tmp_path, path, layout="robomimic")
    with h5py.File(path, "a") as file:
        del file["mask/valid"]
        file["mask/valid"] = np.array([b"demo_9", b"demo_10", b"demo_11"])
    store = read(tmp_path, path, layout="robomimic")
    assert [list(store.episode_indices(split)) for split in ("train", "valid")] == [list(range(9)), [9, 10, 11]]
    with pytest.raises(UserError, match="was recorded without a split 'test'"):
        store.episode_indices("test")
    shutil.rmtree(store.path)
    only_train = read(tmp_path, path, layout="robomimic", episodes="data/demo_[0-4]")
    assert "is not used, because all episodes are in the same list\nthere are too few" in capsys.readouterr().out
    assert len(only_train.episode_ends) == 5
    shutil.rmtree(only_train.path)
    robomimic(tmp_path / "more/demos.hdf5")
    path.rename(tmp_path / "more/listed.hdf5")
    assert "split" not in read(tmp_path, tmp_path / "more", layout="robomimic").array_names
    assert "not all files have these lists" in capsys.readouterr().out


def test_robomimic_with_the_observation_after_each_step(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "demos.hdf5", after=True)
    rows = read(tmp_path, path, layout="robomimic", variables=("obs/robot0_eef_pos",)).read_episode(2)
    assert rows["frames"][:, 0, 0, 0].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert rows["reward"].tolist() == [0, 0, 0, 0, 0, 1, 0], "no step is dropped"
    assert rows["variables"][-1].tolist() == [2.5] * 3


def test_d4rl_is_cut_at_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = {
        "observations": pictures(12),
        "actions": np.arange(12) % 3,
        "rewards": np.arange(12.0),
        "terminals": np.arange(12) == 3,
        "timeouts": np.arange(12) == 8,
    }
    store = read(tmp_path, write(tmp_path / "d4rl.hdf5", flat), layout="d4rl")
    assert "too few episodes to split (3); each with at least 48 frames is cut by time" in capsys.readouterr().out
    one, two, three = (store.read_episode(i) for i in range(3))
    assert [e["frames"][:, 0, 0, 0].tolist() for e in (one, two, three)] == [[0, 1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11]]
    assert [bool(e["terminated"][-2]) for e in (one, two, three)] == [True, False, False]
    assert one["reward"].tolist() == [0, 1, 5, 0]
    assert store.env_spec.action == ActionSpec(kind="Discrete", nvec=(3,))


def test_d4rl_with_next_observations(tmp_path: Path) -> None:
    flat = {"observations": pictures(4), "next_observations": pictures(4, 50), "actions": np.zeros((4, 2))}
    rows = read(tmp_path, write(tmp_path / "d4rl.hdf5", flat), layout="d4rl").read_episode(0)
    assert rows["frames"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 53]
    assert not rows["reward"].any(), "the file has none"


def test_a_folder_of_files_of_an_episode_each_and_a_few_long_ones_have_a_split(tmp_path: Path) -> None:
    for i in range(2):
        arrays = {"cam/left": pictures(200), "cam/right": pictures(200, 7), "control": np.zeros((199, 1), np.float32)}
        write(tmp_path / "runs" / f"{i}.h5", arrays)
    store = read(tmp_path, tmp_path / "runs", frames=("cam/left", "cam/right"), actions="control")
    assert store.env_spec.frame_shape == (8, 16, 3)
    assert store.read("frames", 3, 4)[0, 0, [0, 8], 0].tolist() == [3, 10]
    assert store.episode_splits().tolist() == ["train", "valid", "train", "test"] * 2


def test_groups_by_a_pattern(tmp_path: Path) -> None:
    runs = {f"run_{i}/{key}": value for i in range(11) for key, value in {"rgb": pictures(3), "u": np.ones(3)}.items()}
    path = write(tmp_path / "a.hdf5", runs | {"other/rgb": pictures(3)})
    assert len(read(tmp_path, path, episodes="run_*", actions="u").episode_ends) == 11
    with pytest.raises(UserError, match=r"no group matches 'walk_\*'; the file has other, run_0.*; set --episodes"):
        read(tmp_path, path, episodes="walk_*", actions="u")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({}, r"a.hdf5: there is no array actions, only cam, pose, text, u; choose one with --actions"),
        ({"actions": "u", "rewards": "r"}, "there is no array r, only cam, pose, text, u; choose one with --rewards"),
        ({"actions": "u", "frames": ("eye",)}, "there is no array eye, only cam.*; choose one with --frames"),
        (
            {"actions": "u", "frames": ("pose",)},
            r"pose is an array of float64 with shape \(4, 3\), not uint8 pictures; choose another of .* with --frames",
        ),
        ({"actions": "text"}, "text is an array of object .*, not of numbers; choose others with --actions"),
        ({"actions": "u", "timeouts": "t"}, "there is no array t, only .*; choose one with --timeouts"),
        ({"actions": "u", "variables": ("x",)}, "there is no array x, only cam.*; choose with --variables"),
        ({"layout": "robomimic"}, r"no group matches 'data/\*'; the file has cam, pose, text, u; set --episodes"),
    ],
)
def test_a_wrong_key_is_one_sentence_with_the_keys_that_are_there(
    tmp_path: Path, how: dict[str, Any], why: str
) -> None:
    arrays = {"cam": pictures(4), "pose": np.zeros((4, 3)), "u": np.zeros(4), "text": np.array([b"a"] * 4, object)}
    path = write(tmp_path / "a.hdf5", arrays)
    with pytest.raises(UserError, match=why):
        read(tmp_path, path, **how)
    assert not (tmp_path / "out.zarr").exists()


def test_several_pictures_have_to_be_chosen_from(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", {"a": pictures(4), "b": pictures(4), "actions": np.zeros(4)})
    with pytest.raises(UserError, match=r"it has several arrays of pictures, a, b; choose with --frames"):
        read(tmp_path, path)
    none = write(tmp_path / "b.hdf5", {"a": np.zeros((4, 3)), "actions": np.zeros(4)})
    with pytest.raises(UserError, match=r"it has no array of pictures, but a, actions; choose with --frames"):
        read(tmp_path, none)


def test_a_broken_group_is_named_and_the_others_kept(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "demos.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"], file["data/demo_2/actions"], file["data/demo_3/obs/agentview_image"]
        file["data/demo_2/actions"] = np.zeros((0, 2))
    store = read(tmp_path, path, layout="robomimic")
    assert store.read("frames", 0, store.n_rows)[store.episode_ends - 1, 0, 0, 0].tolist() == [
        *(3, 11, 13, 15, 17, 19, 21, 23, 25)
    ]
    why = (tmp_path / "out.zarr/skipped.txt").read_text().splitlines()
    for line, text in zip(
        why,
        ("1: there is no array actions", "2: actions is an array of float64 with shape (0, 2)", "3: it has no array"),
        strict=True,
    ):
        assert f"demos.hdf5: /data/demo_{text}" in line


def test_broken_files_are_named_and_the_others_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(11):
        write(tmp_path / "runs" / f"{i}.h5", {"a": pictures(4), "actions": np.zeros(4)})
    (tmp_path / "runs/11.h5").write_bytes(b"text")
    write(tmp_path / "runs/12.h5", {"a": pictures(4), "actions": np.zeros(9)})
    write(tmp_path / "runs/13.h5", {"a": pictures(4)[:, :4], "actions": np.zeros(4)})
    write(tmp_path / "runs/14.h5", {"a": pictures(4)})
    write(tmp_path / "runs/15.h5", {"a": pictures(4), "actions": np.full(4, np.nan)})
    assert len(read(tmp_path, tmp_path / "runs").episode_ends) == 11
    why = (tmp_path / "out.zarr/skipped.txt").read_text().splitlines()
    assert len(why) == 5
    for text in (
        "11.h5: ", "12.h5: it has 4 frames and 9 actions", "13.h5: it has frames (4, 8, 3)",
        "14.h5: there is no array actions", "15.h5: action nan is outside",
    ):  # fmt: skip
        assert any(text in line for line in why), (text, why)
