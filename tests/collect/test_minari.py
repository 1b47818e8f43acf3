"""To Minari and back, and data sets from elsewhere, in a folder of Minari's own for each test."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from collect import minari as script
from collect.files import with_labels
from collect.pool import WorkerPool
from tests.scripts import run_script
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BOX = ActionSpec(kind="Box", low=(-1.0, 0.0), high=(1.0, 3.0))
KINDS = {
    "Discrete": ActionSpec(kind="Discrete", nvec=(3,)),
    "MultiDiscrete": ActionSpec(kind="MultiDiscrete", nvec=(2, 5)),
    "Box": BOX,
}


@pytest.fixture(autouse=True)
def datasets(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    script.open_dataset.cache_clear()
    return tmp_path / "minari"


def recorded(path: Path, action: ActionSpec, variables: int = 2, episodes: int = 3) -> Path:
    """Noise, which no JPEG keeps, and numbers that float32 holds but no decimal does."""
    rng = np.random.default_rng(1)
    names = tuple(f"v{i}" for i in range(variables))
    env_spec = EnvSpec(
        name="noise", frame_shape=(12, 10, 3), action=action, variables=names, classes=("a", "b"), fps=7.5
    )
    with StoreWriter(path, env_spec, {}) as writer:
        for i in range(episodes):
            n = 5 + i
            if action.kind == "Box":
                actions = rng.uniform(action.low, action.high, (n, 2)).astype(np.float32)
            else:
                actions = rng.integers(action.nvec, size=(n, len(action.nvec))).reshape(n, *action.shape)
            actions[-1] = 0
            ended = np.arange(n) == n - 2
            episode = {
                "frames": rng.integers(256, size=(n, 12, 10, 3), dtype=np.uint8),
                "action": actions,
                "reward": np.append(rng.normal(size=n - 1), 0).astype(np.float32),
                "terminated": ended & (i % 2 == 0),
                "truncated": ended & (i % 2 == 1),
            }
            if variables:
                episode["variables"] = rng.normal(size=(n, variables)).astype(np.float32)
            writer.append(with_labels(episode, label=i % 2, split=i % 3))
    return path


def equal(a: Path, b: Path) -> None:
    one, other = Store(a), Store(b)
    assert (one.env_spec, one.array_names) == (other.env_spec, other.array_names)
    np.testing.assert_array_equal(one.episode_ends, other.episode_ends)
    for name in one.array_names:
        x, y = one.read(name, 0, one.n_rows), other.read(name, 0, other.n_rows)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def bring_in(tmp_path: Path, dataset: str = "toys/noise-v0", **changes: Any) -> Store:
    script.main(script.Args(dataset=dataset, out=tmp_path / "back.zarr", num_workers=1, **changes))
    return Store(tmp_path / "back.zarr")


def send_out(store: Path, dataset: str = "toys/noise-v0") -> None:
    script.main(script.Args(export=str(store), dataset=dataset))


def test_a_store_comes_back_equal_through_the_command_line(
    tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "data.zarr", KINDS["Discrete"])
    monkeypatch.chdir(tmp_path)
    run_script("collect/minari.py", ["--dataset", "toys/noise-v0", "--export", "data.zarr"])
    assert "toys/noise-v0: 3 episodes, 18 frames" in capsys.readouterr().out
    run_script(
        "collect/minari.py", ["--dataset", "toys/noise-v0", "--out", "back.zarr", "--num-workers", "2"], WorkerPool
    )
    assert "back.zarr: 3 episodes, 18 frames" in capsys.readouterr().out
    equal(tmp_path / "data.zarr", tmp_path / "back.zarr")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variables", [0, 2])
def test_what_goes_out_is_what_minari_reads(tmp_path: Path, kind: str, variables: int) -> None:
    """By Minari's own reader, and then back in by ours."""
    recorded(tmp_path / "data.zarr", KINDS[kind], variables)
    send_out(tmp_path / "data.zarr")
    store, dataset = Store(tmp_path / "data.zarr"), minari.load_dataset("toys/noise-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 15)
    assert dataset.observation_space == gym.spaces.Box(0, 255, (12, 10, 3), np.uint8)
    for i, theirs in enumerate(dataset):
        ours = store.read_episode(i)
        np.testing.assert_array_equal(theirs.observations, ours["frames"])
        for name, array in {"actions": "action", "rewards": "reward", "terminations": "terminated"}.items():
            np.testing.assert_array_equal(getattr(theirs, name), ours[array][:-1])
        assert theirs.truncations.tolist() == ours["truncated"][:-1].tolist()
        assert all(dataset.action_space.contains(a) for a in theirs.actions)
    folder = script.dataset_folder("toys/noise-v0")
    back = [script.read_file(folder, ("",), 0, i)[0] for i in range(3)]
    for i, episode in enumerate(back):
        assert episode.keys() == set(store.array_names)
        for name, array in episode.items():
            np.testing.assert_array_equal(array, store.read(name, *store.episode_bounds(i)), strict=True)
    assert script.make_env_spec(script.open_dataset(folder), ("",), 0) == store.env_spec


@pytest.mark.parametrize("damaged", ["text", "{}", "[1]", '{"world": {"nam": "toy"}, "infos": []}', 7, None])
def test_a_world_among_the_metadata_that_is_damaged(tmp_path: Path, damaged: object) -> None:
    send_out(recorded(tmp_path / "data.zarr", BOX))
    path = tmp_path / "minari/toys/noise-v0/data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {script.METADATA_KEY: damaged}))
    with pytest.raises(UserError, match=r"toys/noise-v0 has a damaged worldmodel in its metadata \(.*\); download it"):
        bring_in(tmp_path)


def test_a_store_of_no_variables_goes_out_and_comes_back(tmp_path: Path) -> None:
    """Having an array of none is not the same as having no array."""
    made_elsewhere(FLAT, PICTURE)
    script.main(script.Args(dataset="other/toy-v3", out=tmp_path / "data.zarr", num_workers=1))
    send_out(tmp_path / "data.zarr")
    assert bring_in(tmp_path).read("variables", 0, 6).shape == (6, 0)
    equal(tmp_path / "data.zarr", tmp_path / "back.zarr")


def made_elsewhere(observations: Any, space: gym.Space, **changes: Any) -> None:
    """A data set of Minari's own making: float64 rewards, JPEG frames, no infos."""
    n = 5
    buffer = EpisodeBuffer(
        observations=observations,
        actions=np.arange(n) % 3,
        rewards=np.arange(n) / 2,
        terminations=np.arange(n) == n - 1,
        truncations=np.zeros(n, bool),
    )
    spaces = {"observation_space": space, "action_space": gym.spaces.Discrete(3)} | changes
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers("other/toy-v3", [buffer], **spaces)


PICTURE = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
FLAT = np.full((6, 16, 16, 3), 1, np.uint8) * (40 * np.arange(6, dtype=np.uint8))[:, None, None, None]


def test_a_data_set_from_elsewhere(tmp_path: Path) -> None:
    made_elsewhere(FLAT, PICTURE)
    store = bring_in(tmp_path, "other/toy-v3")
    episode = store.read_episode(0)
    assert episode["frames"][:, 8, 8].tolist() == [[40 * t] * 3 for t in range(6)]
    assert episode["action"].tolist() == [0, 1, 2, 0, 1, 0]
    assert episode["reward"].tolist() == [0, 0.5, 1, 1.5, 2, 0]
    assert episode["terminated"].tolist() == [False] * 4 + [True, False]
    assert (episode["variables"].shape, episode["variables"].dtype) == ((6, 0), np.float32), "what a dream asks for"
    assert (store.env_spec.name, store.env_spec.action) == ("other-toy-v3", KINDS["Discrete"])
    folder = shutil.copytree(tmp_path / "minari/other/toy-v3", tmp_path / "elsewhere")
    script.main(script.Args(dataset=str(folder), out=tmp_path / "again.zarr", num_workers=1))
    equal(tmp_path / "back.zarr", tmp_path / "again.zarr")


def test_pictures_of_any_size_and_grey_ones_are_scaled(tmp_path: Path) -> None:
    made_elsewhere(FLAT[..., :1], gym.spaces.Box(0, 255, (16, 16, 1), np.uint8))
    store = bring_in(tmp_path, "other/toy-v3", size=8)
    assert store.env_spec.frame_shape == (8, 8, 3)
    assert store.read_episode(0)["frames"][:, 4, 4].tolist() == [[40 * t] * 3 for t in range(6)]
    script.main(script.Args(dataset="other/toy-v3", out=tmp_path / "as_they_are.zarr", num_workers=1))
    assert Store(tmp_path / "as_they_are.zarr").env_spec.frame_shape == (16, 16, 3)


def test_actions_that_are_never_0_come_back(tmp_path: Path) -> None:
    away = ActionSpec(kind="Box", low=(0.5, 1.0), high=(1.0, 3.0))
    send_out(recorded(tmp_path / "data.zarr", away))
    assert len(bring_in(tmp_path).episode_ends) == 3
    equal(tmp_path / "data.zarr", tmp_path / "back.zarr")


def test_a_picture_in_a_dictionary(tmp_path: Path) -> None:
    vector = gym.spaces.Box(-1, 1, (2,))
    space = gym.spaces.Dict({"eye": PICTURE, "other": PICTURE, "pose": vector})
    made_elsewhere({"eye": FLAT, "other": 255 - FLAT, "pose": np.zeros((6, 2), np.float32)}, space)
    with pytest.raises(UserError, match=r"has several uint8 images .*choose one with --image: eye, other"):
        bring_in(tmp_path, "other/toy-v3")
    assert bring_in(tmp_path, "other/toy-v3", image=("other",)).read("frames", 1, 2)[0, 0, 0].tolist() == [215] * 3


def test_nested_dictionaries_with_channels_first_and_a_state(tmp_path: Path) -> None:
    """Two pictures side by side; what else there is of numbers is kept."""
    first = gym.spaces.Box(0, 255, (3, 16, 16), np.uint8)
    vector, map_ = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(0, 1, (4, 4))
    eyes = gym.spaces.Dict({"left": first, "right": PICTURE})
    gear = gym.spaces.Discrete(9)
    space = gym.spaces.Dict({"eyes": eyes, "body": gym.spaces.Dict({"pose": vector, "gear": gear}), "map": map_})
    pose = np.arange(12, dtype=np.float32).reshape(6, 2) / 12
    seen = {
        "eyes": {"left": np.moveaxis(FLAT, 3, 1), "right": 255 - FLAT},
        "body": {"pose": pose, "gear": np.arange(6)},
        "map": np.zeros((6, 4, 4), np.float32),
    }
    made_elsewhere(seen, space)
    with pytest.raises(UserError, match=r"choose one with --image: eyes/left, eyes/right"):
        bring_in(tmp_path, "other/toy-v3")
    with pytest.raises(UserError, match=r"has no such uint8 image .*eyes/left, eyes/right"):
        bring_in(tmp_path, "other/toy-v3", image=("eyes/left", "eyes/up"))
    store = bring_in(tmp_path, "other/toy-v3", image=("eyes/left", "eyes/right"))
    assert store.env_spec.frame_shape == (16, 32, 3)
    assert store.read("frames", 1, 2)[0, 0, [0, 16]].tolist() == [[40] * 3, [215] * 3]
    assert store.env_spec.variables == ("body/gear", "body/pose_0", "body/pose_1")
    np.testing.assert_array_equal(store.read("variables", 0, 6), np.column_stack([np.arange(6), pose]))


def test_an_observation_with_its_channels_first(tmp_path: Path) -> None:
    made_elsewhere(np.moveaxis(FLAT, 3, 1), gym.spaces.Box(0, 255, (3, 16, 16), np.uint8))
    assert bring_in(tmp_path, "other/toy-v3").read("frames", 1, 2)[0, 8, 8].tolist() == [40] * 3


def test_few_long_episodes_are_cut_by_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = 200
    buffer = EpisodeBuffer(
        observations=np.zeros((n + 1, 16, 16, 3), np.uint8),
        actions=np.zeros(n, np.int64),
        rewards=np.zeros(n),
        terminations=np.arange(n) == n - 1,
        truncations=np.zeros(n, bool),
    )
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            "other/long-v0", [buffer], observation_space=PICTURE, action_space=gym.spaces.Discrete(3)
        )
    store = bring_in(tmp_path, "other/long-v0")
    assert "there are too few episodes to split (1)" in capsys.readouterr().out
    assert store.episode_splits().tolist() == ["train", "valid", "train", "test"]


