"""The scene of `BAIRPushing-v0` as MJCF: a bin with walls, random objects, and an arm with a gripper.

Lengths are in meters, in the frame of BAIR's robot: x points away from its base, y to its left, z up from the bin's
floor. The hand is a body on three sliding joints with position servos, so it reaches the target of an action. The two
links of the arm are only visual: they follow the hand and have no collisions. The fingers have collisions.

Objects slide rather than roll or bounce. Pushed at half a meter per second they stop within centimeters, as on the
rough floor of BAIR's bins. Objects at rest sleep until they are touched, which makes the physics three times as fast.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

OBJECT_COUNTS = (8, 10)
"""Smallest and largest number of objects."""
LOW, HIGH = np.array([0.44, -0.27, 0.21]), np.array([0.83, 0.18, 0.31])
"""Bounds of the hand: x and y as on BAIR's robot, z lowered and lifted by 0.1 m."""
MARGIN, WALL = 0.06, 0.065
"""Distance from the bounds of the hand to the walls of the bin, and the height of the walls."""
GRIPPER_GAP = 0.04
"""Distance of each finger of the open gripper from the middle, where it closes."""
SHOULDER, UPPER_ARM, FOREARM = np.array([0.02, -0.045, 0.42]), 0.42, 0.46
"""Position of the shoulder, and the lengths of the two links."""
TIMESTEP = 0.005
"""Physics time step in seconds. With twice this value, the hand shot a wedged object out of the bin in one of a hundred
episodes of the pusher."""
MAX_RENDER_SIZE = 512
"""Largest height and width of a rendered image."""


@dataclass(frozen=True)
class SceneObject:
    """An object: geom type, half sizes, radius from above, height of its center, and color."""

    kind: str
    size: tuple[float, ...]
    radius: float
    height: float
    color: tuple[float, float, float]


def sample_objects(rng: np.random.Generator) -> list[SceneObject]:
    """Random objects of all shapes, with evenly spaced hues so that all differ."""
    n = int(rng.integers(OBJECT_COUNTS[0], OBJECT_COUNTS[1] + 1))
    kinds = [KINDS[i % len(KINDS)] for i in rng.permutation(n)]
    hues = (rng.random() + rng.permutation(n) / n) % 1
    return [sample_object(kind, float(hue), rng) for kind, hue in zip(kinds, hues, strict=True)]


KINDS = ("box", "cylinder", "ellipsoid", "capsule", "sphere")


def sample_object(kind: str, hue: float, rng: np.random.Generator) -> SceneObject:
    a, b, h = rng.uniform((0.022, 0.022, 0.02), (0.038, 0.038, 0.042)).tolist()
    color = colorsys.hsv_to_rgb(hue, float(rng.uniform(0.65, 1)), float(rng.uniform(0.7, 1)))
    size, radius, height = {
        "box": ((a, b, h), float(np.hypot(a, b)), h),
        "cylinder": ((a, h), a, h),
        "ellipsoid": ((a, b, h), max(a, b), h),
        "capsule": ((0.75 * a, b), 0.75 * a + b, 0.75 * a),
        "sphere": ((a,), a, a),
    }[kind]
    return SceneObject(kind, size, radius, height, color)


