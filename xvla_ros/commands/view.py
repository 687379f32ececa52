"""``xvla view``: what a running robot sees, does and plans, in the Rerun viewer or in a file for it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def view(
    robot: str = "so101_bimanual",
    *,
    save: Path | str | None = None,
    connect: str | None = None,
    spawn: bool = False,
    duration: float | None = None,
    rate: float = 10.0,
    policy: str = "/xvla",
) -> int:
    """Show a robot until Ctrl-C or for ``duration`` s; without ``save`` or ``connect`` in a viewer opened here.

    It joins the graph of the surrounding ROS_DOMAIN_ID and only listens.

    Args:
        robot: name of a profile, or a profile file.
        save: ``.rrd`` file to write.
        connect: address of a viewer that runs already.
        spawn: open a viewer on this machine.
        duration: s; None goes on until Ctrl-C.
        rate: pictures a second and camera.
        policy: absolute name of the policy node.

    Returns:
        0, or 1 where it cannot be shown (said on stderr).
    """
    from xvla_ros.robots import ProfileError, load_robot
    from xvla_ros.ros_env import prepare

    prepare()
    from xvla_ros.nodes.rerun_stream import RerunStream, ViewError
    from xvla_ros.nodes.stop_request import StopRequest

    try:
        profile = load_robot(robot)
        stream = RerunStream(
            profile, save=Path(save) if save is not None else None, connect=connect,
            spawn=spawn or (save is None and connect is None),
        )
    except (ProfileError, ViewError) as error:
        print(f"xvla view: {error}", file=sys.stderr)
        return 1
    stop = StopRequest()
    try:
        from xvla_ros.nodes.view_node import serve
    except ImportError as error:
        print(f"xvla view: needs ROS 2: {error}", file=sys.stderr)
        return 1
    print(f"showing {profile.name}; Ctrl-C ends it", flush=True)
    with contextlib.closing(stream):
        chunks = serve(profile, stream, lambda: stop.made, rate=rate, policy=policy, duration=duration)
    print(f"{chunks} chunks" + (f"; {save}" if save is not None else ""), flush=True)
    return 0
