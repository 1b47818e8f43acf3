"""Do futures of one starting frame diverge under different actions, and agree under the same actions?

    python rollout/divergence.py --run runs/pushing --context-frames 1

From each held-out start two samples follow its true actions, and two follow the actions of another episode. A prior in
paper mode is given its conditioning frame and the actions of a clip, so its clips start with a sample of that frame
(`--preset bair`). The picture has these four rows per start, each beginning with the given frame. The table has the
distance between two samples, as root mean square difference of pixels over their range: under the same actions, under
different actions, and as an upper bound between real frames of different episodes.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from configs import command
from configs.written import Written
from rollout.heldout import (
    HeldOutArgs,
    dream_frames,
    load_heldout,
    load_models,
    other_episode_order,
    real_clips,
    sample_videos,
)
from rollout.verdicts import judge_futures
from worldmodel.generation.dream import Dream
from worldmodel.metrics.interval import bootstrap, means_to_json
from worldmodel.models.loading import load_prior
from worldmodel.training.verdicts import judge_split
from worldmodel.utils.checkpoint import weights_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.hardware import Precision
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import AtLeast2, NonEmpty, Positive
from worldmodel.utils.video_io import save_png, upscale, video_grid


@dataclass(frozen=True, kw_only=True)
class Args(HeldOutArgs):
    """Measure how futures of one frame diverge under different actions."""

    run: Path = Path("runs/pushing")
    """Run folder."""
    n_starts: AtLeast2 = 32
    """Number of held-out starts, from different episodes if there are enough."""
    context_frames: Positive = 1
    """Latent frames of true codes given in stream mode; 1 as in the paper's samples of BAIR."""
    steps: Positive = 15
    """Steps to predict."""
    n_shown: Positive = 2
    """Number of starts in the picture."""
    steps_ahead: NonEmpty[Positive] = (1, 5, 10, 15)
    """Numbers of steps at which samples are compared."""
    batch_size: Positive = 64
    """Samples in one batch."""
    precision: Precision = "float32"
    """Precision of the dream's models."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.steps_ahead) > self.steps:
            raise UserError(f"steps_ahead must be at most steps, {self.steps}, not {max(self.steps_ahead)}")
        if self.n_shown > self.n_starts:
            raise UserError(f"n_shown must be at most n_starts, {self.n_starts}, not {self.n_shown}")


@dataclass(frozen=True)
class Futures:
    """Real and sampled futures of the same starts."""

    real: np.ndarray
    """(n, 1 + steps, h, w, 3), starting with the last given frame."""
    episode: np.ndarray
    other_start: np.ndarray
    """(n,) the start that provides the different actions."""
    samples: np.ndarray
    """(n, 2 plans, 2 samples, steps, h, w, 3): plan 0 has the start's own actions, plan 1 those of another start."""


def stream_futures(args: Args) -> Futures:
    """Futures of a stream-mode run: dreams from true codes."""
    dream, c = Dream.load(args.run, args.sampling, args.device, args.precision), args.context_frames
    heldout_clips = load_heldout(dream, args.run, args.data, args.split, args.n_starts, c + args.steps)
    others, videos = other_episode_order(heldout_clips.episode, args.seed), []
    own = heldout_clips.actions_after(c, args.steps)
    with Progress(total=4 * len(own) * args.steps, unit=" steps", desc="dreams") as bar:
        for plan in (own, own[others]):
            videos.append(
                [dream_frames(dream, heldout_clips, plan, c, args.seed + k, args.batch_size, bar) for k in range(2)]
            )
    return Futures(heldout_clips.frames[:, c - 1 :], heldout_clips.episode, others, np.moveaxis(np.array(videos), 2, 0))


def clip_futures(args: Args) -> Futures:
    """Futures of a paper-mode run: clips given conditioning frames and actions."""
    vqvae, prior = load_models(args.run, "prior", args.device)
    if not prior.config.n_cond_frames or prior.config.conditioning == "none":
        raise UserError(
            f"{args.run}/prior is not conditioned on frames and actions; train one with --model.n-cond-frames 1 "
            "--actions"
        )
    truth = real_clips(args.run, prior, vqvae.config.stride[0], args.n_starts, args.split, args.data)
    c, batch, videos = prior.config.n_cond_frames, truth.batch, []
    if args.steps > (most := truth.frames.shape[1] - c):
        raise UserError(f"this prior samples {most} frames after the given ones, not {args.steps}; lower --steps")
    others = other_episode_order(truth.episode, args.seed)
    assert batch.condition is not None
    with Progress(total=4 * args.n_starts, unit=" videos", desc="samples") as bar:
        sample = partial(
            sample_videos, vqvae, prior, sampling=args.sampling, batch_size=args.batch_size, on_progress=bar.update
        )
        for condition in (batch.condition, batch.condition[others]):
            plan = replace(batch, condition=condition)
            videos.append([sample(plan, args.seed + k) for k in range(2)])
    found = np.moveaxis(np.array(videos), 2, 0)[:, :, :, c : c + args.steps]
    return Futures(truth.frames[:, c - 1 : c + args.steps], truth.episode, others, found)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square difference (n, t) of videos (n, t, h, w, 3), over the range of a pixel."""
    return np.sqrt(((a.astype(np.float32) - b) ** 2).mean((2, 3, 4))) / 255


def main(args: Args) -> Written:
    found = (stream_futures if load_prior(args.run / "prior").config.mode == "stream" else clip_futures)(args)
    video, real = found.samples, found.real[:, 1:]
    apart = {
        "same actions": distance(video[:, 0, 0], video[:, 0, 1]),
        "different actions": distance(video[:, 0, 0], video[:, 1, 1]),
        "other real episodes": distance(real, real[found.other_start]),
    }
    distances = {name: [bootstrap(d[:, t - 1], found.episode) for t in args.steps_ahead] for name, d in apart.items()}
    print(f"{'distance between samples after steps':38}" + "".join(f"{t:>24}" for t in args.steps_ahead))
    for name, means in distances.items():
        print(f"{name:38}" + "".join(f"{mean!s:>24}" for mean in means))
    more = apart["different actions"] - apart["same actions"]
    verdict = judge_futures(bootstrap(more[:, -1], found.episode), more.shape[1])
    for line in [*judge_split(found.episode), verdict]:
        print(f"{args.run}: {line}")
    folder = args.run / "evaluation"
    rows = [np.concatenate([found.real[i, :1], one]) for i in range(args.n_shown) for plan in video[i] for one in plan]
    save_png(folder / "divergence.png", upscale(video_grid(np.stack(rows)[:, :: -(-args.steps // 8)]), 2))
    protocol = asdict(args) | {"prior": weights_digest(args.run / "prior")}
    write_json(folder / "divergence.json", {"protocol": protocol} | means_to_json(distances))
    return Written(folder / "divergence.png")


if __name__ == "__main__":
    command(main, "divergence")
