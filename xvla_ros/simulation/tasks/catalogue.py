# SPDX-License-Identifier: Apache-2.0
"""Which tasks there are for which scene, and where their props may lie."""

from __future__ import annotations

from collections.abc import Mapping

from xvla_ros.errors import SimulationError
from xvla_ros.robots.family import arm_named
from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.scenes import scene_for
from xvla_ros.simulation.tasks.handover import Handover
from xvla_ros.simulation.tasks.pick_place import PickPlace
from xvla_ros.simulation.tasks.task import Regions, Task
from xvla_ros.simulation.tasks.touch import Touch
from xvla_ros.simulation.world import TIMESTEP

TASKS: dict[str, type[Task]] = {task.name: task for task in (Touch, PickPlace, Handover)}

# Open fingers need room.
GRASP_CLEAR = 0.125  # m between a cube to be grasped and the middle of the bowl,
GRASP_APART = 0.075  # and between the middles of two cubes

# Scene → task → where things lie; table top at z = 0, arms facing +x, m.
REGIONS: dict[str, dict[str, Regions]] = {
    "so101_bimanual": {
        # two rectangles that one arm reaches, one that both do
        "touch": Regions(
            cubes=(((0.17, 0.06), (0.30, 0.28)), ((0.17, -0.28), (0.30, -0.06)), ((0.16, -0.07), (0.25, 0.07))),
            bowl=((0.34, -0.06), (0.37, 0.06)),
        ),
        "pick_place": Regions(
            cubes=(((0.16, 0.09), (0.28, 0.28)), ((0.16, -0.28), (0.28, -0.09))),
            bowl=((0.22, -0.025), (0.25, 0.025)),
            clear=GRASP_CLEAR,
            apart=GRASP_APART,
        ),
        "handover": Regions(
            cubes=(((0.16, 0.10), (0.28, 0.28)), ((0.16, -0.28), (0.28, -0.10))),
            bowl=((0.36, -0.04), (0.38, 0.04)),
            clear=GRASP_CLEAR,
            apart=GRASP_APART,
        ),
    },
    "so101": {
        "touch": Regions(cubes=(((0.20, -0.18), (0.33, 0.11)),), bowl=((0.23, 0.16), (0.26, 0.19))),
        "pick_place": Regions(
            cubes=(((0.20, -0.17), (0.29, 0.05)),),
            bowl=((0.20, 0.15), (0.23, 0.18)),
            clear=GRASP_CLEAR,
            apart=GRASP_APART,
        ),
    },
    "widowx": {
        "touch": Regions(cubes=(((0.20, -0.13), (0.36, 0.12)),), bowl=((0.27, 0.20), (0.30, 0.22))),
        "pick_place": Regions(
            cubes=(((0.20, -0.12), (0.34, 0.08)),),
            bowl=((0.26, 0.19), (0.29, 0.21)),
            clear=GRASP_CLEAR,
            apart=GRASP_APART,
        ),
    },
    "agibot": {"touch": Regions(cubes=(((0.575, -0.15), (0.68, 0.15)),), apart=0.085)},
}


def task_names(profile: Profile) -> tuple[str, ...]:
    """Return the tasks of a robot's scene.

    Raises:
        SimulationError: the robot has no scene.
    """
    return tuple(_regions(_scene(profile)))


def load_task(profile: Profile, name: str, *, variation: float = 1.0) -> Task:
    """Return the task called ``name`` for the robot of ``profile``.

    Args:
        variation: how much light, colours and cameras vary; 1 is that of training.

    Raises:
        SimulationError: listing the robot's tasks, or the robot has no scene.
    """
    robot = _scene(profile)
    regions = _regions(robot)
    if name not in regions:
        there = ", ".join(regions) or "none"
        raise SimulationError(f"no task {name!r} for robot {profile.name!r}; expected one of: {there}")
    return TASKS[name](profile, robot, regions[name], variation=variation)


def _scene(profile: Profile) -> str:
    urdfs = [tool.urdf for tool in profile.tools.values()]
    return scene_for(profile.name, profile.joints.policy_order, TIMESTEP, urdfs).robot


def _regions(robot: str) -> Mapping[str, Regions]:
    arm = arm_named(robot)
    if arm is None:
        return REGIONS.get(robot, {})
    return {"touch": Regions(cubes=(arm.cubes,), bowl=arm.bowl, apart=max(0.06, 3.4 * arm.cube_half))}