def test_observations_without_a_picture(tmp_path: Path) -> None:
    made_elsewhere(np.zeros((6, 2), np.float32), gym.spaces.Box(-1, 1, (2,)))
    with pytest.raises(UserError, match=r"record the environment with collect/gym.py"):
        bring_in(tmp_path, "other/toy-v3")


def test_actions_that_a_store_cannot_hold(tmp_path: Path) -> None:
    made_elsewhere(FLAT, PICTURE, action_space=gym.spaces.Discrete(3, start=-1))
    with pytest.raises(UserError, match="cannot be recorded; wrap the environment"):
        bring_in(tmp_path, "other/toy-v3")


def test_an_episode_that_is_broken_is_named_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    send_out(recorded(tmp_path / "data.zarr", BOX))
    data = tmp_path / "minari/toys/noise-v0/data"
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
    store = bring_in(tmp_path)
    assert "2 episodes, 12 frames; 1 of 3 files were skipped" in capsys.readouterr().out
    assert f"{data}: episode 1: " in (tmp_path / "back.zarr/skipped.txt").read_text()
    np.testing.assert_array_equal(
        store.read_episode(1)["action"], Store(tmp_path / "data.zarr").read_episode(2)["action"]
    )


ODD = {
    "rewards": np.zeros((5, 1)),
    "terminations": np.zeros((5, 2), bool),
    "observations": np.zeros((6, 12, 9, 3), np.uint8),
    "infos/variables": np.float32(1),
    "infos/label": np.zeros(6, np.float32),
    "infos/split": np.zeros(7, np.int64),
}


