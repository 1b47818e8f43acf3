"""A saved policy of Stable-Baselines3 plays exactly as the model that was saved."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from envs.sb3_agent import SB3Agent, load_sb3_agent
from tests.envs.sb3_models import AXES, MODELS, PICTURE, SIDES, VECTOR, Noise, make, rewrite
from worldmodel.utils.errors import UserError

GREEDY = ("dqn", "dqn, stacked pictures", "qrdqn")
"""Their `predict` also takes random actions, which the recorder does itself."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As in the recorder's processes."""
    torch.set_num_threads(1)


class Eleven:
    """A generator that always draws the same."""

    def integers(self, high: int) -> int:
        return 11


def inner(model: BaseAlgorithm) -> Noise:
    """The environment that a model was made for."""
    return model.get_env().unwrapped.envs[0]  # type: ignore[union-attr]


def by_the_model(model: BaseAlgorithm, deterministic: bool) -> list[Any]:
    """What a model takes in two episodes, by Stable-Baselines3's own wrappers and `predict`."""
    env, state, starts, taken = model.get_env(), None, np.array([True]), []
    assert env is not None
    env.seed(5)
    seen: Any = env.reset()
    for _ in range(14):
        torch.manual_seed(11)
        if starts[0] and model.use_sde:
            model.policy.reset_noise()  # type: ignore[operator]
        action, state = model.predict(seen, state, starts, deterministic)
        taken.append(action[0].tolist())
        seen, _, starts, _ = env.step(action)
    return taken


def by_the_agent(agent: SB3Agent, env: Noise) -> list[Any]:
    """What an agent takes in two episodes of the bare environment."""
    taken = []
    for seed in (5, None):
        seen, _ = env.reset(seed=seed)
        agent.reset()
        for _ in range(7):
            taken.append(agent(seen, Eleven()).tolist())  # type: ignore[arg-type]
            seen, *_ = env.step(np.array(taken[-1], env.action_space.dtype))
    return taken


def load(path: Path, model: BaseAlgorithm, **how: bool) -> SB3Agent:
    return load_sb3_agent(path, inner(model).observation_space, inner(model).action_space, **how)


@pytest.mark.parametrize("name", MODELS)
def test_it_plays_as_the_model_over_whole_episodes(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    model.save(tmp_path / "agent.zip")
    for deterministic, trust in product((True, False), (False, True)):
        agent = load(tmp_path / "agent.zip", model, deterministic=deterministic, trust=trust)
        taken = by_the_agent(agent, inner(model))
        assert taken == by_the_model(model, deterministic or name in GREEDY), (deterministic, trust)
        if deterministic:
            assert len({str(action) for action in taken}) > 1


def test_the_past_of_an_episode_matters_and_that_before_it_does_not(tmp_path: Path) -> None:
    """A test that the tests above can fail: other observations before the last one lead to other actions."""
    for name in ("recurrent", "a2c, stacked vectors"):
        model, seen = MODELS[name](), np.random.default_rng(0).uniform(-9, 9, (50, 3)).astype(np.float32)
        model.save(tmp_path / "agent.zip")
        agent = load(tmp_path / "agent.zip", model, deterministic=True)
        alone, after, again = [], [], []
        for first, second in pairwise(seen):
            for taken, before in ((alone, []), (after, [first]), (again, [])):
                agent.reset()
                for observation in before:
                    agent(observation, Eleven())  # type: ignore[arg-type]
                taken.append(int(agent(second, Eleven())))  # type: ignore[arg-type]
        assert alone == again != after


def test_randomness_comes_from_the_generator_alone(tmp_path: Path) -> None:
    model = MODELS["ppo"]()
    model.save(tmp_path / "agent.zip")
    agent, seen = load(tmp_path / "agent.zip", model), np.ones(3, np.float32)

    def play(seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        return [int(agent(seen, rng)) for _ in range(40)]

    first, before = play(0), torch.random.get_rng_state()
    torch.rand(3)
    assert play(0) == first != play(1)
    torch.random.set_rng_state(before)
    play(0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_shared_extractor_that_was_written_once(tmp_path: Path) -> None:
    """As Stable-Baselines3 did before 1.7."""
    model = MODELS["ppo, pictures"]()
    model.save(tmp_path / "agent.zip")
    old = {k: v for k, v in model.policy.state_dict().items() if not k.startswith(("pi_", "vf_"))}
    rewrite(tmp_path / "agent.zip", weights=old)
    agent = load(tmp_path / "agent.zip", model, deterministic=True)
    assert by_the_agent(agent, inner(model)) == by_the_model(model, True)


class MyExtractor(FlattenExtractor):
    """An extractor of one's own, without weights."""


class MyPolicy(ActorCriticPolicy):
    """A policy of one's own."""


OWN = {
    "an extractor": (
        {"policy": "MlpPolicy", "policy_kwargs": {"features_extractor_class": MyExtractor}},
        "its features_extractor_class is .*MyExtractor.*, which is not rebuilt without unpickling; give module:Class, "
        "or --trust-policy if you trust its author, since unpickling can run any code",
    ),
    "a policy": (
        {"policy": MyPolicy},
        "its policy is a class of the module .*sb3_agent, which is not rebuilt without unpickling; give module:Class",
    ),
    "an activation": (
        {"policy": "MlpPolicy", "policy_kwargs": {"activation_fn": lambda: torch.nn.Tanh()}},
        "its activation_fn is <function .*, which is not rebuilt without unpickling; give module:Class, or --trust",
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_what_is_ones_own_is_loaded_only_with_trust(case: str, tmp_path: Path) -> None:
    changes, why = OWN[case]
    model = make(PPO, observed=VECTOR, actions=SIDES, **changes)
    model.save(tmp_path / "agent.zip")
    with pytest.raises(UserError, match=rf"agent.zip: {why}"):
        load(tmp_path / "agent.zip", model)
    agent = load(tmp_path / "agent.zip", model, deterministic=True, trust=True)
    assert by_the_agent(agent, inner(model)) == by_the_model(model, True)


UNFIT = {
    "more actions": (
        VECTOR,
        spaces.Discrete(4),
        r"it was trained with actions Discrete\(3\), not Discrete\(4\); give an",
    ),
    "other actions": (VECTOR, AXES, r"it was trained with actions Discrete\(3\), not Box"),
    "longer": (
        spaces.Box(-9, 9, (5,), np.float32),
        SIDES,
        r"it was trained on observations Box\(3,\), not Box\(.*; wrap the environment as in training",
    ),
    "pictures": (PICTURE, SIDES, r"it was trained on observations Box\(3,\), not Box\("),
    "a number": (spaces.Discrete(3), SIDES, r"it was trained on observations Box\(3,\), not Discrete\(3\)"),
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("case", UNFIT)
def test_a_policy_of_another_environment(case: str, trust: bool, tmp_path: Path) -> None:
    observed, actions, why = UNFIT[case]
    MODELS["ppo"]().save(tmp_path / "agent.zip")
    with pytest.raises(UserError, match=f"agent.zip: {why}"):
        load_sb3_agent(tmp_path / "agent.zip", observed, actions, trust=trust)


def test_factors_are_compared_too(tmp_path: Path) -> None:
    """The weights would fit."""
    MODELS["ppo, other sizes"]().save(tmp_path / "agent.zip")
    for other in (spaces.MultiDiscrete([3, 2]), spaces.Discrete(5)):
        with pytest.raises(UserError, match=r"it was trained with actions MultiDiscrete\(\[2 3\]\), not"):
            load_sb3_agent(tmp_path / "agent.zip", VECTOR, other)
