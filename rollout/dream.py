"""Show dreams next to the ground truth and their difference, as a GIF and as a PNG strip.

    python rollout/dream.py --run runs/demo

Writes <run>/dreams/dream.gif, with one row per clip: ground truth, dream under the true actions, difference. It starts
with the reconstructed context. Also writes <run>/dreams/strip.png, with three rows of frames per clip.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from configs import command
from configs.written import Written
from rollout.heldout import HeldOutArgs, dream_frames, load_heldout, reconstructions
from worldmodel.generation.dream import Dream
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import Positive
from worldmodel.utils.video_io import abs_difference, add_labels, save_gif, save_png, side_by_side, upscale, video_grid


@dataclass(frozen=True, kw_only=True)
class Args(HeldOutArgs):
    """Show dreams next to the ground truth."""

    n_clips: Positive = 4
    """Number of clips to show."""
    steps: Positive = 24
    """Steps to predict after the context."""


def main(args: Args) -> Written:
    dream = Dream.load(args.run, args.sampling, args.device)
    c = args.context_frames
    heldout_clips = load_heldout(dream, args.run, args.data, args.split, args.n_clips, c + args.steps)
    given = heldout_clips.actions_after(c, args.steps)
    with Progress(total=len(given) * args.steps, unit=" steps", desc="dream") as bar:
        dreamed = dream_frames(dream, heldout_clips, given, c, args.seed, args.n_clips, bar)
    film = np.concatenate([reconstructions(dream, heldout_clips, c), dreamed], axis=1)
    videos = [heldout_clips.frames, film, abs_difference(heldout_clips.frames, film)]
    columns = ["truth", "dream", "difference"]
    frames = [add_labels(frame, columns) for frame in upscale(side_by_side(videos), 3)]
    fps = dream.env_spec.fps / dream.stride
    folder = args.run / "dreams"
    save_gif(folder / "dream.gif", np.stack(frames), fps)
    shown = slice(c - 1, None, max(1, args.steps // 12))
    rows = np.stack([f[i, shown] for i in range(len(film)) for f in videos])
    save_png(folder / "strip.png", upscale(video_grid(rows), 2))
    return Written(folder / "dream.gif", "rollout/evaluate.py", {"run": args.run, "data": args.data})


if __name__ == "__main__":
    command(main, "dream")
