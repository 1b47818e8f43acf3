"""Plays episodes of any Gymnasium environment, with exploration, to train a world model on.

A process plays a group of episodes in parallel, with one forward pass of the policy for all. Group g depends on
(seed, g) alone. This includes the batch sizes, which decide how sums are rounded. So a recording that was interrupted,
or that used another number of processes, is the same recording.

Exploration. A world model has to be trained on states that a good policy does not reach, and on actions that it would
not take. Single random actions are not enough, because the policy corrects each one at the next step. So a random
action is held for `hold` steps on average, and a fraction `epsilon` of all steps is spent this way. A fraction of the
episodes is entirely random, because the training of a new policy in the dream starts from random actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium as gym
import numpy as np

from envs.policies import MAX_STACKED_FRAMES, Player
from worldmodel.data.env_spec import ActionSpec, EnvSpec, random_actions
from worldmodel.data.writer import Episode
from worldmodel.utils.settings import Fraction, NonEmpty, Range, Settings

Env = gym.Env[np.ndarray, Any]
SampleAction = Callable[[ActionSpec, int, np.random.Generator], np.ndarray]
"""Random actions (n, ...) of an action space."""


Hold = Annotated[float, Range(1)]
"""Steps, on average."""


@dataclass(frozen=True, kw_only=True)
class Exploration(Settings):
    """How often random actions replace those of the policy."""

    epsilon: Fraction = 0.2
    """Fraction of an episode's steps with random actions."""
    hold: NonEmpty[Hold] = (4.0,)
    """Mean number of steps for which a random action is held; each episode picks one of several values at random."""
    random_share: Fraction = 0.1
    """Fraction of the episodes that are entirely random."""


class Lane:
    """One environment, its episode so far, and the random action that is held."""

    def __init__(
        self,
        env: Env,
        env_spec: EnvSpec,
        exploration: Exploration,
        seed: int,
        rng: np.random.Generator,
        sample_action: SampleAction = random_actions,
    ) -> None:
        self.env, self.env_spec, self.rng, self.sample_action, self.done = env, env_spec, rng, sample_action, False
        epsilon = 1.0 if rng.random() < exploration.random_share else exploration.epsilon
        self.hold = exploration.hold[rng.integers(len(exploration.hold))]
        self.hold_start_prob = epsilon / (
            epsilon + self.hold * (1 - epsilon)
        )  # so that a fraction epsilon of all steps is random
        self.hold_steps_left, self.held_action = 0, np.empty(0)
        self.policy_frames: deque[np.ndarray] = deque(maxlen=MAX_STACKED_FRAMES)  # the player's observations
        self.frames: list[np.ndarray] = []
        self.variables: list[list[float]] = []
        self.steps: list[tuple[np.ndarray, float, bool, bool]] = []
        self._record(*env.reset(seed=seed))

    def _record(self, frame: np.ndarray, info: dict[str, Any]) -> None:
        self.policy_frames.append(frame)
        self.frames.append(info.get("frame", frame))  # VQVAEObservation keeps the original here
        self.variables.append([float(info[name]) for name in self.env_spec.variables])

    def is_exploring(self) -> bool:
        """Whether the next action is the held one."""
        if self.hold_steps_left == 0 and self.rng.random() < self.hold_start_prob:
            self.hold_steps_left = int(self.rng.geometric(1 / self.hold))
            self.held_action = self.sample_action(self.env_spec.action, 1, self.rng)[0]
        if self.hold_steps_left == 0:
            return False
        self.hold_steps_left -= 1
        return True

    def step(self, action: np.ndarray) -> None:
        frame, reward, terminated, truncated, info = self.env.step(action)
        self.steps.append((action, float(reward), terminated, truncated))
        self._record(frame, info)
        self.done = terminated or truncated

    def episode(self) -> Episode:
        """The rows of the store; the last one has a frame, but no action, reward or flags."""
        last = (np.zeros_like(self.steps[0][0]), 0.0, False, False)
        actions, rewards, terminations, truncations = zip(*self.steps, last, strict=True)
        with np.errstate(over="ignore"):  # values that overflow float32 are reported later
            return {
                "frames": np.stack(self.frames),
                "action": np.stack(actions).astype(self.env_spec.action.dtype),
                "reward": np.array(rewards, np.float32),
                "terminated": np.array(terminations, bool),
                "truncated": np.array(truncations, bool),
                "variables": np.array(self.variables, np.float32),
            }


def play_group(
    envs: Sequence[Env],
    env_spec: EnvSpec,
    player: Player,
    exploration: Exploration,
    seed: int,
    group: int,
    sample_action: SampleAction = random_actions,
    always_ask: bool = False,
) -> list[Episode]:
    """Play the episodes of a group in parallel, one in each environment.

    Args:
        envs: Environments of the same kind.
        env_spec: Their spec.
        player: Picks the actions.
        exploration: How often random actions replace them.
        seed: Seed of the recording.
        group: Index of the group; with `seed` it fixes all randomness.
        sample_action: Distribution of random actions.
        always_ask: Ask the player also where a random action replaces its own, so that it sees all of an episode.
    """
    seeds = np.random.SeedSequence([seed, group]).generate_state(len(envs) + 1).tolist()
    rng = np.random.default_rng(seeds.pop())
    lanes = [Lane(env, env_spec, exploration, s, rng, sample_action) for env, s in zip(envs, seeds, strict=True)]
    while playing := [lane for lane in lanes if not lane.done]:
        actions = {lane: lane.held_action for lane in playing if lane.is_exploring()}
        if asking := [lane for lane in playing if always_ask or lane not in actions]:
            chosen = player(np.stack([list(lane.policy_frames) for lane in asking], axis=1), rng)
            actions = dict(zip(asking, chosen, strict=True)) | actions
        for lane in playing:
            lane.step(actions[lane])
    return [lane.episode() for lane in lanes]


def cut_episode(episode: Episode, length: int) -> list[Episode]:
    """Cut an episode into segments of exactly `length` rows and drop the rest; length 0 keeps it whole."""
    if not length:
        return [episode]
    starts = range(0, len(episode["frames"]) - length + 1, length)
    return [segment(episode, start, start + length) for start in starts]


def segment(episode: Episode, start: int, stop: int) -> Episode:
    """Rows start .. stop of an episode.

    A segment ends like an episode: its last row has no step, and its last step is `truncated` if the episode continued.
    A video without actions has no steps.
    """
    piece = {name: array[start:stop].copy() for name, array in episode.items()}
    if "action" not in piece:
        return piece
    for name in ("action", "reward", "terminated", "truncated"):
        piece[name][-1] = 0
    piece["truncated"][-2] = not piece["terminated"][-2]
    return piece
