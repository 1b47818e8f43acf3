"""The task of pushing an object of `BAIRPushing-v0` to a goal, and the pretrained policy for it.

A task is a random object and a random goal far from it. A solved task is replaced by a new one, so that the policy
keeps moving objects for a whole episode. The policy observes positions instead of frames, because physics without
rendering runs at a thousand steps per second. The reward is 10 per meter of progress of the object, and 3 per meter of
progress of the hand towards the position to push from. Both are differences of a potential, so moving in circles gains
nothing.

Observations are rotated so that the goal is ahead of the object, because pushing is the same in every direction. They
also contain the positions in the bin and the height of the hand. Actions are the move ahead and to the left, and
whether to lift the hand. The gripper stays open. Actions are scaled to -1..1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.models.loading import refuse_other_versions
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra

from .policies import policy_folder
from .pushing_robot import MAX_SHIFT, Robot
from .pushing_scene import HIGH, LOW

if TYPE_CHECKING:
    from stable_baselines3.common.policies import ActorCriticPolicy

MIN_GOAL_DISTANCE, GOAL_RADIUS = 0.25, 0.08
"""Smallest distance of a new goal from its object, and the distance at which a goal is reached, in meters."""
BEHIND = 0.03
"""Distance from an object's rim to the position from which the hand pushes it, in meters."""
N_CANDIDATE_TASKS = 8
"""Number of random tasks of which the pusher takes the one nearest to the hand."""
OBSERVATION_DIM, ACTION_DIM = 12, 3
"""Sizes of the policy's observations and actions."""
KIND = "ppo_pusher"
MIDDLE = (LOW + HIGH)[:2] / 2


class Task:
    """A robot's task: an object and its goal."""

    def __init__(self, robot: Robot, rng: np.random.Generator) -> None:
        self.robot, self.rng = robot, rng
        self.resample()

    def resample(self) -> None:
        """Choose an object and a far goal, with room for the hand behind the object (not at a wall)."""
        for _ in range(100):
            self.object = int(self.rng.integers(len(self.robot.bodies)))
            self.goal = self.rng.uniform(LOW[:2], HIGH[:2])
            if (
                self.goal_distance > MIN_GOAL_DISTANCE
                and (self.push_position > LOW[:2]).all()
                and (self.push_position < HIGH[:2]).all()
            ):
                break

    @property
    def object_position(self) -> np.ndarray:
        """Position of the object (2,)."""
        return self.robot.objects[self.object, :2]

    @property
    def goal_distance(self) -> float:
        """Distance from the object to its goal in meters."""
        return float(np.linalg.norm(self.goal - self.object_position))

    @property
    def goal_direction(self) -> np.ndarray:
        """Unit vector (2,) from the object to its goal."""
        return (self.goal - self.object_position) / max(self.goal_distance, 1e-6)

    @property
    def goal_rotation(self) -> np.ndarray:
        """Rotation (2, 2) from x and y to ahead and left, where ahead is the direction of the goal."""
        a, b = self.goal_direction
        return np.array([[a, b], [-b, a]])

    @property
    def push_position(self) -> np.ndarray:
        """Position to push from (2,)."""
        return self.object_position - self.goal_direction * (self.robot.radii[self.object] + BEHIND)

    @property
    def hand_distance(self) -> float:
        """Distance from the hand to the position to push from, in meters."""
        return float(np.linalg.norm(self.robot.hand[:2] - self.push_position))

    def potential(self) -> float:
        return -10 * self.goal_distance - 3 * self.hand_distance

    def observation(self) -> np.ndarray:
        """The observation (OBSERVATION_DIM,), with numbers of about unit size."""
        hand, position, rotation = self.robot.hand, self.object_position, self.goal_rotation
        plane = [rotation @ (position - hand[:2]), position - MIDDLE, hand[:2] - MIDDLE, [self.goal_distance]]
        lifted = (hand[2] - LOW[2]) / (HIGH[2] - LOW[2])
        thing = [20 * self.robot.radii[self.object], 20 * self.robot.objects[self.object, 2]]
        return np.array([*np.concatenate(plane) / 0.15, *self.goal_direction, lifted, *thing], np.float32)

    def env_action(self, action: np.ndarray) -> np.ndarray:
        """BAIR's action (4,) for an action of the policy (3,): ahead, left, and lift for one step if above 0.5."""
        shift = np.clip(self.goal_rotation.T @ np.clip(action[:2], -1, 1), -1, 1) * MAX_SHIFT
        return np.array([*shift, 0, action[2] > 0.5], np.float32)


class PushTask(gym.Env[np.ndarray, np.ndarray]):
    """The task as a Gymnasium environment on positions, without rendering."""

    def __init__(self, horizon: int = 29) -> None:
        self.horizon = horizon
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION_DIM,), np.float32)
        self.action_space = spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.robot = Robot(self.np_random)
        self.task = Task(self.robot, self.np_random)
        return self.task.observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self.task.potential()
        self.robot.act(self.task.env_action(action))
        reward = self.task.potential() - before
        if self.task.goal_distance < GOAL_RADIUS:
            self.task.resample()
        return self.task.observation(), reward, False, self.robot.steps >= self.horizon, {}


def make_policy(width: int) -> ActorCriticPolicy:
    """The policy and value networks of Stable-Baselines3, each with two layers of the given width."""
    with extra("sb3"):
        from stable_baselines3.common.policies import ActorCriticPolicy

    env = PushTask()
    return ActorCriticPolicy(
        env.observation_space, env.action_space, lambda left: 0.0, [width, width], log_std_init=-0.5
    )


def load_pusher(name: str) -> ActorCriticPolicy:
    """Load a pusher from a folder written by train/pusher.py, or the pretrained one, `pushing`.

    Raises:
        UserError: The folder has no pusher.
    """
    folder = policy_folder(name)
    found = read_checkpoint(folder)
    if (kind := found.config.get("kind")) != KIND:
        raise UserError(f"{folder} contains a model of kind {kind}, not a pusher; give a folder of train/pusher.py")
    with refuse_other_versions(folder, "train/pusher.py"):
        policy = make_policy(found.config["training"]["hidden_dim"])
    found.fill(policy)
    policy.set_training_mode(False)
    return policy


class Pusher:
    """Plays the policy with random tasks, one after the other.

    Of several random tasks it takes the one nearest to the hand, so that objects move most of the time. Gaussian noise
    with a standard deviation of `noise` times the bounds is added to the moves ahead and to the left.
    """

    def __init__(self, policy: ActorCriticPolicy, noise: float = 0.0) -> None:
        self.policy, self.noise = policy, noise
        self.task: Task | None = None

    def act(self, robot: Robot, rng: np.random.Generator) -> np.ndarray:
        """BAIR's action (4,)."""
        if self.task is None or self.task.robot is not robot or self.task.goal_distance < GOAL_RADIUS:
            self.task = min((Task(robot, rng) for _ in range(N_CANDIDATE_TASKS)), key=lambda task: task.hand_distance)
        action, _ = self.policy.predict(self.task.observation(), deterministic=True)
        return self.task.env_action(action + self.noise * rng.normal(size=ACTION_DIM) * (1, 1, 0))
