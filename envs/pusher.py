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

from worldmodel.checkpoint import read_checkpoint
from worldmodel.errors import UserError
from worldmodel.models import of_this_version

from .policies import policy_folder
from .pushing_robot import SHIFT, Robot
from .pushing_scene import HIGH, LOW

FAR, NEAR = 0.25, 0.08
"""Metres: a goal is at least so far from its object when it is drawn, and is reached when it is so near."""
BEHIND = 0.03
"""Metres between an object's rim and the spot from which the hand pushes it."""
DRAWN = 8
"""Tasks of which the policy at work takes the nearest."""
SEEN, DONE = 12, 3
"""Numbers that the policy sees and gives."""
KIND = "ppo_pusher"
MIDDLE = (LOW + HIGH)[:2] / 2


class Task:
    """A robot's object and goal."""

    def __init__(self, robot: Robot, rng: np.random.Generator) -> None:
        self.robot, self.rng = robot, rng
        self.draw()

    def draw(self) -> None:
        """A far goal of an object behind which the hand has room: what lies at a wall can only be moved along it."""
        for _ in range(100):
            self.object = int(self.rng.integers(len(self.robot.bodies)))
            self.goal = self.rng.uniform(LOW[:2], HIGH[:2])
            if self.left > FAR and (self.spot > LOW[:2]).all() and (self.spot < HIGH[:2]).all():
                break

    @property
    def place(self) -> np.ndarray:
        """Where the object is, (2,)."""
        return self.robot.objects[self.object, :2]

    @property
    def left(self) -> float:
        """Metres from the object to its goal."""
        return float(np.linalg.norm(self.goal - self.place))

    @property
    def ahead(self) -> np.ndarray:
        """The direction of the goal from the object, (2,), of length 1."""
        return (self.goal - self.place) / max(self.left, 1e-6)

    @property
    def turn(self) -> np.ndarray:
        """(2, 2): what makes coordinates ahead and to the left of those along x and y."""
        a, b = self.ahead
        return np.array([[a, b], [-b, a]])

    @property
    def spot(self) -> np.ndarray:
        """Where to push from, (2,)."""
        return self.place - self.ahead * (self.robot.radii[self.object] + BEHIND)

    @property
    def away(self) -> float:
        """Metres from the hand to where to push from."""
        return float(np.linalg.norm(self.robot.hand[:2] - self.spot))

    def potential(self) -> float:
        return -10 * self.left - 3 * self.away

    def seen(self) -> np.ndarray:
        """(SEEN,) numbers of about unit size."""
        hand, place, turn = self.robot.hand, self.place, self.turn
        plane = [turn @ (place - hand[:2]), place - MIDDLE, hand[:2] - MIDDLE, [self.left]]
        lifted = (hand[2] - LOW[2]) / (HIGH[2] - LOW[2])
        thing = [20 * self.robot.radii[self.object], 20 * self.robot.objects[self.object, 2]]
        return np.array([*np.concatenate(plane) / 0.15, *self.ahead, lifted, *thing], np.float32)

    def action(self, done: np.ndarray) -> np.ndarray:
        """BAIR's action (4,) for what a policy gave (3,): ahead, left, and lifting for a step where above a half."""
        shift = np.clip(self.turn.T @ np.clip(done[:2], -1, 1), -1, 1) * SHIFT
        return np.array([*shift, 0, done[2] > 0.5], np.float32)


class PushTask(gym.Env[np.ndarray, np.ndarray]):
    """Pushing by numbers: nothing is drawn."""

    def __init__(self, horizon: int = 29) -> None:
        self.horizon = horizon
        self.observation_space = spaces.Box(-np.inf, np.inf, (SEEN,), np.float32)
        self.action_space = spaces.Box(-1, 1, (DONE,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.robot = Robot(self.np_random)
        self.task = Task(self.robot, self.np_random)
        return self.task.seen(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self.task.potential()
        self.robot.act(self.task.action(action))
        reward = self.task.potential() - before
        if self.task.left < NEAR:
            self.task.draw()
        return self.task.seen(), reward, False, self.robot.steps >= self.horizon, {}


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
    with of_this_version(folder):
        policy = make_policy(found.config["training"]["width"])
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
        if self.task is None or self.task.robot is not robot or self.task.left < NEAR:
            self.task = min((Task(robot, rng) for _ in range(DRAWN)), key=lambda task: task.away)
        done, _ = self.policy.predict(self.task.seen(), deterministic=True)
        return self.task.action(done + self.noise * rng.normal(size=DONE) * (1, 1, 0))
