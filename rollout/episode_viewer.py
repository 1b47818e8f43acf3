"""The episodes of a store for the page of `rollout/show.py`: curves, videos, and a VQ-VAE's reconstructions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rollout.server import png
from worldmodel.data.store import Store
from worldmodel.metrics.frames import psnr
from worldmodel.models.layers import Memory
from worldmodel.models.loading import AnyVQVAE
from worldmodel.utils.errors import UserError

FRAMES = 32
"""Frames of a response."""
HUE_STEP = 0.618034
"""Difference in hue of consecutive codes, as a fraction of a circle; it makes them look different."""


class EpisodeViewer:
    """Answers the page's requests.

    Args:
        store: Store of frames.
        vqvae: Its reconstructions and codes are shown too.

    Raises:
        UserError: The frames have another size than those of the VQ-VAE.
    """

    def __init__(self, store: Store, vqvae: AnyVQVAE | None = None) -> None:
        self.store, self.lock = store, threading.Lock()
        self.rebuilt = Rebuilt(store, vqvae) if vqvae else None

    def answer(self, command: str, **told: Any) -> dict[str, Any]:
        """Handle one command; commands run one at a time."""
        with self.lock:
            commands: dict[str, Callable[..., dict[str, Any]]] = {
                "store": self.describe,
                "episode": self.episode,
                "frames": self.frames,
            }
            return commands[command](**told)

    def close(self) -> None:
        """Do nothing, because nothing is open."""

    def describe(self) -> dict[str, Any]:
        """What the store has."""
        ends = self.store.episode_ends
        return {
            "path": self.store.path,
            "name": self.store.env_spec.name,
            "fps": self.store.env_spec.fps,
            "lengths": np.diff(ends, prepend=0).tolist(),
            "splits": self.store.episode_splits().tolist(),
            "rebuilt": self.rebuilt is not None,
        }

    def episode(self, episode: int) -> dict[str, Any]:
        """The curves of an episode by name, with a value per frame, and how the episode ended."""
        names = [name for name in self.store.array_names if name not in ("frames", "split")]
        rows, spec = self.store.read_episode(episode, names), self.store.env_spec
        curves: dict[str, np.ndarray] = {}
        if "action" in rows:
            actions = rows["action"].reshape(len(rows["action"]), -1)
            several = actions.shape[1] > 1
            curves |= {f"action {i}" if several else "action": actions[:, i] for i in range(actions.shape[1])}
        curves |= {"reward": rows["reward"]} if "reward" in rows else {}
        curves |= {name: rows["variables"][:, i] for i, name in enumerate(spec.variables)} if spec.variables else {}
        ended = next((name for name in ("terminated", "truncated") if name in rows and rows[name].any()), "cut")
        label = spec.classes[int(rows["label"][0])] if "label" in rows else ""
        return {"curves": {name: curve.tolist() for name, curve in curves.items()}, "ended": ended, "class": label}

    def frames(self, episode: int, first: int) -> dict[str, Any]:
        """Some frames of an episode from the first one on; with a VQ-VAE also reconstructions, codes and PSNR in dB."""
        start, stop = self.store.episode_bounds(episode)
        if not 0 <= first < stop - start:
            raise UserError(f"episode {episode} has frames 0 to {stop - start - 1}, not {first}")
        last = min(first + FRAMES, stop - start)
        frames = self.store.read("frames", start + first, start + last)
        found: dict[str, Any] = {"frames": [png(frame) for frame in frames]}
        if self.rebuilt:
            pictures, codes = self.rebuilt.get(episode, first, last)
            both = zip(pictures, frames, strict=False)
            found["psnr"] = [round(float(psnr(one, truth)), 2) for one, truth in both]
            found["reconstructions"] = [png(picture) for picture in pictures]
            found["codes"] = [png(code_picture(one)) for one in codes]
        return found


class Rebuilt:
    """Reconstructions and codes of the episode on the page, computed only as far as the page has asked for them.

    Args:
        store: Store of frames.
        vqvae: The VQ-VAE.

    Raises:
        UserError: The frames have another size than those of the VQ-VAE.
    """

    def __init__(self, store: Store, vqvae: AnyVQVAE) -> None:
        wanted = (*vqvae.config.frame_size, vqvae.config.channels)
        if store.env_spec.frame_shape != wanted:
            shape = store.env_spec.frame_shape
            raise UserError(
                f"{store.path} has frames of shape {shape}, but the VQ-VAE takes {wanted}; give its own --data"
            )
        self.store, self.vqvae, self.episode, self.memory = store, vqvae.eval(), -1, Memory()
        self.pictures: list[np.ndarray] = []
        self.codes: list[np.ndarray] = []
        self.led: torch.Tensor | None = None
        self.at_once = vqvae.config.n_frames if not vqvae.config.causal else FRAMES - FRAMES % vqvae.config.stride[0]
        """Frames that are encoded at once: a clip, or some of a stream."""

    def get(self, episode: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Reconstructions (n, h, w, c) and codes (n, H, W, g) of frames; fewer where the end does not fill a clip."""
        if episode != self.episode:
            self.episode, self.memory = episode, Memory()
            self.pictures.clear()
            self.codes.clear()
            self.led = self._actions()
        while len(self.pictures) < last and self._extend():
            pass
        return np.array(self.pictures[first:last]), np.array(self.codes[first:last])

    @torch.inference_mode()
    def _extend(self) -> bool:
        """Encode the next frames; returns whether there were any."""
        start, stop = self.store.episode_bounds(self.episode)
        stride, done = self.vqvae.config.stride[0], len(self.pictures)
        n = min(self.at_once, stop - start - done)
        n = n - n % stride if self.vqvae.config.causal else n - n % self.at_once
        if not n:
            return False
        frames = torch.from_numpy(self.store.read("frames", start + done, start + done + n))[None]
        memory = self.memory if self.vqvae.config.causal else None
        led = None if self.led is None else self.led[None, done : done + n]
        codes, pictures = self.vqvae.reconstruct(frames, memory, led)
        self.pictures += list(pictures[0].numpy())
        self.codes += list(codes[0].repeat_interleave(stride, 0).numpy())
        return True

    def _actions(self) -> torch.Tensor | None:
        """The encoded actions that led into the frames of the episode (rows, a); None if the store has none."""
        if "action" not in self.store.array_names:
            return None
        actions = self.store.read("action", *self.store.episode_bounds(self.episode))
        return torch.from_numpy(self.store.env_spec.action.encode_led(actions[:-1]))


def code_picture(codes: np.ndarray) -> np.ndarray:
    """Codes (H, W, g) as a picture (H, g W, 3), with a color for each code; codebooks are side by side."""
    hue = np.concatenate(list(np.moveaxis(codes, -1, 0)), axis=1) * HUE_STEP
    waves = np.cos(2 * np.pi * (hue[..., None] + np.array([0, 1 / 3, 2 / 3])))
    return (255 * (0.5 + 0.5 * waves)).astype(np.uint8)
