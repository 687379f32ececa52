# SPDX-License-Identifier: Apache-2.0
"""The Ray Serve deployment of the examples on a local Ray: the same chunks, from any replica."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray.serve", reason="needs ray[serve]")

from served_policy import DEADLINE, PAIR

from xvla_ros.errors import RequestError, UnreachableError
from xvla_ros.serving import Client
from xvla_ros.serving.client import Link, url_of
from xvla_ros.serving.remote import RemotePolicy

EXAMPLES = Path(__file__).parents[2] / "examples"
PORT = 8765
URL = f"ws://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def deployed():
    """Two replicas, of which each takes one ask at a time."""
    import ray
    from ray import serve

    sys.path.insert(0, str(EXAMPLES))
    import ray_serve as example

    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])  # a replica imports it too
    ray.init(
        num_cpus=4, include_dashboard=False, configure_logging=False, runtime_env={"env_vars": {"PYTHONPATH": path}}
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    replicas = example.Replica.options(num_replicas=2, autoscaling_config=None)
    serve.run(example.Front.bind(replicas.bind()))
    yield
    serve.shutdown()
    ray.shutdown()
    sys.path.remove(str(EXAMPLES))


def eventually(ask):
    end = time.monotonic() + DEADLINE
    while True:
        try:
            return ask()
        except (UnreachableError, RequestError):
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.slow
def test_replicas_answer_as_the_policy_would_and_one_may_die(deployed, profiles, look):
    from xvla_ros.control.policy_source import load_policy

    shipped = load_policy({PAIR: profiles[PAIR]})
    seen = look()
    with eventually(lambda: Client(URL, robot=PAIR, quality=None, timeout=DEADLINE)) as client:
        assert client.metadata["digest"]
        found = client.ask(seen.images, seen.state, seen.instruction, stamp=seen.stamp, seed=5)
    (expected,) = shipped.predict([seen], seed=5)
    np.testing.assert_allclose(found.actions, expected.actions, atol=1e-5 * np.abs(expected.actions).max())
    with pytest.raises(RequestError, match="robot is 'nobody'"):
        Client(URL, robot="nobody")

    patient = profiles[PAIR].timing.model_copy(update={"inference_timeout": DEADLINE})
    asking = eventually(lambda: RemotePolicy({PAIR: profiles[PAIR].model_copy(update={"timing": patient})}, URL))
    try:
        (before,) = eventually(lambda: asking.predict([seen], seed=5))
        os.kill(a_replica(), signal.SIGKILL)
        for number in range(4):
            (after,) = eventually(lambda stamp=number: asking.predict([look(stamp=stamp)], seed=5))
            assert after.stamp == number
        (again,) = eventually(lambda: asking.predict([seen], seed=5))
        np.testing.assert_allclose(again.actions, before.actions, atol=1e-5 * np.abs(before.actions).max())
    finally:
        asking.close()


def a_replica():
    """The process of one of the two replicas."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_text()
        except OSError:
            continue
        if said.startswith("ray::ServeReplica:default:Replica"):
            return int(folder.name)
    raise AssertionError("no replica runs")


@pytest.mark.slow
def test_a_hello_of_another_version_is_refused_by_name(deployed, monkeypatch):
    monkeypatch.setattr("xvla_ros.serving.protocol.VERSION", 9)
    with pytest.raises(RequestError, match="the client uses protocol version 9; expected 1"):
        Link(url_of(URL))
