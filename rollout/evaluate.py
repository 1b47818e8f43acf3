"""Evaluate a world model on held-out episodes: how well does it predict frames under the true actions?

    python rollout/evaluate.py --run runs/demo

A dream gets the first frames of a test clip as context, and then its true actions. Its frames 1, 5, 10 and 15 steps
ahead are compared with the real ones by PSNR and NMSE. Baselines:

    reconstruction     the true codes, decoded: the upper bound of the dream
    copy last frame    the last frame of the context, unchanged
    shuffled actions   a dream under the actions of another clip

The table also has the bits per code (the paper's bits/dim) of the true codes under true and shuffled actions. A dream
is one sample of an uncertain future, so the metrics of a clip are means over several dreams. With a time stride above 1
the dream uses the last action of each latent frame. Intervals are 95%, bootstrapped over episodes. The difference
between true and shuffled actions is paired by clip. Whether a dream is better than a copy is judged by the ratio of
their NMSE. Small objects hardly change any of these, so the pixels that differ from the still background are counted
too. Writes <run>/evaluation/results.json and .txt.

The paper does not use this protocol. Its own metrics are in rollout/fvd.py, which accepts runs in paper mode and in
stream mode. This script needs stream mode.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from configs import command
from configs.scripts import command_words
from configs.written import Written, make_dream
from rollout.heldout import (
    HeldOutArgs,
    HeldOutClips,
    dream_frames,
    load_heldout,
    other_episode_order,
    reconstructions,
)
from rollout.provenance import provenance
from worldmodel.data.prior_dataset import bits_per_code
from worldmodel.generation.dream import Dream
from worldmodel.metrics.frames import moving_pixels, nmse, psnr, still_background
from worldmodel.metrics.interval import bootstrap, bootstrap_ratio, means_to_json
from worldmodel.training.verdicts import judge_dream, judge_motion, judge_split
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_atomic, write_json
from worldmodel.utils.hardware import Precision
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import AtLeast2, NonEmpty, Positive

NOTHING = 1e-6
"""Added to figures whose ratio is judged: a copy is exact where nothing changes, and sometimes nothing moves."""


@dataclass(frozen=True, kw_only=True)
class Args(HeldOutArgs):
    """Evaluate a dream on held-out episodes."""

    n_clips: AtLeast2 = 128
    """Number of clips, spread over the split's episodes."""
    steps_ahead: NonEmpty[Positive] = (1, 5, 10, 15)
    """Numbers of steps after the context at which frames are compared."""
    n_dreams: Positive = 4
    """Dreams per clip; metrics are their mean."""
    batch_size: Positive = 64
    """Dreams in one batch."""
    precision: Precision = "float32"
    """Precision of the dream's models."""


