# SPDX-License-Identifier: Apache-2.0
"""What runs in the interpreter of lerobot-env-so101 and gym-aloha: one scene of either, served over a ``pipe``.

Each package's own reset, physics and judge; only what an action is differs for the SO-101, whose environment takes
motions of its hand: joint targets go to the same position servos. Cameras draw only when they are asked to. Nothing of
``xvla_ros`` is imported here, as this interpreter does not have it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("lerobot-env-so101", "gym-aloha", "mujoco", "numpy")
CONTROL_STEP = 0.02  # s, of either
CAMERAS = {"so101": ("front",), "aloha": ("top", "left_wrist", "right_wrist")}
BESIDE = "angle"  # camera of the ALOHA scene
CONTROLLER_STEPS = 300  # that the SO-101's own controller has, as its environment is registered

Arrays = Mapping[str, NDArray[Any]]


def installed() -> dict[str, Any]:
    """Say what is installed, without importing any of it."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return {"versions": versions, "python": sys.version.split()[0]}


class So101Scene:
    """The SO-101 and a cube; ``task`` is pick_cube or pick_place. Joints and actions [6] are rad, the jaw the last."""

    def __init__(self, task: str, pixels: int) -> None:
        self._task = task
        self._env = self._made(pixels)
        self._servo = self._env.apply_action
        self._env.apply_action = self._to_servos

    def reset(self, seed: int) -> None:
        """Put arm, cube and goal where the seed has them."""
        self._seed = seed
        self._env.reset(seed=seed)

    def step(self, action: NDArray[Any]) -> tuple[bool, bool]:
        """Carry out one action; return whether the judge is satisfied, and whether the episode is over."""
        *_, over, _, told = self._env.step(action)
        return bool(told["succeed"]), bool(over)

    def joints(self) -> NDArray[Any]:
        """Return the joints [6]."""
        env = self._env
        return np.append(env.data.qpos[env._arm_dof_ids], env.data.joint("gripper").qpos[0])

    def draw(self, camera: str) -> NDArray[Any]:
        """Return a picture [H, W, 3]."""
        del camera
        return np.array(self._env.render())

    def beside(self) -> Arrays:
        """Return no view from beside the table: the one camera there is shows the whole arm."""
        return {}

    def plan(self) -> Arrays:
        """Run the package's own controller from the reset on in a scene of its own.

        Returns:
            targets: what its servos were told at each of its steps, [T, 6]; period: s of a step; succeeded: by the
            judge.
        """
        from lerobot_env_so101.policy import DEFAULT_ACTION_SCALE
        from lerobot_env_so101.scripted import PickPlaceController

        env = self._made(pixels=8)
        env.reset(seed=self._seed)
        controller, targets, succeeded = PickPlaceController(DEFAULT_ACTION_SCALE), [], False
        for _ in range(CONTROLLER_STEPS):
            block = env.data.sensor("block_pos").data.copy()
            *_, over, _, told = env.step(controller.act(env.ik_point_pos, block, env.goal_pos))
            targets.append(np.append(env.data.ctrl[env._arm_ctrl_ids], env.data.ctrl[env._gripper_ctrl_id]))
            succeeded = bool(told["succeed"])
            if over:
                break
        env.close()
        return {"targets": np.array(targets), "period": np.array(env.control_dt), "succeeded": np.array(succeeded)}

    def close(self) -> None:
        self._env.close()

    def _made(self, pixels: int) -> Any:
        from lerobot_env_so101 import GymRenderingSpec, SO101PickCubeGymEnv, SO101PickPlaceGymEnv
        from lerobot_env_so101.policy import DEFAULT_ACTION_SCALE

        made = {"pick_cube": SO101PickCubeGymEnv, "pick_place": SO101PickPlaceGymEnv}[self._task]
        return made(
            random_block_position=True,
            action_scale=DEFAULT_ACTION_SCALE,
            render_spec=GymRenderingSpec(height=pixels, width=pixels),
        )

    def _to_servos(self, action: NDArray[Any]) -> None:
        import mujoco

        env = self._env
        servos = np.append(env._arm_ctrl_ids, env._gripper_ctrl_id)
        low, high = env.model.actuator_ctrlrange[servos].T
        env.data.ctrl[servos] = np.clip(action, low, high)
        for _ in range(round(CONTROL_STEP / env.physics_dt)):
            mujoco.mj_step(env.model, env.data)


