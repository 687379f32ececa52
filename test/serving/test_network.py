# SPDX-License-Identifier: Apache-2.0
"""A network between: 80 ms round trip, jitter, loss up to one half, a stall, a cut."""

import random
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from served_policy import DEADLINE, PAIR

from xvla_ros.errors import UnreachableError
from xvla_ros.serving.remote import RemotePolicy

WAY, JITTER = 0.04, 0.01  # s, of one way
LOSS, RETRANSMIT = 0.02, 0.2  # share of the pieces, and s that one of them costs


class Proxy:
    """Carries bytes to a server as a bad network would: late, in order, and at times not at all."""

    def __init__(self, address, seed=0):
        host, port = address.split(":")
        self._to, self._rng, self.loss = (host, int(port)), random.Random(seed), LOSS
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listening.getsockname()[1]}"
        self.flows, self.accepts = threading.Event(), threading.Event()
        self.flows.set()
        self.accepts.set()
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listening.accept()
                self.accepts.wait()
                far = socket.create_connection(self._to)
            except OSError:
                return
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one, other):
        try:
            while data := one.recv(1 << 16):
                lost = self._rng.random() < self.loss
                time.sleep(WAY + self._rng.uniform(-JITTER, JITTER) + RETRANSMIT * lost)
                self.flows.wait()
                other.sendall(data)
        except OSError:
            pass
        finally:
            for each in (one, other):
                each.close()

    def cut(self):
        """End every connection; none goes on until ``accepts`` is set."""
        self.accepts.clear()
        for each in self._sockets:
            each.close()
        self._sockets.clear()

    def close(self):
        self._listening.close()
        self.flows.set()
        self.cut()
        self.accepts.set()


@pytest.fixture
def proxy(served):
    made = Proxy(served.address)
    yield made
    made.close()


@pytest.fixture
def asking(proxy, profiles):
    made = RemotePolicy({PAIR: within(profiles[PAIR], DEADLINE)}, proxy.url)
    yield made
    made.close()


def within(profile, seconds):
    """The profile with another ``inference_timeout``."""
    return profile.model_copy(update={"timing": profile.timing.model_copy(update={"inference_timeout": seconds})})


def answered(asking, seen):
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            return asking.predict([seen], seed=1)[0]
        except UnreachableError:
            time.sleep(0.05)
    raise AssertionError("no answer came again")


def test_late_jittering_and_lossy_is_late_and_nothing_else(asking, policy, look):
    for number in range(5):
        seen = look(level=number, stamp=number)
        (chunk,) = asking.predict([seen], seed=1)
        assert chunk.stamp == number
    assert asking._servers[0].latency_s > 2 * (WAY - JITTER)


def test_half_of_all_pieces_lost_is_late_and_nothing_else(asking, proxy, look):
    seen = [look(level=number, stamp=number) for number in range(4)]
    expected = [asking.predict([each], seed=1)[0] for each in seen]
    proxy.loss = 0.5
    for each, chunk in zip(seen, expected, strict=True):
        (late,) = asking.predict([each], seed=1)
        assert late.stamp == each.stamp
        np.testing.assert_allclose(late.actions, chunk.actions, atol=1e-5 * np.abs(chunk.actions).max())


def test_a_network_that_stalls_is_given_up_and_what_comes_of_it_later_is_never_read(asking, proxy, look):
    asking.predict([look()])
    asking._profiles[PAIR] = within(asking._profiles[PAIR], 0.3)
    proxy.flows.clear()
    with pytest.raises(UnreachableError, match="no answer within"):
        asking.predict([replace(look(), instruction="asked before")])
    asking._profiles[PAIR] = within(asking._profiles[PAIR], DEADLINE)
    proxy.flows.set()
    assert answered(asking, look(stamp=77)).stamp == 77


def test_a_network_that_is_cut_is_named_and_taken_up_again(asking, proxy, look):
    asking.predict([look()])
    proxy.cut()
    with pytest.raises(UnreachableError, match=proxy.url):
        for _ in range(3):
            asking.predict([look()])
    proxy.accepts.set()
    chunk = answered(asking, look(stamp=78))
    assert chunk.stamp == 78 and np.isfinite(chunk.actions).all()