def sample_positions(found: list[SceneObject], keep_off: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random positions (n, 2) of objects, without overlap and not under the hand at `keep_off` (2,)."""
    low, high = LOW[:2] - MARGIN, HIGH[:2] + MARGIN
    taken, radii = [keep_off], [GRIPPER_GAP + 0.03]
    for one in found:
        for _ in range(1000):
            spot = rng.uniform(low + one.radius, high - one.radius)
            gaps = np.linalg.norm(np.array(taken) - spot, axis=1) - np.array(radii) - one.radius
            if gaps.min() > 0.005:
                break
        taken.append(spot)
        radii.append(one.radius)
    return np.array(taken[1:])


def scene_xml(found: list[SceneObject], spots: np.ndarray, turns: np.ndarray, hand: np.ndarray) -> str:
    """The scene as MJCF text: objects at `spots` (n, 2), rotated by `turns` (n,) radians, and the hand at (3,)."""
    bodies = "".join(map(object_xml, range(len(found)), found, spots, turns))
    return f"""
<mujoco model="bair_pushing">
  <option timestep="{TIMESTEP}" integrator="implicitfast" iterations="20"><flag sleep="enable"/></option>
  <visual>
    <headlight ambient=".42 .42 .42" diffuse=".28 .28 .28" specular="0 0 0"/>
    <quality shadowsize="0" offsamples="0"/>
    <global offwidth="{MAX_RENDER_SIZE}" offheight="{MAX_RENDER_SIZE}"/>
    <map znear=".05" zfar="20"/>
  </visual>
  <statistic extent="1" center=".6 0 .2"/>
  <default>
    <geom solref=".02 1" friction=".7 .01 .001"/>
    <default class="skin"><geom contype="0" conaffinity="0"/></default>
    <position kp="600" dampratio="1"/>
  </default>
  <worldbody>
    <light pos=".5 -.5 1.6" dir=".1 .4 -1" directional="true" diffuse=".5 .5 .48" specular=".1 .1 .1"/>
    <camera name="aux1" pos="{format_numbers(*EYE)}" xyaxes="{AXES}" fovy="40"/>
    {bin_xml()}
    {robot_xml(hand)}
    {bodies}
  </worldbody>
  <contact>
    <exclude body1="left" body2="right"/>
  </contact>
  <actuator>
    <position joint="x" kp="900"/><position joint="y" kp="900"/><position joint="z" kp="900" forcerange="-40 40"/>
    <position joint="left" kp="40"/><position joint="right" kp="40"/>
  </actuator>
</mujoco>"""


def camera_axes(eye: tuple[float, float, float], at: tuple[float, float, float]) -> str:
    """The right and up axes of a camera at `eye` that looks at `at`."""
    back = np.subtract(eye, at)
    right = np.cross((0, 0, 1), back)
    up = np.cross(back, right)
    return format_numbers(*right / np.linalg.norm(right), *up / np.linalg.norm(up))


def format_numbers(*values: float) -> str:
    return " ".join(f"{v:.6g}" for v in values)


EYE = (1.36, -0.32, 0.70)
"""Position of the camera, opposite the robot and a little to its right, like BAIR's `aux1`."""
AXES = camera_axes(EYE, (0.62, -0.022, 0.07))


def bin_xml() -> str:
    """The bin, its table, and the floor and back wall of the room."""
    (x0, y0), (x1, y1) = LOW[:2] - MARGIN, HIGH[:2] + MARGIN
    x, y, rx, ry, t = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2, 0.012
    sides = [(x0 - t, y, t, ry + 2 * t), (x1 + t, y, t, ry + 2 * t), (x, y0 - t, rx, t), (x, y1 + t, rx, t)]
    walls = "".join(
        f'<geom class="skin" type="box" pos="{format_numbers(cx, cy, WALL / 2 - 0.01)}"'
        f' size="{format_numbers(sx, sy, WALL / 2 + 0.01)}" rgba=".62 .47 .33 1"/>'
        for cx, cy, sx, sy in sides
    )
    return f"""
    <geom type="plane" pos="{format_numbers(x, y, 0)}" size="{format_numbers(rx, ry, 1)}" rgba=".72 .66 .58 1"/>
    <geom class="skin" type="plane" pos="0 0 -.02" size="6 6 1" rgba=".38 .4 .42 1"/>
    <geom class="skin" type="box" pos="-1.2 0 1" size=".05 6 2" rgba=".5 .52 .53 1"/>
    {walls}
    {walls_xml(x, y, rx, ry)}"""


def walls_xml(x: float, y: float, rx: float, ry: float) -> str:
    """Invisible planes that keep objects in the bin: at the inner sides of the walls, and half a meter above."""
    sides = [(x - rx, y, 0, 1, 0, 0), (x + rx, y, 0, -1, 0, 0), (x, y - ry, 0, 0, 1, 0), (x, y + ry, 0, 0, -1, 0)]
    return "".join(
        f'<geom type="plane" size="1 1 1" rgba="0 0 0 0" pos="{format_numbers(*side[:3])}" '
        f'zaxis="{format_numbers(*side[3:])}"/>'
        for side in [*sides, (x, y, 0.5, 0, 0, -1)]
    )


def robot_xml(hand: np.ndarray) -> str:
    """The base, the two visual links, and the hand with its fingers, 0.2 m long."""
    red, black, metal = 'rgba=".62 .1 .1 1"', 'rgba=".13 .13 .15 1"', 'rgba=".75 .75 .77 1"'
    slides = "".join(
        f'<joint name="{axis}" type="slide" axis="{format_numbers(*direction)}" damping="5"/>'
        for axis, direction in zip("xyz", np.eye(3), strict=True)
    )
    fingers = "".join(
        f"""
      <body name="{name}" pos="0 {format_numbers(GRIPPER_GAP * side)} -.15" gravcomp="1">
        <joint name="{name}" type="slide" axis="0 {-side} 0" damping="1"/>
        <geom type="box" pos="0 0 .01" size=".012 .006 .05" mass=".05" {metal}/>
        <geom type="box" pos="0 0 -.03" size=".014 .009 .016" mass=".05" {black}/>
      </body>"""
        for name, side in (("left", 1), ("right", -1))
    )
    return f"""
    <geom class="skin" type="cylinder" pos="-.06 -.045 .15" size=".09 .2" {black}/>
    <geom class="skin" type="sphere" pos="{format_numbers(*SHOULDER)}" size=".075" {red}/>
    <body name="upper" mocap="true">
      <geom class="skin" type="capsule" fromto="0 0 0 {UPPER_ARM} 0 0" size=".045" {red}/>
      <geom class="skin" type="sphere" pos="{UPPER_ARM} 0 0" size=".055" {black}/>
    </body>
    <body name="fore" mocap="true">
      <geom class="skin" type="capsule" fromto="0 0 0 {FOREARM} 0 0" size=".036" {red}/>
    </body>
    <body name="hand" pos="{format_numbers(*hand)}" gravcomp="1">
      {slides}
      <geom class="skin" type="sphere" pos="0 0 .05" size=".043" {black}/>
      <geom class="skin" type="cylinder" pos="0 0 -.01" size=".034 .05" {red}/>
      <geom type="box" pos="0 0 -.075" size=".025 .055 .022" mass="1" {black}/>
      {fingers}
    </body>"""


def object_xml(i: int, one: SceneObject, spot: np.ndarray, turn: float) -> str:
    lying = 'euler="0 90 0"' if one.kind == "capsule" else ""
    quaternion = format_numbers(float(np.cos(turn / 2)), 0, 0, float(np.sin(turn / 2)))
    looks = f'size="{format_numbers(*one.size)}" rgba="{format_numbers(*one.color, 1)}"'
    return f"""
    <body name="object{i}" pos="{format_numbers(*spot, one.height)}" quat="{quaternion}">
      <freejoint name="object{i}"/>
      <geom type="{one.kind}" {looks} {lying} density="400" condim="4"/>
    </body>"""
