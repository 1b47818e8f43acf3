"""A user's own policies for recording: `module:function`, `module:Class`, and files of Stable-Baselines3.

Each takes an observation of the environment and a `numpy.random.Generator`, and returns an action. A class, or a file,
may remember the episode so far: its `reset` is called when an episode starts, and it gets every observation, even where
exploration then replaces its action. It must not remember anything from earlier episodes: a recording that was killed
continues with a new instance.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from envs.gym_frames import add_cwd_to_path, import_named
from envs.policies import Player
from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.errors import UserError, one_line

Agent = Callable[[Any, np.random.Generator], Any]
"""Returns an action for an observation; may have a method `reset`."""
WAYS = "give module:function or module:Class"


class Observed(Protocol):
    """The environment that an agent plays."""

    name: str
    env_spec: EnvSpec
    observation: Any


def is_zip(policy: str) -> bool:
    """Whether a policy's name is that of a file of Stable-Baselines3."""
    return policy.endswith(".zip")


def is_agent(policy: str) -> bool:
    """Whether a policy is a user's own; all others get frames (`envs.policies`)."""
    return is_zip(policy) or ":" in policy


def import_agent(name: str) -> Any:
    """What `module:name` names; `UserError` if it cannot be imported."""
    try:
        return import_named(name)
    except Exception as error:  # a module may fail in any way
        raise UserError(f"there is no policy {name} ({one_line(error)}); {WAYS}") from None


def load_agent(
    policy: str, observed: spaces.Space, actions: spaces.Space, deterministic: bool = False, trust: bool = False
) -> Agent:
    """Load an agent; a class is instantiated.

    Args:
        policy: `module:name`, or a file of Stable-Baselines3.
        observed: Observation space of the environment.
        actions: Its action space.
        deterministic: Whether a policy from a file takes the most likely action instead of sampling.
        trust: Whether such a file may be unpickled.

    Raises:
        UserError: It cannot be imported, instantiated, called or read, or does not fit the environment.
    """
    if is_zip(policy):
        from envs.sb3_agent import load_sb3_agent  # needs Stable-Baselines3

        add_cwd_to_path()  # for modules that are unpickled
        return load_sb3_agent(Path(policy), observed, actions, deterministic, trust)
    agent = import_agent(policy)
    if isinstance(agent, type):
        try:
            agent = agent()
        except Exception as error:  # a class may fail in any way
            raise UserError(f"{policy}() raised {type(error).__name__}: {one_line(error)}; fix it") from error
    if not callable(agent):
        raise UserError(f"{policy} is {agent!r}, which cannot be called; {WAYS} with __call__")
    return agent


def agent_player(policy: str, agent: Agent, env: Observed) -> Player:
    """The player of an agent, which gets the last observation of `env` instead of frames."""
    spec, reset = env.env_spec.action, getattr(agent, "reset", None)

    def one(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        try:
            if len(frames) == 1 and reset:  # the first of an episode
                reset()
            action = np.asarray(agent(env.observation, rng))
        except Exception as error:
            raise UserError(f"{policy} raised {type(error).__name__}: {one_line(error)}; fix it") from error
        try:
            if action.shape != spec.shape:
                raise UserError(f"the action has shape {action.shape}, not {spec.shape}")
            return spec.check(action)[None]
        except UserError as error:
            raise UserError(f"{policy}: {error}; return an action of {env.name}") from None

    return one


def agent_digest(policy: str) -> str:
    """An identifier of an agent: the digest of its file, and its name in that file."""
    if is_zip(policy):
        return hashlib.sha256(Path(policy).read_bytes()).hexdigest()
    named = inspect.unwrap(import_agent(policy))
    try:
        source = inspect.getsourcefile(named)
    except TypeError:  # a callable object, which has no source
        source = getattr(sys.modules[policy.partition(":")[0]], "__file__", None)
    return f"{policy} {hashlib.sha256(Path(source).read_bytes()).hexdigest()}" if source else policy
