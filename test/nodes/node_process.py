# SPDX-License-Identifier: Apache-2.0
"""``/xvla`` in a process of its own, and what every command it sends must keep to."""

import json
import os
import re
import subprocess
import sys

import numpy as np
from scipy.interpolate import CubicHermiteSpline
from stand_in_pair import ROBOT
from window_monitor import points_of

from xvla_ros import ros_env

DEADLINE = 240.0  # ends what hangs
SETTINGS = {
    "policy.waypoint_dt": 0.1,
    "smoothing.execute": 0.2,
    "policy.denoising_steps": 2,
    "safety.first_step": 1.0,  # random weights begin anywhere
}


class NodeProcess:
    """``/xvla`` in a process, with what it says in a file; simulated time waits for it."""

    command = (sys.executable, "-m", "xvla_ros.nodes.policy_node")

    def __init__(self, domain, folder, **parameters):
        values = {"threads": 1, "use_sim_time": True, "paced": True}
        values |= {f"{ROBOT}.{name}": value for name, value in SETTINGS.items()} | parameters
        arguments = [part for name, value in values.items() for part in ("-p", f"{name}:={json.dumps(value)}")]
        self.output = folder / "output.txt"
        environment = ros_env.child_environment() | {"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [*self.command, "--ros-args", *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def said(self):
        return self.output.read_text()

    def send(self, signum):
        os.kill(self.process.pid, signum)

    def end(self):
        """Wait for the end; return the exit code."""
        return self.process.wait(DEADLINE)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)


class ServerProcess:
    """``xvla serve`` in a process, with the policy that ships."""

    command = (sys.executable, "-m", "xvla_ros")

    def __init__(self, port=0):
        command = [*self.command, "serve", "--port", str(port), "--robots", ROBOT]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = []
        for line in self.process.stdout:
            said.append(line)
            if found := re.search(r"on (ws://[\d.]+:(\d+))", line):
                self.url, self.port = found[1], int(found[2])
                return
        raise AssertionError(f"the server ended with {self.process.wait()}: {''.join(said)}")

    def kill(self):
        self.process.kill()
        self.process.wait(DEADLINE)
        self.process.stdout.close()


def check_window(pair, group, message):
    """What joint_trajectory_controller asks of a trajectory, and what the robot's limits do of the cubics it makes."""
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (0, 0)
    assert sorted(message.joint_names) == sorted(pair.names[group])
    order = [message.joint_names.index(joint) for joint in pair.names[group]]
    times, path, speeds = points_of(message)
    path, speeds = path[:, order], speeds[:, order]
    lower, upper, fastest, hardest = pair.limits[group].T
    assert len(times) >= 2
    assert times[0] >= 1 / 30 and times[-1] <= pair.profile.timing.lookahead + 1e-6
    assert (np.diff(times) > 0).all()
    assert np.isfinite(path).all() and np.isfinite(speeds).all()
    assert (path >= lower).all() and (path <= upper).all()
    cubics = CubicHermiteSpline(times, path, speeds)
    between = np.linspace(times[0], times[-1], 4 * len(times))
    assert (cubics(between) >= lower - 1e-9).all() and (cubics(between) <= upper + 1e-9).all()
    speed = (np.abs(np.concatenate([cubics(between, 1), speeds])) / fastest).max()
    # a time in ns rounds what a point is apart
    assert speed <= 1.0 + 1e-6, f"{group}: {speed:.4f} of a velocity limit"
    push = (np.abs(np.diff(speeds, axis=0)) / np.diff(times)[:, None] / hardest).max()
    assert push <= 1.0 + 1e-6, f"{group}: {push:.4f} of an acceleration limit"
    assert not speeds[-1].any()


def check_all(pair, commands):
    for group, messages in commands.items():
        assert messages
        for message in messages:
            check_window(pair, group, message)
