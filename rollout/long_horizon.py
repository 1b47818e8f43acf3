"""Do dreams stay stable over a thousand steps and more? Compares windows of long dreams with real episodes.

    python rollout/long_horizon.py --run runs/take_cover
    python rollout/long_horizon.py --run runs/take_cover --compare-runs runs/without_noise --temperature 0.8 1 1.2

The dreams ignore termination. Actions are random and held for a few steps, as in data collection, or they come from a
policy, which is fairer to a model that was trained on recordings of a policy. Metrics per window:

    sharpness   mean absolute difference of neighboring pixels, in gray levels
    codes       perplexity of the code usage
    bits        negative log-likelihood per sampled code, in bits

Real episodes of the test split, decoded from their true codes, give the range in which a dream should stay. The
drift of a metric is its mean over the last window minus that over the first, in standard deviations of real windows.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from configs import command
from configs.written import Written
from envs.policies import MAX_STACKED_FRAMES, load_player
from rollout.heldout import SplitArgs, read_code_clips, reconstructions
from rollout.verdicts import judge_drift
from worldmodel.data.clips import n_given_rows
from worldmodel.data.opening import open_tokens
from worldmodel.data.prior_dataset import bits_per_code
from worldmodel.generation.context import Context
from worldmodel.generation.dream import Dream
from worldmodel.generation.sampling import SamplingConfig
from worldmodel.models.quantizer import codebook_usage
from worldmodel.utils.checkpoint import weights_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import NonEmpty, NotNegative, Positive
from worldmodel.utils.video_io import save_png, upscale, video_grid

FIGURES = ("sharpness", "codes", "bits")
WARMUP_FRAMES = 8
"""First frames of a real window whose likelihood does not count, because the prior has too little context yet."""
Curves = dict[str, np.ndarray]
"""Metric -> its values over the windows."""


@dataclass(frozen=True, kw_only=True)
class Args(SplitArgs):
    """Measure the stability of long dreams."""

    compare_runs: tuple[Path, ...] = ()
    """More run folders on the same data, to compare with."""
    temperature: NonEmpty[NotNegative] = (1.0,)
    """Sampling temperatures to compare."""
    steps: Positive = 1000
    """Length of a dream in steps."""
    window: Positive = 50
    """Length of a window in steps."""
    num_envs: Positive = 16
    """Number of dreams, in one batch."""
    policy: str = "random"
    """Policy that acts: random, a folder, or a pretrained one; @0.3 at its end takes 30% random
    actions."""
    hold: Positive = 4
    """Steps for which a random action is held; used if the policy is random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2 * self.window:
            raise UserError(f"steps must be at least two windows, {2 * self.window}, not {self.steps}")
        if self.window <= WARMUP_FRAMES:
            raise UserError(
                f"window must be longer than {WARMUP_FRAMES} steps, the context of a real window; set a longer --window"
            )


