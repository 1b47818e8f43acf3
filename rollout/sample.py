"""Sample videos from a prior: unconditional, or given the actions, class or conditioning frames of real clips.

    python rollout/sample.py --run runs/moving_mnist

In paper mode, conditioning frames enter the prior through its ResNet, and their codes are sampled too, as in the
official code. `--copy-cond-frames` replaces these frames by the real ones afterwards; samples.json records which was
done. In stream mode, the prior continues `--context-frames` latent frames of true codes. They are encoded from the
given frames alone, because codes in the store may depend on frames before the clip.

Writes <run>/samples: samples.gif (ground truth and samples), samples.png, samples.npy and samples.json. The latter has
all settings, and for conditioned samples their distance from the real frames: the mean over the samples of a clip, the
best sample, and as a baseline the last given frame repeated.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from configs import command
from configs.written import Written
from rollout.heldout import HeldOutArgs, RealClips, encode_given, load_models, real_clips, sample_videos
from rollout.provenance import provenance
from rollout.verdicts import judge_samples
from worldmodel.data.opening import open_store
from worldmodel.data.prior_dataset import PriorBatch
from worldmodel.metrics.frames import nmse, psnr, squared_error
from worldmodel.metrics.interval import MeanInterval, bootstrap, bootstrap_ratio
from worldmodel.metrics.ssim import ssim
from worldmodel.models.loading import AnyVQVAE
from worldmodel.models.prior import Prior
from worldmodel.training.verdicts import judge_split
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_atomic, write_json
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import AtLeast2, Count, Positive
from worldmodel.utils.video_io import add_labels, save_gif, save_png, side_by_side, upscale, video_grid


@dataclass(frozen=True, kw_only=True)
class Args(HeldOutArgs):
    """Sample videos from a prior."""

    run: Path = Path("runs/moving_mnist")
    """Run folder."""
    prior: str = "prior"
    """Name of the prior's folder inside the run folder."""
    n_clips: AtLeast2 = 16
    """Number of real clips that provide conditions and ground truth."""
    samples_per_clip: Positive = 4
    """Samples per clip."""
    context_frames: Count = 0
    """Latent frames of true codes to continue, in stream mode; 0 samples from the start."""
    copy_cond_frames: bool = False
    """Replace the sampled conditioning frames by the real ones."""
    class_name: str = ""
    """Class of all samples, by default that of each clip."""
    batch_size: Positive = 16
    """Videos sampled in one batch."""


def scores(
    truth: RealClips, samples: np.ndarray, first: int, variance: float
) -> dict[str, dict[str, list[MeanInterval]]]:
    """PSNR, SSIM and NMSE of each frame from `first` on: of samples (s, n, t, H, W, c), and of a repeated frame."""
    still = truth.frames[:, first - 1 : first].repeat(truth.frames.shape[1], 1)
    figures: dict[str, tuple[Callable[..., np.ndarray], int]] = {
        "psnr": (psnr, 1),
        "ssim": (ssim, 1),
        "nmse": (lambda a, b: nmse(a, b, variance), -1),
    }
    result = {}
    for name, (score, sign) in figures.items():
        by_sample = np.stack([score(s[:, first:], truth.frames[:, first:]) for s in samples])  # (each, n, t)
        best = (sign * by_sample.mean(2)).argmax(0)  # the best sample by its mean over the clip
        rows = {
            "mean of samples": by_sample.mean(0),
            "best of samples": by_sample[best, np.arange(len(best))],
            "last given frame, held": score(still[:, first:], truth.frames[:, first:]),
        }
        result[name] = {row: [bootstrap(v, truth.episode) for v in values.T] for row, values in rows.items()}
    return result


