"""The mean of policies."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticCnnPolicy

from envs.policies import load_policy, save_policy
from train import average
from worldmodel.checkpoint import digest, read_header
from worldmodel.errors import UserError


def make(folder: Path, seed: int, actions: int = 3) -> ActorCriticCnnPolicy:
    """A policy with random weights in a folder."""
    torch.manual_seed(seed)
    image = gym.spaces.Box(0, 255, (3, 64, 64), np.uint8)
    small = {"features_dim": 8}
    policy = ActorCriticCnnPolicy(image, gym.spaces.Discrete(actions), lambda _: 1e-3, features_extractor_kwargs=small)
    save_policy(folder, policy, {"seed": seed}, {"steps": seed})
    return policy


def test_the_mean_is_of_every_weight_and_says_of_whom(tmp_path: Path) -> None:
    a, b, c = (make(tmp_path / name, seed).state_dict() for seed, name in enumerate("abc"))
    average.main(average.Args(policy=tuple(str(tmp_path / name) for name in "abc"), out=tmp_path / "mean"))
    mean = load_policy(tmp_path / "mean").state_dict()
    assert mean.keys() == a.keys()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (a[name] + b[name] + c[name]) / 3, atol=2e-4, rtol=1e-3)  # half precision
    config, _ = read_header(tmp_path / "mean")
    assert config["training"] == {"mean_of": [digest(tmp_path / name) for name in "abc"]}


def test_what_has_no_mean_is_said_in_a_sentence(tmp_path: Path) -> None:
    make(tmp_path / "a", 0)
    make(tmp_path / "b", 1)
    make(tmp_path / "wide", 2, actions=4)
    a, b, wide = (str(tmp_path / name) for name in ("a", "b", "wide"))
    before = digest(tmp_path / "b")
    for policies, out, sentence in (
        ((a,), "mean", "a mean is of at least two policies"),
        ((a, b), "b", "b is one of the policies; give --out another folder"),
        (
            (a, wide),
            "mean",
            r"wide has action.nvec = \[4\], but \[3\] was asked for as in .*a; only policies of one shape",
        ),
        ((a, str(tmp_path / "none")), "mean", "none"),
    ):
        with pytest.raises(UserError, match=sentence):
            average.main(average.Args(policy=policies, out=tmp_path / out))
    assert digest(tmp_path / "b") == before
    assert not (tmp_path / "mean").exists()
