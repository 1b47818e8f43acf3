"""Training the pusher: it begins, goes on where it was interrupted, and refuses other settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envs.pusher import Pusher, load_pusher
from envs.pushing_robot import ACTION, Robot
from train import pusher
from worldmodel.utils.checkpoint import read_checkpoint, weights_digest
from worldmodel.utils.errors import UserError


def test_it_trains_goes_on_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"out": tmp_path / "run", "export": tmp_path / "small", "num_envs": 2, "n_steps": 20, "hidden_dim": 16}
    pusher.main(pusher.Args(total_timesteps=120, stop_at_step=40, **few))  # type: ignore[arg-type]
    assert read_checkpoint(tmp_path / "run").progress["steps"] == 40
    before = weights_digest(tmp_path / "run")
    pusher.main(pusher.Args(total_timesteps=120, **few))  # type: ignore[arg-type]
    assert read_checkpoint(tmp_path / "small").progress == {"steps": 120}
    assert weights_digest(tmp_path / "run") != before
    assert "after 120 steps" in capsys.readouterr().out
    rng = np.random.default_rng(0)
    ACTION.check(Pusher(load_pusher(str(tmp_path / "small"))).act(Robot(rng), rng))
    with pytest.raises(UserError, match="gamma"):
        pusher.main(pusher.Args(total_timesteps=120, gamma=0.5, **few))  # type: ignore[arg-type]


def test_a_policy_that_diverges_is_not_kept(tmp_path: Path) -> None:
    few = {"out": tmp_path / "run", "num_envs": 2, "n_steps": 16, "n_epochs": 1, "hidden_dim": 16}
    with pytest.raises(UserError, match=r"the policy diverged within .* steps; run again with a lower --learning-rate"):
        pusher.main(pusher.Args(total_timesteps=320, learning_rate=1e30, **few))  # type: ignore[arg-type]
    assert not list((tmp_path / "run").glob("*.safetensors"))
