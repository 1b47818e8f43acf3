"""Evaluate policies in the real engine, with a random policy as baseline: survival time and return.

    python rollout/evaluate_policy.py                                   # the pretrained policies
    python rollout/evaluate_policy.py --policy runs/policy runs/dreamed_policy
    python rollout/evaluate_policy.py --obs-vqvae runs/demo             # policies observe VQ-VAE reconstructions

The return of Battle2 counts kills. All policies play the same seeded episodes. Survival is cut off at the time limit,
so it is not normally distributed: the 95% intervals are percentiles of 10,000 bootstrap resamples.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import gymnasium as gym
import numpy as np
import torch

from configs import command
from configs.written import Written
from envs.policies import load_player, shipped_policies
from envs.vizdoom import VizdoomFrames
from envs.vqvae_wrapper import VQVAEObservation
from rollout.episodes import play_episode
from rollout.verdicts import judge_player
from worldmodel.metrics.interval import bootstrap, bootstrap_ratio
from worldmodel.models.loading import load_vqvae, resolve_folder
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import AtLeast2, Positive, Seed, Settings

N_RESAMPLES = 10_000
"""Number of bootstrap resamples of the episodes."""
PUBLISHED = {
    "take_cover": "World Models (Ha and Schmidhuber, 2018), tics: random 210 +- 108, trained in its dream 1092 +- 556; "
    "solved from 750 on; an episode ends at 2,100",
}
"""Scores from the literature. Those policies act at every tic; ours hold an action for `frame_skip` tics."""


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Evaluate policies in the real engine."""

    policy: tuple[str, ...] = ()
    """Folders or names of policies; folder@0.3 takes 30% random actions. By default the pretrained ones."""
    scenario: str = "health_gathering_supreme"
    """ViZDoom scenario, or battle2."""
    episodes: AtLeast2 = 50
    """Episodes per policy."""
    obs_vqvae: str = ""
    """Run folder, or pretrained model, whose reconstructions the policies observe; by default they observe
    the frames."""
    deterministic: bool = False
    """Take the most likely action instead of sampling."""
    frame_skip: Positive = 4
    """Tics of the engine per step, for all policies; give the value that they were trained with."""
    seed: Seed = 0
    """Seed of the episodes and the actions."""
    out: Path = Path("runs/policy_scores")
    """Folder for scores.json."""


def mean_and_std(values: np.ndarray, scale: float = 1) -> dict[str, Any]:
    """Mean, standard deviation and 95% interval of a score per episode (n,)."""
    mean = bootstrap(values * scale, n_resamples=N_RESAMPLES)
    return {"mean": mean.mean, "sd": values.std(ddof=1) * scale, "interval95": [mean.low, mean.high]}


def ratio_to_random(values: np.ndarray, random: np.ndarray) -> dict[str, Any]:
    """The mean divided by that of the random policy in the same episodes, with its interval."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a random policy may have no return at all
        mean = bootstrap_ratio(values, random, np.arange(len(values)), N_RESAMPLES)
    return {"mean": mean.mean, "interval95": [mean.low, mean.high]}


def score_policy(steps: np.ndarray, returns: np.ndarray, random: np.ndarray, frame_skip: int) -> dict[str, Any]:
    """The scores of one policy; `random` has steps and returns of the random policy in the same episodes."""
    return {
        "steps": mean_and_std(steps),
        "tics": mean_and_std(steps, frame_skip),
        "return": mean_and_std(returns),
        "times_random": ratio_to_random(steps, random[0]),
        "return_times_random": ratio_to_random(returns, random[1]),
        "episodes": {"steps": steps.tolist(), "returns": returns.tolist()},
    }


def table(scores: dict[str, dict[str, Any]]) -> str:
    width = max(map(len, scores)) + 1
    lines = [
        f"{'policy':<{width}}{'tics':>8}{'sd':>8}{'95% interval':>18}{'x random':>10}"
        f"{'return':>9}{'sd':>8}{'95% interval':>18}{'x random':>10}"
    ]
    for name, s in scores.items():
        (low, high), (least, most) = s["tics"]["interval95"], s["return"]["interval95"]
        lines.append(
            f"{name:<{width}}{s['tics']['mean']:>8.0f}{s['tics']['sd']:>8.0f}{f'{low:.0f} to {high:.0f}':>18}"
            f"{s['times_random']['mean']:>10.2f}{s['return']['mean']:>9.1f}{s['return']['sd']:>8.1f}"
            f"{f'{least:.1f} to {most:.1f}':>18}{s['return_times_random']['mean']:>10.2f}"
        )
    return "\n".join(lines)


def main(args: Args) -> Written:
    torch.set_num_threads(1)  # single frames are slower with more threads
    names = ("random", *(args.policy or shipped_policies(args.scenario)))
    if len(names) == 1:
        raise UserError(f"there is no pretrained policy for {args.scenario}; give --policy a folder of train/policy.py")
    results = {}
    with contextlib.closing(VizdoomFrames(args.scenario, args.frame_skip)) as engine:
        players = {name: load_player(name, engine.env_spec, args.deterministic) for name in names}
        env: gym.Env[Any, Any] = engine
        if args.obs_vqvae:
            vqvae = load_vqvae(resolve_folder(args.obs_vqvae) / "vqvae")
            env = VQVAEObservation(engine, vqvae, engine.env_spec.action)
        with Progress(total=len(players) * args.episodes, unit=" episodes", desc="score") as bar:
            for name, player in players.items():
                played = []
                for i in range(args.episodes):
                    played.append(play_episode(env, player, args.seed, i))
                    bar.update()
                results[name] = np.array(played).T
    random = results["random"]
    scores = {name: score_policy(steps, returns, random, args.frame_skip) for name, (steps, returns) in results.items()}
    write_json(args.out / "scores.json", {"settings": asdict(args), "scores": scores})
    print(table(scores))
    if args.scenario in PUBLISHED:
        print(PUBLISHED[args.scenario])
    for name, (_, returns) in results.items():
        if name != "random":
            more = bootstrap(returns - random[1], n_resamples=N_RESAMPLES)
            print(judge_player(name, more, "random play", "more return", "train it for longer"))
    return Written(args.out / "scores.json")


if __name__ == "__main__":
    command(main, "evaluate_policy")
