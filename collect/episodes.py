"""Episodes of any Gymnasium environment, for a model of its world to learn from.

A process plays a group of episodes in as many engines, with one pass of the policy for all. Group g depends on
(seed, g) alone, down to the size of each batch, which decides how sums are rounded: a collection that was cut short,
or spread over other processes, is the same collection.

Exploration. A world model must know what happens in places where a good policy does not go, and what an action
does when it makes no sense. Single random actions would not show it: the policy corrects each one at the next
step. So a random action is held for a while, `hold` steps on average, which carries the player away; a share
`epsilon` of all steps is spent so. A share of the episodes is random throughout: that is where the training of a
new policy inside the dream begins.
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
    """How much of what is played is random."""

    epsilon: Fraction = 0.2
    """Share of an episode's steps that are random."""
    hold: NonEmpty[Hold] = (4.0,)
    """Steps for which a random action is held, on average; of several, each episode draws one."""
    random_share: Fraction = 0.1
    """Share of the episodes that are random throughout."""


class Lane:
    """One engine, its episode so far, and the random action that it may be holding."""

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
        )  # makes a share epsilon of all steps random
        self.hold_steps_left, self.held_action = 0, np.empty(0)
        self.policy_frames: deque[np.ndarray] = deque(maxlen=MAX_STACKED_FRAMES)  # what its player sees
        self.frames: list[np.ndarray] = []
        self.variables: list[list[float]] = []
        self.steps: list[tuple[np.ndarray, float, bool, bool]] = []
        self._record(*env.reset(seed=seed))

    def _record(self, frame: np.ndarray, info: dict[str, Any]) -> None:
        self.policy_frames.append(frame)
        self.frames.append(info.get("frame", frame))  # a player with other eyes (envs/vqvae_wrapper.py) saw less
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
        """Rows of the store's clock: the last one has a frame, and no step of its own."""
        last = (np.zeros_like(self.steps[0][0]), 0.0, False, False)
        actions, rewards, terminations, truncations = zip(*self.steps, last, strict=True)
        with np.errstate(over="ignore"):  # what is infinite in float32 will be found to be
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
) -> list[Episode]:
    """The episodes of a group, one in each environment, side by side; what is random is as `sample_action` has it."""
    seeds = np.random.SeedSequence([seed, group]).generate_state(len(envs) + 1).tolist()
    rng = np.random.default_rng(seeds.pop())
    lanes = [Lane(env, env_spec, exploration, s, rng, sample_action) for env, s in zip(envs, seeds, strict=True)]
    while playing := [lane for lane in lanes if not lane.done]:
        asking: list[Lane] = []
        for lane in playing:
            if lane.is_exploring():
                lane.step(lane.held_action)
            else:
                asking.append(lane)
        if asking:
            actions = player(np.stack([list(lane.policy_frames) for lane in asking], axis=1), rng)
            for lane, action in zip(asking, actions, strict=True):
                lane.step(action)
    return [lane.episode() for lane in lanes]


def cut_episode(episode: Episode, length: int) -> list[Episode]:
    """An episode cut into pieces of exactly `length` rows, what is left over dropped; whole at length 0.

    A piece ends like any episode: its last row has no step, and the step before it is the end, `truncated` where
    the episode went on.
    """
    if not length:
        return [episode]
    cut = []
    for start in range(0, len(episode["frames"]) - length + 1, length):
        piece = {name: array[start : start + length].copy() for name, array in episode.items()}
        for name in ("action", "reward", "terminated", "truncated"):
            piece[name][-1] = 0
        piece["truncated"][-2] = not piece["terminated"][-2]
        cut.append(piece)
    return cut
