"""Evaluate the outcome model on held-out episodes: termination, returns and game variables.

    python rollout/evaluate_outcome.py --run runs/take_cover

The model processes whole episodes. It is given the game variables at the first frame only. A particle filter tracks
them: each particle samples the variables as a dream does, and particles are resampled by their predicted probability
that the episode continued.

* Termination: the probability that the episode terminates with a step. "Predicted" does not use the step's frame: the
  dream gets the `context_frames` frames and game variables before the step, and its action, and generates the step
  `n_dreams` times. "Read" uses all real frames up to and including the step, and the game variables of the first
  frame only. The last of these frames may reveal the termination: ViZDoom has no frame for it, so the previous one is
  repeated. AUROC measures discrimination, the expected calibration error (15 bins) measures calibration. The predicted
  and the observed rate have intervals.
* Return: the sum of rewards over the next `steps` steps, as Pearson's r with the true return. "Read" sums the rewards
  predicted from the true codes, which stop where the episode did, so it does not measure termination. "Dreamed" is the
  mean of `n_dreams` dreams under the true actions.
* Game variables: the mean absolute error. The baseline is the mean at that time of an episode over the
  training split.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from configs import command
from configs.written import Written
from rollout.heldout import SplitArgs
from rollout.verdicts import judge_ends
from worldmodel.data.clips import RECONSTRUCTION
from worldmodel.data.opening import open_tokens
from worldmodel.data.store import Store
from worldmodel.generation.context import Context
from worldmodel.generation.dream import Dream
from worldmodel.generation.dream_state import DreamStep
from worldmodel.metrics.calibration import auroc, expected_calibration_error
from worldmodel.metrics.interval import MeanInterval, bootstrap, bootstrap_ratio, means_to_json
from worldmodel.models.layers import Memory
from worldmodel.models.reward_done import OutcomeModel
from worldmodel.training.verdicts import judge_split
from worldmodel.utils.checkpoint import weights_digest
from worldmodel.utils.compatibility import check_vqvae
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import Positive

Episode = dict[str, np.ndarray]
Place = tuple[Episode, int]
"""An episode and the first row of a context in it."""


@dataclass(frozen=True, kw_only=True)
class Args(SplitArgs):
    """Evaluate an outcome model on held-out episodes."""

    steps: Positive = 50
    """Steps over which rewards are summed."""
    n_clips: Positive = 128
    """Number of starting points of dreams, spread over the split."""
    context_frames: Positive = 8
    """Latent frames of true codes given as context of a dream."""
    n_dreams: Positive = 4
    """Dreams per starting point."""
    n_negatives: Positive = 4000
    """Number of steps without termination to predict; all steps with one are used."""
    n_particles: Positive = 32
    """Number of particles of the filter."""


@torch.no_grad()
def filter_episode(model: OutcomeModel, episode: Episode, n: int, seed: int) -> Episode:
    """Predicted probability of termination, reward and variables at each latent frame of an episode."""
    codes, condition = torch.from_numpy(episode["codes"].astype(np.int64)), torch.from_numpy(episode["condition"])
    images = torch.from_numpy(episode[RECONSTRUCTION]) if model.config.image_channels else None
    generator, state, memory = torch.Generator().manual_seed(seed), None, Memory()  # one for all particles
    variables, rows = torch.from_numpy(episode["variables"])[:1].repeat(n, 1), []
    for t in range(len(codes)):
        code, action = codes[t].expand(n, 1, *codes[t].shape), condition[t].expand(n, 1, -1)
        shown = None if images is None else images[t].expand(n, 1, *images[t].shape)
        out, state = model(code, action, variables[:, None], state, memory, shown)
        end = out.done_logit[:, 0].sigmoid()
        reward = (1 - end) * out.reward[:, 0, 0] + end * out.reward[:, 0, 1]
        if t:
            variables = model.sample_variables(
                out.change_logits[:, 0], variables, torch.rand(variables.shape, generator=generator)
            )
        rows.append((end.mean(), reward.mean(), variables.mean(0)))
        lives = torch.multinomial(1 - end + 1e-9, n, replacement=True, generator=generator)
        variables, state = variables[lives], state[:, lives]
    ends, rewards, means = (torch.stack(column).numpy() for column in zip(*rows, strict=True))
    return {"done_prob": ends, "reward": rewards, "variables": means}


def mean_by_time(episodes: list[Episode]) -> np.ndarray:
    """The mean (t, v) of each game variable at each time of an episode; t is the longest episode."""
    longest = max(len(e["variables"]) for e in episodes)
    total, count = np.zeros((longest, episodes[0]["variables"].shape[1])), np.zeros((longest, 1))
    for episode in episodes:
        total[: len(episode["variables"])] += episode["variables"]
        count[: len(episode["variables"])] += 1
    return total / count


def starting_points(episodes: list[Episode], context: int, steps: int, n: int, seed: int) -> list[tuple[int, int]]:
    """n pairs of episode and first row, with `steps` real steps or a termination after the context."""
    found = []
    for i, episode in enumerate(episodes):
        rows = len(episode["codes"])
        last = rows - context - (1 if episode["done"].any() else steps)
        found += [(i, row) for row in range(int(RECONSTRUCTION in episode), last + 1)]
    if len(found) < 2:
        raise UserError(
            f"no episode of the split is longer than {context} + {steps} latent frames; lower "
            "--context-frames or --steps"
        )
    chosen = np.random.default_rng(seed).permutation(len(found))[:n]
    return [found[k] for k in sorted(chosen)]


def compare_returns(args: Args, dream: Dream, episodes: list[Episode], seen: list[Episode]) -> dict[str, np.ndarray]:
    """Returns (n,) after each starting point: true, predicted from true codes, and the mean of dreams."""
    c, places = args.context_frames, starting_points(episodes, args.context_frames, args.steps, args.n_clips, args.seed)
    after = [slice(row + c, row + c + args.steps) for _, row in places]
    return {
        "true": np.array([episodes[i]["reward"][rows].sum() for (i, _), rows in zip(places, after, strict=True)]),
        "read": np.array([seen[i]["reward"][rows].sum() for (i, _), rows in zip(places, after, strict=True)]),
        "dreamed": dreamed_returns(args, dream, [(episodes[i], row) for i, row in places]),
        "episode": np.array([i for i, _ in places]),
    }


def dream_steps(args: Args, dream: Dream, places: list[Place], steps: int) -> Iterator[DreamStep]:
    """Steps of dreams under the true actions, `args.n_dreams` per place; after the end the last action repeats."""
    c = args.context_frames

    def cut(name: str, first: int, stop: int) -> torch.Tensor:
        rows = [np.minimum(np.arange(row + first, row + stop), len(e[name]) - 1) for e, row in places]
        return torch.from_numpy(np.stack([e[name][r] for (e, _), r in zip(places, rows, strict=True)]))

    state, past_frames = None, dream.vqvae.config.past_frames
    if past_frames:
        back = [[*(max(row - 1 - k, 0) for k in range(past_frames)), 0] for _, row in places]
        pictures = [e[RECONSTRUCTION][at] for (e, _), at in zip(places, back, strict=True)]
        state = torch.from_numpy(np.stack(pictures))
    context = Context(cut("codes", 0, c).long(), cut("condition", 0, c), cut("variables", 0, c), state)
    conditions = cut("condition", c, c + steps).repeat_interleave(args.n_dreams, 0)
    every = torch.arange(len(places)).repeat_interleave(args.n_dreams)
    lanes = dream.reset(context, [0] * len(places))[0].select_lanes(every)
    lanes.reseed([args.seed + k for k in range(len(every))])
    for t in range(steps):
        yield dream.step_encoded(lanes, conditions[:, t])


def dreamed_returns(args: Args, dream: Dream, places: list[Place]) -> np.ndarray:
    """Mean returns (n,) of dreams."""
    total, alive = np.zeros(len(places) * args.n_dreams), np.ones(len(places) * args.n_dreams, bool)
    for step in Progress(dream_steps(args, dream, places, args.steps), total=args.steps, unit=" steps", desc="dreams"):
        total += step.reward.numpy() * alive
        alive &= ~step.terminated.numpy()
    return total.reshape(-1, args.n_dreams).mean(1)


def predicted_ends(args: Args, dream: Dream, episodes: list[Episode]) -> dict[str, np.ndarray]:
    """Predicted probability of termination in the next step, whether it happened, and the step's weight, (n,) each.

    All steps with a termination are used that have a context before them, and a sample of the others, weighted by the
    inverse of its fraction. A recurrent VQ-VAE is given its first frame, so a context begins after it.
    """
    places = np.array([
        (i, row)
        for i, e in enumerate(episodes)
        for row in range(int(RECONSTRUCTION in e), len(e["done"]) - args.context_frames)
    ])  # fmt: skip
    ended = np.array([episodes[i]["done"][row + args.context_frames] for i, row in places], bool)
    few = np.random.default_rng(args.seed).permutation(np.flatnonzero(~ended))[: args.n_negatives]
    chosen = np.sort(np.concatenate([np.flatnonzero(ended), few]))
    parts = [
        next(dream_steps(args, dream, [(episodes[i], row) for i, row in some], 1))
        .done_prob.view(-1, args.n_dreams)
        .mean(1)
        .numpy()
        for some in Progress(np.array_split(places[chosen], -(-len(chosen) // 64)), unit=" batches", desc="ends")
    ]
    weight = np.where(ended[chosen], 1, (~ended).sum() / max(1, len(few)))
    info = {"probability": np.concatenate(parts), "happened": ended[chosen], "weight": weight}
    return info | {"episode": places[chosen, 0]}


def score_ends(
    probability: np.ndarray, happened: np.ndarray, episode: np.ndarray, weight: np.ndarray | None = None
) -> dict[str, float | MeanInterval]:
    """Discrimination and calibration of probabilities of termination."""
    weight = np.ones(len(probability)) if weight is None else weight
    return {
        "auroc": auroc(probability, happened),
        "expected_calibration_error": expected_calibration_error(probability, happened, weight=weight),
        "expected": bootstrap_ratio(probability * weight, weight, episode),
        "happened": bootstrap_ratio(happened * weight, weight, episode),
        "steps": len(probability),
    }


def correlation(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> MeanInterval:
    """Pearson's r, with its interval over resampled episodes."""
    if not np.ptp(a) or not np.ptp(b):
        return MeanInterval(float("nan"), float("nan"), float("nan"), len(a))  # undefined for a constant
    rng, members = np.random.default_rng(0), [np.flatnonzero(groups == g) for g in np.unique(groups)]
    r = lambda i: np.corrcoef(a[i], b[i])[0, 1] if np.ptp(a[i]) and np.ptp(b[i]) else np.nan  # noqa: E731
    picks = [np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))]) for _ in range(2000)]
    low, high = np.nanquantile([r(i) for i in picks], [0.025, 0.975])
    return MeanInterval(float(r(np.arange(len(a)))), float(low), float(high), len(a))