def sharpness(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighboring pixels (..., h, w, 3) -> (...), in gray levels."""
    gray = frames.astype(np.float32).mean(-1)
    across, down = np.abs(np.diff(gray, axis=-1)), np.abs(np.diff(gray, axis=-2))
    return (across.mean((-2, -1)) + down.mean((-2, -1))) / 2


def perplexity(codes: np.ndarray, size: int) -> float:
    """Perplexity of codes of any shape: 2 to the entropy of their frequencies."""
    return float(codebook_usage(torch.from_numpy(codes).reshape(-1, 1), size)["perplexity"])


def long_dream(args: Args, run: Path, temperature: float) -> tuple[Curves, np.ndarray]:
    """The metrics of dreams, and frames (6, n, h, w, 3) of the first ones."""
    dream, contexts = Dream.load(run, SamplingConfig(temperature=temperature)), Context.load(run)
    rng = np.random.default_rng(args.seed)
    chosen = torch.from_numpy(rng.integers(len(contexts), size=args.num_envs))
    lanes, frame, _ = dream.reset(contexts[chosen], [int(s) for s in rng.integers(2**32, size=args.num_envs)])
    sharp, bits, codes, shown = [], [], [], []
    player, seen = load_player(args.policy, dream.env_spec), deque([frame.numpy()], maxlen=MAX_STACKED_FRAMES)
    for t in Progress(range(args.steps), unit=" steps", desc=f"{run.name} at {temperature}"):
        if args.policy != "random" or t % args.hold == 0:
            actions = player(np.stack(seen), rng)
        step = dream.step(lanes, actions)
        frames = step.frames[:, -1].numpy()
        seen.append(frames)
        sharp.append(sharpness(frames))
        bits.append(-step.log_likelihood.numpy() / math.log(2) / dream.prior.config.codes_per_frame)
        codes.append(step.codes.numpy())
        if t in np.linspace(0, args.steps - 1, 12).astype(int):
            shown.append(frames[:6])
    size, n = dream.prior.config.n_codes, args.steps // args.window
    windows = [slice(k * args.window, (k + 1) * args.window) for k in range(n)]
    return {
        "sharpness": np.array([np.mean(sharp[w]) for w in windows]),
        "codes": np.array([perplexity(np.stack(codes[w]), size) for w in windows]),
        "bits": np.array([np.mean(bits[w]) for w in windows]),
    }, np.stack(shown, axis=1)


@torch.no_grad()
def real_curves(args: Args) -> Curves:
    """The metrics of real windows, each with as many frames as a window of the dreams."""
    dream, tokens = Dream.load(args.run), open_tokens(args.run)
    first = n_given_rows(tokens)
    clips = [
        (tokens.episode_bounds(i)[0] + start, start, i)
        for i in tokens.episode_indices(args.split)
        for start in range(first, tokens.episode_length(i) - args.window + 1, args.window)
    ]
    if len(clips) < 2:
        raise UserError(
            f"split {args.split!r} has fewer than two windows of {args.window} frames; set a shorter --window"
        )
    order = np.random.default_rng(args.seed).permutation(len(clips))
    curves: dict[str, list[float]] = {name: [] for name in FIGURES}
    size = min(args.num_envs, max(1, len(clips) // 4))
    for k in Progress(range(0, len(order) - size + 1, size)[:8], unit=" windows", desc="real"):
        rows, start, episode = np.array([clips[i] for i in order[k : k + size]]).T
        picked = read_code_clips(dream, tokens, rows, start, episode, args.window)
        curves["sharpness"].append(float(sharpness(reconstructions(dream, picked)).mean()))
        curves["codes"].append(perplexity(picked.codes.numpy(), dream.prior.config.n_codes))
        curves["bits"].append(
            float(bits_per_code(dream.prior, picked.batch(picked.condition), 16, WARMUP_FRAMES).mean())
        )
    return {name: np.array(values) for name, values in curves.items()}


def drift(curve: np.ndarray, truth: np.ndarray) -> float:
    """Last window minus first, in standard deviations of the real windows."""
    return float((curve[-1] - curve[0]) / max(truth.std(ddof=1), 1e-9))


def cell(curve: np.ndarray, truth: np.ndarray, real: bool) -> str:
    """A metric as text: its range over real windows, or its first and last window and drift in dreams."""
    if real:
        return f"{curve.min():.2f} to {curve.max():.2f}"
    return f"{curve[0]:.2f} {curve[-1]:.2f} {drift(curve, truth):+.1f} sd"


def plot(args: Args, curves: dict[str, Curves], truth: Curves, path: Path) -> None:
    figure, axes = plt.subplots(1, len(FIGURES), figsize=(13, 3.8), layout="constrained")
    for axis, name in zip(axes, FIGURES, strict=True):
        axis.axhspan(truth[name].min(), truth[name].max(), color="0.85", label="real windows")
        for label, curve in curves.items():
            axis.plot((np.arange(len(curve[name])) + 0.5) * args.window, curve[name], label=label)
        axis.set(title=name, xlabel="dreamed steps")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(args: Args) -> Written:
    truth, curves, result = real_curves(args), {}, {}  # type: ignore[var-annotated]
    folder = args.run / "evaluation"
    for run in (args.run, *args.compare_runs):
        for temperature in args.temperature:
            label = f"{run}, temperature {temperature:g}"
            curves[label], shown = long_dream(args, run, temperature)
            save_png(folder / f"long_horizon_{run.name}_{temperature:g}.png", upscale(video_grid(shown), 2))
    print(f"{'':34}" + "".join(f"{f'{name}: first, last, drift':>34}" for name in FIGURES))
    for label, curve in {"real": truth, **curves}.items():
        cells = [cell(curve[name], truth[name], label == "real") for name in FIGURES]
        print(f"{label:34}" + "".join(f"{cell:>34}" for cell in cells))
        result[label] = {name: curve[name].tolist() for name in FIGURES}
    for label, curve in curves.items():
        print(f"{label}: {judge_drift({name: drift(curve[name], truth[name]) for name in FIGURES}, args.steps)}")
    plot(args, curves, truth, folder / "long_horizon.png")
    protocol = asdict(args) | {"prior": weights_digest(args.run / "prior")}
    write_json(folder / "long_horizon.json", {"protocol": protocol, "windows": result})
    return Written(folder / "long_horizon.png")


if __name__ == "__main__":
    command(main, "long_horizon")
