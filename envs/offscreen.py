"""Draws MuJoCo frames off screen, fast and upright, for any number of environments in one process.

One GL context serves the whole process. Gymnasium's renderer makes one per environment and draws in whichever
is current, so that closing one environment turns the frames of the others black (gymnasium 1.4, mujoco 3.3).
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

__all__ = ["OffScreen", "lighten", "turn_upright"]


@functools.cache
def _context(backend: str) -> Any:
    """The process's GL context. Its size is of no effect: every frame has its own buffer."""
    context = importlib.import_module(f"mujoco.{backend}").GLContext(64, 64)
    atexit.register(context.free)  # before MuJoCo ends the display; otherwise EGL complains at exit
    return context


def _make_current() -> None:
    _context(os.environ["MUJOCO_GL"]).make_current()


class OffScreen:
    """Frames of one simulation. Needs ``MUJOCO_GL`` as :func:`envs.rendering.select_backend` sets it.

    Args:
        model: MjModel; changes to its visual settings have no effect after this.
        data: MjData, read at every frame.
        width: of a frame [px].
        height: of a frame [px].
        camera: index of a camera of the model, or -1 for one that follows a body.
        follow: settings of that camera as Gymnasium's ``default_camera_config``: trackbodyid (default 1, the
            root of the robot; its height is not followed), distance [m], lookat [m], azimuth and elevation
            [deg].
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        width: int,
        height: int,
        camera: int = -1,
        follow: Mapping[str, Any] | None = None,
    ) -> None:
        _make_current()
        self._model, self._data = model, data
        self._camera = _camera(model, data, camera, follow or {})
        self._options = mujoco.MjvOption()
        self._perturbation = mujoco.MjvPerturb()
        self._scene = mujoco.MjvScene(model, 10_000)
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._gl = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._gl)

    def frame(self) -> np.ndarray:
        """(height, width, 3) uint8 of the simulation as it is now, first row on top."""
        _make_current()
        # MuJoCo's own tracking camera lags behind, so that a frame would depend on the frames before it
        self._camera.lookat[:2] = self._data.subtree_com[max(self._camera.trackbodyid, 0)][:2]
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            self._perturbation,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        mujoco.mjr_render(self._viewport, self._scene, self._gl)
        pixels = np.empty((self._viewport.height, self._viewport.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._viewport, self._gl)
        return pixels[::-1].copy()  # GL's first row is the lowest

    def close(self) -> None:
        """Free the buffers; the context stays for other simulations."""
        _make_current()
        self._gl.free()


def _camera(model: Any, data: Any, index: int, follow: Mapping[str, Any]) -> Any:
    camera = mujoco.MjvCamera()
    if index >= 0:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
        return camera
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_FREE, 1
    camera.distance = model.stat.extent
    camera.lookat[:] = data.subtree_com[1]
    for name, value in follow.items():
        if name == "lookat":
            camera.lookat[:] = value
        else:
            setattr(camera, name, value)
    return camera


def lighten(model: Any) -> None:
    """Drop shadows, multisampling and reflections of an MjModel; call before its first frame.

    Meta-World's models ask for a 4096² shadow map and four samples per pixel: about 10 frames per CPU second
    in software at 84 x 84, against 100 without.
    """
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0


def turn_upright(model: Any, data: Any, camera: int) -> None:
    """Roll a camera by π if its up axis points down (Meta-World's ``corner2`` hangs upside-down).

    A roll, not a vertical flip of the frame: a flip would also swap left and right. ``data`` must hold
    forward kinematics. ``cam_quat ← cam_quat ⊗ (0, 0, 0, 1)``, quaternions as (w, x, y, z).
    """
    up = data.cam_xmat[camera].reshape(3, 3)[:, 1]
    if up[2] < 0:
        w, x, y, z = model.cam_quat[camera].copy()
        model.cam_quat[camera] = (-z, y, -x, w)
