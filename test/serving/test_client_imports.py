# SPDX-License-Identifier: Apache-2.0
"""A program that asks imports neither torch nor ROS nor the server."""

import subprocess
import sys

ASK = """
import sys
from xvla_ros.serving import Client
try:
    Client("127.0.0.1:9")
except ConnectionError as error:
    print(type(error).__name__)
heavy = ("torch", "transformers", "rclpy", "aiohttp", "prometheus_client", "pydantic")
print([name for name in heavy if name in sys.modules])
"""


def test_asking_needs_no_torch_and_no_ros():
    ran = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["UnreachableError", "[]"]
