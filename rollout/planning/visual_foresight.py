"""Visual foresight (Ebert et al., 2018): push an object to a goal, both given as pixels, by planning in the dream.

A person would click on the object and on where it should go; here both are given by `PushGoal`, a number and a pixel,
or drawn by the simulator. In every imagined future the object is followed by its colour (mean shift: the centre of what
has its hue around where it was), and a future is worth minus the object's mean distance from the goal in pixels. Since
most futures never touch the object, the distance from the hand to the spot behind it counts too, less. Real frames are
followed in the same way between two plans: from the first click on, nothing but frames and the hand's own position
reaches the planner.

It is the hue that is followed, since shade, and how a dream blurs an object into the grey bin, change only how much of
it there is. Within 29 steps of the pusher's play an object is lost (more than 4 pixels off) in 10% of episodes; by the
distance of colours it was in 38%. Only the hand's way is planned (`cem.n_dims` 2): with perfect foresight plans that
also lift the hand and close the gripper come no nearer.

Scored in the simulator, on the same objects and goals: random actions as BAIR's robot drew them, the pusher that
ships, which is told where things are, and the plan. A dream shows no more than its VQ-VAE does: so it is said too how
far off an object is at the end, if it is followed through the frames of the pusher's play, and through what the VQ-VAE
makes of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.dream import DreamEnv
from envs.pusher import GOAL_RADIUS, Task, load_pusher
from envs.pushing import Pushing
from envs.pushing_robot import ACTION, bair_actions
from envs.pushing_scene import HIGH, LOW
from envs.recorded_env import make_recorded_env
from envs.vector import DreamVectorEnv
from rollout.planning.planner import Planner, ValueFn
from worldmodel.data.env_spec import EnvSpec
from worldmodel.generation.dream import Dream
from worldmodel.metrics.interval import bootstrap
from worldmodel.models.vqvae import to_uint8
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Count, Settings

TRACKING_STD = 5.0
"""Standard deviation of where an object is sought around its last place, in pixels."""
OTHER_HUE_COST, MIN_HUE = 1.5, 20.0
"""What a unit of another hue costs, and how much of its own (0 to 255) an object's pixel has over the bin's."""
MIN_MASS = 1.0
"""Pixels' worth of the object's hue below which it is hidden, and stays where it was."""
PUSH_DISTANCE, APPROACH_WEIGHT = 5.0, 0.3
"""Pixels from the object to where the hand pushes from, and the weight of the hand's distance from there."""
GOAL_HEIGHT = 0.03
"""Metres: how high over the workspace's zero the goal is thought to be."""
FINGERTIPS = np.array([0, 0, LOW[2] - 0.03])
"""From the hand down to between the tips of its fingers, in metres."""
Act = Callable[[Pushing, np.ndarray, np.random.Generator], np.ndarray]
"""An action (4,) for the simulator and its last frame."""


def track(frames: np.ndarray, positions: np.ndarray, color: np.ndarray) -> np.ndarray:
    """(n, 2) row and column of an object in frames (n, h, w, 3), for where it was (n, 2), by its colour (3,)."""
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
        centre = np.einsum("nhw,hwc->nc", weight, grid) / np.maximum(mass, 1e-9)[:, None]
        positions = np.where(mass[:, None] > MIN_MASS, centre, positions)
    return positions


def hue_vectors(colors: np.ndarray) -> np.ndarray:
    """Colours (..., 3) without what they have in common with grey; the direction is the hue."""
    return colors - colors.mean(-1, keepdims=True, dtype=np.float32)


