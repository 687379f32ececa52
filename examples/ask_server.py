# SPDX-License-Identifier: Apache-2.0
"""Asks a policy server for one chunk, cell by cell, as in a notebook; needs no torch and no ROS.

xvla serve &
python examples/ask_server.py [ws://127.0.0.1:8000]
"""

# %% Connect: the server says what it serves
import sys

import numpy as np

from xvla_ros.serving import Client

ROBOT = "so101_bimanual"
client = Client(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8000", robot=ROBOT)
robot = client.metadata["robots"][ROBOT]
print(client.metadata["checkpoint"], robot["views"], robot["state_width"])

# %% An observation: a picture for each view, RGB, and the state in the policy's units
views = {name: np.full((240, 320, 3), 90, np.uint8) for name in robot["views"]}
state = np.zeros(robot["state_width"], np.float32)

# %% Ask: when each waypoint is due, in s after the observation, and what it is
chunk = client.ask(views, state, "touch the red cube")
print(chunk.actions.shape, f"{chunk.times[0]:.3f} … {chunk.times[-1]:.3f} s, computed in {chunk.inference_ms:.0f} ms")

# %% Done
client.close()
