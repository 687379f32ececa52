# SPDX-License-Identifier: Apache-2.0
"""Simulated arms: scenes, controllers and the world that steps them. Nothing here needs ROS.

Importing any module of this room decides how MuJoCo renders, because MuJoCo reads ``MUJOCO_GL`` when it is imported.
"""

from xvla_ros.simulation import offscreen

offscreen.choose()
