"""The node ``sim``: a simulated robot behind the topics that its profile names, and the ``/clock`` of its world.

Publishes ``/clock``, the profile's joint states and images, and ``/diagnostics``; obeys the command topics of
the profile's groups; serves ``~/reset``. Run it with
``python -m xvla_ros.nodes.sim_node --ros-args -p robot:=so101_bimanual``; its parameters describe themselves.

Only this much is imported before signals are taken: ROS and MuJoCo follow, so that a Ctrl-C while they load is no
traceback.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from xvla_ros import ros_env


class StopRequest:
    """Whether SIGINT or SIGTERM has come since this was made, in the main thread."""

    def __init__(self) -> None:
        # A plain flag: the main thread may be interrupted while it holds the lock of an Event.
        self.made = False
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._make)

    def _make(self, signum: int, frame: FrameType | None) -> None:
        self.made = True


def main(args: list[str] | None = None) -> int:
    """Simulates until SIGINT or SIGTERM; returns 0, or 1 after saying what cannot be simulated."""
    stop = StopRequest()
    ros_env.prepare()
    from xvla_ros.nodes.simulated_robot import serve

    return serve(lambda: stop.made, args)


if __name__ == "__main__":
    sys.exit(main())
