"""What ``/diagnostics`` says of one robot of the policy node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from xvla_ros.control.state import HOLDING, INACTIVE, RUNNING, STOPPED
from xvla_ros.nodes.robot_link import RobotLink
from xvla_ros.types import Percentiles

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy

_LEVELS = {
    RUNNING: DiagnosticStatus.OK,
    INACTIVE: DiagnosticStatus.OK,
    HOLDING: DiagnosticStatus.WARN,
    STOPPED: DiagnosticStatus.ERROR,
}


def robot_diagnostics(
    link: RobotLink, *, node: str, policy: Policy | None, stop: str, seed: int
) -> DiagnosticStatus:
    """Policy, seed of its noise, state, cause of a ``stop``, counters, latencies (ms) and frames of a robot.

    Stamps of frames are in ns of ROS time; a seed below 0 is no seed.
    """
    status = link.status
    values: dict[str, object] = {
        "checkpoint": policy.source if policy is not None else "",
        "trained": str(policy is not None and policy.is_trained(link.profile.policy.domain_id)).lower(),
        **(policy.computing() if policy is not None else {}),
        **({"seed": seed} if seed >= 0 else {}),
        "instruction": link.pilot.instruction,
        "stop": stop,
        "domain_id": link.profile.policy.domain_id,
        "chunks": status.chunks,
        "trajectories": status.trajectories,
        "dropped_chunks": status.dropped_chunks,
        "holds": status.holds,
        "limited_points": status.limited_points,
        **_percentiles("inference_ms", link.pilot.inference_ms),
        **_percentiles("overhead_ms", link.pilot.overhead_ms),
    }
    for camera, frames in link.frames.items():
        values[f"frames_received/{camera}"] = frames.received
        values[f"first_stamp/{camera}"] = frames.first_stamp
        values[f"last_stamp/{camera}"] = frames.last_stamp
    return DiagnosticStatus(
        level=DiagnosticStatus.ERROR if stop else _LEVELS[status.state],
        name=f"{node}: {link.profile.name}",
        message=" ".join(filter(None, (status.state, status.reason, status.detail))),
        hardware_id=link.profile.name,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def _percentiles(name: str, values: Percentiles) -> dict[str, object]:
    return {f"{name}_{key}": round(value, 3) for key, value in vars(values).items()}
