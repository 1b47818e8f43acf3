"""The task of pushing an object of `BAIRPushing-v0` to a goal, and the policy that ships for it.

The task is a random object and a random goal far from it; where it is solved, another takes its place, so that a
policy is busy throughout an episode. It is learned from where things are, not from pictures: physics alone runs at
a thousand steps a second. The reward is ten for each metre of progress, and three for each metre of the hand's way to
where to push from: both are differences of a potential, so nothing is gained by going round in circles.

The policy sees the plane turned so that the goal lies ahead of the object, since a push is a push in every direction,
and beside that where in the bin it is and how the fingers stand. It decides how far to go ahead and to the left, and
whether to lift the hand; it leaves the gripper open. Its actions are scaled to -1..1.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from worldmodel.models.loading import refuse_other_versions
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError

from .policies import policy_folder
from .pushing_robot import MAX_SHIFT, Robot
from .pushing_scene import HIGH, LOW

MIN_GOAL_DISTANCE, GOAL_RADIUS = 0.25, 0.08
"""Metres: a goal is at least so far from its object when it is drawn, and is reached when it is so near."""
BEHIND = 0.03
"""Metres between an object's rim and the spot from which the hand pushes it."""
N_CANDIDATE_TASKS = 8
"""Tasks of which the policy at work takes the nearest."""
OBSERVATION_DIM, ACTION_DIM = 12, 3
"""Numbers that the policy sees and gives."""
KIND = "ppo_pusher"
MIDDLE = (LOW + HIGH)[:2] / 2


class Task:
    """A robot's object and goal."""

    def __init__(self, robot: Robot, rng: np.random.Generator) -> None:
        self.robot, self.rng = robot, rng
        self.resample()

    def resample(self) -> None:
        """A far goal of an object behind which the hand has room: what lies at a wall can only be moved along it."""
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
        """Where the object is, (2,)."""
        return self.robot.objects[self.object, :2]

    @property
    def goal_distance(self) -> float:
        """Metres from the object to its goal."""
        return float(np.linalg.norm(self.goal - self.object_position))

    @property
    def goal_direction(self) -> np.ndarray:
        """The direction of the goal from the object, (2,), of length 1."""
        return (self.goal - self.object_position) / max(self.goal_distance, 1e-6)

    @property
    def goal_rotation(self) -> np.ndarray:
        """(2, 2): what makes coordinates ahead and to the left of those along x and y."""
        a, b = self.goal_direction
        return np.array([[a, b], [-b, a]])

    @property
    def push_position(self) -> np.ndarray:
        """Where to push from, (2,)."""
        return self.object_position - self.goal_direction * (self.robot.radii[self.object] + BEHIND)

    @property
    def hand_distance(self) -> float:
        """Metres from the hand to where to push from."""
        return float(np.linalg.norm(self.robot.hand[:2] - self.push_position))

    def potential(self) -> float:
        return -10 * self.goal_distance - 3 * self.hand_distance

    def observation(self) -> np.ndarray:
        """(SEEN,) numbers of about unit size."""
        hand, position, rotation = self.robot.hand, self.object_position, self.goal_rotation
        plane = [rotation @ (position - hand[:2]), position - MIDDLE, hand[:2] - MIDDLE, [self.goal_distance]]
        lifted = (hand[2] - LOW[2]) / (HIGH[2] - LOW[2])
        thing = [20 * self.robot.radii[self.object], 20 * self.robot.objects[self.object, 2]]
        return np.array([*np.concatenate(plane) / 0.15, *self.goal_direction, lifted, *thing], np.float32)

    def env_action(self, action: np.ndarray) -> np.ndarray:
        """BAIR's action (4,) for what a policy gave (3,): ahead, left, and lifting for a step where above a half."""
        shift = np.clip(self.goal_rotation.T @ np.clip(action[:2], -1, 1), -1, 1) * MAX_SHIFT
        return np.array([*shift, 0, action[2] > 0.5], np.float32)


class PushTask(gym.Env[np.ndarray, np.ndarray]):
    """Pushing by numbers: nothing is drawn."""

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
    """PPO's policy and value, as Stable-Baselines3 builds them, each with two layers of that width."""
    env = PushTask()
    return ActorCriticPolicy(
        env.observation_space, env.action_space, lambda left: 0.0, [width, width], log_std_init=-0.5
    )


def load_pusher(name: str) -> ActorCriticPolicy:
    """The policy of a folder that train/pusher.py wrote, or the one that ships as `pushing`."""
    folder = policy_folder(name)
    found = read_checkpoint(folder)
    if (kind := found.config.get("kind")) != KIND:
        raise UserError(f"{folder} holds a {kind}, not a pusher; give a folder of train/pusher.py")
    with refuse_other_versions(folder, "train/pusher.py"):
        policy = make_policy(found.config["training"]["hidden_dim"])
    found.fill(policy)
    policy.set_training_mode(False)
    return policy


class Pusher:
    """The policy at work: in each robot's bin it gives itself an object and a goal, and others when that is done.

    Of several that it draws it takes the one that the hand is nearest to, since it is there to move things. Noise of
    `noise` times an action's bounds is laid over the ways ahead and to the left.
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
