"""What train/world.py chooses: sizes from a look at the data, and numbers of steps from the time."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs import parse
from worldmodel.data.clips import Clips
from worldmodel.data.motion import Motion
from worldmodel.data.opening import open_store
from worldmodel.data.store import SPLITS, Store
from worldmodel.models.layers import Memory
from worldmodel.models.loading import build_vqvae, load_vqvae
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.training.scalars import read_scalars
from worldmodel.training.step import autocast
from worldmodel.training.tokens_stage import LANES
from worldmodel.training.vqvae_stage import VQVAEStage, encode_actions
from worldmodel.utils.errors import UserError
from worldmodel.utils.memory import keep_freed_memory
from worldmodel.utils.run_args import DEVICE
from worldmodel.utils.video_io import save_png, upscale, video_grid

SIZES = (64, 96)
"""Heights and widths of frames to choose from."""
MIN_AREA = 3.0
"""A region that moves should have this many pixels; fewer are easily lost."""
MIN_FRAMES, MAX_FRAMES = 4_000, 100_000
"""Fewest and most frames to record. If episodes are short, a look has too few frames to measure the recording speed."""
MIN_EPISODES, MIN_STEPS = 20, 50
MIN_LENGTH, LONG = 6, 33
"""Frames of an episode: fewer are too short, more are long enough for every stage."""
START_AND_END = 25.0
"""Seconds of a training that are not spent on steps: imports, and the evaluation at the end."""


def choose_size(motion: Motion, size: int) -> int:
    """The smallest size at which small regions that move keep enough pixels; `motion` was measured at `size`."""
    return next((s for s in SIZES if motion.smallest * (s / size) ** 2 >= MIN_AREA), SIZES[-1])


def choose_motion_weight(motion: Motion) -> float:
    """A weight by which pixels that change count about half as much as all others together, from 10 to 50."""
    return round(min(50.0, max(10.0, 0.5 / motion.changed)), 1)


def episodes_for(frames: float, length: float) -> int:
    """Number of episodes to record for a number of frames, if an episode has `length` of them; within limits."""
    return max(MIN_EPISODES, round(min(max(frames, MIN_FRAMES), MAX_FRAMES) / length))


def flags_for_lengths(store: Store) -> dict[str, dict[str, Any]]:
    """Flags of each stage for episodes that are shorter than its clips; for long episodes none.

    Raises:
        UserError: Episodes are too short to learn from.
    """
    lengths = {s: [store.episode_length(i) for i in store.episode_indices(s)] for s in SPLITS}
    longest, usual = min(map(max, lengths.values())), int(np.median(lengths["train"]))
    if longest < MIN_LENGTH:
        raise UserError(
            f"held-out episodes are shorter than {MIN_LENGTH} frames, too short to learn from; give a --policy that "
            "survives longer, and another --run"
        )
    if longest > LONG and usual > LONG:
        return {}
    context = min(8, longest // 2)
    ahead = longest - context - 1  # the first frame of an episode is given, and has no codes of its own
    return {
        "vqvae": {"n_eval_frames": min(30, longest)},
        "prior": {"n_latent_frames": max(2, min(12, usual - 1, longest - 1))},
        "dream": {"context_frames": context, "steps": min(24, ahead)},
        "evaluate": {"context_frames": context, "steps_ahead": [n for n in (1, 5, 10) if n <= ahead]},
    }


@torch.no_grad()
def encoding_speed(size: int) -> float:
    """Frames that train/tokens.py encodes in a second with the VQ-VAE of the preset `world`, measured on noise."""
    stage = parse(VQVAEStage, "vqvae", ["--preset", "world", "--model.frame-size", str(size), str(size)])
    model = build_vqvae(VQVAEConfig(**vars(stage.model))).to(DEVICE).eval()
    frames = torch.randint(256, (LANES[DEVICE], 4, size, size, 3), dtype=torch.uint8, device=DEVICE)
    memory = Memory()
    keep_freed_memory()
    with autocast(torch.device(DEVICE), "auto"):
        model.reconstruct(frames[:, :2], memory)  # the first frames take longer
        before = time.monotonic()
        model.reconstruct(frames[:, 2:], memory)[1].cpu()
    return 2 * len(frames) / (time.monotonic() - before)


def steps_per_second(log: Path) -> float:
    """The speed of a training: the median over the last intervals of its log, some of which have an evaluation.

    Raises:
        UserError: The log is gone.
    """
    losses = read_scalars(log, "train/loss")
    if not losses:
        raise UserError(f"{log} does not have the speed of its training any more; use another --run")
    pairs = pairwise(losses[-10:])
    return float(np.median([(last.step - first.step) / (last.wall_time - first.wall_time) for first, last in pairs]))


def steps_for(speed: float, seconds: float) -> int:
    """Number of steps that fit into a time besides start and evaluation, rounded down to two significant digits."""
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
