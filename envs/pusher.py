"""The task of pushing an object of `BAIRPushing-v0` to a goal, and the policy that ships for it.

The task is a random object and a random goal far from it; where it is solved, another takes its place, so that a
policy is busy throughout an episode. It is learned from where things are, not from pictures: physics alone runs at
hundreds of steps a second. The reward is metres of progress, ten a metre, and a tenth of that for the hand's way to
the side from which to push: both are differences of a potential, so nothing is gained by going round in circles.

The policy decides dx, dy and whether to lift; it leaves the gripper open. Its actions are scaled to -1..1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import Actor

from worldmodel.checkpoint import load_weights, read_header, save_checkpoint
from worldmodel.errors import UserError

from .policies import Player, policy_folder
from .pushing import Pushing
from .pushing_robot import SHIFT, Robot
from .pushing_scene import HIGH, LOW

FAR, NEAR = 0.2, 0.04
"""Metres: a goal is at least so far from its object when it is drawn, and is reached when it is so near."""
BEHIND = 0.03
"""Metres between an object's rim and the spot from which the hand pushes it."""
SEEN, DONE = 11, 3
"""Numbers that the policy sees and gives."""


class Task:
    """A robot's object and goal."""

    def __init__(self, robot: Robot, rng: np.random.Generator) -> None:
        self.robot, self.rng = robot, rng
        self.draw()

    def draw(self) -> None:
        self.object = int(self.rng.integers(len(self.robot.bodies)))
        for _ in range(100):
            self.goal = self.rng.uniform(LOW[:2], HIGH[:2])
            if np.linalg.norm(self.goal - self.place) > FAR:
                break

    @property
    def place(self) -> np.ndarray:
        """Where the object is, (2,)."""
        return self.robot.objects[self.object, :2]

    @property
    def left(self) -> float:
        """Metres from the object to its goal."""
        return float(np.linalg.norm(self.goal - self.place))

    def potential(self) -> float:
        away = (self.place - self.goal) / max(self.left, 1e-6)
        spot = self.place + away * (self.robot.radii[self.object] + BEHIND)
        return -10 * self.left - float(np.linalg.norm(self.robot.hand[:2] - spot))

    def seen(self) -> np.ndarray:
        """(SEEN,) numbers of about unit size: hand, object from hand, goal from object, object in the bin, its size."""
        hand, place, middle = self.robot.hand, self.place, (LOW + HIGH)[:2] / 2
        plane = [hand[:2] - middle, place - hand[:2], self.goal - place, place - middle]
        lifted = (hand[2] - LOW[2]) / (HIGH[2] - LOW[2])
        size = self.robot.radii[self.object]
        around = [lifted, 20 * size, 10 * self.robot.objects[self.object, 2]]
        return np.concatenate([np.concatenate(plane) / 0.2, around]).astype(np.float32)


def to_action(done: np.ndarray) -> np.ndarray:
    """BAIR's action (4,) for what a policy gave (3,): dx and dy over 0.1 m, and lifting for a step where positive."""
    shift = np.clip(done[:2], -1, 1) * SHIFT
    return np.array([*shift, 0, done[2] > 0], np.float32)


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
        self.robot.act(to_action(action))
        reward = self.task.potential() - before
        if self.task.left < NEAR:
            self.task.draw()
        return self.task.seen(), reward, False, self.robot.steps >= self.horizon, {}


def make_actor(width: int) -> Actor:
    """SAC's actor, as Stable-Baselines3 builds it, with two layers of that width."""
    seen, done = PushTask().observation_space, PushTask().action_space
    assert isinstance(done, spaces.Box)
    return Actor(seen, done, [width, width], FlattenExtractor(seen), SEEN)


def save_actor(folder: Path, actor: Actor, width: int, training: dict[str, Any], progress: dict[str, Any]) -> None:
    save_checkpoint(folder, actor, {"kind": "sac_pusher", "width": width, "training": training}, progress)


def load_pusher(name: str) -> Actor:
    """The policy of a folder that train/pusher.py exported, or the one that ships as `pushing`."""
    folder = policy_folder(name)
    config, _ = read_header(folder)
    if config.get("kind") != "sac_pusher":
        raise UserError(f"{folder} holds a {config.get('kind')}, not a pusher; give a folder of train/pusher.py")
    actor = make_actor(config["width"])
    load_weights(folder, actor)
    return actor.eval()


def player_of(actor: Actor, env: Pushing, noise: float) -> Player:
    """Who pushes in an environment, which it looks at itself: another object and goal in each episode.

    Noise of `noise` times an action's bounds is laid over each dx and dy.
    """
    task: Task | None = None

    def one(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nonlocal task
        if task is None or task.robot is not env.robot:
            task = Task(env.robot, rng)
        elif task.left < NEAR:
            task.draw()
        with torch.inference_mode():
            done = actor(torch.from_numpy(task.seen())[None], deterministic=True)[0].numpy()
        return to_action(done + noise * rng.normal(size=DONE) * (1, 1, 0))[None]

    return one
