"""What train/world.py chooses: sizes from a look at the data, and numbers of steps from the time."""

from __future__ import annotations

from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldmodel.data.clips import Clips
from worldmodel.data.motion import Motion
from worldmodel.data.opening import open_store
from worldmodel.models.loading import load_vqvae
from worldmodel.training.vqvae_stage import encode_actions
from worldmodel.utils.video_io import save_png, upscale, video_grid

SIZES = (64, 96)
"""Heights and widths of frames to choose from."""
MIN_AREA = 3.0
"""A region that moves should have this many pixels; fewer are easily lost."""
MAX_FRAMES = 100_000
TOKENS_PER_SECOND = 200
"""Frames that are encoded in a second, at least."""
MIN_EPISODES, MIN_STEPS = 50, 50
START_AND_END = 25.0
"""Seconds of a training in which no steps are done: imports, and the evaluation at the end."""


def choose_size(motion: Motion, size: int) -> int:
    """The smallest size at which small regions that move keep enough pixels; `motion` was measured at `size`."""
    return next((s for s in SIZES if motion.smallest * (s / size) ** 2 >= MIN_AREA), SIZES[-1])


def choose_motion_weight(motion: Motion) -> float:
    """A weight by which pixels that change count about half as much as all others together, from 10 to 50."""
    return round(min(50.0, max(10.0, 0.5 / motion.changed)), 1)


def episodes_for(speed: float, seconds: float, encoding: float, length: float) -> int:
    """How many episodes to record.

    Args:
        speed: Frames that are recorded in a second.
        seconds: Seconds for recording.
        encoding: Seconds for encoding what was recorded.
        length: Frames of an episode.
    """
    frames = min(speed * seconds, TOKENS_PER_SECOND * encoding, MAX_FRAMES)
    return max(MIN_EPISODES, round(frames / length))


def steps_per_second(log: Path) -> float:
    """The speed of a training, from the last two entries of its log."""
    events = EventAccumulator(str(log))
    events.Reload()
    before, last = events.Scalars("train/loss")[-2:]
    return (last.step - before.step) / (last.wall_time - before.wall_time)


def steps_for(speed: float, seconds: float) -> int:
    """How many steps fit into some seconds, with start and evaluation; rounded down to two digits."""
    steps = max(MIN_STEPS, int(speed * (seconds - START_AND_END)))
    unit = 10 ** max(0, len(str(steps)) - 2)
    return steps // unit * unit


@torch.no_grad()
def draw_reconstructions(run: Path, n_clips: int = 4, n_frames: int = 8) -> Path:
    """Write <run>/reconstruction.png: held-out frames, and below each row of them their reconstructions."""
    vqvae, store = load_vqvae(run / "vqvae"), open_store(str(run / "data.zarr"))
    clips = Clips(store, "valid", 2 * n_frames, ["frames", "action"])
    held = encode_actions(store.env_spec, clips.fixed_sample(min(n_clips, len(clips))))
    frames = torch.from_numpy(held["frames"])
    seen = vqvae.reconstruct(frames, actions=torch.from_numpy(held["actions"]))[1]
    rows = torch.stack([frames, seen], 1).flatten(0, 1)[:, ::2].numpy()
    save_png(path := run / "reconstruction.png", upscale(video_grid(rows), 2))
    return path
