"""Recording of Gymnasium environments: two of Gymnasium's own, and toys that show their clock."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from collect import gym as script
from collect.episodes import cut_episode
from collect.pool import WorkerPool
from collect.record import record_episodes
from envs.gym_frames import time_limit
from envs.recorded_env import make_recorded_env
from tests.scripts import run_script
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Clock(gym.Env[np.ndarray, Any]):
    """A grey picture (8, 6, 1) that tells the step; ends after a number of steps; rewards its actions' sum."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(self, space: gym.Space[Any], length: int = 5, render_mode: str | None = None) -> None:
        self.action_space, self.length, self.render_mode = space, length, render_mode
        self.observation_space = gym.spaces.Box(0, 255, (8, 6, 1), np.uint8)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def see(self) -> np.ndarray:
        return np.full((8, 6, 1), 10 * self.t, np.uint8)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.see(), float(np.sum(action)), self.t == self.length, False, {}


class Vector(Clock):
    """The same without a picture to see, and with one to show."""

    def __init__(self, shows: bool = True, render_mode: str | None = None) -> None:
        super().__init__(gym.spaces.Discrete(2), render_mode=render_mode)
        self.observation_space, self.shows = gym.spaces.Box(-9, 9, (2,), np.float32), shows

    def see(self) -> np.ndarray:
        return np.array([self.t, -self.t], np.float32)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        return np.full((100, 50, 3), (self.t, 2, 3), np.uint8) if self.shows else None


