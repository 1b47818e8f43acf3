"""Recording: the same episodes however often it is cut short, and by however many processes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from collect import vizdoom as script
from collect.episodes import Exploration, cut_episode, play_group
from collect.pool import WorkerPool
from tests.scripts import run_script
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.store import Store
from worldmodel.models.loading import resolve_folder
from worldmodel.utils.checkpoint import codes_digest
from worldmodel.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COLLECT = [sys.executable, str(ROOT / "collect" / "vizdoom.py"), "--policy", "random", "--num-workers", "2"]


def collect(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Record as the command does in the store's folder, but with forked processes."""
    said, told, status, given = io.StringIO(), io.StringIO(), 0, [*COLLECT[2:], "--out", str(out), *flags]
    with contextlib.chdir(out.parent), contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            run_script("collect/vizdoom.py", given, WorkerPool)
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(given, status, said.getvalue(), told.getvalue())


def same(a: Path, b: Path) -> None:
    one, other = Store(a), Store(b)
    np.testing.assert_array_equal(one.episode_ends, other.episode_ends)
    assert (
        one.array_names == other.array_names == ("action", "frames", "reward", "terminated", "truncated", "variables")
    )
    for name in one.array_names:
        np.testing.assert_array_equal(one.read(name, 0, one.n_rows), other.read(name, 0, other.n_rows))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, forked: None) -> Path:
    """60 pieces of 50 frames in one go: two commits."""
    out = tmp_path_factory.mktemp("whole") / "data.zarr"
    done = collect(out, "--episodes", "60", "--length", "50")
    assert done.returncode == 0, done.stderr
    assert "60 episodes, 3,000 frames, 50.0 frames per episode" in done.stdout
    assert "of the bare engine's" in done.stdout
    assert [p.name for p in out.parent.iterdir()] == ["data.zarr"]
    return out


def test_what_was_recorded(recorded: Path) -> None:
    store = Store(recorded)
    first = store.read_episode(0)
    assert (first["frames"].shape, first["frames"].dtype) == ((50, 64, 64, 3), np.uint8)
    assert first["variables"][0] == 92
    assert first["reward"].tolist() == [4.0] * 49 + [0.0]
    assert first["truncated"].tolist() == [False] * 48 + [True, False]
    assert first["action"][-1] == 0
    assert len({store.read_episode(i, ["frames"])["frames"].tobytes() for i in range(60)}) == 60
    assert set(store.read("action", 0, store.n_rows)) == {0, 1, 2, 3}


def test_killed_and_gone_on_with_by_other_processes_it_is_the_same_store(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "data.zarr"
    flags = ["--episodes", "60", "--length", "50"]
    running = subprocess.Popen([*COLLECT, "--out", str(out), *flags], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while committed(out) == 0:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = Store(out)
    assert len(kept.episode_ends) < 60
    for name in kept.array_names:
        np.testing.assert_array_equal(kept.read(name, 0, kept.n_rows), Store(recorded).read(name, 0, kept.n_rows))
    done = collect(out, *flags, "--num-workers", "1")
    assert done.returncode == 0, done.stderr
    same(out, recorded)
    again = collect(out, *flags)
    assert (again.returncode, "was complete already" in again.stdout) == (0, True)


def committed(out: Path) -> int:
    try:
        return json.loads((out / "zarr.json").read_text())["attributes"]["commit"]["episodes"]
    except FileNotFoundError:
        return 0


def test_another_frame_size_and_a_torn_store_are_one_sentence(recorded: Path, tmp_path: Path) -> None:
    out = shutil.copytree(recorded, tmp_path / "data.zarr")
    other = collect(out, "--length", "50", "--size", "32", "--episodes", "61")
    assert other.returncode == 2
    assert re.fullmatch(r"error: \S+data.zarr was recorded with world.*64.* but .*32.* was asked for.*\n", other.stderr)
    same(out, recorded)
    (out / "data/frames/c.2.0.0.0").unlink()
    torn = collect(out, "--length", "50", "--episodes", "61")
    assert torn.returncode == 2
    assert re.fullmatch(r"error: \S+data.zarr: array data/frames is damaged .*collect again\n", torn.stderr)


class Counting(gym.Env[np.ndarray, int]):
    """Shows its clock and its seed; dies after some steps."""

    def __init__(self, length: int = 7) -> None:
        self.length = length

    observation_space = gym.spaces.Box(0, 255, (1, 1, 3), np.uint8)
    action_space = gym.spaces.Discrete(5)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, float]]:
        self.t, self.seed = 0, (seed or 0) % 251
        return self.see()

    def see(self) -> tuple[np.ndarray, dict[str, float]]:
        return np.array([[[self.t % 256, self.seed, 0]]], np.uint8), {"CLOCK": float(self.t)}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, float]]:
        self.t += 1
        frame, info = self.see()
        return frame, float(action), self.t == self.length, False, info