@pytest.mark.parametrize("name", ODD)
def test_an_episode_whose_arrays_are_odd_is_skipped_even_if_it_is_the_first(tmp_path: Path, name: str) -> None:
    send_out(recorded(tmp_path / "data.zarr", BOX))
    with h5py.File(tmp_path / "minari/toys/noise-v0/data/main_data.hdf5", "a") as file:
        del file[f"episode_0/{name}"]
        file[f"episode_0/{name}"] = ODD[name]
    assert len(bring_in(tmp_path).episode_ends) == 2
    assert "episode 0: " in (tmp_path / "back.zarr/skipped.txt").read_text()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "value"), [("rewards", np.nan), ("rewards", 1e39), ("infos/variables", np.inf), ("actions", np.nan)]
)
def test_an_episode_with_numbers_that_are_not_finite_is_skipped(tmp_path: Path, name: str, value: float) -> None:
    """As float32 has them, which ends at 3.4e38."""
    send_out(recorded(tmp_path / "data.zarr", BOX))
    with h5py.File(tmp_path / "minari/toys/noise-v0/data/main_data.hdf5", "a") as file:
        array = file[f"episode_1/{name}"][()]
        array = array if name == "infos/variables" else array.astype(np.float64)
        array.flat[-1] = value
        del file[f"episode_1/{name}"]
        file[f"episode_1/{name}"] = array
    store = bring_in(tmp_path)
    assert len(store.episode_ends) == 2
    text = (tmp_path / "back.zarr/skipped.txt").read_text()
    assert "episode 1: " in text and ("is not finite" in text or "action nan is outside" in text)


