# SPDX-License-Identifier: Apache-2.0
"""The cameras of a scene, drawn off screen, and the view of somebody who stands beside its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import SimulationError
from xvla_ros.simulation import offscreen

MAX_GEOMS = 2000
BESIDE_WIDTH, BESIDE_HEIGHT = 768, 432  # pixels
BESIDE_RATE = 15.0  # pictures a second of simulated time, as films have them
BESIDE_FROM = 138.0, -24.0  # degrees: azimuth and elevation of where it looks


def beside(model: Any, data: Any) -> Any:
    """Return a camera that looks at the whole robot from the front and its right, as somebody beside the table does.

    It is MuJoCo's free camera and no part of the model: whether it is drawn changes nothing that a policy sees.

    Args:
        model: the scene.
        data: its state, with the robot as it stands at the start of an episode.
    """
    free = set(model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE.value].tolist())
    parts = [number for number in range(model.ngeom) if int(model.geom_bodyid[number]) not in {0, *free}]
    low = (data.geom_xpos[parts] - model.geom_rbound[parts, None]).min(axis=0)
    high = (data.geom_xpos[parts] + model.geom_rbound[parts, None]).max(axis=0)
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat = (low + high) / 2 - [0.0, 0.0, 0.08 * np.linalg.norm(high - low)]
    camera.azimuth, camera.elevation = BESIDE_FROM
    camera.distance = 0.48 * np.linalg.norm(high - low) / np.tan(np.radians(model.vis.global_.fovy) / 2)
    return camera


class CameraRig:
    """Draws images of one size.

    ``capture`` freezes what the cameras see and touches no GL, so that it can run between two physics steps;
    ``draw`` turns that into pixels, always in the thread that first called it.
    """

    def __init__(
        self, model: Any, cameras: Sequence[str], width: int, height: int, *, free: Mapping[str, Any] | None = None
    ) -> None:
        """Make a rig for the named cameras, for images of ``width`` × ``height`` pixels.

        Args:
            model: the scene.
            cameras: of the scene.
            width, height: pixels.
            free: name → MuJoCo's camera, of those that are no part of the scene.

        Raises:
            SimulationError: naming the camera and those of the scene.
        """
        self._gl: Any = None
        self._context: Any = None
        self._model, self.width, self.height = model, width, height
        self._views = {name: self._view(name) for name in cameras}
        self._views |= {name: (camera, self._scene()) for name, camera in (free or {}).items()}
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
        return camera, self._scene()

    def _scene(self) -> Any:
        scene = mujoco.MjvScene(self._model, maxgeom=MAX_GEOMS)
        scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return scene