def measure(args: Args, dream: Dream, store: Store) -> dict[str, Any]:
    """All metrics."""
    train, held = ([store.read_episode(i) for i in store.episode_indices(split)] for split in ("train", args.split))
    seen = [
        filter_episode(dream.outcome, e, args.n_particles, args.seed)
        for e in Progress(held, unit=" episodes", desc="read")
    ]
    end, happened = (np.concatenate([e[k][1:] for e in group]) for group, k in ((seen, "done_prob"), (held, "done")))
    guess, groups = mean_by_time(train), np.repeat(np.arange(len(held)), [len(e["codes"]) for e in held])
    last = len(guess) - 1
    errors = {
        "outcome model": [np.abs(s["variables"] - e["variables"]) for s, e in zip(seen, held, strict=True)],
        "time only": [np.abs(guess[np.minimum(np.arange(len(e["variables"])), last)] - e["variables"]) for e in held],
    }
    sums = compare_returns(args, dream, held, seen)
    return {
        "end": {
            "predicted": score_ends(**predicted_ends(args, dream, held)),
            "read": score_ends(end, happened, np.repeat(np.arange(len(held)), [len(e["codes"]) - 1 for e in held])),
        },
        "return": {k: correlation(sums["true"], sums[k], sums["episode"]) for k in ("read", "dreamed")},
        "variables": {
            name: {k: bootstrap(np.concatenate(parts)[:, v], groups) for k, parts in errors.items()}
            for v, name in enumerate(store.env_spec.variables)
        },
    }


