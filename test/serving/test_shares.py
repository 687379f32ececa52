# SPDX-License-Identifier: Apache-2.0
"""What one client can take from the others: no more than its share, and nothing once it has gone."""

import http.client
import json
import threading
import time
from contextlib import ExitStack, closing

import pytest
from fuzz import at_once
from served_policy import DEADLINE, PAIR, act_body
from websockets.sync.client import connect

from xvla_ros.serving import Client, protocol, queue, service

GREEDY = "127.0.0.2"  # another address of this machine
LARGE = b"large"  # a picture that takes long to decode


@pytest.fixture
def greedy(served, look):
    """Connections from another address: greedy(count, change of the observation) gives those, each with an ask sent."""
    with ExitStack() as stack:

        def many(count, **changes):
            seen = protocol.observation_message(look()) | changes
            opened = []
            for _ in range(count):
                raw = stack.enter_context(
                    connect(f"{served.url}{protocol.PATH}", compression=None, source_address=(GREEDY, 0))
                )
                raw.send(protocol.pack({"type": "hello", "protocol": protocol.VERSION}))
                raw.recv(timeout=DEADLINE)
                opened.append(raw)
            for raw in opened:
                raw.send(protocol.pack({"type": "ask", "id": 1, "observations": [seen]}))
            return opened

        yield many


def until(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Gate:
    """A policy that waits to be let go on, and remembers what it computed."""

    def __init__(self, policy, monkeypatch):
        self.entered, self.may_go, self.computed = threading.Event(), threading.Event(), []
        self._inner = policy.predict
        monkeypatch.setattr(policy, "predict", self)

    def __call__(self, observations, **settings):
        self.entered.set()
        assert self.may_go.wait(DEADLINE)
        self.computed += [seen.instruction for seen in observations]
        return self._inner(observations, **settings)


@pytest.fixture
def held(monkeypatch):
    """Views whose picture is ``LARGE`` and is being decoded, which takes until the test has ended."""
    may_go, inner, views = threading.Event(), protocol.decode_picture, []

    def decode(value, what, take):
        if value == LARGE:
            views.append(what)
            assert may_go.wait(DEADLINE)
        return inner(value, what, take)

    monkeypatch.setattr(service.protocol, "decode_picture", decode)
    try:
        yield views
    finally:
        may_go.set()


def test_pictures_of_one_address_never_take_every_thread(greedy, served, look, held):
    """Were they decoded in the order they came, all others would wait until the last of them is done."""
    greedy(8, views=dict.fromkeys(look().images, LARGE))
    until(lambda: len(held) == service.DECODERS_EACH)
    with Client(served.url, robot=PAIR, timeout=DEADLINE) as well:
        assert well.ask(look().images, look().state, "go").robot == PAIR
    assert len(held) == service.DECODERS_EACH


def test_what_finds_no_place_is_refused_before_it_is_decoded(greedy, look, held, monkeypatch):
    """Else a few small messages of large pictures would take all memory."""
    monkeypatch.setattr(queue, "MAX_WAITING_EACH", 1)
    greedy(1, views=dict.fromkeys(look().images, LARGE))
    until(lambda: len(held) == 1)
    (second,) = greedy(1)
    assert protocol.unpack(second.recv(timeout=DEADLINE))["reason"] == protocol.OVERLOADED


@pytest.mark.parametrize("quality", [95, None])
def test_pictures_beyond_the_memory_of_one_address_are_refused(greedy, served, look, monkeypatch, quality):
    seen = look()
    views = protocol.observation_message(seen, None, quality)["views"]
    decoded = sum(image.nbytes for image in seen.images.values())
    for most, kind in ((decoded - 1, "error"), (decoded, "chunks"), (decoded, "chunks")):
        monkeypatch.setattr(queue, "MAX_BYTES_EACH", most)
        (asking,) = greedy(1, views=views)
        answer = protocol.unpack(asking.recv(timeout=DEADLINE))
        assert answer["type"] == kind
        assert kind == "chunks" or answer["reason"] == protocol.OVERLOADED
    assert not served.service._queue._bytes, "all is given back"


def test_asks_of_one_address_never_pass_over_another_twice(greedy, served, policy, look, monkeypatch):
    """Thirty connections that ask for long passes all the time, beside one that asks for short ones in turn."""
    inner, passed_over, greedy_passes = at_once(policy), [], []

    def predict(observations, **settings):
        if observations[0].instruction == "greedy":
            greedy_passes.append(len(observations))
            passed_over.extend(ask for ask in list(served.service._queue._asks) if ask.owner != GREEDY)
        return inner(observations, **settings)

    monkeypatch.setattr(policy, "predict", predict)
    ended = threading.Event()

    def go_on(raw):
        seen = protocol.observation_message(look()) | {"instruction": "greedy", "steps": 100}
        while not ended.is_set():
            raw.recv(timeout=DEADLINE)
            raw.send(protocol.pack({"type": "ask", "id": 1, "observations": [seen]}))

    connections = greedy(30, instruction="greedy", steps=100)
    threads = [threading.Thread(target=go_on, args=(raw,), daemon=True) for raw in connections]
    for thread in threads:
        thread.start()
    with Client(served.url, robot=PAIR, timeout=DEADLINE) as well:
        for number in range(10):
            assert well.ask(look().images, look().state, f"go {number}").instruction == f"go {number}"
    ended.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert set(greedy_passes) == {1}, "a pass of 100 steps takes one of them"
    # the asks themselves: a number of one that has been answered may be another's
    assert len(passed_over) == len(set(passed_over)), "each waited at most for the pass that had begun"


@pytest.mark.parametrize("front", ["ours", "act"])
def test_what_one_who_has_gone_asked_for_is_not_computed(served, policy, look, greedy, monkeypatch, front):
    gate = Gate(policy, monkeypatch)
    seen, answers = look(), []

    def ask():
        with Client(served.url, robot=PAIR, timeout=DEADLINE) as client:
            answers.append(client.ask(seen.images, seen.state, "first"))

    first = threading.Thread(target=ask, daemon=True)
    try:
        first.start()
        assert gate.entered.wait(DEADLINE)
        if front == "ours":
            (gone,) = greedy(1, instruction="gone")
            until(lambda: served.service.waiting == 1)
            gone.socket.close()
        else:
            with closing(posted(served, look())):
                until(lambda: served.service.waiting == 1)
        until(lambda: served.service.waiting == 0)
    finally:
        gate.may_go.set()
    first.join(DEADLINE)
    assert len(answers) == 1 and gate.computed == ["first"]
    until(lambda: not served.service._shares)  # nothing is kept of who has gone


def posted(served, seen):
    """A connection on which a question has gone to ``POST /act``."""
    connection = http.client.HTTPConnection(served.address, timeout=DEADLINE)
    connection.request("POST", "/act", json.dumps(act_body(seen) | {"language_instruction": "gone"}))
    return connection