class AlohaScene:
    """Two ViperX; ``task`` is transfer_cube or insertion. Joints and actions [14]: rad, and m of a gripper's finger."""

    def __init__(self, task: str, pixels: int) -> None:
        from gym_aloha.env import AlohaEnv

        self._pixels = pixels
        self._env = AlohaEnv(task, obs_type="pixels_agent_pos")
        inner = self._env._env.task
        black = np.zeros((1, 1, 3), np.uint8)
        inner.get_observation = lambda physics: {"qpos": inner.get_qpos(physics), "images": {"top": black}}

    def reset(self, seed: int) -> None:
        """Put arms and things where the seed has them."""
        self._env.reset(seed=seed)

    def step(self, action: NDArray[Any]) -> tuple[bool, bool]:
        """Carry out one action; return whether the judge is satisfied, and whether the episode is over."""
        from gym_aloha.constants import normalize_puppet_gripper_position

        given = np.array(action, np.float64)
        given[[6, 13]] = normalize_puppet_gripper_position(given[[6, 13]])
        _, _, over, _, told = self._env.step(given)
        return bool(told["is_success"]), bool(over)

    def joints(self) -> NDArray[Any]:
        """Return the joints [14]; of two fingers the first, whose mirror the other is."""
        qpos = self._env._env.physics.data.qpos
        return np.concatenate([qpos[:7], qpos[8:15]])

    def draw(self, camera: str) -> NDArray[Any]:
        """Return a picture [H, W, 3], its sides as 3 to 4."""
        drawn = self._env._env.physics.render(height=self._pixels, width=self._pixels * 4 // 3, camera_id=camera)
        return np.array(drawn)

    def beside(self) -> Arrays:
        """Return the view from beside the table, for films: that of a camera of the scene which no policy gets."""
        width = self._pixels * 4 // 3  # no more than the scene has room for
        drawn = self._env._env.physics.render(height=width * 9 // 16, width=width, camera_id=BESIDE)
        return {"beside": np.array(drawn)}

    def close(self) -> None:
        self._env.close()


SCENES = {"so101": So101Scene, "aloha": AlohaScene}


class Stage:
    """The one scene there is, built when it is first asked for."""

    def __init__(self) -> None:
        self._scene: Any = None
        self._built: tuple[str, int] = ("", 0)

    def begin(self, suite: str, seed: int, pixels: int) -> Arrays:
        """Reset the scene of a suite, such as so101_pick_place."""
        if (suite, pixels) != self._built:
            if self._scene is not None:
                self._scene.close()
            robot, _, task = suite.partition("_")
            self._scene, self._built = SCENES[robot](task, pixels), (suite, pixels)
            self._cameras = CAMERAS[robot]
        self._scene.reset(seed)
        return self._sight(look=True)

    def act(self, look: bool, film_every: int, actions: NDArray[Any]) -> tuple[dict[str, Any], Arrays]:
        """Carry out actions until the judge is satisfied or the episode is over."""
        film: dict[str, list[Any]] = {}
        steps, success, over = 0, False, False
        for steps, action in enumerate(actions, start=1):
            success, over = self._scene.step(action)
            if film_every and steps % film_every == 0:
                seen = {**self._scene.beside(), **{camera: self._scene.draw(camera) for camera in self._cameras}}
                for name, view in seen.items():
                    film.setdefault(f"film:{name}", []).append(view)
            if success or over:
                break
        told = {"steps": steps, "success": success, "over": over}
        filmed = {name: np.stack(frames) for name, frames in film.items()}
        return told, {**self._sight(look=look and not over), **filmed}

    def look(self) -> Arrays:
        """Draw the cameras as things stand."""
        return {f"image:{camera}": self._scene.draw(camera) for camera in self._cameras}

    def plan(self) -> Arrays:
        """Return what the package's own controller does in this episode, see ``So101Scene.plan``."""
        return self._scene.plan()  # type: ignore[no-any-return]

    def _sight(self, *, look: bool) -> Arrays:
        return {"joints": self._scene.joints(), **(self.look() if look else {})}


def methods() -> dict[str, Any]:
    """Return what the other end of the pipe can ask for."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stage = Stage()
    return {"installed": installed, "begin": stage.begin, "act": stage.act, "look": stage.look, "plan": stage.plan}
