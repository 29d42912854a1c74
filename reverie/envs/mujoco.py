"""MuJoCo as a guest: it draws without a screen, and warns in the log.

Import this before MuJoCo: it looks for a way to draw once, when it is imported.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import os
import sys
from typing import Any

import numpy as np

from reverie.envs.base import Arrays, Env, Space
from reverie.envs.wrappers import Wrapper

HELP = (
    "drawing needs OpenGL, and there is neither a screen nor EGL nor OSMesa. With EGL the GPU's driver "
    "or Mesa draws (Debian: `apt-get install libegl1 libgl1-mesa-dri`), with OSMesa the processor "
    "(`apt-get install libosmesa6`)"
)

_EGL_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT


def choose() -> str:
    """Sets MUJOCO_GL where nobody has.

    Without a screen it becomes `egl` if that works, else `osmesa` if it is installed, else `disabled`:
    simulation works, drawing does not (`HELP`).

    Returns:
      its value; empty where there is a screen, or on a system other than Linux.
    """
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if "MUJOCO_GL" not in os.environ and sys.platform == "linux" and not screen:
        backend = "egl" if _egl_works() else "osmesa" if ctypes.util.find_library("OSMesa") else "disabled"
        os.environ["MUJOCO_GL"] = backend
    return os.environ.get("MUJOCO_GL", "").lower()


def can_draw() -> bool:
    """Whether there is a way to draw, as far as can be told without drawing."""
    return choose() not in ("disabled", "disable", "off", "false", "0")


def _egl_works() -> bool:
    """Whether some EGL device can be initialised: the library alone may be there without a driver."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        address = egl.eglGetProcAddress
        address.restype = ctypes.c_void_p
        query, display_of = address(b"eglQueryDevicesEXT"), address(b"eglGetPlatformDisplayEXT")
    except (OSError, AttributeError):
        return False
    if not query or not display_of:
        return False
    devices, number = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)
    if not query(len(devices), devices, ctypes.byref(number)):
        return False
    display_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display_of)
    initialize = egl.eglInitialize
    initialize.argtypes = [ctypes.c_void_p] * 3
    displays = (display_of(_EGL_PLATFORM_DEVICE, devices[i], None) for i in range(number.value))
    return any(display and initialize(display, None, None) for display in displays)


choose()

import mujoco  # noqa: E402

# By itself it prints, and writes a file MUJOCO_LOG.TXT to wherever the user is.
mujoco.set_mju_user_warning(lambda text: logging.getLogger("reverie").info("MuJoCo: %s", text))


def physics_of(raw: Any) -> tuple[mujoco.MjModel, mujoco.MjData] | None:
    """Model and data of an env that MuJoCo simulates, of Gymnasium or dm_control; None if it does not."""
    bare = getattr(raw, "unwrapped", raw)
    physics = getattr(bare, "physics", bare)
    found = (getattr(physics, name, None) for name in ("model", "data"))
    model, data = (getattr(x, "ptr", x) for x in found)  # dm_control wraps MuJoCo's own
    return (model, data) if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData) else None


class Body(Wrapper):
    """Adds what a body knows of itself, as targets: float32, in MuJoCo's units (metres, radians, seconds).

        joint_positions      [P]      of slides and of hinges with a limit; sine and cosine of hinges that turn freely;
                                      rotation matrices of balls and, after their position, of free joints
        joint_velocities     [nv]
        effector_poses       [E, 12]  position and rotation matrix in the world, of every end of a limb: a body that
                                      carries no other
        effector_velocities  [E, 6]   linear, then angular, in the world

    So the same picture is always the same pose: an angle that counts its turns, or a quaternion, which is as good with
    the other sign, cannot be told from pixels but only be learned by heart (Zhou et al. 2019, "On the continuity of
    rotation representations in neural networks"). They are computed from the joints in data of its own: the simulation
    is not touched.
    """

    def __init__(self, env: Env, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        super().__init__(env)
        self._model, self._data, self._own = model, data, mujoco.MjData(model)
        parents = set(model.body_parentid[1:].tolist())
        self._ends = [body for body in range(1, model.nbody) if body not in parents and model.body_weldid[body]]
        values = self._values()
        if taken := values.keys() & env.obs_space.keys():
            raise ValueError(f"it already shows {', '.join(sorted(taken))}: leave --targets out, or rename these")
        self._spaces = {name: Space("target", value.shape) for name, value in values.items() if value.size}
        self.obs_space = env.obs_space | self._spaces

    def observation(self, obs: Arrays) -> Arrays:
        values = self._values()
        return obs | {name: np.asarray(values[name], np.float32) for name in self._spaces}

    def _values(self) -> Arrays:
        """All targets, float64; some may be empty."""
        own, model = self._own, self._model
        own.qpos[:], own.qvel[:] = self._data.qpos, self._data.qvel
        mujoco.mj_kinematics(model, own)
        mujoco.mj_comPos(model, own)
        mujoco.mj_comVel(model, own)
        speeds = np.zeros((len(self._ends), 6))
        for speed, body in zip(speeds, self._ends, strict=True):
            mujoco.mj_objectVelocity(model, own, mujoco.mjtObj.mjOBJ_BODY, body, speed, 0)
        return {
            "joint_positions": self._positions(),
            "joint_velocities": own.qvel,
            "effector_poses": np.concatenate([own.xpos[self._ends], own.xmat[self._ends]], -1),
            "effector_velocities": np.concatenate([speeds[:, 3:], speeds[:, :3]], -1),  # MuJoCo says angular first
        }

    def _positions(self) -> np.ndarray:
        """Positions of all joints, float64 `[P]`."""
        model, where = self._model, self._own.qpos
        parts: list[Any] = []
        for kind, start, has_limit in zip(model.jnt_type, model.jnt_qposadr, model.jnt_limited, strict=True):
            if kind == mujoco.mjtJoint.mjJNT_FREE:
                parts += [where[start : start + 3], _rotation(where[start + 3 : start + 7])]
            elif kind == mujoco.mjtJoint.mjJNT_BALL:
                parts.append(_rotation(where[start : start + 4]))
            elif kind == mujoco.mjtJoint.mjJNT_HINGE and not has_limit:
                parts.append((np.sin(where[start]), np.cos(where[start])))
            else:
                parts.append(where[start : start + 1])
        return np.concatenate(parts) if parts else np.zeros(0)


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """The rotation matrix of a quaternion, row by row, `[9]`."""
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix
