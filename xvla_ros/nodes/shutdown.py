"""The end of a node that ends by itself."""

from __future__ import annotations

import signal
from collections.abc import Callable

import rclpy


def shut_down(close: Callable[[], object]) -> None:
    """Free the node by ``close``, then end ROS; a Ctrl-C that comes meanwhile is not heard."""
    # the end has begun: who asks for it now must not cut it short
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    close()
    rclpy.try_shutdown()
