# SPDX-License-Identifier: Apache-2.0
"""The policy behind a socket, and the clients that ask it; neither needs ROS, and the clients need no torch.

``Client`` asks from any program; ``RemotePolicy`` (``remote``) stands in the node where a loaded policy would. The
server is ``server`` (one port, limits, who may enter) over ``service`` (the policy and its engine); ``fronts`` speaks
the three protocols, of which ``protocol`` is ours. Needs the extra ``serve``.
"""

from xvla_ros.serving.client import Client

__all__ = ["Client"]
