"""Offscreen rendering of a MuJoCo scene, with EGL or else OSMesa. Both can render in software.

MuJoCo's own renderer belongs to one model. Each episode here has other objects and so another model, and a new OpenGL
context per episode would take longer than the episode itself. This renderer keeps one context for all models. Shadows,
reflections and multisampling are off.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import numpy as np

from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.extras import extra

BACKENDS = ("egl", "osmesa")
CURE = "on Debian, apt-get install libegl1 or libosmesa6, and unset MUJOCO_GL or set it to an installed one"
start_error = ""
try:
    import mujoco
except Exception as error:  # it loads the library that MUJOCO_GL names, which may raise anything
    requested = os.environ.pop("MUJOCO_GL", "")
    start_error = f"MuJoCo does not start with MUJOCO_GL={requested} ({one_line(error)}); {CURE}"
    with extra("mujoco"):
        import mujoco  # physics works without rendering, so the error is kept for the first rendering
    os.environ["MUJOCO_GL"] = requested


def gl_context(size: int) -> Any:
    """Make an OpenGL context: the one that MUJOCO_GL names, or the first that works.

    Each is tried twice: closing a window in this process may have closed the display that a first attempt uses.

    Raises:
        UserError: None works; the message has the error of each.
    """
    if start_error:
        raise UserError(start_error)
    requested = os.environ.get("MUJOCO_GL", "").lower()
    if requested not in ("", *BACKENDS):
        raise UserError(f"MUJOCO_GL={requested} cannot render without a window; {CURE}")
    errors = {}
    for name in np.repeat((requested,) if requested else BACKENDS, 2):
        try:
            gl = importlib.import_module(f"mujoco.{name}").GLContext(size, size)
            gl.make_current()
            return gl
        except Exception as error:  # PyOpenGL raises errors of many types
            errors[name] = f"{name}: {one_line(error)}"
            reset_opengl()
    raise UserError(f"no offscreen renderer works ({'; '.join(errors.values())}); {CURE}")


def reset_opengl() -> None:
    """Unload PyOpenGL, which stays bound to the first platform it was imported with."""
    os.environ.pop("PYOPENGL_PLATFORM", None)
    for name in list(sys.modules):
        if name.startswith(("OpenGL", *(f"mujoco.{backend}" for backend in BACKENDS))):
            del sys.modules[name]


class OffscreenRenderer:
    """Renders models of the same layout as frames (size, size, 3) uint8 from a named camera."""

    def __init__(self, model: Any, camera: str, size: int) -> None:
        self.gl = gl_context(size)
        self.size = size
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.camera.fixedcamid = model.camera(camera).id
        self.options = mujoco.MjvOption()
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        self.rectangle = mujoco.MjrRect(0, 0, size, size)
        self.scene = mujoco.MjvScene(model, maxgeom=200)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.scene.flags[flag] = 0

    def draw(self, model: Any, data: Any) -> np.ndarray:
        self.gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self.options, None, self.camera, everything, self.scene)
        mujoco.mjr_render(self.rectangle, self.scene, self.context)
        frame = np.empty((self.size, self.size, 3), np.uint8)
        mujoco.mjr_readPixels(frame, None, self.rectangle, self.context)
        return np.ascontiguousarray(frame[::-1])  # OpenGL's first row is at the bottom

    def close(self) -> None:
        self.context.free()
        self.gl.free()
