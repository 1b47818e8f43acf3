"""Evaluate the pusher in the simulated bin, with random actions as baseline: how far do objects move?

    python rollout/evaluate_pusher.py                                # the pretrained pusher
    python rollout/evaluate_pusher.py --policy runs/pushing/policy
    python rollout/evaluate_pusher.py --gif docs/pushing.gif         # also show it as a GIF

All players play the same seeded episodes of 29 steps. The score of an episode is the distance in meters that objects
moved in the plane, summed over steps and objects. The distance between their first and last positions is reported too.

There are three random baselines. Actions uniform over the action space, new at each step or held for four steps on
average, hardly touch anything: three of four commands lift the hand, so it is nearly always in the air. BAIR's own
action distribution keeps the hand mostly down. It is the strongest baseline, so ratios refer to it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from configs import command
from configs.written import Written
from envs.pusher import Pusher, load_pusher
from envs.pushing import Pushing
from envs.pushing_robot import ACTION, Robot, bair_actions
from rollout.verdicts import judge_player
from worldmodel.data.env_spec import random_actions
from worldmodel.metrics.interval import bootstrap, bootstrap_ratio
from worldmodel.utils.files import write_json
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import AtLeast2, NotNegative, Seed, Settings
from worldmodel.utils.video_io import save_gif, upscale

STEPS = 29
HOLD_STEPS = 4
"""Mean number of steps for which an action is held."""
BAIR_ROBOT = "random, as BAIR's robot"
Act = Callable[[Robot, np.random.Generator], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Evaluate the pusher in the simulated bin."""

    policy: str = "pushing"
    """Folder of a pusher, by default the pretrained one."""
    noise: NotNegative = 0.2
    """Exploration noise of the pusher's second row, as in collect/pushing.py."""
    episodes: AtLeast2 = 300
    """Episodes per player."""
    seed: Seed = 0
    """Seed of the episodes and the actions."""
    gif: Path | None = None
    """Also write a GIF of some episodes of the noisy pusher to this file; by default none is written."""
    out: Path = Path("runs/pusher_scores")
    """Folder for scores.json."""


class HeldRandomActions:
    """Uniform random actions, each held for `HOLD_STEPS` steps on average."""

    def __init__(self) -> None:
        self.action = np.zeros(0)

    def __call__(self, robot: Robot, rng: np.random.Generator) -> np.ndarray:
        if robot.steps == 0 or rng.random() < 1 / HOLD_STEPS:
            self.action = random_actions(ACTION, 1, rng)[0]
        return self.action


def make_players(args: Args) -> dict[str, Act]:
    policy = load_pusher(args.policy)
    return {
        "random, over the space": lambda robot, rng: random_actions(ACTION, 1, rng)[0],
        f"random, held for {HOLD_STEPS}": HeldRandomActions(),
        BAIR_ROBOT: lambda robot, rng: bair_actions(ACTION, 1, rng)[0],
        "pusher": Pusher(policy).act,
        f"pusher, noise {args.noise:g}": Pusher(policy, args.noise).act,
    }


def push_episode(act: Act, seed: int, i: int) -> tuple[float, float]:
    """Meters that objects moved in episode i, and from their first to their last positions."""
    scene, actions = (np.random.default_rng([seed, i, k]) for k in range(2))
    robot = Robot(scene)
    places = [robot.objects[:, :2]]
    for _ in range(STEPS):
        robot.act(act(robot, actions))
        places.append(robot.objects[:, :2])
    moved = np.linalg.norm(np.diff(places, axis=0), axis=-1).sum()
    return float(moved), float(np.linalg.norm(places[-1] - places[0], axis=-1).sum())


def render_episodes(act: Act, seed: int, count: int = 4) -> np.ndarray:
    """Frames (t, h, count * w, 3) of episodes side by side, enlarged twice."""
    videos = []
    with contextlib.closing(Pushing(horizon=STEPS)) as env:
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            frames = [env.reset(seed=seed + i)[0]]
            frames += [env.step(act(env.robot, rng))[0] for _ in range(STEPS)]
            videos.append(np.stack(frames))
    return upscale(np.concatenate(videos, axis=2), 2)


def table(scores: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'meters, all objects of an episode':<34}{'moved':>24}{'displaced':>24}{'moved, x robot':>24}"]
    for name, s in scores.items():
        cells = [f"{s[k]['mean']:.2f} [{s[k]['low']:.2f}, {s[k]['high']:.2f}]" for k in ("moved", "displaced", "ratio")]
        lines.append(f"{name:<34}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main(args: Args) -> Written:
    torch.set_num_threads(1)
    played = {}
    everybody = make_players(args)
    with Progress(total=len(everybody) * args.episodes, unit=" episodes", desc="score") as bar:
        for name, act in everybody.items():
            meters = []
            for i in range(args.episodes):
                meters.append(push_episode(act, args.seed, i))
                bar.update()
            played[name] = np.array(meters).T
    episodes, robot = np.arange(args.episodes), played[BAIR_ROBOT][0]
    scores = {
        name: {
            "moved": bootstrap(moved).to_json(),
            "displaced": bootstrap(displaced).to_json(),
            "ratio": bootstrap_ratio(moved, robot, episodes).to_json(),
            "episodes": moved.tolist(),
        }
        for name, (moved, displaced) in played.items()
    }
    write_json(args.out / "scores.json", {"settings": asdict(args), "scores": scores})
    print(table(scores))
    further = bootstrap(played["pusher"][0] - robot)
    print(judge_player("the pusher", further, "BAIR's random actions", "m further", "train it for longer"))
    if args.gif is not None:
        save_gif(args.gif, render_episodes(everybody[f"pusher, noise {args.noise:g}"], args.seed), fps=8)
        print(f"moving picture: {args.gif}")
    return Written(args.out / "scores.json")


if __name__ == "__main__":
    command(main, "evaluate_pusher")
