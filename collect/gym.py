"""Record any Gymnasium environment into a store.

    python collect/gym.py --env-id CartPole-v1 --episodes 100
    python collect/gym.py --env-id ale_py:ALE/Pong-v5 --policy my_agent:act --max-episode-steps 2000

`envs/gym_frames.py` describes what is recorded as a frame. A flat observation that is not an image is recorded too, as
the variables obs_0, obs_1, ...

A policy is "random", a folder written by train/policy.py, or one of your own (`collect/agents.py`): a zip that
Stable-Baselines3 has saved, `module:function` or `module:Class`. A module may be in the current folder.
Exploration is added to any policy (`collect/episodes.py`); `--epsilon 0 --random-share 0` turns it off. If a recording
is killed, the same command resumes and ends with the same store, provided that the environment is deterministic for a
seed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from collect.agents import agent_digest, agent_player, is_agent, is_zip, load_agent
from collect.episodes import play_group
from collect.record import RecordArgs, record_store
from configs import command
from configs.written import Written, recorded
from envs.gym_frames import GymFrames, parse_env_kwargs
from envs.policies import Player, is_blind, load_player, policy_digest
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.settings import Address, Count, Pixels, Positive

LANES = 4
"""Environments per process for a policy on frames, in one batch; a function gets one observation at a time."""


@dataclass(frozen=True, kw_only=True)
class Args(RecordArgs):
    """Record a Gymnasium environment."""

    env_id: str = "CartPole-v1"
    """Gymnasium id of the environment; `module:id` imports the module first."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as JSON."""
    wrappers: tuple[str, ...] = ()
    """Wrappers, the innermost first, as module:name. The name is of a class or function that takes the environment."""
    out: Address = Address("runs/gym/data.zarr")
    """Store to write; an unfinished one resumes."""
    policy: str = "random"
    """Policy: "random", a folder, a zip of Stable-Baselines3, or module:name. The name is of a function or class."""
    deterministic: bool = False
    """Take the most likely actions of a folder or zip."""
    trust_policy: bool = False
    """Unpickle the zip, which can run any code. Only for files whose author you trust."""
    episodes: Positive = 100
    """Number of episodes to record, or of segments if length is set."""
    length: Count = 0
    """Frames per segment; 0 keeps episodes whole."""
    max_episode_steps: Count = 0
    """Time limit of an episode in steps; 0 uses that of the environment."""
    size: Pixels = 64
    """Height and width of a frame in pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length == 1:
            raise UserError("length must be 0 or at least 2, not 1, because a step has two frames")
        if self.deterministic and not is_zip(self.policy) and (is_agent(self.policy) or is_blind(self.policy)):
            raise UserError(f"{self.policy} itself decides how it acts; leave --deterministic out")


def make_frames(args: Args) -> GymFrames:
    """The environment as frames; `UserError` if it cannot be made."""
    kwargs = parse_env_kwargs(args.env_kwargs)
    return GymFrames(args.env_id, kwargs, args.size, args.max_episode_steps, args.wrappers)


def make_player(args: Args, env: GymFrames) -> Player:
    """The player; an agent gets the last observation of the environment itself, a policy gets the frames."""
    if not is_agent(args.policy):
        return load_player(args.policy, env.env_spec, args.deterministic)
    spaces = env.env.observation_space, env.action_space
    return agent_player(args.policy, load_agent(args.policy, *spaces, args.deterministic, args.trust_policy), env)


def group_size(args: Args) -> int:
    return 1 if is_agent(args.policy) else LANES


@contextlib.contextmanager
def playing(args: Args) -> Iterator[Callable[[int], list[Episode]]]:
    """Open the environments of a process; yields the function that plays a group of episodes by its index."""
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        envs = [stack.enter_context(contextlib.closing(make_frames(args))) for _ in range(group_size(args))]
        player = make_player(args, envs[0])
        yield partial(play_group, envs, envs[0].env_spec, player, args, args.seed, always_ask=is_agent(args.policy))


def settings(args: Args, env_spec: EnvSpec) -> dict[str, Any]:
    """The settings that must be equal to resume a recording."""
    policy = agent_digest(args.policy) if is_agent(args.policy) else policy_digest(args.policy, env_spec)
    policy += " deterministic" * args.deterministic
    exploration = {"epsilon": args.epsilon, "hold": args.hold, "random_share": args.random_share}
    limit = {"max_episode_steps": args.max_episode_steps} if args.max_episode_steps else {}
    made = {"env": args.env_id, "kwargs": parse_env_kwargs(args.env_kwargs) | limit}
    made |= {"wrappers": list(args.wrappers)} if args.wrappers else {}
    return made | {"policy": policy, "length": args.length, "seed": args.seed, **exploration}


def check_reset(args: Args, env: GymFrames) -> None:
    """Reset the environment once; `UserError` if it cannot be reset or rendered."""
    try:
        env.reset(seed=args.seed)
    except UserError:
        raise
    except Exception as error:  # environments raise errors of any type
        mujoco = " (without a display MuJoCo wants MUJOCO_GL=egl or osmesa)" if "mujoco" in str(type(error)) else ""
        raise UserError(f"{args.env_id} cannot be reset or rendered: {one_line(error)}{mujoco}; fix it") from error


def main(args: Args) -> Written:
    with contextlib.closing(make_frames(args)) as env:
        env_spec = env.env_spec
        if args.length > env_spec.max_episode_steps + 1:
            raise UserError(f"an episode has at most {env_spec.max_episode_steps + 1} frames; set a shorter --length")
        check_reset(args, env)
        make_player(args, env)  # these and `settings` report errors before any process starts
    how = settings(args, env_spec)
    record_store(args.out, env_spec, how, args, partial(playing, args), group_size(args), args.episodes, args.length)
    return recorded(args.out)


if __name__ == "__main__":
    command(main, "collect", in_ranks=True)
