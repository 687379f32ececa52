# SPDX-License-Identifier: Apache-2.0
"""No test passes in which a command leapt."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import window_monitor


@pytest.fixture(autouse=True)
def every_window_goes_on():
    """Judge the monitors of every stand-in there was, after the test."""
    yield
    window_monitor.judge_all()


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The scripted node beside the pair of arms, on time that waits for it."""
    from paced_time import PacedTime
    from scripted_graph import graph_of

    yield from graph_of(tmp_path_factory, PacedTime())


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The same on time that runs with the machine's."""
    from scripted_graph import graph_of
    from stand_in_pair import SimulatedTime

    yield from graph_of(tmp_path_factory, SimulatedTime())


@pytest.fixture(scope="module")
def on_the_machine(tmp_path_factory):
    """The same on the system's clock, as beside a real arm."""
    from scripted_graph import graph_of
    from stand_in_pair import MachineTime

    yield from graph_of(tmp_path_factory, MachineTime())


@pytest.fixture
def active(graph):
    """The pair of ``graph`` while the node is active."""
    from scripted_graph import leave, take_up

    begun = take_up(graph)
    yield graph.pair
    leave(graph, begun)


@pytest.fixture
def running(active):
    """The same once the robot runs."""
    active.wait_status("running")
    return active
