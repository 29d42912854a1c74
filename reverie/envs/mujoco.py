"""MuJoCo as a guest: it draws without a screen, and warns in the log.

Import this before MuJoCo: it looks for a way to draw once, when it is imported.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import os
import sys

import gymnasium

HELP = (
    "drawing needs OpenGL, and there is neither a screen nor EGL nor OSMesa. With EGL the GPU's driver "
    "or Mesa draws (Debian: `apt-get install libegl1 libgl1-mesa-dri`), with OSMesa the processor "
    "(`apt-get install libosmesa6`)"
)

_EGL_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT


def wrap(env: gymnasium.Env) -> gymnasium.Env:
    """Gymnasium's own MuJoCo envs are as they should be."""
    return env


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
