"""Policies of one's own in recordings: what they see, what they remember, and that a resumed recording is the same."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from collect import gym as script
from tests.collect.here import Here
from tests.envs.sb3_models import MODELS, SIDES, VECTOR, Noise, make
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

AGENTS = """
    import numpy as np

    class Remembers:
        '''What it does depends on all of the episode.'''
        def reset(self):
            self.seen = []

        def __call__(self, observation, rng):
            self.seen.append(observation)
            return int(abs(np.sum(self.seen)) + rng.integers(2)) % 3

    class Counts:
        '''Returns how many observations of the episode it has seen before, as far as there are actions.'''
        def reset(self):
            self.steps = -1

        def __call__(self, observation, rng):
            self.steps += 1
            return min(self.steps, 2)

    class Plain:
        def __call__(self, observation, rng):
            return 1

    class NeedsMore:
        def __init__(self, weights):
            pass

    class Silent:
        pass

    class Breaks:
        def reset(self):
            raise RuntimeError("no weights")

        def __call__(self, observation, rng):
            return 1
"""


class Shown(Noise):
    """Noise of seven steps, with a picture to record."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((8, 8, 3), self.t, np.uint8)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with agents, an environment, and recording in this process."""
    (tmp_path / "remembering_agents.py").write_text(textwrap.dedent(AGENTS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("collect.record.WorkerPool", Here)
    gym.register("Shown-v0", entry_point=Shown, max_episode_steps=9)
    yield
    del gym.registry["Shown-v0"]


def record(out: str = "data.zarr", episodes: int = 4, **changes: Any) -> Store:
    script.main(script.Args(env_id="Shown-v0", out=out, size=8, episodes=episodes, **changes))  # type: ignore[arg-type]
    return Store(Path(out))


AS_IT_IS: dict[str, Any] = {"epsilon": 0, "random_share": 0}


def test_a_class_starts_anew_with_each_episode() -> None:
    store = record(policy="remembering_agents:Counts", **AS_IT_IS)
    for i in range(4):
        assert store.read_episode(i)["action"].tolist() == [0, 1, 2, 2, 2, 2, 2, 0]


def test_it_sees_what_exploration_does() -> None:
    """Where its action is replaced, it still counts: two steps after the start all its own actions are 2."""
    store = record(policy="remembering_agents:Counts", episodes=20, epsilon=0.3, hold=(1.0,), random_share=0)
    actions = np.stack([store.read_episode(i)["action"] for i in range(20)])
    twos = (actions[:, 2:7] == 2).mean()
    assert 0.7 < twos < 0.9, "0.7 of its own, and a third of the others; fewer if it had missed steps"
    assert not (actions[:, :2] == [0, 1]).all()


@pytest.mark.parametrize("policy", ["remembering_agents:Remembers", "agent.zip"])
def test_a_recording_that_was_cut_short_is_the_same(policy: str, tmp_path: Path) -> None:
    MODELS["recurrent"]().save(tmp_path / "agent.zip")
    whole = record("whole.zarr", 7, policy=policy)
    for total in (1, 2, 5, 7):
        parts = record("parts.zarr", total, policy=policy)
    for name in whole.array_names:
        np.testing.assert_array_equal(parts.read(name, 0, parts.n_rows), whole.read(name, 0, whole.n_rows))
    other = record("other.zarr", 7, policy=policy, seed=1)
    assert not np.array_equal(other.read("action", 0, 40), whole.read("action", 0, 40))


@pytest.mark.parametrize("name", ["ppo", "dqn", "recurrent", "a2c, stacked vectors"])
def test_a_file_plays_as_its_model(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    model.save(tmp_path / "agent.zip")
    store = record(policy="agent.zip", deterministic=True, **AS_IT_IS)
    taken: set[int] = set()
    for i in range(4):
        episode, state, starts = store.read_episode(i), None, np.array([True])
        past = np.zeros((3, 3), np.float32)
        for observation, action in zip(episode["variables"][:-1], episode["action"][:-1], strict=True):
            past = np.concatenate([past[1:], observation[None]])
            seen = past.reshape(1, 9) if "stacked" in name else observation[None]
            chosen, state = model.predict(seen, state, starts, deterministic=True)
            assert action == chosen[0]
            starts = np.array([False])
        taken |= set(episode["action"][:-1].tolist())
    assert len(taken) > 1


def test_another_file_is_another_recording(tmp_path: Path) -> None:
    """A file is known by its bytes, not by its name."""
    MODELS["ppo"]().save(tmp_path / "agent.zip")
    record(policy="agent.zip", episodes=1)
    (tmp_path / "agent.zip").rename(tmp_path / "moved.zip")
    assert record(policy="moved.zip", episodes=2).episode_ends.size == 2
    with pytest.raises(UserError, match=r"recorded with settings.policy = (\w{64}), but \1 deterministic was asked"):
        record(policy="moved.zip", deterministic=True)
    make(PPO, "MlpPolicy", VECTOR, SIDES, policy_kwargs={"net_arch": [8]}).save(tmp_path / "moved.zip")
    with pytest.raises(UserError, match=r"recorded with settings.policy = \w{64}, but \w{64} was asked for"):
        record(policy="moved.zip")
    assert Store(tmp_path / "data.zarr").episode_ends.size == 2


class MyActivation(torch.nn.Tanh):
    """An activation of one's own."""


def test_trust_is_passed_on(tmp_path: Path) -> None:
    kwargs = {"activation_fn": MyActivation}
    make(PPO, "MlpPolicy", VECTOR, SIDES, policy_kwargs=kwargs).save(tmp_path / "agent.zip")
    with pytest.raises(UserError, match=r"its activation_fn is .*MyActivation.* --trust-policy if you trust its"):
        record(policy="agent.zip")
    assert not (tmp_path / "data.zarr").exists()
    assert record(policy="agent.zip", trust_policy=True).episode_ends.size == 4


WRONG = {
    "remembering_agents:NeedsMore": r"remembering_agents:NeedsMore\(\) raised TypeError: .*'weights'; fix it",
    "remembering_agents:Silent": "remembering_agents:Silent is <.*Silent object.*>, which cannot be called; give m",
    "remembering_agents:None": "there is no policy remembering_agents:None .*; give module:function or module:Class",
    "none.zip": "there is no file none.zip; give one that model.save of Stable-Baselines3 wrote",
}


@pytest.mark.parametrize("policy", WRONG)
def test_what_cannot_play_is_told_before_anything_is_written(policy: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=WRONG[policy]):
        record(policy=policy)
    assert not (tmp_path / "data.zarr").exists()


def test_what_breaks_while_it_plays() -> None:
    with pytest.raises(UserError, match="remembering_agents:Breaks raised RuntimeError: no weights; fix it"):
        record(policy="remembering_agents:Breaks")


def test_a_class_may_have_no_reset() -> None:
    assert record(policy="remembering_agents:Plain", **AS_IT_IS).read_episode(3)["action"].tolist() == [1] * 7 + [0]


@pytest.mark.parametrize("policy", ["random", "cycle:1x2", "remembering_agents:Plain"])
def test_most_likely_actions_need_a_policy_that_has_them(policy: str) -> None:
    with pytest.raises(UserError, match=f"{policy} itself decides how it acts; leave --deterministic out"):
        script.Args(policy=policy, deterministic=True)
