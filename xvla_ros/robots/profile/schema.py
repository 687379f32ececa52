# SPDX-License-Identifier: Apache-2.0
"""The schema of a robot's profile: type, unit, range, default and description of every setting, said once.

Node parameters with their descriptors, validation messages and the table in docs/reference/profile.md come from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from xvla_ros.robots.interfaces import INTERFACES, CommandInterface, GroupInterface, RobotInterface

TOPIC_PATTERN = r"^(/[A-Za-z](_?[A-Za-z0-9])*_?)+$"
NAMESPACE_PATTERN = r"^((/[A-Za-z](_?[A-Za-z0-9])*_?)+)?$"
NAME_PATTERN = r"^[A-Za-z](_?[A-Za-z0-9])*$"
WIDEST = 12.6  # rad, two turns, or m; limits beyond are in degrees or millimetres
MAX_WAYPOINTS = 512  # the transformer's position embedding has 512 rows, so no chunk is longer

Topic = Annotated[str, StringConstraints(pattern=TOPIC_PATTERN)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Integers = Annotated[tuple[int, ...], Field(strict=False)]
Xyz = Annotated[tuple[float, float, float], Field(strict=False)]


def setting(
    default: Any = ..., *, description: str, unit: str = "", changeable: bool = False, **constraints: Any
) -> Any:
    """Declare one setting: its default (none: required), unit, bounds, and whether an inactive node lets it change."""
    extra: dict[str, Any] = {"unit": unit, "changeable": changeable}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class Section(BaseModel):
    """Part of a profile. Unknown keys and wrong types are refused; an integer passes for a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NamedSection(Section):
    """A section that holds settings of its own and, beside them, entries under names the user chooses (``by_name``).

    ``order_key`` is the setting that lists the entries, ``entry`` what one of them is called.
    """

    order_key: ClassVar[str]
    entry: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _gather_entries(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or set(raw) <= set(cls.model_fields):
            return raw
        own = {key: value for key, value in raw.items() if key in cls.model_fields and key != "by_name"}
        return own | {"by_name": {key: value for key, value in raw.items() if key not in own}}


class PolicySettings(Section):
    """The policy that drives the robot, and how its vectors are to be read."""

    checkpoint: str = setting(
        "",
        description="Folder or hub id of the checkpoint. Empty means the shipped policy, if it was trained "
        "for the domain; it is refused if action mode, joints or units differ from those in training.",
    )
    revision: str = setting("", description="Branch, tag or commit of a hub checkpoint; empty is its default branch.")
    server: str = setting(
        "",
        description="Addresses of policy servers (xvla serve), wss://HOST:PORT, separated by commas, that replace "
        "a checkpoint on this machine; the node uses the one with the lowest latency.",
    )
    engine: Literal["auto", "torch", "onnxruntime", "openvino", "tensorrt"] = setting(
        "auto",
        description="Engine that runs the network. ONNX Runtime and OpenVINO, and TensorRT on a GPU, run the graphs "
        "that xvla export wrote into the checkpoint, in float32; auto tries them and chooses the fastest exact one, "
        "or torch if there are no graphs.",
    )
    action_mode: str = setting(description="Name of the action mode: what each channel of an action means.")
    absolute: Names = setting(
        (),
        description="Joints of policy_order that stay absolute in a relative action mode, for example grippers; for "
        "the others the network predicts the offset from the state. In other modes it must be empty.",
    )
    domain_id: int = setting(ge=0, le=65535, description="Index of this robot's soft prompt in the checkpoint.")
    waypoint_dt: float = setting(gt=0.0, le=10.0, unit="s", description="Time between two waypoints of a chunk.")
    first_waypoint_offset: float = setting(
        ge=0.0, le=10.0, unit="s", description="Time from the observation to the first waypoint."
    )
    denoising_steps: int = setting(
        10, ge=1, le=100, changeable=True, description="Steps of flow matching from noise to an action."
    )
    rot6d: Literal["", "interleaved", "columns"] = setting(
        "",
        description="Order of the six rotation numbers: interleaved, identity [1,0,0,1,0,0], or columns, identity "
        "[1,0,0,0,1,0]. Required in tool-pose modes; empty in joint modes.",
    )
    image_pipeline: Literal["squash", "letterbox"] = setting(
        description="How an image becomes 224×224: squash (bicubic, original checkpoints) or letterbox (bilinear with "
        "padding, LeRobot checkpoints)."
    )
    proprio_source: Literal["measured", "commanded"] = setting(
        "measured", description="Whether the state fed to the policy is the measured or the commanded one."
    )


class Camera(Section):
    """One camera."""

    topic: Topic = setting(description="Topic of the images; with transport compressed, that of the compressed images.")
    transport: Literal["raw", "compressed"] = setting(
        "raw", description="sensor_msgs/Image (raw) or sensor_msgs/CompressedImage (compressed)."
    )
    required: bool = setting(
        True,
        description="Without a required camera the robot is paused; if an optional camera is absent, its view "
        "is masked.",
    )
    max_age: float = setting(0.2, gt=0.0, le=60.0, unit="s", changeable=True, description="Older frames are stale.")
    encoding: Literal[
        "",
        "rgb8",
        "bgr8",
        "rgba8",
        "bgra8",
        "mono8",
        "bayer_rggb8",
        "bayer_bggr8",
        "bayer_gbrg8",
        "bayer_grbg8",
        "uyvy",
        "yuyv",
    ] = setting(
        "",
        description="Meaning of the bytes if a message does not say it: encoding 8UC1, 8UC2, 8UC3 or 8UC4. If a "
        "message names its encoding, that one is used.",
    )
    rotate: Literal[0, 90, 180, 270] = setting(
        0,
        unit="degrees",
        description="Clockwise rotation of an image before the policy sees it: 180 for a camera mounted upside down.",
    )
    crop: Integers = setting(
        (),
        unit="pixels",
        description="[x, y, width, height] of the part of the rotated image that the policy sees; empty means the "
        "whole image.",
    )
    view: str = setting("", description="Name of this view in the checkpoint, if it differs from the name of the slot.")


class Cameras(NamedSection):
    """The cameras by name, and the order of their views."""

    order_key: ClassVar[str] = "slots"
    entry: ClassVar[str] = "camera"

    slots: Names = setting(
        min_length=1,
        description="Cameras in the order of the policy's views; view 0, the main camera, is also the "
        "input of the language encoder.",
    )
    by_name: dict[str, Camera] = setting(description="The cameras.")

    @property
    def views(self) -> tuple[str, ...]:
        """Names that a checkpoint has for the views, in the order of the slots."""
        return tuple(self.by_name[slot].view or slot for slot in self.slots)

    @property
    def by_topic(self) -> dict[str, list[str]]:
        """Topic → the slots whose pictures come there."""
        found: dict[str, list[str]] = {}
        for slot in self.slots:
            found.setdefault(self.by_name[slot].topic, []).append(slot)
        return found


class Joint(Section):
    """One joint. The policy sees position · scale + offset; limits are in ROS units (rad or m)."""

    topic: Topic = setting(description="Topic of the sensor_msgs/JointState that carries this joint.")
    name: str = setting(min_length=1, description="The joint's name in that message and in its commands.")
    scale: float = setting(
        1.0,
        ge=-1e6,
        le=1e6,
        description="Policy units per rad or m; not zero. In tool-pose modes only joints of data sets have such units.",
    )
    offset: float = setting(0.0, ge=-1e6, le=1e6, description="Policy value at position zero.")
    lower: float = setting(ge=-WIDEST, le=WIDEST, unit="rad or m", description="Lowest position commanded.")
    upper: float = setting(ge=-WIDEST, le=WIDEST, unit="rad or m", description="Highest position commanded.")
    max_velocity: float = setting(
        gt=0.0, le=1e3, unit="rad/s or m/s", changeable=True, description="Highest speed commanded."
    )
    max_acceleration: float = setting(
        gt=0.0, le=1e4, unit="rad/s² or m/s²", changeable=True, description="Highest acceleration commanded."
    )
    max_jerk: float = setting(
        0.0,
        ge=0.0,
        le=1e6,
        unit="rad/s³ or m/s³",
        changeable=True,
        description="Highest jerk commanded; 0 sets no limit.",
    )
    gripper: bool = setting(
        False,
        description="Whether it opens and closes a gripper: what it grips may stop it. Needed in action modes without "
        "grippers, for example auto.",
    )


class Joints(NamedSection):
    """The joints by the policy's names, and their order in its vectors."""

    order_key: ClassVar[str] = "policy_order"
    entry: ClassVar[str] = "joint"

    policy_order: Names = setting(
        min_length=1,
        description="Joints in the order of the policy's state and action; in tool-pose modes, those of the arms and "
        "grippers in any fixed order.",
    )
    by_name: dict[str, Joint] = setting(description="The joints.")

    @property
    def ordered(self) -> tuple[Joint, ...]:
        """The joints in policy order."""
        return tuple(self.by_name[name] for name in self.policy_order)

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics they are measured on, each once, in the order of their first joint."""
        return tuple(dict.fromkeys(joint.topic for joint in self.ordered))


class Gripper(Section):
    """How the gripper channel of a tool-pose mode becomes a joint position."""

    joint: str = setting(min_length=1, description="The gripper's joint, by its policy name.")
    rule: Literal["binary", "linear"] = setting(
        "binary", description="binary: open or closed with hysteresis; linear: in proportion to the channel."
    )
    open_position: float = setting(ge=-1e3, le=1e3, unit="rad or m", description="Joint position of the open gripper.")
    closed_position: float = setting(
        ge=-1e3, le=1e3, unit="rad or m", description="Joint position of the closed gripper."
    )
    open_value: float = setting(0.0, ge=-1e3, le=1e3, description="Channel value of an action that means open.")
    closed_value: float = setting(1.0, ge=-1e3, le=1e3, description="Channel value of an action that means closed.")
    state_open: float = setting(0.0, ge=-1e3, le=1e3, description="Channel value of the state when open.")
    state_closed: float = setting(1.0, ge=-1e3, le=1e3, description="Channel value of the state when closed.")
    close_above: float = setting(
        0.8,
        ge=0.0,
        le=1.0,
        description="Binary rule: the gripper closes above this share of the range from open to closed.",
    )
    open_below: float = setting(0.5, ge=0.0, le=1.0, description="Binary rule: the gripper opens below this share.")


class Tool(Section):
    """One arm's tool, for modes whose actions are tool poses."""

    urdf: str = setting(
        "",
        description="URDF file of the arm: a path, a file beside the profile, or a shipped one. A "
        "robot_description topic has priority; empty requires such a topic.",
    )
    base_link: str = setting(min_length=1, description="Link in whose frame the policy's poses are given.")
    tip_link: str = setting(min_length=1, description="Link whose pose the policy means.")
    joints: Names = setting(
        (),
        description="The arm's joints from base_link to tip_link, by policy name; empty finds them by the names in "
        "the URDF.",
    )
    home: Numbers = setting(
        (),
        unit="rad or m",
        description="Preferred posture of these joints, which redundant joints move towards; empty means the middle "
        "of their ranges.",
    )
    approach: Xyz = setting(
        (0.0, 0.0, 1.0),
        description="Direction in which the tool points, in tip_link; an arm with fewer than six joints reaches the "
        "position first, then this direction, then the rotation about it.",
    )
    position_tolerance: float = setting(
        0.02,
        ge=0.0,
        le=1.0,
        unit="m",
        changeable=True,
        description="A waypoint that is out of reach by at most this distance is replaced by the nearest reachable "
        "one; beyond that the arm does not move.",
    )
    rotation_tolerance: float = setting(
        0.2, ge=0.0, le=3.1416, unit="rad", changeable=True, description="The same for the tool's rotation."
    )
    frame: str = setting(
        "",
        description="frame_id of published poses, which are in base_link: another name of that frame; empty means "
        "base_link.",
    )
    policy_rpy: Xyz = setting(
        (0.0, 0.0, 0.0),
        unit="rad",
        description="Fixed-axis roll, pitch, yaw of D: the policy's rotation is that of tip_link times D transposed.",
    )
    workspace_min: Xyz = setting(
        unit="m", description="Lowest corner of the box that the tool must stay in, in base_link."
    )
    workspace_max: Xyz = setting(unit="m", description="Highest corner of that box.")
    gripper: Gripper = setting(description="The tool's gripper.")


class Tools(NamedSection):
    """The tools by name, and their order in the policy's vectors."""

    order_key: ClassVar[str] = "order"
    entry: ClassVar[str] = "tool"

    order: Names = setting((), description="Tools in the order of the policy's vectors.")
    by_name: dict[str, Tool] = setting({}, description="The tools.")


class ShownTool(Section):
    """One tool whose planned path is shown; nothing else depends on it."""

    urdf: str = setting(min_length=1, description="URDF file: a path, a file beside the profile, or a shipped one.")
    base_link: str = setting(min_length=1, description="Link in whose frame the path is shown.")
    tip_link: str = setting(min_length=1, description="Link whose path is shown.")
    joints: Names = setting(
        (),
        description="The joints from base_link to tip_link, by policy name; empty finds them by the names in the "
        "URDF, which may be the policy's names or those in ROS.",
    )
    frame: str = setting("", description="frame_id of the path; empty means base_link.")


class View(NamedSection):
    """What is shown of a robot in joint space; one whose actions are tool poses shows its tools."""

    order_key: ClassVar[str] = "order"
    entry: ClassVar[str] = "shown tool"

    order: Names = setting((), description="Tools whose planned path ~/R/plan shows.")
    by_name: dict[str, ShownTool] = setting({}, description="The tools.")


class Group(Section):
    """Joints or a tool commanded on one topic."""

    topic: Topic = setting(
        description="Topic of the commands, or name of the action; its type follows from the interface."
    )
    interface: GroupInterface = setting(
        "",
        description="Command interface of this group; empty means commands.interface. For one gripper joint: "
        "gripper_command (std_msgs/Float64MultiArray), gripper_action (control_msgs/action/GripperCommand) and "
        "parallel_gripper_action (control_msgs/action/ParallelGripperCommand), which are sent when the command "
        "changes.",
    )
    min_change: float = setting(
        0.05,
        ge=0.0,
        le=1.0,
        changeable=True,
        description="gripper_command and gripper actions: while the setpoint moves, it is sent again when it differs "
        "from the last one by this share of the joint's range. When it stops moving, it is sent once more.",
    )
    max_effort: float = setting(
        0.0,
        ge=0.0,
        le=1e4,
        unit="N or Nm",
        changeable=True,
        description="Gripper actions: effort to grip with; 0 leaves it to the controller.",
    )
    joints: Names = setting((), description="Joints commanded there, by policy name, in the controller's order.")
    tool: str = setting("", description="Interface pose: the tool commanded there; a gripper's group has joints.")


class Commands(NamedSection):
    """How the robot is commanded."""

    order_key: ClassVar[str] = "groups"
    entry: ClassVar[str] = "command group"

    interface: RobotInterface = setting(
        description="joint_trajectory (trajectory_msgs/JointTrajectory), forward_command (std_msgs/Float64MultiArray), "
        "joint_state (sensor_msgs/JointState) or pose (geometry_msgs/PoseStamped; grippers by joint_trajectory)."
    )
    groups: Names = setting(min_length=1, description="Names of the command groups.")
    by_name: dict[str, Group] = setting(description="The command groups.")

    def interface_of(self, group: str) -> str:
        """Return the interface of a group: its own, else that of all; with poses, grippers take trajectories."""
        if self.by_name[group].interface:
            return self.by_name[group].interface
        if self.interface == "pose" and not self.by_name[group].tool:
            return "joint_trajectory"
        return self.interface

    def kind_of(self, group: str) -> CommandInterface:
        """Return the registry's entry for the interface of a group."""
        return INTERFACES[self.interface_of(group)]


# The sections with named entries, under the names a file gives them.
NAMED: Mapping[str, type[NamedSection]] = {
    "cameras": Cameras,
    "joints": Joints,
    "commands": Commands,
    "tools": Tools,
    "view": View,
}


class Timing(Section):
    """Rates, the window of published points, and when something counts as lost."""

    command_rate: float = setting(
        30.0, gt=0.0, le=1000.0, unit="Hz", changeable=True, description="Rate at which commands are published."
    )
    lead: float = setting(
        0.05,
        gt=0.0,
        le=10.0,
        unit="s",
        changeable=True,
        description="The first published point is this long after now.",
    )
    lookahead: float = setting(
        0.5,
        gt=0.0,
        le=30.0,
        unit="s",
        changeable=True,
        description="The last published point is this long after now; if the node dies, the arm stops by then.",
    )
    observation_timeout: float = setting(
        0.3,
        gt=0.0,
        le=60.0,
        unit="s",
        changeable=True,
        description="Without a complete observation for this long, the robot is paused.",
    )
    inference_timeout: float = setting(
        2.0,
        gt=0.0,
        le=600.0,
        unit="s",
        changeable=True,
        description="Without a chunk from the policy for this long, the robot is paused.",
    )
    clock_timeout: float = setting(
        1.0,
        gt=0.0,
        le=60.0,
        unit="s",
        changeable=True,
        description="If simulated time stands still for this long, the robot is paused.",
    )
    controller_timeout: float = setting(
        0.5,
        gt=0.0,
        le=60.0,
        unit="s",
        changeable=True,
        description="A controller that has had no subscription for this long counts as lost.",
    )


class Smoothing(Section):
    """How a new chunk takes over from the previous one."""

    method: Literal["realtime_chunking", "guided", "ensemble", "switch"] = setting(
        "realtime_chunking",
        changeable=True,
        description="realtime_chunking: the new chunk is clamped to the motion that is executed during inference, and "
        "blended over the rest of the overlap. guided: the same with gradients through the network, which costs one "
        "backward pass per step. ensemble: mean of all chunks that cover a time. switch: the newest chunk "
        "replaces the older one from its first usable waypoint.",
    )
    execute: float = setting(
        0.5,
        ge=0.0,
        le=1.0,
        changeable=True,
        description="Share of a chunk's duration that is executed before the next chunk takes over; 0 requests the "
        "next chunk immediately.",
    )
    overlap: Literal["exponential", "linear", "none"] = setting(
        "linear",
        changeable=True,
        description="How the weight of the previous chunk decreases after the waypoints that pass during inference "
        "(realtime_chunking, guided): linear changes velocities least; exponential is that of the paper and changes "
        "to the new chunk sooner; none uses only the new chunk there.",
    )
    guidance: float = setting(
        5.0, gt=0.0, le=1000.0, changeable=True, description="guided: maximum weight of a guidance step."
    )
    ensemble_decay: float = setting(
        0.01,
        ge=0.0,
        le=100.0,
        changeable=True,
        description="ensemble: the i-th oldest chunk has the weight exp(-decay · i); 0 gives all chunks the same "
        "weight.",
    )
    roll_forward: bool = setting(
        False,
        changeable=True,
        description="Give the policy the state that is planned for the arrival of its chunk, and start the chunk's "
        "time then.",
    )
    gripper_play: float = setting(
        0.02,
        ge=0.0,
        le=0.2,
        changeable=True,
        description="Dead band of a gripper whose channel is a probability (joint modes), as a share of its range to "
        "each side: smaller changes do not move it, and a value this near to open or closed counts as open or closed; "
        "0: no dead band.",
    )


class FollowingError(Section):
    """How far an arm may be from its commands, and for how long, before it holds."""

    distance: float = setting(
        0.02,
        gt=0.0,
        le=1.0,
        changeable=True,
        description="As a share of a joint's range; larger if max_velocity covers more within lead. Increase it for an "
        "arm that sags. 1 disables the check, for a replay, in which no arm follows.",
    )
    time: float = setting(
        0.5,
        gt=0.0,
        le=60.0,
        unit="s",
        changeable=True,
        description="Until then commands wait for the arm; then the arm is paused and starts again from its measured "
        "position.",
    )


class Safety(Section):
    """Safety checks in addition to the limits of the joints."""

    speed: float = setting(
        1.0,
        gt=0.0,
        le=1.0,
        description="Share of the normal speed: chunks are executed slower by this factor, along the same path, and "
        "the joints' limits of velocity, acceleration and jerk are scaled by it. Use 0.1 for a first motion.",
    )
    first_step: float = setting(
        0.25,
        gt=0.0,
        le=1.0,
        changeable=True,
        description="When a motion starts from the measured joints, its first waypoint may differ from them by at most "
        "this share of a joint's range, except for grippers; other chunks are refused.",
    )
    following_error: FollowingError = setting(
        FollowingError(), changeable=True, description="Allowed distance of an arm from its commands, and for how long."
    )
    exclusive: bool = setting(
        True, changeable=True, description="Pause the robot while another node publishes on one of its command topics."
    )
    allow_untrained: bool = setting(
        False,
        changeable=True,
        description="Whether the node activates outside a simulation (`use_sim_time` false) even if the policy was "
        "not trained for this robot's domain id: the arm then moves at random.",
    )
