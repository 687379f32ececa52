"""The clocks of a robot in a world that is stepped here, and its commands: what ROS is between a pilot and a simulator.

Evaluation in process uses them, and benchmarks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xvla_ros.simulation.controllers import JointTrajectoryController, Rejection
from xvla_ros.simulation.trajectory import JointTrajectory, TrajectoryPoint
from xvla_ros.simulation.world import World

if TYPE_CHECKING:
    from xvla_ros.control.motion import CommandWindow

NS = 1_000_000_000


class SimulatedClock:
    """Both clocks of a robot whose time is that of a world.

    Args:
        world: the simulation.
        start: ROS time in ns at its beginning.
    """

    def __init__(self, world: World, start: int = 0) -> None:
        self._world, self._start = world, start

    def ros_ns(self) -> int:
        return self._start + self._world.time

    def steady_s(self) -> float:
        return self._world.time / NS


class SimulatedCommands:
    """Hands windows to the controllers of a world, as messages that the node publishes and they read."""

    def __init__(self, world: World) -> None:
        self._world = world
        order = world.profile.joints.policy_order
        self._groups = {
            name: (
                tuple(world.profile.joints.by_name[joint].name for joint in group.joints),
                np.array([order.index(joint) for joint in group.joints]),
            )
            for name, group in world.profile.commands.by_name.items()
        }

    def send(self, window: CommandWindow) -> Rejection | None:
        """Command every group; return the first refusal, None where there is none."""
        refusals = [self._send(group, window) for group in self._groups]
        return next((refused for refused in refusals if refused is not None), None)

    def _send(self, group: str, window: CommandWindow) -> Rejection | None:
        names, columns = self._groups[group]
        if not isinstance(self._world.controllers[group], JointTrajectoryController):
            return self._world.set_positions(group, names, window.positions[0, columns].tolist())
        points = tuple(
            TrajectoryPoint(round(float(due) * NS), tuple(position.tolist()), tuple(velocity.tolist()))
            for due, position, velocity in zip(
                window.times, window.positions[:, columns], window.velocities[:, columns], strict=True
            )
        )
        return self._world.command(group, JointTrajectory(names, points))
