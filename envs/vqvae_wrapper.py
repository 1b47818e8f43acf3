"""A wrapper whose observations are VQ-VAE reconstructions of the frames of an environment.

A policy trained in a dream has only observed decoded frames. This wrapper gives it the same kind of frames in the
engine, as the controller of "World Models" (Ha and Schmidhuber, 2018) observes the real game through its autoencoder.
Frames are encoded and decoded one by one, each in the context of the episode so far.

The original frame is in `info["frame"]`. Recording with this wrapper also matters for the prior. A policy that
observes the original frames reacts to details that the codes do not contain yet, such as a small fireball, so its
actions carry that information. A prior can learn to infer the fireball from the action. In a dream the policy
observes no fireball and acts calmly, and the prior concludes that there is none (a delusion; Ortega et al., 2021).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from worldmodel.data.env_spec import ActionSpec
from worldmodel.models.layers import Memory
from worldmodel.models.loading import AnyVQVAE
from worldmodel.utils.errors import UserError


class VQVAEObservation(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Replaces observations (h, w, 3) uint8 by their reconstructions.

    Args:
        env: Environment with frames of the VQ-VAE's size.
        vqvae: A causal VQ-VAE with a time stride of 1.
        action: Encodes the environment's actions, which a recurrent VQ-VAE takes.

    Raises:
        UserError: The frame sizes differ, or the VQ-VAE cannot encode single frames.
    """

    def __init__(self, env: gym.Env[np.ndarray, Any], vqvae: AnyVQVAE, action: ActionSpec) -> None:
        super().__init__(env)
        seen = (*vqvae.config.frame_size, vqvae.config.channels)
        if env.observation_space.shape != seen:
            raise UserError(
                f"the VQ-VAE takes frames of shape {seen}, but the environment has {env.observation_space.shape}; use "
                "the VQ-VAE that was trained on this environment"
            )
        if not vqvae.config.causal or vqvae.config.stride[0] > 1:
            raise UserError(
                "this VQ-VAE cannot encode frames one by one; use one in stream mode (causal) with a time stride of 1"
            )
        self.vqvae, self.action = vqvae.eval(), action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.memory = Memory()
        frame, info = self.env.reset(seed=seed, options=options)
        return self._reconstruct(frame, np.zeros(self.action.encoded_dim, np.float32)), info | {"frame": frame}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated, info = self.env.step(action)
        encoded = self.action.encode(np.asarray(action)[None])[0]
        return self._reconstruct(frame, encoded), reward, terminated, truncated, info | {"frame": frame}

    @torch.inference_mode()
    def _reconstruct(self, frame: np.ndarray, led: np.ndarray) -> np.ndarray:
        actions = torch.from_numpy(led)[None, None]
        return self.vqvae.reconstruct(torch.from_numpy(frame)[None, None], self.memory, actions)[1][0, 0].numpy()