class Wild(Vector):
    """Of its seeds a third, or all, are spoilt at the third step, by a number that float32 cannot hold."""

    def __init__(self, what: str, value: str, all: bool = False, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.what, self.value, self.all = what, float(value), all
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.spoilt = self.all or (seed or 0) % 3 == 1
        return super().reset(seed=seed)

    def see(self) -> np.ndarray:
        value = self.value if self.spoilt and self.what == "observation" and self.t == 3 else -self.t
        return np.array([self.t, value], np.float64)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, *rest = super().step(action)
        return seen, self.value if self.spoilt and self.what == "reward" and self.t == 3 else reward, *rest


class Negative(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """Turns dark into light."""

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return 255 - observation


class Broken(Clock):
    """It cannot begin."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(gym.spaces.Discrete(2))

    def see(self) -> np.ndarray:
        raise RuntimeError("no\ndisplay")


SPACES = {
    "Discrete": gym.spaces.Discrete(3),
    "MultiDiscrete": gym.spaces.MultiDiscrete([2, 3]),
    "Box": gym.spaces.Box(np.array([-1, 0], np.float32), np.array([0, 2], np.float32)),
    "Endless": gym.spaces.Box(-np.inf, np.inf, (2,)),
    "Whole": gym.spaces.Box(0, 5, (2,), np.int64),
    "Late": gym.spaces.Discrete(3, start=1),
    "Tuple": gym.spaces.Tuple([gym.spaces.Discrete(2)]),
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for name, space in SPACES.items():
        gym.register(f"Clock{name}-v0", entry_point=Clock, kwargs={"space": space}, max_episode_steps=9)
    gym.register("ClockForever-v0", entry_point=Clock, kwargs={"space": SPACES["Discrete"]})
    gym.register("ClockBroken-v0", entry_point=Broken, max_episode_steps=9)
    gym.register("ClockVector-v0", entry_point=Vector, max_episode_steps=9)
    gym.register("ClockWild-v0", entry_point=Wild, max_episode_steps=9)
    yield
    for name in [n for n in gym.registry if n.startswith("Clock")]:
        del gym.registry[name]


def group(**changes: Any) -> list[dict[str, np.ndarray]]:
    with script.playing(script.Args(size=8, **changes)) as one:
        return one(0)


def world(**changes: Any) -> Any:
    return script.make_frames(script.Args(size=8, **changes)).env_spec


@pytest.mark.parametrize("kind", ["Discrete", "MultiDiscrete", "Box"])
def test_pictures_are_kept_as_they_are_and_actions_of_each_kind(kind: str) -> None:
    episodes = group(env_id=f"Clock{kind}-v0")
    assert len(episodes) == script.LANES
    for e in episodes:
        assert (e["frames"].shape, e["frames"].dtype) == ((6, 8, 8, 3), np.uint8)
        assert e["frames"][:, 4, 4].tolist() == [[10 * t] * 3 for t in range(6)]
        assert e["terminated"].tolist() == [False] * 4 + [True, False]
        assert e["action"].dtype == np.dtype(world(env_id=f"Clock{kind}-v0").action.dtype)
        np.testing.assert_allclose(e["reward"], e["action"].reshape(6, -1).sum(1), rtol=1e-6)
        assert not e["action"][-1].any() and e["variables"].shape == (len(e["frames"]), 0)
    assert len({e["action"].tobytes() for e in episodes}) > 1


def test_what_an_environment_shows_where_it_sees_no_picture() -> None:
    episode = group(env_id="ClockVector-v0")[0]
    assert episode["frames"][:, 3, 3].tolist() == [[t, 2, 3] for t in range(6)]
    assert episode["variables"].tolist() == [[t, -t] for t in range(6)]
    assert world(env_id="ClockVector-v0").variables == ("obs_0", "obs_1")


def test_a_time_limit_truncates() -> None:
    episode = group(env_id="ClockForever-v0", max_episode_steps=3)[0]
    assert episode["truncated"].tolist() == [False, False, True, False]
    assert not episode["terminated"].any()
    one = world(env_id="ClockForever-v0", max_episode_steps=3)
    assert (one.max_episode_steps, one.fps, one.name) == (3, 7.0, "ClockForever-v0")


def test_wrappers_are_applied_in_order_and_are_part_of_the_recipe() -> None:
    names = (f"{__name__}:Negative", f"{__name__}:Negative", f"{__name__}:Negative")
    args: dict[str, Any] = {"env_id": "ClockDiscrete-v0", "wrappers": names}
    episode = group(**args)[0]
    assert episode["frames"][:, 4, 4, 0].tolist() == [255 - 10 * t for t in range(6)]
    spec = EnvSpec.from_json(world(**args).to_json(), "store")
    assert spec.env_kwargs["wrappers"] == list(names)
    with pytest.raises(UserError, match="was recorded from 'ClockDiscrete-v0'"):
        make_recorded_env(spec)
    with contextlib.closing(make_recorded_env(spec, trusted=True)) as env:
        assert env.reset(seed=1)[0][4, 4, 0] == 255
    with contextlib.closing(script.make_frames(script.Args(size=8, **args))) as env:
        assert script.settings(script.Args(**args), env.env_spec)["wrappers"] == list(names)


def test_an_environments_own_time_limit() -> None:
    assert time_limit("CartPole-v1", {}) == 500
    gym.register("Endless-v0", lambda **how: gym.make("CartPole-v1", **how).unwrapped)
    assert time_limit("Endless-v0", {}) == 0


def test_the_environment_can_be_made_again_from_what_the_store_keeps() -> None:
    """With its frames, in its size, and its own arguments; but it may run any code, so only for who trusts it."""
    spec = world(env_id="ClockVector-v0", env_kwargs='{"shows": true}', max_episode_steps=3)
    with pytest.raises(UserError, match="ClockVector-v0 was recorded from 'ClockVector-v0', which is not part of this"):
        make_recorded_env(spec)
    with contextlib.closing(make_recorded_env(EnvSpec.from_json(spec.to_json(), "store"), trusted=True)) as env:
        frames = [env.reset(seed=1)[0]]
        for _ in range(3):
            *_, truncated, variables = step = env.step(0)
            frames.append(step[0])
    recorded = group(env_id="ClockVector-v0", max_episode_steps=3, policy="random")[0]["frames"]
    assert np.array_equal(frames, recorded) and truncated
    assert variables == {"obs_0": 3.0, "obs_1": -3.0}


POLICY = """
    import numpy as np

    def upright(observation, rng):
        return int(observation[2] + observation[3] > 0)  # towards where the pole falls: lasts for hundreds of steps

    def wild(observation, rng):
        return 7
"""


def test_cart_pole_by_a_function_in_two_processes(
    tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_agent.py").write_text(textwrap.dedent(POLICY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    flags = "--env-id CartPole-v1 --max-episode-steps 60 --episodes 3 --epsilon 0 --random-share 0 --size 16"
    more = "--policy my_agent:upright --num-workers 2 --out data.zarr"
    run_script("collect/gym.py", f"{flags} {more}".split(), WorkerPool)
    del sys.modules["my_agent"]
    said = capsys.readouterr()
    assert "data.zarr is complete: 3 episodes, 183 frames, 61.0 frames per episode" in said.out
    assert "episodes" in said.err and "frames/s" in said.out
    store = Store(tmp_path / "data.zarr")
    assert len({store.read("frames", 61 * i, 61 * i + 61).tobytes() for i in range(3)}) == 3
    seen = store.read_episode(0)
    assert seen["frames"].shape == (61, 16, 16, 3)
    assert len({frame.tobytes() for frame in seen["frames"]}) > 5  # it moves
    chosen = (seen["variables"][:-1, 2] + seen["variables"][:-1, 3] > 0).astype(int)
    np.testing.assert_array_equal(seen["action"][:-1], chosen)


class Here:
    """The pool's `map`, in this process."""

    def __init__(self, args: script.Args) -> None:
        self.args = args

    def map(self, groups: Iterator[int]) -> Iterator[list[dict[str, np.ndarray]]]:
        with script.playing(self.args) as one:
            yield from map(one, groups)


@pytest.mark.parametrize("length", [0, 3])
def test_recording_goes_on_where_it_was_cut_short(tmp_path: Path, length: int) -> None:
    args = script.Args(env_id="ClockDiscrete-v0", size=8, length=length)
    one = world(env_id=args.env_id)

    def go(name: str, total: int) -> Path:
        with StoreWriter(tmp_path / name, one, script.settings(args, one)) as writer:
            record_episodes(Here(args), writer, script.LANES, total, length)  # type: ignore[arg-type]
            assert writer.n_episodes == total
        return tmp_path / name

    whole = Store(go("whole", 11))
    for total in (1, 2, 7, 11):
        parts = Store(go("parts", total))
    for name in whole.array_names:
        np.testing.assert_array_equal(parts.read(name, 0, parts.n_rows), whole.read(name, 0, whole.n_rows))
    assert set(np.diff(whole.episode_ends, prepend=0)) == {length or 6}
    assert whole.read_episode(1)["frames"][:, 0, 0, 0].tolist() == ([30, 40, 50] if length else [0, 10, 20, 30, 40, 50])


WILD = {"reward": (np.nan, "reward is not finite in row 2"), "observation": (1e39, "variables is not finite in row 3")}
"""Float32 ends at 3.4e38."""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", WILD)
@pytest.mark.parametrize("length", [0, 3])
def test_episodes_with_numbers_that_are_not_finite_are_skipped(
    tmp_path: Path, what: str, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    value, why = WILD[what]
    made = json.dumps({"what": what, "value": str(value)})  # JSON has no NaN
    args = script.Args(env_id="ClockWild-v0", env_kwargs=made, size=8, length=length)
    one = world(env_id=args.env_id, env_kwargs=made)

    def go(name: str, *totals: int) -> Store:
        for total in totals:
            with StoreWriter(tmp_path / name, one, {}) as writer:
                record_episodes(Here(args), writer, script.LANES, total, length)  # type: ignore[arg-type]
        return Store(tmp_path / name)

    whole, text = go("whole", 14), (tmp_path / "whole" / "skipped.txt").read_text()
    lines = text.splitlines()
    assert len(lines) > 2 and all(line.endswith(why) for line in lines)
    assert (
        f"{len(lines)} episodes were skipped; see {tmp_path}/whole/skipped.txt for the reasons"
        in capsys.readouterr().out
    )
    spoilt = {int(line.split()[1].rstrip(":")) for line in lines}
    with script.playing(args) as played:
        episodes = [episode for group in range(9) for episode in played(group)]
    kept = [episode for i, episode in enumerate(episodes) if i not in spoilt]
    for name in ("reward", "variables"):
        rows = np.concatenate([p[name] for e in kept for p in cut_episode(e, length)])[: whole.n_rows]
        assert np.isfinite(rows).all()
        np.testing.assert_array_equal(whole.read(name, 0, whole.n_rows), rows)
    parts = go("parts", 1, 2, 7, 14)  # cut short again and again
    for name in whole.array_names:
        np.testing.assert_array_equal(parts.read(name, 0, parts.n_rows), whole.read(name, 0, whole.n_rows))
    assert (tmp_path / "parts" / "skipped.txt").read_text() == text


def test_an_environment_whose_numbers_are_never_finite_is_given_up_on(tmp_path: Path) -> None:
    made = json.dumps({"what": "reward", "value": "-inf", "all": True})
    args = script.Args(env_id="ClockWild-v0", env_kwargs=made, size=8)
    with (
        StoreWriter(tmp_path / "data.zarr", world(env_id=args.env_id, env_kwargs=made), {}) as writer,
        pytest.raises(UserError, match="100 episodes in a row could not be recorded \\(the last one: reward"),
    ):
        record_episodes(Here(args), writer, script.LANES, 1, 0)  # type: ignore[arg-type]


def test_pieces_longer_than_all_episodes_are_given_up_on(tmp_path: Path) -> None:
    args = script.Args(env_id="ClockDiscrete-v0", size=8)
    with (
        StoreWriter(tmp_path / "data.zarr", world(env_id=args.env_id), {}) as writer,
        pytest.raises(UserError, match="100 episodes in a row had fewer than 7 frames"),
    ):
        record_episodes(Here(args), writer, script.LANES, 1, 7)  # type: ignore[arg-type]


def test_another_policy_is_another_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function is told by its file's content, so that one store never holds what two versions played."""
    monkeypatch.chdir(tmp_path)
    said = []
    for version in ("1", "2"):
        (tmp_path / "my_changing_agent.py").write_text(f"def act(observation, rng):\n    return {version}\n")
        args = script.Args(policy="my_changing_agent:act")
        said.append(script.settings(args, world(env_id="ClockVector-v0"))["policy"])
    assert said[0] != said[1] and all(s.startswith("my_changing_agent:act ") for s in said)


def test_a_function_that_returns_no_action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_wild_agent.py").write_text(textwrap.dedent(POLICY))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"my_wild_agent:wild: action 7 is outside .*; return an action of ClockVector"):
        group(env_id="ClockVector-v0", policy="my_wild_agent:wild", epsilon=0, random_share=0)
    for name in ("my_wild_agent:none", "no_such_agent:act"):
        with pytest.raises(UserError, match=f"there is no policy {name}"):
            group(env_id="ClockVector-v0", policy=name)


AGENTS = """
    import numpy as np
    class Agent:
        def __call__(self, seen, rng):
            return 1
    agent, number = Agent(), 7
    def batched(seen, rng):
        return np.array([1])
    def lost(seen, rng):
        return {}["weights"]
"""


def test_any_callable_plays_and_what_goes_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_other_agents.py").write_text(textwrap.dedent(AGENTS))
    (tmp_path / "my_broken_agents.py").write_text("import")
    monkeypatch.chdir(tmp_path)
    play: dict[str, Any] = {"env_id": "ClockVector-v0", "epsilon": 0, "random_share": 0}
    assert group(policy="my_other_agents:agent", **play)[0]["action"].tolist() == [1] * 5 + [0]
    args = script.Args(policy="my_other_agents:agent", **play)
    assert len(script.settings(args, world(**play))["policy"].split()[1]) == 64
    for name, why in {
        "my_other_agents:batched": r"the action has shape \(1,\), not \(\); return an action of ClockVector",
        "my_other_agents:lost": "my_other_agents:lost raised KeyError: 'weights'; fix it",
        "my_other_agents:number": "my_other_agents:number is 7, which cannot be called",
        "my_broken_agents:act": "there is no policy my_broken_agents:act",
        ":act": "there is no policy :act",
    }.items():
        with pytest.raises(UserError, match=why):
            group(policy=name, **play)


def test_an_environment_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = "gym.envs.classic_control:CartPoleEnv".replace("gym.", "gymnasium.", 1)
    said = f"import gymnasium\ngymnasium.register('ClockHere-v0', entry_point='{entry}', max_episode_steps=9)\n"
    (tmp_path / "my_own_world.py").write_text(said)
    monkeypatch.chdir(tmp_path)
    assert world(env_id="my_own_world:ClockHere-v0").name == "ClockHere-v0"


def test_a_policy_may_play_at_random_in_part() -> None:
    gym.register("ClockDoom-v0", entry_point="envs.vizdoom:VizdoomFrames", max_episode_steps=4)
    args = script.Args(env_id="ClockDoom-v0", policy="health_gathering_supreme@0.2")
    assert script.settings(args, script.make_frames(args).env_spec)["policy"].endswith("@0.2")


def test_the_policy_that_ships_plays_where_its_frames_fit() -> None:
    gym.register("ClockDoom-v0", entry_point="envs.vizdoom:VizdoomFrames", max_episode_steps=4)
    with script.playing(script.Args(env_id="ClockDoom-v0", policy="health_gathering_supreme", epsilon=0)) as one:
        assert [len(e["frames"]) for e in one(0)] == [5] * script.LANES
    with pytest.raises(UserError, match="was trained on 64x64 frames"):
        group(env_id="ClockVector-v0", policy="health_gathering_supreme")


REFUSED = {
    "no such environment": ({"env_id": "Nothing-v0"}, "Nothing-v0 cannot be made: .*; fix or install it, or give"),
    "no such module": ({"env_id": "nothing_here:Nothing-v0"}, "nothing_here:Nothing-v0 cannot be made"),
    "no such argument": ({"env_id": "CartPole-v1", "env_kwargs": '{"x": 1}'}, "CartPole-v1 cannot be made: .*'x'"),
    "not JSON": ({"env_kwargs": "x=1"}, "kwargs 'x=1' is not valid JSON"),
    "not finite": ({"env_kwargs": '{"x": NaN}'}, "is not valid JSON .NaN is not a finite number."),
    "no time limit": ({"env_id": "ClockForever-v0"}, "has no time limit, .*; give --max-episode-steps"),
    "no picture": (
        {"env_id": "ClockVector-v0", "env_kwargs": '{"shows": false}'},
        "renders no image as rgb_array; wrap the environment",
    ),
    "endless actions": ({"env_id": "ClockEndless-v0"}, "bounds are finite"),
    "whole numbers": ({"env_id": "ClockWhole-v0"}, "cannot be recorded; wrap the environment to have .* flat Box"),
    "not a dictionary": ({"env_kwargs": "[1]"}, "must be a dictionary"),
    "shown by the user": ({"env_kwargs": '{"render_mode": "human"}'}, "render_mode is chosen here"),
    "does not begin": ({"env_id": "ClockBroken-v0"}, "ClockBroken-v0 cannot be reset or rendered: no display; fix it"),
    "actions from 1": ({"env_id": "ClockLate-v0"}, "cannot be recorded; wrap the environment"),
    "a tuple": ({"env_id": "ClockTuple-v0"}, "cannot be recorded; wrap the environment"),
    "no such wrapper": (
        {"wrappers": ("gymnasium.wrappers:Nothing",)},
        "wrapper 'gymnasium.wrappers:Nothing' failed: .*; give module:name of a class or function that takes the env",
    ),
    "a wrapper without a module": ({"wrappers": ("Negative",)}, "wrapper 'Negative' failed: .*; give module:name"),
    "a wrapper that wants more": (
        {"wrappers": ("gymnasium.wrappers:TimeLimit",)},
        "wrapper .* failed: .*takes the env",
    ),
    "no wrapper": ({"wrappers": ("builtins:str",)}, "made str, not a gymnasium.Env; return the environment"),
    "too long": ({"env_id": "ClockDiscrete-v0", "length": 11}, "at most 10 frames"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_recorded_is_one_sentence(case: str, tmp_path: Path) -> None:
    changes, why = REFUSED[case]
    with pytest.raises(UserError, match=why):
        script.main(script.Args(out=tmp_path / "data.zarr", **changes))
    assert not (tmp_path / "data.zarr").exists()


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"episodes": 0}, {"size": 0}, {"num_workers": 0}, {"length": 1}, {"max_episode_steps": -1}):
        with pytest.raises(UserError):
            script.Args(**wrong)  # type: ignore[arg-type]
