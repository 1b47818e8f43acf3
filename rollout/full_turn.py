"""Does a dream show the same view again after a full turn on the spot?

    python rollout/full_turn.py --action 2

One action is repeated, in the engine and in the dream. After some number of steps the player of the engine has turned
once around, and sees the first view again. That is where the PSNR between the first frame and the current one has its
peak, averaged over episodes. The first `min_steps` steps are skipped, because views overlap at first. The dream is
judged at the same step. After half a turn the view is a different one. The PSNR there shows what a low value is.

If a turn does not take a whole number of steps, it ends a little before or after the first view. So the engine's value
is below that of equal frames, and a dream can hardly be better. The engine starts at the first frame of an episode, the
dream after its context, where the player may still be moving.

Intervals are over episodes of the engine, and over the real starting contexts of the dream.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import gymnasium as gym
import numpy as np

import envs  # noqa: F401 - registers
from configs import command
from configs.written import Written
from envs.recorded_env import make_recorded_env
from envs.vector import DreamVectorEnv
from rollout.episodes import start_contexts
from rollout.verdicts import judge_turn
from worldmodel.metrics.frames import psnr
from worldmodel.metrics.interval import bootstrap, means_to_json
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.hardware import Precision
from worldmodel.utils.progress import Progress
from worldmodel.utils.run_args import DreamArgs
from worldmodel.utils.settings import AtLeast2, Count, NotNegative, Positive, Seed

MAX_TRIES = 10
"""Episodes of the engine to try for each one that lasts long enough."""


@dataclass(frozen=True, kw_only=True)
class Args(DreamArgs):
    """Compare the view before and after a full turn, in the engine and in the dream."""

    action: Count = 2
    """Discrete action that turns the player."""
    episodes: AtLeast2 = 64
    """Episodes in the dream, and as many in the engine."""
    steps: Positive = 40
    """Steps that the action is repeated; more than a full turn takes."""
    min_steps: Positive = 15
    """Fewest steps that a full turn can take."""
    trust_env: bool = False
    """Allow an engine that is not part of this project. The run folder names it. This imports and runs its code, so
    use it only if you trust the author of the run."""
    temperature: NotNegative = 1.0
    """Sampling temperature of the dream."""
    precision: Precision = "float32"
    """Precision of the dream's models."""
    seed: Seed = 0
    """Seed of the episodes."""
    out: Path = Path("runs/full_turn.json")
    """File for the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_steps >= self.steps:
            raise UserError(f"min_steps must be below steps, {self.steps}, not {self.min_steps}")


def make_dream(args: Args) -> DreamVectorEnv:
    """The dream, with a lane for each episode.

    Raises:
        UserError: If its actions are not Discrete or do not include `args.action`, or if its time stride is above 1.
    """
    dream = DreamVectorEnv(
        args.episodes, args.run, world=args.world, temperature=args.temperature, precision=args.precision,
        horizon=0, sample_done=False,
    )  # fmt: skip
    if not isinstance(space := dream.single_action_space, gym.spaces.Discrete):
        raise UserError(f"actions of this dream are not Discrete but {space}; use a run whose actions are")
    if args.action >= space.n:
        raise UserError(f"{args.action} is not one of the actions {space}; give another --action")
    if dream.dream.stride > 1:
        raise UserError(
            "this dream has a time stride above 1, and turns are compared step by step; use a run with a stride of 1"
        )
    return dream


def turn_in_dream(env: DreamVectorEnv, contexts: np.ndarray, action: int, steps: int, seed: int) -> np.ndarray:
    """Frames (lanes, steps + 1, h, w, 3) of dreams under one repeated action, each from its starting context."""
    frames = [env.reset(seed=seed, options={"context": contexts})[0]]
    for _ in Progress(range(steps), unit=" steps", desc="dreams"):
        frames.append(env.step(np.full(env.num_envs, action))[0])
    return np.stack(frames, 1)


def turn_in_engine(env: gym.Env[Any, Any], action: int, steps: int, episodes: int, seed: int) -> np.ndarray:
    """Frames (episodes, steps + 1, h, w, 3) of episodes under one repeated action; shorter episodes are left out."""
    films: list[np.ndarray] = []
    for i in range(MAX_TRIES * episodes):
        frames, over = [env.reset(seed=seed + i)[0]], False
        while len(frames) <= steps and not over:
            frame, _, terminated, truncated, _ = env.step(action)
            frames.append(frame)
            over = terminated or truncated
        if len(frames) > steps:
            films.append(np.stack(frames))
        if len(films) == episodes:
            return np.stack(films)
    raise UserError(
        f"too few episodes last {steps} steps under action {action}; lower --steps, or give another --action"
    )


def similarity(films: np.ndarray) -> np.ndarray:
    """PSNR (n, t) in dB of the frames (n, t, h, w, 3) of each film with its first one."""
    return psnr(films, np.broadcast_to(films[:, :1], films.shape))


def full_turn(near: np.ndarray, min_steps: int, action: int) -> int:
    """The step at which the first view comes back, from the similarity (t,) of each frame with the first one.

    Raises:
        UserError: If it does not come back.
    """
    turn = min_steps + int(near[min_steps:].argmax())
    if turn in (min_steps, len(near) - 1):
        raise UserError(
            f"the first view does not come back between {min_steps} and {len(near) - 1} steps under action {action}; "
            "give an --action that turns, more --steps or fewer --min-steps"
        )
    return turn


def main(args: Args) -> Written:
    dream = make_dream(args)
    with contextlib.closing(make_recorded_env(dream.env_spec, args.trust_env)) as engine:
        real = similarity(turn_in_engine(engine, args.action, args.steps, args.episodes, args.seed))
    turn = full_turn(real.mean(0), args.min_steps, args.action)
    contexts = start_contexts(dream)
    dreamed = similarity(turn_in_dream(dream, contexts, args.action, args.steps, args.seed))
    found = {
        place: {"engine": bootstrap(real[:, step]), "dream": bootstrap(dreamed[:, step], contexts)}
        for place, step in (("full turn", turn), ("half a turn", turn // 2))
    }
    print(f"PSNR with the first frame, dB; a full turn is {turn} steps\n{'':14}{'engine':>26}{'dream':>26}")
    for place, values in found.items():
        print(f"{place:14}{values['engine']!s:>26}{values['dream']!s:>26}")
    nearer = bootstrap(dreamed[:, turn] - dreamed[:, turn // 2], contexts)
    print(judge_turn(nearer, len(np.unique(contexts))))
    write_json(args.out, {"settings": asdict(args), "steps": turn, "psnr": means_to_json(found)})
    return Written(args.out)


if __name__ == "__main__":
    command(main, "full_turn")
