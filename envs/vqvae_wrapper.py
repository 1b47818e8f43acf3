"""Any environment of frames, seen through a world model's VQ-VAE.

A policy that grew up in a dream knows the world as the decoder paints it. In the engine it may be given the same eyes,
as the controller of "World Models" (Ha and Schmidhuber, 2018) sees the real game through its autoencoder only: each
frame is encoded and decoded, one after the other, with the causal layers' memory of the episode so far.

`info["frame"]` is what was there. A policy that is recorded with these eyes acts on nothing that codes do not tell. One
that sees more can give away by its actions what codes do not show yet, a fireball that is too small for them. A prior
may learn to read it there, and then a policy that acts on what it dreams, and sees no fire, is told by its own calm
that there is none (Ortega et al., 2021, call these delusions).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from worldmodel.models.layers import Memory
from worldmodel.models.vqvae import VQVAE, to_uint8
from worldmodel.utils.errors import UserError


class VQVAEObservation(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Observations (h, w, 3) uint8 as reconstructions; `UserError` unless the VQ-VAE streams single frames."""

    def __init__(self, env: gym.Env[np.ndarray, Any], vqvae: VQVAE) -> None:
        super().__init__(env)
        seen = (*vqvae.config.frame_size, vqvae.config.channels)
        if env.observation_space.shape != seen:
            raise UserError(f"this VQ-VAE sees frames of {seen}, not {env.observation_space.shape}; give another one")
        if not vqvae.config.causal or vqvae.config.stride[0] > 1:
            raise UserError("frames are seen one by one: this needs a VQ-VAE in stream mode with a time stride of 1")
        self.vqvae = vqvae.eval()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.encoder_memory, self.decoder_memory = Memory(), Memory()
        frame, info = self.env.reset(seed=seed, options=options)
        return self._reconstruct(frame), info | {"frame": frame}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated, info = self.env.step(action)
        return self._reconstruct(frame), reward, terminated, truncated, info | {"frame": frame}

    @torch.inference_mode()
    def _reconstruct(self, frame: np.ndarray) -> np.ndarray:
        codes = self.vqvae.encode(torch.from_numpy(frame)[None, None], self.encoder_memory)
        return to_uint8(self.vqvae.decode(codes, self.decoder_memory))[0, 0].numpy()
