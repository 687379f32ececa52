# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes. Only this room imports rclpy; what the nodes do is in the rooms below."""