WORLD = EnvSpec(
    name="counting", frame_shape=(1, 1, 3), action=ActionSpec(kind="Discrete", nvec=(5,)), variables=("CLOCK",)
)


def always_four(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.full(frames.shape[1], 4)


def test_the_clock_of_a_played_episode() -> None:
    nothing = Exploration(epsilon=0, random_share=0)
    first, second = play_group([Counting(), Counting()], WORLD, always_four, nothing, seed=0, group=0)
    assert first["frames"][:, 0, 0, 0].tolist() == first["variables"][:, 0].tolist() == list(range(8))
    assert first["action"].tolist() == [4] * 7 + [0]
    assert first["reward"].tolist() == [4.0] * 7 + [0.0]
    assert first["terminated"].tolist() == [False] * 6 + [True, False]
    assert not first["truncated"].any()
    assert first["frames"][0, 0, 0, 1] != second["frames"][0, 0, 0, 1]  # another seed
    cut = cut_episode(first, 4)
    assert [piece["variables"][:, 0].tolist() for piece in cut] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [piece["action"].tolist() for piece in cut] == [[4, 4, 4, 0]] * 2
    assert [piece["truncated"].tolist() for piece in cut] == [[False, False, True, False], [False] * 4]
    assert [piece["terminated"].tolist() for piece in cut] == [[False] * 4, [False, False, True, False]]
    assert len(cut_episode(first, 5)) == 1
    assert cut_episode(first, 9) == []


def test_the_share_of_random_steps_and_how_long_they_are_held() -> None:
    """The agent always takes 4, so every other action is random: four fifths of the random ones."""
    how = Exploration(epsilon=0.3, hold=(5,), random_share=0)
    (episode,) = play_group([Counting(20_000)], WORLD, always_four, how, seed=1, group=0)
    actions = episode["action"][:-1]
    random = actions != 4
    assert abs(random.mean() - 0.8 * 0.3) < 0.03
    changed = (actions[1:] != actions[:-1])[random[:-1]]
    again = 0.3 / (0.3 + 5 * 0.7) / 5  # that the next held action begins at once, and is the same
    assert abs(changed.mean() - (1 - again) / 5) < 5 * np.sqrt(0.16 / len(changed))
    everything = Exploration(epsilon=0.0, random_share=1.0)
    (episode,) = play_group([Counting(2000)], WORLD, always_four, everything, seed=1, group=0)
    assert abs((episode["action"] != 4).mean() - 0.8) < 0.1
    with pytest.raises(UserError, match="random_share must be a fraction from 0 to 1, not 2"):
        Exploration(random_share=2)


@contextlib.contextmanager
def squares(folder: Path) -> Iterator[Callable[[int], int]]:
    def run(i: int) -> int:
        if i == 5 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if i == 99:
            raise RuntimeError("engine gone")
        return i * i

    yield run


def test_a_process_that_dies_is_replaced_and_its_task_done_again(tmp_path: Path, forked: None) -> None:
    said: list[str] = []
    with WorkerPool(partial(squares, tmp_path), 2, said.append) as pool:
        assert list(pool.map(range(12))) == [i * i for i in range(12)]
        assert said == ["a process died in task 5 (killed); another one repeats it"]
        with pytest.raises(UserError, match=r"task 99 crashed 3 processes .*engine gone"):
            list(pool.map([99]))


ENDLESS = """
import contextlib, fcntl, sys, time
from functools import partial
from collect.pool import WorkerPool

@contextlib.contextmanager
def held(path):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda task: time.sleep(600)

if __name__ == "__main__":
    with WorkerPool(partial(held, sys.argv[1]), 1) as pool:
        print("ready", flush=True)
        list(pool.map([1]))
"""


def test_a_process_dies_with_its_parent_in_the_middle_of_a_task(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    command = [sys.executable, str(tmp_path / "endless.py"), str(tmp_path / "lock")]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
    with open(tmp_path / "lock") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        parent.kill()
        parent.wait()
        fcntl.flock(file, fcntl.LOCK_EX)  # which is free as soon as that process is dead


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_collector_that_is_stopped_leaves_no_engine(end: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    running = subprocess.Popen(
        [*COLLECT, "--out", str(tmp_path / "data.zarr"), "--length", "50", "--num-workers", "1"],
        env={**os.environ, "TMPDIR": str(tmp_path / "engines")},
        stderr=subprocess.PIPE,
    )
    while committed(tmp_path / "data.zarr") == 0:
        assert running.poll() is None
        time.sleep(0.01)
    assert list((tmp_path / "engines").glob("vizdoom-*"))
    running.send_signal(end)
    _, told = running.communicate()
    while list((tmp_path / "engines").iterdir()):
        time.sleep(0.05)
    if end == signal.SIGTERM:
        assert running.returncode == 130
        assert told.endswith(b"interrupted; run the same command again to resume\n")


def test_groups_of_episodes_take_the_policies_in_turn(tmp_path: Path, forked: None) -> None:
    """Standing still, then walking to and fro, four episodes each; the third group stands still again."""
    out = tmp_path / "data.zarr"
    exact = ("--epsilon", "0", "--random-share", "0")
    flags = ("--scenario", "take_cover", "--policy", "cycle:0x1", "cycle:1x3,2x3", *exact)
    done = collect(out, *flags, "--episodes", "12")
    assert done.returncode == 0, done.stderr
    store = Store(out)
    used = [set(store.read_episode(i)["action"][:-1].tolist()) for i in range(12)]
    assert used == [{0}] * 4 + [{1, 2}] * 4 + [{0}] * 4
    assert store.settings["policy"] == ["cycle:0x1", "cycle:1x3,2x3"]
    again = collect(out, *flags[:2], "--policy", "cycle:0x1", *exact, "--episodes", "12")
    assert again.returncode == 2 and "but cycle:0x1 was asked for" in again.stderr


def test_a_blind_cycle_is_the_same_whatever_its_process_played_before() -> None:
    """In group 28 all four episodes begin with random actions, so that the cycle is first asked amid them."""
    args = script.Args(scenario="take_cover", policy=("cycle:1x3,2x3",), epsilon=0.9, hold=(8.0,), random_share=0)
    with script.worker(args) as one:
        one(27)
        after = one(28)
    with script.worker(args) as one:
        alone = one(28)
    for a, b in zip(after, alone, strict=True):
        np.testing.assert_array_equal(a["action"], b["action"])


def test_a_policy_with_the_eyes_of_a_world_is_recorded_with_the_frames_that_were_there() -> None:
    args = script.Args(scenario="take_cover", policy=("take_cover_dream",), epsilon=0, random_share=0)
    with script.worker(args) as one, script.worker(replace(args, obs_vqvae="take_cover")) as other:
        bare, seen = one(0)[0], other(0)[0]
    assert np.array_equal(bare["frames"][0], seen["frames"][0]), "not its reconstruction"
    assert not np.array_equal(bare["action"][:30], seen["action"][:30]), "on which it acts, though"
    with contextlib.closing(script.make_env(args)) as env:
        settings = script.settings(replace(args, obs_vqvae="take_cover"), env.env_spec, 0)
        assert settings["eyes"] == codes_digest(resolve_folder("take_cover") / "vqvae")
        assert "eyes" not in script.settings(args, env.env_spec, 0)
