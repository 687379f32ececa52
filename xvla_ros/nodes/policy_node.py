# SPDX-License-Identifier: Apache-2.0
"""The node ``/xvla``: cameras and joints in, one policy for all its robots, trajectory commands out.

Run it with ``python -m xvla_ros.nodes.policy_node --ros-args -p robots:="[so101_bimanual]"``; its parameters describe
themselves. ``policy_lifecycle`` is the node itself: only this much is imported before signals are taken, so that a
Ctrl-C while ROS loads is no traceback.
"""

from __future__ import annotations

import os
import sys

from xvla_ros import ros_env
from xvla_ros.nodes.process import StopRequest


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; return its exit code."""
    stop = StopRequest()
    ros_env.prepare()
    from xvla_ros.nodes.policy.node import network_is_busy, serve

    code = serve(lambda: stop.made, args)
    if network_is_busy():
        # Python would end while threads of torch still run, which aborts the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