def color_at(frame: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(3,) of a frame (h, w, 3) around a place."""
    row, column = np.clip(place.astype(int), 1, len(frame) - 2)
    return np.median(frame[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3), axis=0)


@dataclass(frozen=True, kw_only=True)
class PushGoal(Settings):
    """What is pushed, and where to, where it is not drawn at random."""

    object: Count | None = None
    """Number of the object, from 0 on: MuJoCo's body `object0` and so on."""
    goal: tuple[Count, Count] | None = None
    """Row and column of the pixel."""

    def apply_to(self, env: Pushing, task: Task) -> None:
        """Make it the task; a `UserError` where there is no such object, or the hand cannot come there."""
        count = len(env.robot.bodies)
        if self.object is not None:
            if not 0 <= self.object < count:
                raise UserError(f"this bin has objects 0 to {count - 1}, not {self.object}; there are always 0 to 7")
            task.object = self.object
        if self.goal is not None:
            goal = env.unproject(np.add(self.goal, 0.5), GOAL_HEIGHT)
            if not (np.greater_equal(goal, LOW[:2]) & np.less_equal(goal, HIGH[:2])).all():
                (top, left), (bottom, right) = workspace_pixels(env)
                reach = f"rows {top} to {bottom} and columns {left} to {right}"
                raise UserError(f"the hand does not come to pixel {self.goal}; its workspace is within {reach}")
            task.goal = goal


def workspace_pixels(env: Pushing) -> np.ndarray:
    """(2, 2) the least and the greatest row and column of the hand's workspace."""
    ends = [(x, y, GOAL_HEIGHT) for x in (LOW[0], HIGH[0]) for y in (LOW[1], HIGH[1])]
    pixels = env.project(np.array(ends)).astype(int)
    return np.stack([pixels.min(0), pixels.max(0)])


class PushValue:
    """The object and the goal of an episode, as pixels, and what a future is worth for them.

    Where the hand will be is not dreamed: it goes where it is told, within the workspace.
    """

    def __init__(self, env: Pushing, frame: np.ndarray, task: Task) -> None:
        self.env = env
        spots = env.robot.objects[task.object], np.append(task.goal, GOAL_HEIGHT)
        self.position, self.goal = (env.project(spot[None])[0] for spot in spots)
        self.color = color_at(frame, self.position)

    def observe(self, frame: np.ndarray) -> None:
        """Follow the object into the next real frame."""
        self.position = track(frame[None], self.position[None], self.color)[0]

    def value(self, dream: DreamVectorEnv, actions: np.ndarray, seed: int) -> np.ndarray:
        """(n,) of actions (n, horizon, 4)."""
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


TrackedVideo = list[tuple[np.ndarray, np.ndarray]]
"""The frames (h, w, 3) of an episode, each with where an object truly was in it (2,)."""


@torch.no_grad()
def tracking_error(dream: Dream, videos: list[TrackedVideo]) -> dict[str, np.ndarray]:
    """Pixels (n,) between an object at the end of a film and where it is thought to be.

    In `frames`, in their `reconstructions` by the VQ-VAE, and for one who thinks that it lay `still`.
    """
    errors: dict[str, list[float]] = {"frames": [], "reconstructions": [], "still": []}
    for film in videos:
        frames, truth = (np.stack(part) for part in zip(*film, strict=True))
        tint = color_at(frames[0], truth[0])
        codes = dream.vqvae.encode(torch.from_numpy(frames[None]).to(dream.device))
        remade = to_uint8(dream.vqvae.decode(codes))[0].cpu().numpy()
        for name, shown in {"frames": frames, "reconstructions": remade, "still": frames[:1]}.items():
            place = truth[:1]
            for frame in shown[1:]:
                place = track(frame[None], place, tint)
            errors[name].append(float(np.linalg.norm(place[0] - truth[-1])))
    return {name: np.array(pixels) for name, pixels in errors.items()}


def push_episode(
    env: Pushing, seed: int, i: int, begin: Callable[[Pushing, np.ndarray, Task], Act], push_goal: PushGoal
) -> tuple[float, float]:
    """Metres from the object to its goal in episode i, at the beginning and at the end."""
    scene, task_rng, action_rng = (int(s) for s in np.random.SeedSequence([seed, i]).generate_state(3))
    frame, _ = env.reset(seed=scene)
    task, rng, over = Task(env.robot, np.random.default_rng(task_rng)), np.random.default_rng(action_rng), False
    push_goal.apply_to(env, task)
    act, first = begin(env, frame, task), task.goal_distance
    while not over:
        frame, _, _, over, _ = env.step(act(env, frame, rng))
    return first, task.goal_distance


def robot_of(env_spec: EnvSpec) -> Pushing:
    """The simulator that a world was recorded from."""
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
    """A table, and the distances of every episode."""
    policy = load_pusher(pusher)
    videos: list[TrackedVideo] = []

    def at_random(env: Pushing, frame: np.ndarray, task: Task) -> Act:
        return lambda env, frame, rng: bair_actions(ACTION, 1, rng)[0]

    def pushing(env: Pushing, frame: np.ndarray, task: Task) -> Act:
        film: TrackedVideo = []
        videos.append(film)

        def act(env: Pushing, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            film.append((frame, env.project(env.robot.objects[task.object][None])[0]))
            return task.env_action(policy.predict(task.observation(), deterministic=True)[0])

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
            bar = tqdm(range(episodes), unit=" episodes", desc=name)
            played[name] = np.array([push_episode(env, seed, i, begin, push_goal) for i in bar])
    lines = [f"{'metres to the goal':20}{'at first':>24}{'at the end':>24}{'nearer by':>24}{'reached':>10}"]
    for name, ways in played.items():
        first, last = ways.T
        cells = "".join(f"{bootstrap(x)!s:>24}" for x in (first, last, first - last))
        lines.append(f"{name:20}{cells}{(last < GOAL_RADIUS).mean():>10.0%}")
    pixels = tracking_error(dream.vector_env.dream, videos)
    text = "; ".join(f"{name} {bootstrap(off)}" for name, off in pixels.items())
    lines.append(f"an object followed through the pusher's play, pixels off at the end: {text}")
    return "\n".join(lines), {name: ways.tolist() for name, ways in played.items()} | {
        "pixels_off": {name: off.tolist() for name, off in pixels.items()}
    }
