"""Encoding whole episodes into rows of codes, for train/tokens.py.

In stream mode several episodes are encoded side by side, one in each lane of the batch: a frame can only be encoded
after the frame before it, so a single episode would be encoded frame by frame.

Dimensions: n frames, t latent frames, s frames of a latent frame, h w g codes, a numbers of an encoded action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from worldmodel.data.clips import RECONSTRUCTION
from worldmodel.data.env_spec import EnvSpec
from worldmodel.models.layers import Memory
from worldmodel.models.loading import AnyVQVAE

Rows = dict[str, np.ndarray]
"""Arrays of an episode by name."""
CHUNK = 16
"""Latent frames that are encoded at a time."""


def clip_starts(model: AnyVQVAE, rows: int, clip_stride: int) -> list[int]:
    """First frames of the clips of an episode that a paper-mode VQ-VAE encodes.

    Args:
        model: The VQ-VAE.
        rows: Number of frames of the episode.
        clip_stride: As in `TokensStage`.
    """
    return list(range(0, rows - model.config.n_frames + 1, clip_stride))


@torch.no_grad()
def encode_streams(model: AnyVQVAE, episodes: Sequence[Rows], progress: Callable[[int], object]) -> list[Rows]:
    """Encode episodes side by side with a stream-mode VQ-VAE.

    Args:
        model: The VQ-VAE.
        episodes: Arrays of each: "frames" (n, H, W, channels) uint8, n a multiple of the time stride, and for a
            recurrent VQ-VAE "led" (n, a), the encoded action that led into each frame.
        progress: Called with the number of frames encoded since the last call.

    Returns:
        For each "codes" (t, h, w, g) uint16, and of a recurrent VQ-VAE the "reconstruction" (t, H, W, channels) uint8.
    """
    device, names = model.pre_vq_conv.weight.device, ("frames", "led") if model.config.action_dim else ("frames",)
    sizes, step = np.array([len(episode["frames"]) for episode in episodes]), CHUNK * model.config.stride[0]
    longest_first, memory = np.argsort(-sizes, kind="stable"), Memory()
    encoded: list[list[tuple[np.ndarray, ...]]] = [[] for _ in episodes]
    for start in range(0, sizes.max(), step):
        lanes = longest_first[: (sizes > start).sum()]  # the others have ended
        memory = Memory({layer: past[: len(lanes)] for layer, past in memory.items()})
        rows = np.minimum(start + np.arange(step), sizes[lanes][:, None] - 1)  # an ended lane repeats its last row
        parts = (np.stack([episodes[i][name][at] for i, at in zip(lanes, rows, strict=True)]) for name in names)
        frames, *actions = (torch.from_numpy(part).to(device) for part in parts)
        both = bool(model.config.past_frames)
        results = model.reconstruct(frames, memory, *actions) if both else [model.encode(frames, memory)]
        for i, *result in zip(lanes, *(tensor.cpu().numpy() for tensor in results), strict=True):
            encoded[i].append(tuple(result))
        progress(int(np.minimum(step, sizes[lanes] - start).sum()))
    found = []
    for n, chunks in zip(sizes // model.config.stride[0], encoded, strict=True):
        codes, *seen = (np.concatenate(arrays)[:n] for arrays in zip(*chunks, strict=True))
        found.append({"codes": codes.astype(np.uint16)} | ({RECONSTRUCTION: seen[0]} if seen else {}))
    return found


@torch.no_grad()
def encode_clips(model: AnyVQVAE, frames: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Encode clips of an episode (n, H, W, channels) with a paper-mode VQ-VAE, one after the other.

    Returns:
        Their codes in a row (clips * t, h, w, g) uint16.
    """
    device, n = model.pre_vq_conv.weight.device, model.config.n_frames
    clips = (torch.from_numpy(frames[start : start + n])[None].to(device) for start in starts)
    return np.concatenate([model.encode(clip)[0].cpu().numpy() for clip in clips]).astype(np.uint16)


def latent_rows(episode: dict[str, np.ndarray], start: int, stop: int, stride: int) -> dict[str, np.ndarray]:
    """All rows but the codes for the latent frames of frames start .. stop.

    Args:
        episode: Arrays of a whole episode, and as "led" the encoded action that led into each frame.
        start: First frame.
        stop: Frame after the last.
        stride: Frames of a latent frame.
    """

    def into(values: np.ndarray) -> np.ndarray:
        """The value of the step into each frame (zero for an episode's first), s to a row."""
        before = np.concatenate([np.zeros_like(values[:1]), values[:-1]])
        return before[start:stop].reshape(-1, stride, *values.shape[1:])

    def at(values: np.ndarray) -> np.ndarray:
        """The value at the last of its frames."""
        return values[start:stop][stride - 1 :: stride]

    rows: dict[str, np.ndarray] = {
        name: at(episode[name]) for name in ("variables", "label", "split") if name in episode
    }
    if "led" in episode:
        rows["condition"] = episode["led"][start:stop].reshape((stop - start) // stride, -1)
    if "reward" in episode:
        rows["reward"] = into(episode["reward"]).sum(1)
    if "terminated" in episode:
        rows["done"] = np.asarray(into(episode["terminated"]).any(1))
    return rows


def encode_episodes(
    model: AnyVQVAE,
    env_spec: EnvSpec,
    episodes: Sequence[Rows],
    first_rows: Sequence[int],
    clip_stride: int,
    progress: Callable[[int], object],
) -> list[Rows]:
    """Encode episodes.

    Args:
        model: The VQ-VAE.
        env_spec: The environment of the episodes.
        episodes: The arrays of each.
        first_rows: Row of the first frame of each in the store.
        clip_stride: As in `TokensStage`.
        progress: Called often, with the number of frames encoded since the last call. It may raise.

    Returns:
        The rows of codes of each. An episode that is too short for a clip has none.
    """
    stride, n_frames = model.config.stride[0], model.config.n_frames
    led = [{"led": env_spec.action.encode_led(e["action"][:-1])} if "action" in e else {} for e in episodes]
    episodes = [episode | more for episode, more in zip(episodes, led, strict=True)]
    if model.config.causal:
        episodes = [fill_last_latent_frame(episode, stride) for episode in episodes]
        streams = encode_streams(model, episodes, progress)
        for codes, episode, row in zip(streams, episodes, first_rows, strict=True):
            n = len(episode["frames"])
            codes |= latent_rows(episode, 0, n, stride) | {"frame_row": row + np.arange(0, n, stride)}
        return streams
    found: list[Rows] = []
    for episode, row in zip(episodes, first_rows, strict=True):
        starts = clip_starts(model, len(episode["frames"]), clip_stride)
        if not starts:
            found.append({})
            continue
        parts = [
            latent_rows(episode, start, start + n_frames, stride)
            | {"frame_row": row + np.arange(start, start + n_frames, stride)}
            for start in starts
        ]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        found.append({"codes": encode_clips(model, episode["frames"], starts)} | rows)
        progress(len(episode["frames"]))
    return found


def fill_last_latent_frame(episode: Rows, stride: int) -> Rows:
    """Repeat the last row until its latent frame is full, so that the end of the episode is not lost."""
    missing = -len(episode["frames"]) % stride
    return {name: np.concatenate([array, array[-1:].repeat(missing, axis=0)]) for name, array in episode.items()}
