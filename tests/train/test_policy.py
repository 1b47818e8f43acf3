"""Training a policy: shaping by hand, and a run that goes on."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs.policies import load_policy, policy_folder, shipped_policies
from rollout import evaluate_policy as rollout_policy
from train import policy
from worldmodel.models.loading import pretrained_run
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, read_checkpoint, weights_digest
from worldmodel.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_in_the_warmup_only_the_value_learns(tmp_path: Path) -> None:
    how = {"scenario": "basic", "reward_shaping": (), "num_envs": 2, "n_steps": 16, "n_epochs": 1, "features_dim": 16}
    policy.main(policy.Args(out=tmp_path / "begin", total_timesteps=32, **how))  # type: ignore[arg-type]
    before = load_policy(tmp_path / "begin").state_dict()
    for warmup, learned in ((64, {"value_net"}), (0, {"value_net", "action_net", "features_extractor"})):
        args = policy.Args(
            out=tmp_path / str(warmup),
            init_from=tmp_path / "begin",
            value_warmup_steps=warmup,
            total_timesteps=64,
            **how,
        )  # type: ignore[arg-type]
        policy.main(args)
        after = load_policy(args.out).state_dict()
        parts = {name.partition(".")[0] for name in after if (after[name] != before[name]).any()}
        assert parts - {"pi_features_extractor", "vf_features_extractor"} == learned, "those are the shared one again"


class Scripted(gym.Env):
    """Health 50, 40, 65, then death, and again."""

    observation_space = gym.spaces.Box(0, 255, (2,), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, **_: object) -> tuple:  # type: ignore[override]
        self.left = [(40.0, 4.0, False), (65.0, 4.0, False), (0.0, -96.0, True)]
        return np.zeros(2, np.uint8), {"HEALTH": 50.0}

    def step(self, action: object) -> tuple:
        health, reward, end = self.left.pop(0)
        return np.zeros(2, np.uint8), reward, end, False, {"HEALTH": health}


def test_shaping_is_a_difference_of_potentials() -> None:
    args = policy.Args(reward_scale=0.01, reward_shaping=(("HEALTH", 0.02),), gamma=0.9)
    env = policy.ShapedReward(policy.DummyVecEnv([Scripted]), args)
    env.reset()
    rewards = [env.step(np.zeros(1, int))[1][0] for _ in range(4)]
    assert rewards.pop() == pytest.approx(0.04 + 0.9 * 0.8 - 1.0), "the next episode starts from its own health"
    assert rewards == pytest.approx([0.04 + 0.9 * 0.8 - 1.0, 0.04 + 0.9 * 1.3 - 0.8, -0.96 + 0 - 1.3])
    discounted = sum(0.9**t * r for t, r in enumerate(rewards))
    plain = sum(0.9**t * r for t, r in enumerate((0.04, 0.04, -0.96)))
    assert discounted == pytest.approx(plain - 1.0), "shaping adds only what the start was worth: no policy gains by it"


def expected_rewards(penalty: float, done_probs: Sequence[float], n: int) -> list[float]:
    """Rewards of `n` steps of `Scripted` with expectations instead of samples; an end costs 100."""
    args = policy.Args(reward_scale=0.01, gamma=0.9, expected_reward=True, termination_penalty=penalty)

    class Predicting(Scripted):
        def step(self, action: object) -> tuple:
            end = done_probs[3 - len(self.left)]
            frame, _, over, _, info = super().step(action)
            info |= {"expected_HEALTH": info["HEALTH"], "done_prob": end, "expected_reward": 4 - 100 * end}
            return frame, 4.0, over, False, info

    env = policy.ExpectedReward(policy.DummyVecEnv([Predicting]), args)
    env.reset()
    return [env.step(np.zeros(1, int))[1][0] for _ in range(n)]


def test_a_policy_learns_from_the_mean_over_outcomes() -> None:
    first = 0.25 * (-0.96 - 1.0) + 0.75 * (0.04 + 0.9 * 0.8 - 1.0)
    second = 0.5 * (-0.96 - 0.8) + 0.5 * (0.04 + 0.9 * 1.3 - 0.8)
    rewards = expected_rewards(0.0, (0.25, 0.5, 1.0), 4)
    assert rewards == pytest.approx([first, second, -0.96 - 1.3, first]), "the next episode starts from its own health"
    penalized = expected_rewards(2.0, (0.25, 0.5, 1.0), 3)
    assert penalized == pytest.approx([first - 0.5, second - 1.0, -0.96 - 1.3 - 2.0])


def test_a_run_goes_on_exports_and_refuses_other_settings(tmp_path: Path) -> None:
    args = policy.Args(
        out=tmp_path / "run",
        total_timesteps=32,
        num_envs=2,
        n_steps=16,
        n_epochs=1,
        scenario="basic",
        reward_shaping=(),
    )
    policy.main(args)
    assert read_checkpoint(tmp_path / "run").progress == {"steps": 32}
    before = (tmp_path / "run" / CHECKPOINT_FILE).read_bytes()
    events = EventAccumulator(str(tmp_path / "run" / "log_1"))
    events.Reload()
    assert events.Scalars("time/fps")[-1].step == 32
    assert b"n_steps: 16" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert "_hparams_/session_start_info" in events.summary_metadata
    with pytest.raises(UserError, match=r"training.frame_skip = 4, but 2 was asked for"):
        policy.main(replace(args, frame_skip=2))
    with pytest.raises(UserError, match=r"training.total_timesteps = 32, but 16 was asked for"):
        policy.main(replace(args, total_timesteps=16))
    assert (tmp_path / "run" / CHECKPOINT_FILE).read_bytes() == before
    policy.main(replace(args, stop_at_step=16, export=tmp_path / "small"))
    assert (tmp_path / "small" / CHECKPOINT_FILE).stat().st_size < len(before) / 5, "half precision, and no optimizer"
    a, b = load_policy(tmp_path / "run").state_dict(), load_policy(tmp_path / "small").state_dict()
    assert all((a[k].half() == b[k]).all() for k in a) and all(b[k].dtype == a[k].dtype for k in a)
    policy.main(replace(args, out=tmp_path / "more", init_from=tmp_path / "run", learning_rate=0.0))
    c = load_policy(tmp_path / "more").state_dict()
    assert all((a[k] == c[k]).all() for k in a), "it begins with the other's weights, and learns nothing at a rate of 0"
    with pytest.raises(UserError, match="init_from"):
        policy.main(replace(args, out=tmp_path / "more", learning_rate=0.0))


def test_a_policy_learns_in_a_dream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all lanes at once, at the temperature that is asked for, and with the variables that the dream tells."""
    made: list[policy.VecEnv] = []
    make = policy.make_envs
    monkeypatch.setattr(policy, "make_envs", lambda args: made.append(make(args)) or made[-1])
    few = {"num_envs": 2, "n_steps": 8, "total_timesteps": 32, "n_epochs": 1, "n_stack": 2, "features_dim": 8}
    args = policy.Args(env_id="VideoGPTDream-v0", out=tmp_path, temperature=1.25, horizon=5, **few)  # type: ignore[arg-type]
    policy.main(args)
    assert (made[0].num_envs, made[0].observation_space.shape) == (2, (64, 64, 6))
    assert isinstance(made[0].unwrapped, policy.SB3VecEnv)
    assert made[0].get_attr("dream")[0].sampling.temperature == 1.25
    assert made[0].get_attr("max_steps")[0] == 5
    assert read_checkpoint(tmp_path).progress == {"steps": 32}
    assert load_policy(tmp_path).observation_space.shape == (6, 64, 64)
    policy.main(replace(args, out=tmp_path / "expected", expected_reward=True, termination_penalty=1.0))
    assert read_checkpoint(tmp_path / "expected").progress == {"steps": 32}
    moved = tmp_path / "moved"
    shutil.copytree(pretrained_run("health_gathering_supreme"), moved)
    settings = policy.settings(replace(args, run=str(moved)))
    known = f"{weights_digest(moved / 'prior')}+{weights_digest(moved / 'outcome')}"
    assert settings["run"] == known, "a run is known by its weights, wherever it is"
    with pytest.raises(UserError, match="no game variable AMMO2 to shape the reward with; give --reward-shaping"):
        policy.main(replace(args, out=tmp_path / "armed", reward_shaping=(("AMMO2", 0.1),)))


