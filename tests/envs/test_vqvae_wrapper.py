"""Seeing an environment through a VQ-VAE: frame by frame as the whole film."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.vqvae_wrapper import VQVAEObservation
from tests.conftest import TOY
from worldmodel.data.store import Store
from worldmodel.models.loading import load_vqvae
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.errors import UserError


class Film(gym.Env[np.ndarray, Any]):
    """The frames of an episode, whatever is done."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, self.action_space = frames, spaces.Discrete(3)
        self.observation_space = spaces.Box(0, 255, frames.shape[1:], np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.time = 0
        return self.frames[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return self.frames[self.time], 1.0, False, self.time + 1 == len(self.frames), {}


@pytest.mark.parametrize("kind", ["toy_run", "recurrent_run"])
def test_frame_by_frame_is_the_whole_film(kind: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(kind)
    vqvae, episode = load_vqvae(run / "vqvae"), Store(run / "data.zarr").read_episode(0)
    frames, actions = episode["frames"], episode["action"]
    env = VQVAEObservation(Film(frames), vqvae, TOY.action)
    env.reset()
    env.step(0)  # of which nothing is left after the next reset
    with torch.no_grad():
        led = torch.from_numpy(TOY.action.encode_led(actions[:-1]))[None]
        whole = vqvae.reconstruct(torch.from_numpy(frames)[None], actions=led)[1][0].numpy()
    first, info = env.reset()
    steps = [env.step(action) for action in actions[:-1]]
    again = [first, *(step[0] for step in steps)]
    assert np.array_equal(frames, [info["frame"], *(step[4]["frame"] for step in steps)]), "what was there is told"
    assert np.abs(np.stack(again).astype(int) - whole).max() <= 1, "but for rounding"
    assert np.abs(whole.astype(int) - frames).mean() > 0, "and not the film itself"


def test_models_that_need_more_than_a_frame_are_refused() -> None:
    film = Film(np.zeros((3, 16, 16, 3), np.uint8))
    for mode, stride in (("paper", (1, 4, 4)), ("stream", (2, 4, 4))):
        config = VQVAEConfig(
            mode=mode,
            n_frames=4,
            frame_size=(16, 16),
            stride=stride,
            hidden_channels=8,
            residual_channels=8,
            n_res_blocks=1,
        )
        with pytest.raises(UserError, match="a time stride of 1"):
            VQVAEObservation(film, VQVAE(config), TOY.action)