def make_films(args: Args, dream: Dream, heldout_clips: HeldOutClips, order: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Videos (n, steps, h, w, 3) to compare with the truth; of each kind of dream there are several.

    Args:
        args: Settings of the evaluation.
        dream: The dream.
        heldout_clips: n clips.
        order: Which clip's actions each clip gets when they are shuffled, (n,).
    """
    c, steps = args.context_frames, max(args.steps_ahead)
    given = heldout_clips.actions_after(c, steps)
    films: dict[str, list[np.ndarray]] = {
        "reconstruction": [reconstructions(dream, heldout_clips)[:, c:]],
        "copy last frame": [heldout_clips.frames[:, c - 1 : c].repeat(steps, 1)],
    }
    with Progress(total=2 * args.n_dreams * len(given) * steps, unit=" steps", desc="dreams") as bar:
        for name, actions in (("true actions", given), ("shuffled actions", given[order])):
            films[name] = [
                dream_frames(dream, heldout_clips, actions, c, args.seed + k, args.batch_size, bar)
                for k in range(args.n_dreams)
            ]
    return films


def measure(args: Args, dream: Dream, heldout_clips: HeldOutClips) -> dict[str, Any]:
    """All metrics, as `MeanInterval`s."""
    c = args.context_frames
    order, steps = other_episode_order(heldout_clips.episode, args.seed), [s - 1 for s in args.steps_ahead]
    truth, variance = heldout_clips.frames[:, c:], dream.vqvae.config.data_variance
    shuffled = torch.cat([heldout_clips.condition[:, :c], heldout_clips.condition[order, c:]], dim=1)
    films = make_films(args, dream, heldout_clips, order)
    mean = lambda values: bootstrap(values, heldout_clips.episode)  # noqa: E731
    over = lambda a, b: [  # noqa: E731
        bootstrap_ratio(x + NOTHING, y + NOTHING, heldout_clips.episode) for x, y in zip(a.T, b.T, strict=True)
    ]
    result: dict[str, Any] = {"psnr": {}, "nmse": {}, "bits_per_dim": {}, "difference": {}}
    scores = {
        figure: {
            name: np.mean([score(video[:, steps], truth[:, steps]) for video in group], axis=0)
            for name, group in films.items()
        }
        for figure, score in (("psnr", psnr), ("nmse", lambda a, b: nmse(a, b, variance)))
    }
    for figure, by_name in scores.items():
        result[figure] = {name: [mean(v[:, k]) for k in range(len(steps))] for name, v in by_name.items()}
        gain = by_name["true actions"] - by_name["shuffled actions"]
        result["difference"][figure] = [mean(gain[:, k]) for k in range(len(steps))]
    result["error_over_copy"] = over(*(scores["nmse"][name] for name in ("true actions", "copy last frame")))
    background = still_background(heldout_clips.frames)
    counts = {
        name: np.mean([moving_pixels(video[:, steps], background) for video in films[name]], axis=0)
        for name in ("reconstruction", "true actions")
    }
    real = moving_pixels(truth[:, steps], background)
    result["moving_pixels"] = {name: over(count, real) for name, count in counts.items()}
    true, false = (
        bits_per_code(dream.prior, heldout_clips.batch(condition), c)
        for condition in (heldout_clips.condition, shuffled)
    )
    result["bits_per_dim"] = {"true actions": mean(true), "shuffled actions": mean(false)}
    result["difference"]["bits_per_dim"] = mean(true - false)
    return result


def table(result: dict[str, Any], ahead: tuple[int, ...]) -> str:
    """The metrics as a text table."""
    lines = []
    for figure, title in (("psnr", "PSNR, dB (higher is better)"), ("nmse", "NMSE (lower is better)")):
        lines += ["", f"{title:30}" + "".join(f"{f'{s} ahead':>26}" for s in ahead)]
        rows = {**result[figure], "true - shuffled": result["difference"][figure]}
        if figure == "nmse":
            rows["true actions / copy"] = result["error_over_copy"]
        lines += [f"  {name:28}" + "".join(f"{m!s:>26}" for m in means) for name, means in rows.items()]
    lines += ["", "moving pixels / those of the recording"]
    lines += [f"  {name:28}" + "".join(f"{m!s:>26}" for m in means) for name, means in result["moving_pixels"].items()]
    lines += ["", "bits per code (lower is better)"]
    rows = {**result["bits_per_dim"], "true - shuffled": result["difference"]["bits_per_dim"]}
    return "\n".join([*lines, *(f"  {name:28}{m!s:>26}" for name, m in rows.items())])


def main(args: Args) -> Written:
    paper = " ".join([*command_words("rollout/fvd.py"), "--run", str(args.run)])
    if read_checkpoint(args.run / "prior").config["model"].get("mode") == "paper":
        raise UserError(
            f"{args.run} is in paper mode, which only samples whole clips and cannot dream; for the paper's metrics "
            f"run {paper}"
        )
    dream = Dream.load(args.run, args.sampling, args.device, args.precision)
    heldout_clips = load_heldout(
        dream, args.run, args.data, args.split, args.n_clips, args.context_frames + max(args.steps_ahead)
    )
    result = measure(args, dream, heldout_clips)
    protocol = {k: v for k, v in asdict(args).items() if k not in ("run", "data", "device", "batch_size")}
    protocol |= {
        "n_clips": len(heldout_clips.codes),
        "episodes": len(np.unique(heldout_clips.episode)),
    }
    folder = args.run / "evaluation"
    counts = f"{protocol['n_clips']} clips of {protocol['episodes']} held-out episodes"
    head = f"{dream.env_spec.name}: {counts}, means [95% intervals]"
    text = head + "\n" + table(result, args.steps_ahead)
    write_json(folder / "results.json", {"protocol": protocol} | provenance(args.run) | means_to_json(result))
    write_atomic(folder / "results.txt", (text + "\n").encode())
    print(text + "\n")
    verdicts = judge_dream(result["error_over_copy"], result["difference"]["psnr"], args.steps_ahead)
    moving = result["moving_pixels"]
    verdicts.append(judge_motion(moving["true actions"], moving["reconstruction"], args.steps_ahead))
    for verdict in judge_split(heldout_clips.episode) + verdicts:
        print(f"{args.run}: {verdict}")
    print(
        f"\npictures:     {args.run}/dreams (rollout/dream.py writes them)"
        f"\npaper's FVD:  {paper} (needs a feature network)"
        f"\nTensorBoard:  tensorboard --logdir {args.run}"
    )
    return Written(folder / "results.json", make_dream(args.run))


if __name__ == "__main__":
    command(main, "evaluate")
