"""Record the simulated robot that pushes objects, into a store like that of BAIR's data.

    python collect/pushing.py                    # 2,000 episodes: the pretrained pusher, 30% of them random
    python collect/pushing.py --policy random    # only random actions, with the distribution of BAIR's robot

The store has the same arrays as one of BAIR's data, with the same names, types and shapes, so a preset for one trains
on the other. Episodes have 30 frames; the split is 8:1:1.

The pusher's object and goal are not visible in a frame, so its actions have added noise and the exploration of
`collect/episodes.py`. Random actions have the distribution of BAIR's robot, and each is held for one step, or for four
on average. If a recording is killed, the same command resumes and ends with the same store. At the end the speed is
compared with that of the renderer alone, in the same number of processes.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from collect.episodes import Hold, play_group
from collect.files import with_labels
from collect.record import RecordArgs, record_store
from configs import command
from configs.written import Written, recorded
from envs.policies import Player, policy_folder
from envs.pusher import Pusher, load_pusher
from envs.pushing import Pushing
from envs.pushing_robot import bair_actions
from worldmodel.data.writer import Episode
from worldmodel.data.zarr_format import SPLITS, draw_splits
from worldmodel.utils.checkpoint import weights_digest
from worldmodel.utils.settings import Address, Fraction, NonEmpty, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class Args(RecordArgs):
    """Record the simulated robot that pushes objects."""

    out: Address = Address("runs/pushing/data.zarr")
    """Store to write; an unfinished one resumes."""
    policy: str = "pushing"
    """Folder of a pusher, or "random"; by default the pretrained pusher."""
    episodes: Positive = 2000
    """Number of episodes to record, of 30 frames each."""
    noise: NotNegative = 0.2
    """Noise on the pusher's dx and dy; standard deviation in tenths of a meter."""
    hold: NonEmpty[Hold] = (1.0, 4.0)
    """Mean number of steps for which a random action is held; each episode picks one of several values at random."""
    random_share: Fraction = 0.3
    """Fraction of the episodes that are entirely random."""


def make_player(args: Args, env: Pushing) -> Player:
    if args.policy == "random":
        return lambda frames, rng: bair_actions(env.env_spec.action, frames.shape[1], rng)
    pusher = Pusher(load_pusher(args.policy), args.noise)
    return lambda frames, rng: pusher.act(env.robot, rng)[None]


@contextlib.contextmanager
def worker(args: Args) -> Iterator[Callable[[int], list[Episode]]]:
    """Open the simulator of a process; yields the function that plays an episode by its index."""
    torch.set_num_threads(1)
    with contextlib.closing(Pushing()) as env:
        act = make_player(args, env)

        def one(i: int) -> list[Episode]:
            (episode,) = play_group([env], env.env_spec, act, args, args.seed, i, bair_actions)
            return [with_labels(episode, split=SPLITS.index(draw_splits(i + 1, args.seed)[i]))]

        yield one


def renderer_rate(args: Args, seconds: float = 2.0) -> float:
    """Frames per second of rendering alone."""
    with contextlib.closing(Pushing()) as env:
        env.reset(seed=args.seed)
        assert env.renderer is not None
        start, frames = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            env.renderer.draw(env.robot.model, env.robot.data)
            frames += 1
    return frames / passed


def settings(args: Args) -> dict[str, Any]:
    """The settings that must be equal to resume a recording."""
    policy = "random"
    if args.policy != "random":
        load_pusher(args.policy)  # report an error before any process starts
        policy = weights_digest(policy_folder(args.policy))
    exploration = {"epsilon": args.epsilon, "hold": args.hold, "random_share": args.random_share, "noise": args.noise}
    return {"policy": policy, "seed": args.seed, **exploration}


def main(args: Args) -> Written:
    if args.policy == "random":  # exploration adds nothing to random actions
        args = replace(args, epsilon=0.0, random_share=0.0)
    env_spec, bare_rate = Pushing().env_spec, partial(renderer_rate, args)
    record_store(args.out, env_spec, settings(args), args, partial(worker, args), 1, args.episodes, bare_rate=bare_rate)
    return recorded(args.out)


if __name__ == "__main__":
    command(main, "collect", in_ranks=True)
