"""Visual foresight (Ebert et al., 2018): push an object to a goal, both given as pixels, by planning in a dream.

A user would click on the object and on its goal. Here both come from `PushGoal` (a number and a pixel) or are random.
In every imagined future the object is tracked by its color with mean shift: the center of the pixels with its hue near
its last position. The value of a future is minus the mean distance of the object from the goal in pixels. Most futures
never touch the object, so the distance from the hand to the position behind the object counts too, with a smaller
weight. Real frames are tracked in the same way. After the start the planner only gets frames and the hand's position.

Tracking uses the hue, because shading, and a dream's blur into the gray of the bin, only change the amount of a hue.
Within 29 steps of the pusher's play the tracking error exceeds 4 pixels in 10% of episodes; with color distances it was
38%. Only the horizontal move of the hand is planned (`cem.n_dims` 2). With perfect foresight, plans that also lift the
hand and close the gripper were not better.

Three players are evaluated in the simulator, on the same objects and goals: random actions with the distribution of
BAIR's robot, the pretrained pusher, which is given positions, and planning. A dream cannot be more precise than its
VQ-VAE, so the tracking error at the end of the pusher's play is also reported, in real frames and in their
reconstructions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from envs.dream import DreamEnv
from envs.pusher import GOAL_RADIUS, Task, load_pusher
from envs.pushing import Pushing
from envs.pushing_robot import ACTION, bair_actions
from envs.pushing_scene import HIGH, LOW
from envs.recorded_env import make_recorded_env
from envs.vector import DreamVectorEnv
from rollout.planning.planner import Planner, ValueFn
from rollout.verdicts import judge_player
from worldmodel.data.env_spec import EnvSpec
from worldmodel.generation.dream import Dream
from worldmodel.metrics.interval import bootstrap
from worldmodel.utils.errors import UserError
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import Count, Settings

TRACKING_STD = 5.0
"""Standard deviation of the search window around an object's last position, in pixels."""
OTHER_HUE_COST, MIN_HUE = 1.5, 20.0
"""A pixel's amount of the object's hue is reduced by this factor times its other hues, and by this (0 to 255)."""
MIN_MASS = 1.0
"""If the object's hue fills fewer pixels than this, the object counts as hidden, and its position stays."""
PUSH_DISTANCE, APPROACH_WEIGHT = 5.0, 0.3
"""Pixels from the object to where the hand pushes from, and the weight of the hand's distance from there."""
GOAL_HEIGHT = 0.03
"""Assumed height of the goal above the zero of the workspace, in meters."""
FINGERTIPS = np.array([0, 0, LOW[2] - 0.03])
"""Distance from the hand down to its fingertips, in meters."""
Act = Callable[[Pushing, np.ndarray, np.random.Generator], np.ndarray]
"""An action (4,) for the simulator and its last frame."""