def test_a_store_without_steps_and_a_name_that_is_taken_leave_nothing_behind(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "film.zarr", EnvSpec(name="film"), {}) as writer:
        writer.append({"frames": np.zeros((3, 64, 64, 3), np.uint8)})
    with pytest.raises(UserError, match="has no array action, which Minari needs"):
        send_out(tmp_path / "film.zarr")
    assert not (tmp_path / "minari/toys").exists()
    send_out(recorded(tmp_path / "data.zarr", BOX))
    with pytest.raises(UserError, match=r"already exists, .*`minari delete` it"):
        send_out(tmp_path / "data.zarr")


def test_interrupted_in_its_midst_it_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "data.zarr", BOX)
    episode = Store.read_episode

    def interrupted(self: Store, i: int, *names: Any) -> Any:
        if i == 2:
            raise KeyboardInterrupt
        return episode(self, i, *names)

    monkeypatch.setattr(Store, "read_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        send_out(tmp_path / "data.zarr")
    assert not (tmp_path / "minari/toys/noise-v0").exists()
    monkeypatch.setattr(Store, "read_episode", episode)
    send_out(tmp_path / "data.zarr")
    bring_in(tmp_path)
    equal(tmp_path / "data.zarr", tmp_path / "back.zarr")


def test_names_that_are_none(tmp_path: Path) -> None:
    for name, why in {
        "": "no data set was given",
        "no version": "is not a Minari data set",
        "aa/bb-v9": "get it with `minari download`",
    }.items():
        with pytest.raises(UserError, match=why):
            bring_in(tmp_path, name)
    torn = tmp_path / "minari/aa/bb-v9/data"
    torn.mkdir(parents=True)
    (torn / "metadata.json").write_text(json.dumps({"data_format": "hdf5"}))
    with pytest.raises(UserError, match="cannot be opened by Minari"):
        bring_in(tmp_path, "aa/bb-v9")


def test_without_minari_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"^Minari is not installed; run pip install 'worldmodel\[minari\]'$"):
        bring_in(tmp_path)