def main(args: Args) -> Written:
    dream, store = Dream.load(args.run), open_tokens(args.run)
    check_vqvae(store.path, store.settings["vqvae"]["weights"], args.run / "vqvae")
    result = measure(args, dream, store)
    for name, end in result["end"].items():
        error = f"expected calibration error {end['expected_calibration_error']:.4f}"
        print(f"termination, {name:9} AUROC {end['auroc']:.3f}, {error}")
        said, came = (f"{r.mean:.2%} [{r.low:.2%}, {r.high:.2%}]" for r in (end["expected"], end["happened"]))
        print(f"                        predicted in {said} of steps, happened in {came}")
    ends = judge_ends(*(result["end"]["predicted"][k] for k in ("expected", "happened")))
    for verdict in [*judge_split(store.episode_indices(args.split)), ends]:
        print(f"{args.run}: {verdict}")
    for name, r in result["return"].items():
        print(f"return, {name:9} r = {r} over {args.steps} steps, {r.n} starting points")
    for name, parts in result["variables"].items():
        for who, error in parts.items():
            print(f"{name:16} mean absolute error {error} by {who}")
    protocol = asdict(args) | {"outcome": weights_digest(args.run / "outcome")}
    path = args.run / "evaluation" / "outcome.json"
    write_json(path, {"protocol": protocol} | means_to_json(result))
    return Written(path)


if __name__ == "__main__":
    command(main, "evaluate_outcome")
