# SPDX-License-Identifier: Apache-2.0
"""The cameras of a scene, drawn off screen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import SimulationError
from xvla_ros.simulation import offscreen

MAX_GEOMS = 2000


class CameraRig:
    """Draws images of one size.

    ``capture`` freezes what the cameras see and touches no GL, so that it can run between two physics steps;
    ``draw`` turns that into pixels, always in the thread that first called it.
    """

    def __init__(self, model: Any, cameras: Sequence[str], width: int, height: int) -> None:
        """Make a rig for the named cameras, for images of ``width`` × ``height`` pixels.

        Raises:
            SimulationError: naming the camera and those of the scene.
        """
        self._gl: Any = None
        self._context: Any = None
        self._model, self.width, self.height = model, width, height
        self._views = {name: self._view(name) for name in cameras}
        self._option = mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._upside_down = np.empty((height, width, 3), np.uint8)

    def capture(self, data: Any) -> None:
        """Take the state of ``data`` as what every camera sees."""
        for camera, scene in self._views.values():
            mujoco.mjv_updateScene(
                self._model, data, self._option, None, camera, mujoco.mjtCatBit.mjCAT_ALL.value, scene
            )

    def draw(self, camera: str, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Draw the captured view of ``camera``: uint8 [height, width, 3] RGB, into ``out`` where given.

        Raises:
            SimulationError: the rig was not made for it, or naming what to install.
        """
        if camera not in self._views:
            raise SimulationError(f"no camera {camera!r} in this rig; it has: {', '.join(self._views)}")
        self._make_current()
        mujoco.mjr_render(self._rect, self._views[camera][1], self._context)
        mujoco.mjr_readPixels(self._upside_down, None, self._rect, self._context)
        image = np.empty_like(self._upside_down) if out is None else out
        np.copyto(image, self._upside_down[::-1])
        return image

    def close(self) -> None:
        """Free the GL context; call it in the thread that draws."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
        if self._gl is not None:
            self._gl.free()
        self._context = self._gl = None

    def __del__(self) -> None:
        # MuJoCo would free its objects in whichever GL context is current, which may be another rig's.
        with suppress(Exception):
            self.close()

    def _make_current(self) -> None:
        if self._gl is None:
            self._gl = offscreen.context(self.width, self.height)
        self._gl.make_current()
        if self._context is None:
            self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_resizeOffscreen(self.width, self.height, self._context)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)

    def _view(self, name: str) -> tuple[Any, Any]:
        number = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA.value, name)
        if number < 0:
            known = [self._model.camera(i).name for i in range(self._model.ncam)]
            raise SimulationError(f"the scene has no camera {name!r}; it has: {', '.join(known)}")
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = number
        scene = mujoco.MjvScene(self._model, maxgeom=MAX_GEOMS)
        scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return camera, scene