def test_actions_are_held_for_other_numbers_of_tics(tmp_path: Path) -> None:
    """An episode of `basic` ends after 300 tics if nothing is shot."""
    lengths = {}
    for skip in (2, 4):
        envs = policy.make_envs(policy.Args(scenario="basic", reward_shaping=(), num_envs=1, frame_skip=skip))
        envs.reset()
        ended, lengths[skip] = [False], 0
        while not ended[0]:
            *_, ended, _ = envs.step(np.array([0]))
            lengths[skip] += 1
        envs.close()
    assert lengths == {2: 150, 4: 75}
    how = {"scenario": "basic", "reward_shaping": (), "num_envs": 1, "n_steps": 8, "total_timesteps": 8}
    written = policy.main(policy.Args(out=tmp_path / "run", frame_skip=2, features_dim=8, **how))  # type: ignore[arg-type]
    assert written.flags == {"policy": tmp_path / "run", "scenario": "basic", "frame_skip": 2}


def test_a_policy_of_a_dream_is_evaluated_with_the_frame_skip_of_its_recordings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = policy.Args(env_id="VideoGPTDream-v0")
    assert policy.engine_flags(args) == {"scenario": "health_gathering_supreme", "frame_skip": 4}
    config = read_checkpoint(pretrained_run("health_gathering_supreme") / "vqvae").config
    config["env_spec"]["env_kwargs"]["frame_skip"] = 2
    monkeypatch.setattr(policy, "read_checkpoint", lambda folder: SimpleNamespace(config=config))
    assert policy.engine_flags(args)["frame_skip"] == 2


