"""A dream that is played step by step, beside its engine if there is one, and that can be rewound and forked."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np

from envs.dream import DreamEnv
from envs.keys import controls
from rollout.server import png
from worldmodel.utils.errors import UserError, one_line

FORKS = 32
"""Largest number of forks; each one keeps a snapshot in memory and adds an image to every response."""
Moment = tuple[dict[str, Any], int, dict[str, Any]]
"""A dream's snapshot, its step, and its info."""


class Engine:
    """The engine beside a dream. It cannot go back, so it waits until the dream reaches its step again.

    Args:
        env: The environment that the dream's data was recorded from.
        context_frames: Number of its frames that a dream starts from.
        variables: Names of the game variables.
    """

    def __init__(self, env: gym.Env[Any, Any], context_frames: int, variables: tuple[str, ...]) -> None:
        self.env, self.context_frames, self.variables = env, context_frames, variables

    def reset(self, seed: int, rest: Any) -> dict[str, Any]:
        """Start an episode and play some steps of the action `rest`; returns the context for `DreamEnv.reset`."""
        self.over = True  # stays so if the engine fails
        actions = [rest] * (self.context_frames - 1)
        with one_sentence():
            frame, info = self.env.reset(seed=seed)
            frames, infos = [frame], [info]
            for action in actions:
                frame, _, over, cut, info = self.env.step(action)
                frames.append(frame)
                infos.append(info)
                if over or cut:
                    raise UserError(f"the engine's episode ended within {len(frames)} frames; lower --context-frames")
            variables = [[one[v] for v in self.variables] for one in infos]
        self.frame, self.info, self.reward, self.over, self.time = frames[-1], infos[-1], 0.0, False, 0
        return {"frames": np.stack(frames), "actions": np.array(actions), "variables": variables}

    def step(self, action: Any) -> None:
        """Play an action, unless the episode is over."""
        if not self.over:
            self.over = True  # stays so if the engine fails
            with one_sentence():
                self.frame, reward, terminated, truncated, self.info = self.env.step(action)
            self.reward = float(reward)
            self.time, self.over = self.time + 1, terminated or truncated

    def close(self) -> None:
        self.env.close()


class Session:
    """A dream and its engine, played with the same actions.

    Args:
        dream: The dream.
        engine: Its engine; None starts the dream from its own contexts.
        max_rewind: Largest number of steps that can be rewound.
        seed: Seed of the first episode.

    Raises:
        UserError: The engine fails.
    """

    def __init__(self, dream: DreamEnv, engine: Engine | None, max_rewind: int, seed: int) -> None:
        self.dream, self.engine, self.max_rewind, self.lock = dream, engine, max_rewind, threading.Lock()
        self.controls, spec = controls(dream.env_spec), dream.env_spec.action
        self.rest = as_action(self.controls["rest"][0] if spec.kind == "Discrete" else self.controls["rest"], dream)
        try:
            self.reset(seed)
        except BaseException:
            self.close()
            raise

    def answer(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Handle one command and return the state; commands run one at a time."""
        with self.lock:
            if command != "state":
                getattr(self, command)(**arguments)
            return self.state()

    def close(self) -> None:
        with self.lock:
            if self.engine is not None:
                self.engine.close()

    def reset(self, seed: int) -> None:
        """Start dream and engine from the same frames."""
        if not 0 <= seed < 2**31:
            raise UserError(f"seed must be from 0 to {2**31 - 1}, not {seed}")
        _, info = self.dream.reset(seed=seed, options=self.engine.reset(seed, self.rest) if self.engine else None)
        self.time, self.rate = 0, 0.0
        self.step_info: dict[str, Any] = info | {"reward": 0.0, "over": False}
        self.history: deque[Moment] = deque(maxlen=self.max_rewind)
        self.forks: list[tuple[Moment, str]] = []

    def snapshot(self) -> Moment:
        return self.dream.snapshot(), self.time, dict(self.step_info)

    def restore(self, moment: Moment) -> None:
        self.dream.restore(moment[0])
        self.time, self.step_info = moment[1], dict(moment[2])

    def step(self, action: Any) -> None:
        before, start, action = self.snapshot(), time.perf_counter(), as_action(action, self.dream)
        _, reward, terminated, _, info = self.dream.step(action)
        rate = 1 / (time.perf_counter() - start)
        self.rate = 0.9 * self.rate + 0.1 * rate if self.rate else rate
        self.history.append(before)
        self.time += 1
        self.step_info = info | {"reward": reward, "over": self.step_info["over"] or terminated}
        if self.engine is not None and self.time > self.engine.time:
            self.engine.step(action)

    def rewind(self, steps: int) -> None:
        if steps < 0:
            raise UserError(f"steps to rewind must be at least 0, not {steps}")
        if taken := [self.history.pop() for _ in range(min(steps, len(self.history)))]:
            self.restore(taken[-1])

    def fork(self) -> None:
        if len(self.forks) == FORKS:
            raise UserError(f"there are already {FORKS} forks, the most that are kept; reset removes them")
        self.forks.append((self.snapshot(), png(self.dream.vector_env.frames[0])))

    def goto(self, fork: int) -> None:
        if not 0 <= fork < len(self.forks):
            raise UserError(f"there is no fork {fork}, only {len(self.forks)} forks counted from 0; choose one of them")
        self.history.append(self.snapshot())
        self.restore(self.forks[fork][0])

    def state(self) -> dict[str, Any]:
        """The state as the page shows it."""
        env_spec, dream = self.dream.env_spec, self.dream.vector_env
        over = {"dream": self.step_info["over"], "engine": self.engine is not None and self.engine.over}
        return {
            "dream": png(dream.frames[0]),
            "engine": png(self.engine.frame) if self.engine else "",
            "figures": self.figures(),
            "over": [name for name, ended in over.items() if ended],
            "forks": [picture for _, picture in self.forks],
            "fps": env_spec.fps / dream.dream.stride,
            "controls": self.controls,
            "world": env_spec.name,
        }

    def figures(self) -> dict[str, list[float]]:
        """The figures of the last step by name: the dream's, and after it the engine's if both have one."""
        codes, variables = self.dream.vector_env.dream.prior.config.codes_per_frame, self.dream.env_spec.variables
        figures: dict[str, list[float]] = {
            "step": [self.time],
            "frames/s": [self.rate],
            "entropy, bits per code": [self.step_info.get("entropy", 0.0) / math.log(2) / codes],
            "reward": [self.step_info["reward"]],
        }
        figures |= {name.lower(): [self.step_info[name]] for name in variables}
        if self.engine is not None:
            figures["step"].append(self.engine.time)
            figures["reward"].append(self.engine.reward)
            for name in variables:
                figures[name.lower()].append(float(self.engine.info[name]))
        return {name: [round(value, 2) + 0.0 for value in values] for name, values in figures.items()}  # no -0.0


def as_action(numbers: Any, dream: DreamEnv) -> Any:
    """An action of the environment from numbers: an integer for a Discrete space, otherwise an array."""
    spec = dream.env_spec.action
    action = spec.check(numbers)
    if action.shape != spec.shape:
        raise UserError(f"an action of {spec} has shape {spec.shape}, not {action.shape}")
    return int(action) if action.shape == () else action


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn any error of an engine into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the engine failed ({type(error).__name__}: {one_line(error)}); reset restarts it") from error
