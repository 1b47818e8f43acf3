"""Record Health Gathering Supreme, or another scenario of ViZDoom, into a store.

    python collect/vizdoom.py                # 200 whole episodes of the pretrained policy, with exploration
    python collect/vizdoom.py --paper        # the paper's data set: 1000 trajectories of 100 frames

Each process plays four episodes at a time, in four engines. `--length` cuts episodes into segments of exactly that many
frames, drops the rest, and records until there are `--episodes` segments. If a recording is killed, the same command
resumes and ends with the same store. At the end the speed is compared with that of the engine alone: the same number of
processes that only call `DoomGame.make_action`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from collect.episodes import Env, play_group
from collect.record import RecordArgs, record_store
from configs import command
from configs.written import Written, recorded
from envs.policies import is_blind, load_player, policy_digest, shipped_policies
from envs.vizdoom import VizdoomFrames
from envs.vqvae_wrapper import VQVAEObservation
from worldmodel.data.env_spec import EnvSpec, random_actions
from worldmodel.data.writer import Episode
from worldmodel.models.loading import load_vqvae, resolve_folder
from worldmodel.utils.checkpoint import codes_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address, Count, Pixels, Positive

GROUP_SIZE = 4
"""Engines per process. It decides the policy's batch size, so a store with another value is another recording."""


@dataclass(frozen=True, kw_only=True)
class Args(RecordArgs):
    """Record a ViZDoom scenario."""

    out: Address | None = None
    """Store to write, by default runs/<scenario>/data.zarr; an unfinished one resumes."""
    scenario: str = "health_gathering_supreme"
    """ViZDoom scenario, or battle2."""
    policy: tuple[str, ...] = ()
    """Policies that play: folders, "random", or cycles such as "cycle:1x20,2x20". The default is the pretrained one of
    the scenario. Several policies take turns in groups of four episodes."""
    obs_vqvae: str = ""
    """Run folder, or pretrained model, whose reconstructions the policies observe; by default they observe the frames.
    envs/vqvae_wrapper.py explains why."""
    episodes: Positive = 200
    """Number of episodes to record, or of segments if length is set."""
    length: Count = 0
    """Frames per segment; 0 keeps episodes whole."""
    paper: bool = False
    """Record the paper's data set: 1000 episodes of length 100."""
    frame_skip: Positive = 4
    """Tics of the engine per step."""
    size: Pixels = 64
    """Height and width of a frame in pixels."""


def make_env(args: Args) -> VizdoomFrames:
    return VizdoomFrames(args.scenario, args.frame_skip, args.size)


@contextlib.contextmanager
def worker(args: Args) -> Iterator[Callable[[int], list[Episode]]]:
    """Open the engines of a process; yields the function that plays a group of episodes by its index."""
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        envs = [stack.enter_context(contextlib.closing(make_env(args))) for _ in range(GROUP_SIZE)]
        env_spec, names = envs[0].env_spec, args.policy or (args.scenario,)
        players = {name: load_player(name, env_spec) for name in names if not name.startswith("cycle:")}
        seen: list[Env] = [*envs]
        if args.obs_vqvae:
            vqvae = load_vqvae(resolve_folder(args.obs_vqvae) / "vqvae")
            seen = [VQVAEObservation(env, vqvae, env_spec.action) for env in envs]

        def one(group: int) -> list[Episode]:
            name = names[group % len(names)]
            player = players.get(name) or load_player(name, env_spec)  # a cycle has state, so each group makes its own
            return play_group(envs if is_blind(name) else seen, env_spec, player, args, args.seed, group)

        yield one


def engine_rate(args: Args, seconds: float = 2.0) -> float:
    """Steps per second of the engine alone, at the same resolution and frame skip, with random actions."""
    rng = np.random.default_rng(args.seed)
    with contextlib.closing(make_env(args)) as env:
        env.reset(seed=args.seed)
        game, actions = env.game, random_actions(env.env_spec.action, 1000, rng)
        buttons = [env.buttons.press(action).tolist() for action in actions]
        start, steps = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            game.make_action(buttons[steps % len(buttons)], args.frame_skip)
            if game.is_episode_finished():
                game.new_episode()
            steps += 1
    return steps / passed


def settings(args: Args, env_spec: EnvSpec, length: int) -> dict[str, Any]:
    """The settings that must be equal to resume a recording; paths and number of processes may differ."""
    if not args.policy and args.scenario not in shipped_policies(args.scenario):
        raise UserError(
            f"there is no pretrained policy for {args.scenario}; give --policy a folder of train/policy.py, or random"
        )
    policies = [policy_digest(name, env_spec) for name in args.policy or (args.scenario,)]
    policy = policies if len(policies) > 1 else policies[0]
    exploration = {"epsilon": args.epsilon, "hold": args.hold, "random_share": args.random_share}
    observed = {"eyes": codes_digest(resolve_folder(args.obs_vqvae) / "vqvae")} if args.obs_vqvae else {}
    return {"policy": policy, "length": length, "seed": args.seed, **exploration, **observed}


def main(args: Args) -> Written:
    total, length = (1000, 100) if args.paper else (args.episodes, args.length)
    with contextlib.closing(make_env(args)) as env:
        env_spec = env.env_spec
    if length == 1 or length > env_spec.max_episode_steps + 1 > 1:
        raise UserError(f"length must be 0, or from 2 to {env_spec.max_episode_steps + 1}, not {length}")
    out = args.out or f"runs/{args.scenario}/data.zarr"
    how, bare_rate = settings(args, env_spec, length), partial(engine_rate, args)
    record_store(out, env_spec, how, args, partial(worker, args), GROUP_SIZE, total, length, bare_rate)
    return recorded(out)


if __name__ == "__main__":
    command(main, "collect", in_ranks=True)
