"""The sections of a profile that say how its robot is moved: timing, smoothing, safety."""

from __future__ import annotations

from typing import Literal

from xvla_ros.robots.profile.schema import Section, setting


class Timing(Section):
    """Rates, the window of published points, and when something counts as lost."""

    command_rate: float = setting(
        30.0, gt=0.0, le=1000.0, unit="Hz", changeable=True, description="Rate at which commands are published."
    )
    lead: float = setting(
        0.05, gt=0.0, le=10.0, unit="s", changeable=True, description="Published points begin this long after now."
    )
    lookahead: float = setting(
        0.5,
        gt=0.0,
        le=30.0,
        unit="s",
        changeable=True,
        description="Published points end this long after now; a dead node stops the arm by then.",
    )
    observation_timeout: float = setting(
        0.3,
        gt=0.0,
        le=60.0,
        unit="s",
        changeable=True,
        description="Without a complete observation for this long, the robot holds.",
    )
    inference_timeout: float = setting(
        2.0,
        gt=0.0,
        le=600.0,
        unit="s",
        changeable=True,
        description="Without an answer of the policy for this long, the robot holds.",
    )
    clock_timeout: float = setting(
        1.0,
        gt=0.0,
        le=60.0,
        unit="s",
        changeable=True,
        description="Sim time that stands still for this long is a reason to hold.",
    )
    controller_timeout: float = setting(
        0.5,
        gt=0.0,
        le=60.0,
        unit="s",
        changeable=True,
        description="A controller without subscription for this long is lost.",
    )


class Smoothing(Section):
    """How a new chunk takes over from the previous one."""

    method: Literal["realtime_chunking", "guided", "ensemble", "switch"] = setting(
        "realtime_chunking",
        changeable=True,
        description="realtime_chunking: what is being executed while the policy thinks is clamped in the new chunk, "
        "the rest of the overlap softly. guided: the same by gradients through the network, which costs a backward "
        "pass a step. ensemble: mean of all chunks that cover a time. switch: the newest chunk replaces the older one "
        "from its first usable waypoint.",
    )
    execute: float = setting(
        0.5,
        ge=0.0,
        le=1.0,
        changeable=True,
        description="Share of a chunk's duration that is executed before the next takes over; 0 asks at once.",
    )
    overlap: Literal["exponential", "linear", "none"] = setting(
        "linear",
        changeable=True,
        description="How the weight of the previous chunk falls after the waypoints that pass during inference "
        "(realtime_chunking, guided): linear changes velocities least, exponential is the paper's and leans sooner on "
        "the new chunk, none frees the rest.",
    )
    guidance: float = setting(
        5.0, gt=0.0, le=1000.0, changeable=True, description="guided: highest weight of a guidance step."
    )
    ensemble_decay: float = setting(
        0.01, ge=0.0, le=100.0, changeable=True,
        description="ensemble: the i-th oldest chunk counts exp(-decay · i); 0 counts all alike.",
    )
    roll_forward: bool = setting(
        False,
        changeable=True,
        description="Feed the policy the state that is planned for when its chunk will arrive, and count the chunk "
        "from then.",
    )
    gripper_play: float = setting(
        0.02,
        ge=0.0,
        le=0.2,
        changeable=True,
        description="Play of a gripper whose channel is a probability (joint modes), as a share of its range to either "
        "side: smaller changes to and fro do not move it, and this near to open or closed it is so; 0 has none.",
    )


class FollowingError(Section):
    """How far an arm may be from its commands, and for how long, before it holds."""

    distance: float = setting(
        0.02,
        gt=0.0,
        le=1.0,
        changeable=True,
        description="As a share of a joint's range; more where max_velocity goes further within lead. Raise it for an "
        "arm that sags. 1 switches the check off, for a replay, where no arm follows.",
    )
    time: float = setting(
        0.5,
        gt=0.0,
        le=60.0,
        unit="s",
        changeable=True,
        description="Until then commands wait for the arm; then it holds and starts from where it is measured.",
    )


class Safety(Section):
    """Checks beyond the limits of the joints."""

    first_step: float = setting(
        0.25,
        gt=0.0,
        le=1.0,
        changeable=True,
        description="Where a motion starts from the measured joints, its first waypoint may be this share of a "
        "joint's range away, grippers aside; a chunk that asks for more is refused.",
    )
    following_error: FollowingError = setting(
        FollowingError(), changeable=True, description="How far an arm may be from its commands, and for how long."
    )
    exclusive: bool = setting(
        True,
        changeable=True,
        description="Hold while another node publishes on a command topic of this robot.",
    )
    allow_untrained: bool = setting(
        False,
        changeable=True,
        description="Whether the node activates outside a simulation (`use_sim_time` false) though the policy has no "
        "trained row for this robot: the arm then moves at random.",
    )
