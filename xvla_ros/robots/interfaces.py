# SPDX-License-Identifier: Apache-2.0
"""Every command interface, once: what goes out, when, and who can take it.

Whoever encodes, decodes, records, checks or simulates commands asks here, and looks up the message type in a table of
its own: ``ENCODERS``, ``POINTS`` and ``GOALS`` in nodes/policy/commands.py, ``DECODERS`` in recordings/commands.py,
``HANDLERS`` in nodes/sim/served_robot.py and ``WRITERS`` in simulation/demonstrations.py. A new interface is an entry
here, and of a new message type an entry in each of those. test/nodes/test_interfaces.py takes every interface through
all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

JOINT_TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
FLOAT_ARRAY = "std_msgs/msg/Float64MultiArray"
JOINT_STATE = "sensor_msgs/msg/JointState"
POSE = "geometry_msgs/msg/PoseStamped"
GRIPPER_COMMAND = "control_msgs/action/GripperCommand"
PARALLEL_GRIPPER_COMMAND = "control_msgs/action/ParallelGripperCommand"
ACTION_STATUS = "action_msgs/msg/GoalStatusArray"

# Interfaces that a profile may name: for all groups, and for one group, where empty takes that of all.
RobotInterface = Literal["joint_trajectory", "forward_command", "joint_state", "pose"]
GroupInterface = Literal[
    "",
    "joint_trajectory",
    "forward_command",
    "joint_state",
    "gripper_command",
    "gripper_action",
    "parallel_gripper_action",
]


@dataclass(frozen=True)
class CommandInterface:
    """What a command interface is to whoever sends, takes, records, checks or simulates it.

    Attributes:
        type: of its messages, or of its action, as bags write it.
        sends: ``window``: each period all points from lead to lookahead; ``setpoint``: each period where to be ``lead``
            after now; ``change``: this of one gripper joint, when it changes.
        simulated: whether the simulated controllers serve it.
    """

    type: str
    sends: Literal["window", "setpoint", "change"]
    simulated: bool = True

    @property
    def is_action(self) -> bool:
        """Whether an action server takes it; a group's topic is then the action's name."""
        return "/action/" in self.type

    @property
    def is_gripper(self) -> bool:
        """Whether it is for groups of one gripper joint."""
        return self.sends == "change"

    @property
    def message_type(self) -> str:
        """Type of the messages on a group's topic; empty for an action, whose goals are on none."""
        return "" if self.is_action else self.type

    def graph_topic(self, topic: str) -> str:
        """Return where the graph shows who takes commands: of an action, the topic of its server's status."""
        return f"{topic}/_action/status" if self.is_action else topic


INTERFACES: Mapping[str, CommandInterface] = {
    "joint_trajectory": CommandInterface(JOINT_TRAJECTORY, "window"),
    "forward_command": CommandInterface(FLOAT_ARRAY, "setpoint"),
    "joint_state": CommandInterface(JOINT_STATE, "setpoint"),
    "pose": CommandInterface(POSE, "setpoint", simulated=False),
    "gripper_command": CommandInterface(FLOAT_ARRAY, "change"),
    "gripper_action": CommandInterface(GRIPPER_COMMAND, "change", simulated=False),
    "parallel_gripper_action": CommandInterface(PARALLEL_GRIPPER_COMMAND, "change", simulated=False),
}