def test_mistakes_are_told_in_a_sentence(tmp_path: Path) -> None:
    for change, sentence in (
        ({"env_id": "VizdoomFrame-v0"}, "VizdoomFrame"),
        ({"env_id": "VideoGPTDream-v0", "scenario": "nowhere"}, "no pretrained model is named"),
        ({"scenario": "basik"}, "there is no scenario 'basik'"),
        ({"n_stack": 5}, "stack must be from 1 to 4, not 5"),
        ({"num_envs": 0}, "num_envs must be at least 1, not 0"),
        ({"num_envs": 1, "n_steps": 7}, r"num_envs \* n_steps must be at least 8, not 7: an update has 4 minibatches"),
        (
            {"expected_reward": True},
            "VizdoomFrames-v0 is not a dream, so it predicts no reward; leave --expected-reward out",
        ),
        ({"termination_penalty": 1.0}, "needs the probability of an end; give --expected-reward too"),
        ({"run": "runs/mine"}, "--run names a dream, but VizdoomFrames-v0 is not one; add --env-id VideoGPTDream-v0"),
        (
            {"env_id": "VideoGPTDream-v0", "frame_skip": 2},
            "--frame-skip is only for VizdoomFrames-v0, not for VideoGPTDream-v0; leave it out",
        ),
        ({"value_warmup_steps": -1}, "value_warmup_steps must be at least 0, not -1"),
    ):
        with pytest.raises(UserError, match=sentence):
            policy.main(policy.Args(out=tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_the_policy_that_ships_survives_more_than_twice_as_long_as_a_random_one(tmp_path: Path) -> None:
    """A small sample of what README reports for 50 episodes."""
    assert shipped_policies("health_gathering_supreme") == (
        "health_gathering_supreme",
        "health_gathering_supreme_dream",
    )
    players = ("random", "health_gathering_supreme")
    rollout_policy.main(rollout_policy.Args(policy=players, episodes=8, out=tmp_path))
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert set(scores) == set(players)
    ours, random = (np.array(scores[k]["episodes"]["steps"]) for k in ("health_gathering_supreme", "random"))
    assert len(ours) == 8
    assert ours.mean() > 2 * random.mean()
    assert policy_folder("health_gathering_supreme").is_dir()


def imported_first(script: Path) -> set[str]:
    """The packages that a script imports before it sets the path to the project's root."""
    body = ast.parse(script.read_text()).body
    (guard,) = (i for i, node in enumerate(body) if ast.unparse(node).startswith("if not __package__:"))
    names = {name.name for node in body[:guard] if isinstance(node, ast.Import) for name in node.names}
    names |= {str(node.module) for node in body[:guard] if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def test_scripts_run_as_files_from_anywhere(tmp_path: Path) -> None:
    """`collect/vizdoom.py` and its like must not be found in place of the libraries they are named after."""
    files = [path for room in ("collect", "train", "rollout") for path in (ROOT / room).glob("*.py")]
    assert not {path.stem for path in files} & sys.stdlib_module_names
    scripts = [path for path in files if "__main__" in path.read_text()]
    assert len(scripts) > 40
    for path in scripts:
        assert imported_first(path) <= sys.stdlib_module_names, f"{path} imports a package before its path is set"
    few = [path for path in scripts if path.stem in ("gym", "minari", "vizdoom", "vqvae", "play")]
    assert len(few) == 5
    for path in few:
        done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"usage: python {path.parent.name}/{path.name} [--preset" in done.stdout
    assert list(tmp_path.iterdir()) == []
