"""Truth, dream and their difference side by side, as a GIF and as a PNG strip.

    python rollout/dream.py --run runs/demo

Writes <run>/dreams/dream.gif (one row a clip: truth, dream under the true actions, difference; the context is shown
first, reconstructed) and <run>/dreams/strip.png (for each clip three rows of frames).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from tqdm import tqdm

from configs import Address, command
from rollout.evaluate import dreams, held_out, reconstructions
from worldmodel.dream import Dream
from worldmodel.pictures import difference, enlarge, film_strip, label, save_gif, save_png, side_by_side
from worldmodel.sampling import Sampling
from worldmodel.settings import Positive, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Show dreams beside the truth."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    data: Address | None = None
    """Store of frames; <run>/data.zarr if not given."""
    split: str = "test"
    clips: Positive = 4
    """Clips to show."""
    context: Positive = 8
    """Latent frames that are given."""
    steps: Positive = 24
    """Steps that are dreamed."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: Seed = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def main(args: Args) -> None:
    dream = Dream.load(args.run, args.sampling, args.device)
    held, c = held_out(dream, args.run, args.data, args.split, args.clips, args.context + args.steps), args.context
    given = held.actions[:, c - 1 : c - 1 + args.steps]
    with tqdm(total=len(given) * args.steps, unit=" steps", desc="dream") as bar:
        dreamed = dreams(dream, held, given, c, args.seed, args.clips, bar)
    film = np.concatenate([reconstructions(dream, held.codes[:, :c]), dreamed], axis=1)
    films = [held.frames, film, difference(held.frames, film)]
    columns = ["truth", "dream", "difference"]
    frames = [label(frame, columns) for frame in enlarge(side_by_side(films), 3)]
    fps = dream.world.fps / dream.stride
    folder = args.run / "dreams"
    save_gif(folder / "dream.gif", np.stack(frames), fps)
    shown = slice(c - 1, None, max(1, args.steps // 12))
    rows = np.stack([f[i, shown] for i in range(len(film)) for f in films])
    save_png(folder / "strip.png", enlarge(film_strip(rows), 2))
    print(f"pictures: {folder / 'dream.gif'} and {folder / 'strip.png'}")


if __name__ == "__main__":
    command(main, "dream")
