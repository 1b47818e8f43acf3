"""The pusher that ships moves objects, and the script that says so counts as it should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from envs.pushing_robot import ACTION
from rollout import evaluate_pusher


def test_the_shipped_pusher_moves_objects_further_than_any_random_actions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = evaluate_pusher.Args(episodes=40, out=tmp_path, gif=tmp_path / "pushing.gif")
    evaluate_pusher.main(args)
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores[evaluate_pusher.BAIR_ROBOT]["ratio"]["mean"] == 1
    assert scores["pusher"]["ratio"]["mean"] > 3
    assert scores["pusher, noise 0.2"]["ratio"]["mean"] > 3
    for name in ("random, over the space", "random, held for 4"):
        assert scores[name]["moved"]["mean"] < scores[evaluate_pusher.BAIR_ROBOT]["moved"]["mean"]
    said = capsys.readouterr().out
    assert "moved, x robot" in said and "the pusher is better than BAIR's random actions (" in said
    with Image.open(tmp_path / "pushing.gif") as gif:
        assert (gif.size, gif.n_frames) == ((512, 128), 30)  # type: ignore[attr-defined]


def test_who_does_nothing_moves_nothing_and_the_same_seed_is_the_same() -> None:
    moved, came = evaluate_pusher.push_episode(lambda robot, rng: np.zeros(4), 0, 0)
    assert moved < 0.01 and came < 0.01
    sweep = evaluate_pusher.push_episode(lambda robot, rng: rng.uniform((-0.1, -0.1, 0, 0), (0.1, 0.1, 0, 0)), 0, 1)
    assert sweep == evaluate_pusher.push_episode(
        lambda robot, rng: rng.uniform((-0.1, -0.1, 0, 0), (0.1, 0.1, 0, 0)), 0, 1
    )
    assert sweep[0] >= sweep[1] > 0.01  # a way is at least as long as the straight line


def test_held_actions_change_once_in_four_steps() -> None:
    act, rng = evaluate_pusher.HeldRandomActions(), np.random.default_rng(0)

    class Robot:
        steps = 0

    act(Robot(), rng)  # type: ignore[arg-type]
    Robot.steps = 1
    actions = np.array([act(Robot(), rng) for _ in range(2000)])  # type: ignore[arg-type]
    ACTION.check(actions)
    assert np.any(actions[1:] != actions[:-1], axis=1).mean() == pytest.approx(0.25, abs=0.04)
