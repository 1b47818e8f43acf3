"""What is played in an engine, with one of a few lines in its place, and what is played in a dream of its length."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rollout.controllability as control
import rollout.evaluate_policy as policy
import rollout.full_turn as full_turn
import rollout.plan as plan
import rollout.rank as rank
from rollout.planning.cem import CEMConfig
from rollout.planning.planner import Planner
from tests.conftest import TOY
from tests.rollout.toy_engine import ToyEngine
from worldmodel.models.pixels import to_uint8
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.errors import UserError

WORLD = replace(TOY, env_kwargs={"frame_skip": 4})


class Counter(gym.Env):
    """Frames that tell episode and time; action 2 pays a point; episode i lasts as long as it is told to."""

    observation_space, action_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8), gym.spaces.Discrete(3)
    env_spec, frame_skip = WORLD, 4

    def __init__(self, *lengths: int) -> None:
        self.lengths, self.episode, self.taken = lengths, -1, list[list[int]]()

    def frame(self) -> np.ndarray:
        self.variable_values = np.array([self.time], np.float32)
        return np.full((16, 16, 3), 20 * self.episode + self.time, np.uint8)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        self.episode, self.time = self.episode + 1, 0
        self.taken.append([])
        return self.frame(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        self.taken[-1].append(int(action))
        over = self.time == self.lengths[min(self.episode, len(self.lengths) - 1)]
        return self.frame(), float(action == 2), over, False, {}

    def close(self) -> None:
        self.closed = True


def test_random_actions_begin_where_a_policy_led_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an episode that ends too soon nothing is taken."""
    engine, lead = Counter(1, 12, 2, 12), control.Args(max_lead_steps=6)
    monkeypatch.setattr(control, "make_engine", lambda world: engine)
    seen: list[int] = []

    def leader(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        assert len(frames) <= 4
        seen.append(int(frames[-1, 0, 0, 0, 0]))
        return np.array([0])

    films = control.random_actions_in_engine(lead, WORLD, leader, np.array([[1, 2, 1], [2, 2, 1]]))
    assert films.shape == (2, 4, 16, 16, 3)
    for film, episode, actions in zip(films[..., 0, 0, 0], (1, 3), ([1, 2, 1], [2, 2, 1]), strict=True):
        led = film[0] - 20 * episode
        assert 0 <= led < 6
        assert film.tolist() == [20 * episode + led + t for t in range(4)]
        assert engine.taken[episode] == [0] * led + actions
        assert [s for s in seen if s // 20 == episode] == [20 * episode + t for t in range(led)]
    assert engine.closed


def test_a_plan_is_played_beside_a_random_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who plans for action 2 takes it at every step; each episode is a new one to the planner."""
    engine, given = Counter(7), list[tuple[int, int, list]]()
    monkeypatch.setattr("envs.vizdoom.make_engine", lambda world: engine)

    class Dream:
        """Whatever is given to it."""

        env_spec = WORLD

        def reset(self, seed: int, options: dict[str, Any]) -> None:
            given.append((len(options["frames"]), len(options["actions"]), options["variables"]))

    dream: Any = Dream()
    cem = CEMConfig(n_candidates=300, n_elite=3, n_rounds=2, horizon=3, hold_steps=1, momentum=0.0)
    planner = Planner(
        dream, lambda dream, actions, seed: (actions == 2).sum(1), replan_every=3, context_frames=4, cem=cem
    )
    text, scores = plan.plan_in_engine(plan.Args(episodes=2), dream, planner)
    assert set(scores) == {"random", "planned"}
    assert scores["planned"] == [[7, 7], [7, 7]], "steps and return"
    assert engine.taken[2:] == [[2] * 7] * 2
    assert [steps for steps, _ in scores["random"]] == [7, 7]
    assert [points for _, points in scores["random"]] == [taken.count(2) for taken in engine.taken[:2]] != [7, 7]
    assert "survives 28.000 [28.000, 28.000] tics, return 7.0" in text.split("planned")[1]
    assert given == 2 * [(1, 0, [[0.0]]), (4, 3, [[0.0], [1.0], [2.0], [3.0]]), (4, 3, [[3.0], [4.0], [5.0], [6.0]])]


def test_eyes_are_those_of_a_worlds_vqvae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "n_frames": 4,
        "frame_size": (16, 16),
        "stride": (1, 4, 4),
        "hidden_channels": 8,
        "residual_channels": 8,
        "n_res_blocks": 1,
    }
    torch.manual_seed(0)
    vqvae, seen = VQVAE(VQVAEConfig(mode="stream", **small)).eval(), list[np.ndarray]()  # type: ignore[arg-type]
    true = np.stack([np.full((16, 16, 3), t, np.uint8) for t in range(3)])
    with torch.no_grad():
        painted = to_uint8(vqvae.decode(vqvae.encode(torch.from_numpy(true)[None])))[0].numpy()
    assert np.abs(painted.astype(int) - true).max() > 1

    def player(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.append(frames[-1, 0])
        return np.array([2])

    monkeypatch.setattr(policy, "VizdoomFrames", lambda *_: Counter(3))
    monkeypatch.setattr(policy, "load_player", lambda *_: player)
    monkeypatch.setattr(policy, "load_vqvae", {tmp_path / "vqvae": vqvae}.__getitem__)
    for eyes, expected in (("", true), (str(tmp_path), painted)):
        seen.clear()
        policy.main(policy.Args(policy=("a",), episodes=2, obs_vqvae=eyes, out=tmp_path))
        assert np.abs(np.stack(seen[:3]).astype(int) - expected).max() <= 1, "but for rounding"
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["a"]["episodes"] == {"steps": [3, 3], "returns": [3.0, 3.0]}, "as the engine pays, not as it is seen"


class Lanes:
    """Three lanes of a dream, of which the second ends after a step and the others after three."""

    env_spec, num_envs = WORLD, 3

    def __init__(self, *begins: bool) -> None:
        self.contexts = SimpleNamespace(is_episode_start=lambda width: torch.tensor(begins) if width == 3 else None)

    def reset(self, seed: int, options: dict[str, Any]) -> tuple[np.ndarray, dict]:
        self.time, self.begun = 0, options["context"].tolist()
        return np.zeros((3, 16, 16, 3), np.uint8), {}

    def step(self, actions: np.ndarray) -> tuple:
        self.time += 1
        frame = np.full((3, 16, 16, 3), self.time, np.uint8)
        ended, out = np.array([False, self.time % 2 == 1, self.time == 3]), np.array([self.time == 3, False, False])
        return frame, np.array([1.0, 10.0, 100.0]) * self.time, ended, out, {}


def test_a_return_in_the_dream_is_that_of_the_first_episode_of_each_lane() -> None:
    env: Any = Lanes(False, True, False, True)
    depths: list[int] = []

    def player(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        depths.append(len(frames))
        return np.zeros(3, int)

    assert rank.returns_in_dream(env, player, 0).tolist() == [1 + 2 + 3, 10, 100 + 200 + 300]
    assert env.begun == [1, 3, 1], "contexts that begin an episode, in turn"
    assert depths == [1, 2, 3]
    with pytest.raises(UserError, match=r"no starting context of toy is the start of an episode; run train/tokens"):
        rank.returns_in_dream(Lanes(False, False), player, 0)  # type: ignore[arg-type]


def test_a_full_turn_is_where_the_first_view_comes_back(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four steps to the right lead once around the toy world."""
    films = full_turn.turn_in_engine(ToyEngine(), 2, 5, 2, 0)
    assert films.shape == (2, 6, 16, 16, 3)
    near = full_turn.similarity(films)
    assert near[:, [0, 4]] == pytest.approx(54.15, abs=0.01), "the same picture"
    assert (near[:, [1, 2, 3, 5]] < 15).all()
    monkeypatch.setattr(full_turn, "make_recorded_env", lambda spec, trusted: ToyEngine())
    args = full_turn.Args(run=str(toy_run), episodes=3, steps=5, min_steps=2, out=tmp_path / "turn.json")
    full_turn.main(args)
    found = json.loads((tmp_path / "turn.json").read_text())
    assert found["steps"] == 4
    assert found["psnr"]["full turn"]["engine"]["mean"] == pytest.approx(54.15, abs=0.01)
    assert found["psnr"]["half a turn"]["engine"]["mean"] < 15
    assert found["psnr"]["full turn"]["dream"]["mean"] > found["psnr"]["half a turn"]["dream"]["mean"]
    said = capsys.readouterr().out
    assert "a full turn is 4 steps" in said and "too few to judge a full turn of the dream" in said
    with pytest.raises(UserError, match=r"9 is not one of the actions Discrete\(3\); give another --action"):
        full_turn.main(replace(args, action=9))
    with pytest.raises(UserError, match=r"does not come back between 2 and 5 steps under action 0; give an --action"):
        full_turn.main(replace(args, action=0))
    with pytest.raises(UserError, match="too few episodes last 5 steps under action 0; lower --steps"):
        full_turn.turn_in_engine(gym.wrappers.TimeLimit(ToyEngine(), 4), 0, 5, 2, 0)
    with pytest.raises(UserError, match="min_steps must be below steps, 5, not 6"):
        replace(args, min_steps=6)
