"""``xvla record``: a robot's topics into a bag, with marks of episodes by keys and by topic."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal


def record(
    robot: str,
    output: Path | str,
    *,
    instruction: str = "",
    topics: Sequence[str] = (),
    policy: str = "/xvla",
    sim_time: bool = False,
    compression: Literal["none", "lz4", "zstd"] = "none",
    duration: float | None = None,
) -> int:
    """Record until q, Ctrl-C, SIGTERM or the duration; return the exit code, 1 after an error (said on stderr).

    Args:
        robot: name of a profile, or a profile file of one robot.
        output: folder of the bags.
        instruction: of the episodes; empty takes the profile's.
        topics: recorded beside those of the profile.
        policy: full name of the policy node, on whose topic instructions come.
        sim_time: log times follow ``/clock``.
        compression: of the file.
        duration: s.
    """
    from xvla_ros.nodes.stop_request import StopRequest
    from xvla_ros.robots import ProfileError, load_robot
    from xvla_ros.ros_env import prepare

    stop = StopRequest()
    try:
        profile = load_robot(robot)
    except ProfileError as error:
        print(f"xvla record: {error}", file=sys.stderr)
        return 1
    prepare()
    if find_spec("rclpy") is None:
        print("xvla record: there is no ROS 2 here: source one, or pip install 'xvla_ros[ros]'", file=sys.stderr)
        return 1
    from xvla_ros.nodes.record_node import RecordOptions
    from xvla_ros.nodes.record_node import record as record_topics

    options = RecordOptions(
        Path(output), instruction, policy, tuple(topics), sim_time, compression, duration
    )
    return record_topics(profile, options, lambda: stop.made)