def error_over_copy(truth: RealClips, samples: np.ndarray, first: int) -> MeanInterval:
    """Squared error of the best of samples (s, n, t, H, W, c), divided by that of a repeated frame, from `first` on."""
    future = truth.frames[:, first:]
    still = truth.frames[:, first - 1 : first].repeat(future.shape[1], 1)
    best = np.min([squared_error(s[:, first:], future).mean(1) for s in samples], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # in some clips nothing moves
        return bootstrap_ratio(best, squared_error(still, future).mean(1), truth.episode)


def table(result: dict[str, dict[str, list[MeanInterval]]], first: int) -> str:
    lines = []
    for figure, rows in result.items():
        steps = range(len(next(iter(rows.values()))))
        shown = [k for k in steps if k in (0, 4, 9, steps[-1])]
        lines.append(f"{figure:24}" + "".join(f"{f'frame {first + k}':>26}" for k in shown))
        lines += [f"  {row:22}" + "".join(f"{means[k]!s:>26}" for k in shown) for row, means in rows.items()]
    return "\n".join(lines)


def save_pictures(folder: Path, truth: np.ndarray, samples: np.ndarray, fps: float, few: int = 4) -> None:
    """Write a GIF with ground truth and samples side by side, and a strip of frames of the first clips."""
    videos = [truth[:few], *(s[:few] for s in samples[:few])]
    words = ["truth", *(f"sample {k + 1}" for k in range(len(videos) - 1))]
    save_gif(folder / "samples.gif", np.stack([add_labels(f, words) for f in upscale(side_by_side(videos), 2)]), fps)
    rows = np.stack([film[i] for i in range(min(few, len(truth))) for film in videos[:3]])
    save_png(folder / "samples.png", video_grid(rows))


def draw_samples(args: Args, vqvae: AnyVQVAE, prior: Prior, batch: PriorBatch) -> np.ndarray:
    """Samples (samples_per_clip, n, t, H, W, c); each set has a seed of its own."""
    with Progress(total=args.samples_per_clip * args.n_clips, unit=" videos", desc="samples") as bar:
        draw = partial(
            sample_videos,
            vqvae,
            prior,
            batch,
            context_frames=args.context_frames,
            copy_cond_frames=args.copy_cond_frames,
            sampling=args.sampling,
            batch_size=args.batch_size,
            on_progress=bar.update,
        )
        return np.stack([draw(seed=args.seed + k) for k in range(args.samples_per_clip)])


def main(args: Args) -> Written:
    vqvae, prior = load_models(args.run, args.prior, args.device)
    truth = real_clips(args.run, prior, vqvae.config.stride[0], args.n_clips, args.split, args.data)
    store, batch = open_store(args.data or args.run / "data.zarr"), encode_given(vqvae, truth, args.context_frames)
    if args.class_name:
        batch = replace(batch, condition=with_class(prior, batch, store.env_spec.classes, args.class_name))
    samples = draw_samples(args, vqvae, prior, batch)
    first, folder = args.context_frames * vqvae.config.stride[0] or prior.config.n_cond_frames, args.run / "samples"
    save_pictures(folder, truth.frames, samples, store.env_spec.fps)
    file = io.BytesIO()
    np.save(file, samples.reshape(-1, *samples.shape[2:]))
    write_atomic(folder / "samples.npy", file.getvalue())
    frames = ("copied" if args.copy_cond_frames else "regenerated") if prior.config.n_cond_frames else "none"
    result: dict[str, Any] = {"settings": asdict(args), "conditioning frames": frames}
    result |= provenance(args.run, args.prior)
    if first and not args.class_name:
        figures = scores(truth, samples, first, vqvae.config.data_variance)
        print(
            f"{args.n_clips} clips, {args.samples_per_clip} samples of each; {first} frames given, means [95% "
            "intervals]"
        )
        print(table(figures, first))
        verdict = judge_samples(error_over_copy(truth, samples, first), len(samples))
        for line in [*judge_split(truth.episode), verdict]:
            print(f"{args.run}: {line}")
        result |= {f: {row: [m.to_json() for m in means] for row, means in r.items()} for f, r in figures.items()}
    write_json(folder / "samples.json", result)
    print(f"conditioning frames: {frames}")
    return Written(folder)


def with_class(prior: Prior, batch: PriorBatch, classes: tuple[str, ...], name: str) -> torch.Tensor:
    """The conditions (n, ...) with the class replaced; `UserError` for an unknown class."""
    if name not in classes[: prior.config.n_classes]:
        known = ", ".join(classes[: prior.config.n_classes]) or "none: train the prior with --classes"
        raise UserError(f"this prior has no class {name!r}; choose one of {known}")
    assert batch.condition is not None
    condition = batch.condition.clone()
    condition[..., -prior.config.n_classes :] = torch.eye(prior.config.n_classes)[classes.index(name)]
    return condition


if __name__ == "__main__":
    command(main, "sample")