def track(frames: np.ndarray, positions: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Track an object of a color (3,): rows and columns (n, 2) in frames (n, h, w, 3), given the last ones (n, 2)."""
    grid = np.moveaxis(np.indices(frames.shape[1:3]), 0, -1) + 0.5
    hue, wanted = hue_vectors(frames), hue_vectors(color)
    strength = max(float(np.linalg.norm(wanted)), 1e-6)
    much = hue @ (wanted / strength)
    other = np.sqrt(np.maximum((hue**2).sum(-1) - much**2, 0))
    share = np.clip(much - OTHER_HUE_COST * other - MIN_HUE, 0, strength) / strength
    for _ in range(2):
        away = ((grid - positions[:, None, None]) ** 2).sum(-1) / TRACKING_STD**2
        weight = share * np.exp(-away / 2)
        mass = weight.sum((1, 2))
        center = np.einsum("nhw,hwc->nc", weight, grid) / np.maximum(mass, 1e-9)[:, None]
        positions = np.where(mass[:, None] > MIN_MASS, center, positions)
    return positions


def hue_vectors(colors: np.ndarray) -> np.ndarray:
    """Colors (..., 3) minus their gray component; the direction is the hue."""
    return colors - colors.mean(-1, keepdims=True, dtype=np.float32)


def color_at(frame: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The color (3,) of a frame (h, w, 3) around a position."""
    row, column = np.clip(place.astype(int), 1, len(frame) - 2)
    return np.median(frame[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3), axis=0)


@dataclass(frozen=True, kw_only=True)
class PushGoal(Settings):
    """The object to push and its goal."""

    object: Count | None = None
    """Number of the object, from 0 (MuJoCo's body `object0`); None for a random one."""
    goal: tuple[Count, Count] | None = None
    """Row and column of the goal in pixels; None for a random one."""

    def apply_to(self, env: Pushing, task: Task) -> None:
        """Set the task; `UserError` if there is no such object, or the hand cannot reach the goal."""
        count = len(env.robot.bodies)
        if self.object is not None:
            if not 0 <= self.object < count:
                raise UserError(
                    f"this bin has objects 0 to {count - 1}, not {self.object}; choose 0 to 7, which every bin has"
                )
            task.object = self.object
        if self.goal is not None:
            goal = env.unproject(np.add(self.goal, 0.5), GOAL_HEIGHT)
            if not (np.greater_equal(goal, LOW[:2]) & np.less_equal(goal, HIGH[:2])).all():
                (top, left), (bottom, right) = workspace_pixels(env)
                reach = f"rows {top} to {bottom} and columns {left} to {right}"
                raise UserError(f"the hand cannot reach pixel {self.goal}; choose a goal within {reach}")
            task.goal = goal


def workspace_pixels(env: Pushing) -> np.ndarray:
    """The smallest and the largest row and column (2, 2) of the hand's workspace."""
    ends = [(x, y, GOAL_HEIGHT) for x in (LOW[0], HIGH[0]) for y in (LOW[1], HIGH[1])]
    pixels = env.project(np.array(ends)).astype(int)
    return np.stack([pixels.min(0), pixels.max(0)])


class PushValue:
    """The value of futures for the object and the goal of an episode, both in pixels.

    The hand's position is not tracked in dreams. It follows from the actions, clipped to the workspace.
    """

    def __init__(self, env: Pushing, frame: np.ndarray, task: Task) -> None:
        self.env = env
        spots = env.robot.objects[task.object], np.append(task.goal, GOAL_HEIGHT)
        self.position, self.goal = (env.project(spot[None])[0] for spot in spots)
        self.color = color_at(frame, self.position)

    def observe(self, frame: np.ndarray) -> None:
        """Track the object in the next real frame (h, w, 3)."""
        self.position = track(frame[None], self.position[None], self.color)[0]

    def value(self, dream: DreamVectorEnv, actions: np.ndarray, seed: int) -> np.ndarray:
        """Values (n,) of action sequences (n, horizon, 4)."""
        fork = dream.fork(len(actions), seed)
        places, cost = np.tile(self.position, (len(actions), 1)), np.zeros(len(actions))
        hand = np.tile(self.env.robot.hand, (len(actions), 1))
        for t in range(actions.shape[1]):
            fork.step_lanes(actions[:, t].astype(np.float32))
            places = track(fork.frames, places, self.color)
            way = self.goal - places
            left = np.linalg.norm(way, axis=1)
            behind = places - PUSH_DISTANCE * way / np.maximum(left, 1e-6)[:, None]
            hand[:, :2] = np.clip(hand[:, :2] + actions[:, t, :2], LOW[:2], HIGH[:2])
            cost += left + APPROACH_WEIGHT * np.linalg.norm(self.env.project(hand - FINGERTIPS) - behind, axis=1)
        return -cost / actions.shape[1]


TrackedVideo = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""The frames (h, w, 3) of an episode, each with the true position of an object (2,) and the action taken at it."""


@torch.no_grad()
def tracking_error(dream: Dream, videos: list[TrackedVideo]) -> dict[str, np.ndarray]:
    """Tracking errors (n,) in pixels at the end of videos.

    Tracked in real `frames`, in their `reconstructions` by the VQ-VAE, and as a baseline assumed to be `still`.
    """
    errors: dict[str, list[float]] = {"frames": [], "reconstructions": [], "still": []}
    for film in videos:
        frames, truth, actions = (np.stack(part) for part in zip(*film, strict=True))
        tint = color_at(frames[0], truth[0])
        video = torch.from_numpy(frames[None]).to(dream.device)
        led = torch.from_numpy(dream.env_spec.action.encode_led(actions[None, :-1])).to(dream.device)
        remade = dream.vqvae.reconstruct(video, actions=led)[1][0].cpu().numpy()
        for name, shown in {"frames": frames, "reconstructions": remade, "still": frames[:1]}.items():
            place = truth[:1]
            for frame in shown[1:]:
                place = track(frame[None], place, tint)
            errors[name].append(float(np.linalg.norm(place[0] - truth[-1])))
    return {name: np.array(pixels) for name, pixels in errors.items()}


def push_episode(
    env: Pushing, seed: int, i: int, begin: Callable[[Pushing, np.ndarray, Task], Act], push_goal: PushGoal
) -> tuple[float, float]:
    """Play episode i; returns the distance from the object to its goal in meters, at the start and at the end."""
    scene, task_rng, action_rng = (int(s) for s in np.random.SeedSequence([seed, i]).generate_state(3))
    frame, _ = env.reset(seed=scene)
    task, rng, over = Task(env.robot, np.random.default_rng(task_rng)), np.random.default_rng(action_rng), False
    push_goal.apply_to(env, task)
    act, first = begin(env, frame, task), task.goal_distance
    while not over:
        frame, _, _, over, _ = env.step(act(env, frame, rng))
    return first, task.goal_distance


def robot_of(env_spec: EnvSpec) -> Pushing:
    """Make the simulator that a store was recorded from."""
    robot = make_recorded_env(env_spec).unwrapped
    assert isinstance(robot, Pushing)
    return robot


def score_planning(
    dream: DreamEnv,
    planner_of: Callable[[ValueFn], Planner],
    pusher: str,
    episodes: int,
    seed: int,
    push_goal: PushGoal,
) -> tuple[str, dict[str, Any]]:
    """Evaluate random actions, the pusher and planning; returns a table, and the distances of every episode."""
    policy = load_pusher(pusher)
    videos: list[TrackedVideo] = []

    def at_random(env: Pushing, frame: np.ndarray, task: Task) -> Act:
        return lambda env, frame, rng: bair_actions(ACTION, 1, rng)[0]

    def pushing(env: Pushing, frame: np.ndarray, task: Task) -> Act:
        film: TrackedVideo = []
        videos.append(film)

        def act(env: Pushing, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            action = task.env_action(policy.predict(task.observation(), deterministic=True)[0])
            film.append((frame, env.project(env.robot.objects[task.object][None])[0], action))
            return action

        return act

    def planning(env: Pushing, frame: np.ndarray, task: Task) -> Act:
        aim = PushValue(env, frame, task)
        planner = planner_of(lambda dream, actions, seed: aim.value(dream.vector_env, actions, seed))

        def act(env: Pushing, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            aim.observe(frame)
            return planner.act(frame, env.robot.hand.tolist(), rng)

        return act

    played = {}
    with contextlib.closing(robot_of(dream.env_spec)) as env:
        for name, begin in {"random": at_random, "pusher": pushing, "planned": planning}.items():
            bar = Progress(range(episodes), unit=" episodes", desc=name)
            played[name] = np.array([push_episode(env, seed, i, begin, push_goal) for i in bar])
    lines = [f"{'distance to goal, m':20}{'at the start':>24}{'at the end':>24}{'reduced by':>24}{'reached':>10}"]
    for name, ways in played.items():
        first, last = ways.T
        cells = "".join(f"{bootstrap(x)!s:>24}" for x in (first, last, first - last))
        lines.append(f"{name:20}{cells}{(last < GOAL_RADIUS).mean():>10.0%}")
    pixels = tracking_error(dream.vector_env.dream, videos)
    text = "; ".join(f"{name} {bootstrap(off)}" for name, off in pixels.items())
    lines.append(f"tracking error at the end of the pusher's episodes, in pixels: {text}")
    nearer = {name: ways[:, 0] - ways[:, 1] for name, ways in played.items()}
    more = bootstrap(nearer["planned"] - nearer["random"])
    lines.append(judge_player("planning", more, "random", "m nearer to the goal", "train the dream for longer"))
    return "\n".join(lines), {name: ways.tolist() for name, ways in played.items()} | {
        "pixels_off": {name: off.tolist() for name, off in pixels.items()}
    }
