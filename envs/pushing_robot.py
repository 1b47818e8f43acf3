"""The physics of `BAIRPushing-v0`: a scene, and the effect of BAIR's actions on it. Nothing is rendered here.

Actions (dx, dy, close, up) have the meaning of the robot that recorded BAIR's data (`apply_act` of
github.com/febert/visual_mpc and its predecessors). The target position of the hand moves by dx and dy meters, clipped
to the workspace. `close` above 0 closes the gripper for that many steps. `up` above 0 lifts the hand by 0.1 m for that
many steps. A later command replaces an earlier one. The robot sampled dx and dy uniformly from -0.1 to 0.1. `close` was
0 with probability 0.8 and `up` with 0.9, and otherwise uniform from 1 to 4 (`bair_actions`).
"""

from __future__ import annotations

import numpy as np

from worldmodel.data.env_spec import ActionSpec

from .offscreen import mujoco
from .pushing_scene import (
    FOREARM,
    GRIPPER_GAP,
    HIGH,
    LOW,
    SHOULDER,
    TIMESTEP,
    UPPER_ARM,
    sample_objects,
    sample_positions,
    scene_xml,
)

MAX_SHIFT = float(np.float32(0.1))
"""Largest move of the hand along x or y per step, in meters, rounded to float32 like actions."""
ACTION = ActionSpec(kind="Box", low=(-MAX_SHIFT, -MAX_SHIFT, 0.0, 0.0), high=(MAX_SHIFT, MAX_SHIFT, 4.0, 4.0))
STEP_SECONDS = 0.2
"""Seconds per step; at the bounds of an action the hand moves half a meter per second."""
SETTLE_STEPS = 60
"""Physics steps before an episode, for objects to come to rest."""


def bair_actions(spec: ActionSpec, n: int, rng: np.random.Generator) -> np.ndarray:
    """Random actions (n, 4) with the distribution of BAIR's robot, which rarely lifts the hand."""
    shift = rng.uniform(spec.low[:2], spec.high[:2], (n, 2))
    commands = rng.integers(1, 5, (n, 2)) * (rng.random((n, 2)) > (0.8, 0.9))
    return np.concatenate([shift, commands], axis=1).astype(np.float32)


class Robot:
    """An arm with a gripper over a bin of objects."""

    def __init__(self, rng: np.random.Generator) -> None:
        found = sample_objects(rng)
        self.hand_target = np.append(rng.uniform(LOW[:2], HIGH[:2]), LOW[2])
        spots = sample_positions(found, self.hand_target[:2], rng)
        text = scene_xml(found, spots, rng.uniform(0, 2 * np.pi, len(found)), self.hand_target)
        self.model = mujoco.MjModel.from_xml_string(text)
        self.data = mujoco.MjData(self.model)
        self.start = self.hand_target.copy()
        self.bodies = [self.model.body(f"object{i}").id for i in range(len(found))]
        self.radii = np.array([one.radius for one in found])
        self.links = [int(self.model.body(name).mocapid[0]) for name in ("upper", "fore")]
        self.steps = self.opens_at = self.lowers_at = 0
        for body in self.bodies:  # rolling friction, so that objects come to rest in a few steps
            dofs = self.model.body_dofadr[body] + np.arange(6)
            self.model.dof_damping[dofs] = [0.05] * 3 + [1e-4] * 3
        self._run(SETTLE_STEPS)

    def act(self, action: np.ndarray) -> None:
        """Simulate one step with the action (dx, dy, close, up)."""
        self.hand_target[:2] = np.clip(self.hand_target[:2] + action[:2], LOW[:2], HIGH[:2])
        close, up = np.rint(action[2:]).astype(int).tolist()
        self.opens_at = self.steps + close if close else self.opens_at
        self.lowers_at = self.steps + up if up else self.lowers_at
        self.hand_target[2] = HIGH[2] if self.lowers_at > self.steps else LOW[2]
        closed = self.opens_at > self.steps
        self.data.ctrl[:3] = self.hand_target - self.start
        self.data.ctrl[3:] = GRIPPER_GAP if closed else 0.0
        self._run(round(STEP_SECONDS / TIMESTEP))
        self.steps += 1

    def _run(self, steps: int) -> None:
        mujoco.mj_step(self.model, self.data, steps)
        self._move_arm()
        mujoco.mj_forward(self.model, self.data)

    def _move_arm(self) -> None:
        """Pose the two links of the arm from shoulder to hand, with the elbow bent upwards."""
        wrist = self.hand + np.array([0, 0, 0.05])
        reach = wrist - SHOULDER
        far = min(float(np.linalg.norm(reach)), UPPER_ARM + FOREARM - 1e-3)
        along = reach / np.linalg.norm(reach)
        upwards = np.array([0, 0, 1]) - along * along[2]
        a = (far**2 + UPPER_ARM**2 - FOREARM**2) / (2 * far)
        elbow = SHOULDER + a * along + np.sqrt(max(UPPER_ARM**2 - a**2, 0)) * upwards / np.linalg.norm(upwards)
        for link, begin, end in zip(self.links, (SHOULDER, elbow), (elbow, wrist), strict=True):
            self.data.mocap_pos[link] = begin
            self.data.mocap_quat[link] = quaternion_from_x((end - begin) / np.linalg.norm(end - begin))

    @property
    def hand(self) -> np.ndarray:
        """Position of the hand (3,); `endeffector_pos` in BAIR's data."""
        return self.start + self.data.qpos[:3]

    @property
    def objects(self) -> np.ndarray:
        """Positions of the objects (n, 3)."""
        return self.data.xpos[self.bodies].copy()


def quaternion_from_x(direction: np.ndarray) -> np.ndarray:
    """The quaternion that rotates the x axis to a unit vector."""
    quaternion = np.array([1 + direction[0], 0, -direction[2], direction[1]])
    return quaternion / np.linalg.norm(quaternion)
