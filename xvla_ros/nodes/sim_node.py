# SPDX-License-Identifier: Apache-2.0
"""The node ``sim``: a simulated robot behind the topics that its profile names, and the ``/clock`` of its world.

Publishes ``/clock``, the profile's joint states and images, and ``/diagnostics``; obeys the command topics of
the profile's groups; serves ``~/reset``. Run it with
``python -m xvla_ros.nodes.sim_node --ros-args -p robot:=so101_bimanual``; its parameters describe themselves.

Only this much is imported before signals are taken: ROS and MuJoCo follow, so that a Ctrl-C while they load is no
traceback.
"""

from __future__ import annotations

import sys

from xvla_ros import ros_env
from xvla_ros.nodes.process import StopRequest


def main(args: list[str] | None = None) -> int:
    """Simulate until SIGINT or SIGTERM; return 0, or 1 after saying what cannot be simulated."""
    stop = StopRequest()
    ros_env.prepare()
    from xvla_ros.nodes.sim.simulated_robot import serve

    return serve(lambda: stop.made, args)


if __name__ == "__main__":
    sys.exit(main())
