# SPDX-License-Identifier: Apache-2.0
"""A policy of random weights behind a server in a thread of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="needs xvla_ros[serve]")

from xvla_ros.control.policy_source import load_policy
from xvla_ros.robots import load_profiles
from xvla_ros.serving import Client, access, server
from xvla_ros.serving.client import Link
from xvla_ros.types import Observation

sys.path.append(str(Path(__file__).parent))

from served_policy import ARM, DEADLINE, PAIR, serving


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Who asks here waits for long, and so does the server, as the machine may be busy; and nothing goes by proxy."""
    for kind in (Link, Client):
        monkeypatch.setitem(kind.__init__.__kwdefaults__, "timeout", DEADLINE)
    for place, name in ((server, "HELLO_S"), (server, "BODY_S"), (access, "HEAD_S")):
        monkeypatch.setattr(place, name, DEADLINE)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="session")
def profiles():
    return load_profiles([PAIR, ARM])


@pytest.fixture(scope="session")
def policy(profiles):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("xvla_ros.control.policy_source.policy_dir", lambda: None)
        return load_policy(profiles)


@pytest.fixture
def served(policy, profiles):
    with serving(policy, profiles) as made:
        yield made


@pytest.fixture
def look(profiles):
    """Makes an observation: look(robot, level of grey, stamp)."""

    def make(robot=PAIR, level=90, stamp=10**9, size=(48, 64)):
        profile = profiles[robot]
        rng = np.random.default_rng(level)
        images = {slot: rng.integers(0, 255, (*size, 3), dtype=np.uint8) for slot in profile.cameras.slots}
        state = rng.normal(0.0, 0.1, profile.state_width).astype(np.float32)
        return Observation(profile.embodiment(), stamp, images, state, "touch the red cube")

    return make
