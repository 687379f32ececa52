# SPDX-License-Identifier: Apache-2.0
"""Broken messages against a server: ``python test/serving/fuzz.py [FRAMES] [SEED]``; a slice of it is a test.

Each frame is one of ours, of openpi's or a body of ``POST /act``, whole at first, with bytes changed, cut off, doubled
or exchanged for others, or with a value of it replaced by a hostile one; some are noise, and some break the WebSocket
itself. Every frame must be answered, by an answer, a refusal or the end of the connection, and a well client must be
answered throughout. The policy answers at once, so that the server is what is tested.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import sys
import time
from collections import Counter
from contextlib import suppress

import msgpack
import numpy as np
from served_policy import PAIR, act_body, serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from xvla_ros.serving import Client, protocol, server
from xvla_ros.types import ActionChunk

WELL_EVERY = 500
ANSWER_S = 60.0
HOSTILE = (
    None, True, -1, 0, 1 << 63, 1e308, float("nan"), float("inf"), "", "x" * 5000, "\x00", b"", b"\xff" * 40, [], {},
    [[]] * 50, {"dtype": "|O", "shape": [1], "data": b"12345678"}, {"dtype": "<f4", "shape": [1 << 60], "data": b""},
    {"dtype": "<f4", "shape": [-3], "data": b"1" * 12}, {"dtype": ["x"], "shape": 3, "data": 3},
    {b"__ndarray__": True, b"data": b"1234", b"dtype": "|V4", b"shape": [1]},
    {"__numpy__": "AAAA", "dtype": "<f8", "shape": [3]}, "so101_bimanual", "widowx", 19, {"a": b"", b"a": b""},
)  # fmt: skip
HOSTILE_JSON = ("\ud800", 10**400, [10**400] * 12)  # what msgpack cannot say


def at_once(policy):
    """Return a ``predict`` that answers at once."""

    def predict(observations, **_):
        return [answer(seen) for seen in observations]

    def answer(seen):
        return ActionChunk.of(seen, np.zeros((policy.chunk_size, 12), np.float32), 0.1)

    return predict


def whole_frames(seen):
    """A whole message of each protocol, as plain data."""
    native = protocol.unpack(protocol.pack({"observations": [protocol.observation_message(seen)]}))
    ours = {"type": "ask", "id": 1, "deadline_ms": 1e4, "seed": 1, **native}
    state = seen.state

    def openpi_array(values):
        return {b"__ndarray__": True, b"data": values.tobytes(), b"dtype": values.dtype.str, b"shape": values.shape}

    openpi = {slot: openpi_array(image) for slot, image in seen.images.items()}
    openpi |= {"observation/state": openpi_array(state), "prompt": "go", "robot": PAIR}
    return {"ours": ours, "openpi": openpi, "act": act_body(seen) | {"steps": 3}}


def replaced(rng, value, hostile):
    """The message with one value somewhere in it replaced, or one more entry."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {each: inner for each, inner in value.items() if each != key}
        return {**value, key: replaced(rng, value[key], hostile)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], replaced(rng, value[at], hostile), *value[at + 1 :]]
    return rng.choice(hostile)


def broken(rng, data):
    """The bytes with some changed, cut off, doubled or exchanged."""
    kind, data = rng.randrange(5), bytearray(data)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        data += data[: rng.randrange(len(data))]
    elif kind == 3:
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(200)] = rng.randbytes(rng.randrange(200))
    else:
        data = bytearray(rng.randbytes(rng.randrange(400)))
    return bytes(data)


class Fuzz:
    """One attacker, with a connection for each protocol that it opens again when it is ended."""

    def __init__(self, served, seen, seed):
        self._served, self._rng, self._whole = served, random.Random(seed), whole_frames(seen)
        self._sockets = {}
        self.outcomes = Counter()

    def frame(self):
        """Send one frame and take what comes of it."""
        name = self._rng.choices(("ours", "openpi", "act", "socket"), (60, 25, 12, 3))[0]
        if name == "socket":
            outcome = self._break_a_socket()
        elif name == "act":
            outcome = self._post()
        else:
            outcome = self._send(name)
        self.outcomes[f"{name}: {outcome}"] += 1

    def _made(self, name):
        whole = self._whole[name]
        if self._rng.random() < 0.5:
            whole = replaced(self._rng, whole, HOSTILE + HOSTILE_JSON if name == "act" else HOSTILE)
        data = json.dumps(whole, default=str, skipkeys=True).encode() if name == "act" else msgpack.packb(whole)
        return broken(self._rng, data) if self._rng.random() < 0.5 else data

    def _send(self, name):
        raw = self._sockets.get(name)
        try:
            if raw is None:
                path = protocol.PATH if name == "ours" else ""
                raw = self._sockets[name] = connect(f"{self._served.url}{path}", compression=None).__enter__()
                if name == "ours" and self._rng.random() < 0.9:
                    raw.send(protocol.pack({"type": "hello", "protocol": 1}))
                    raw.recv(timeout=ANSWER_S)
                elif name == "openpi":
                    raw.recv(timeout=ANSWER_S)
            raw.send(self._made(name))
            answer = raw.recv(timeout=ANSWER_S)
        except ConnectionClosed:
            self._sockets.pop(name, None)
            return "ended"
        if isinstance(answer, str):
            return answer.partition(":")[0]
        said = msgpack.unpackb(answer)
        return said.get("reason") or said.get("type") or "actions"

    def _post(self):
        connection = http.client.HTTPConnection(self._served.address, timeout=ANSWER_S)
        connection.request("POST", "/act", self._made("act"))
        status = connection.getresponse().status
        connection.close()
        assert status in (200, 400, 503), status
        return status

    def _break_a_socket(self):
        host, port = self._served.address.split(":")
        with socket.create_connection((host, int(port)), timeout=ANSWER_S) as raw:
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            upgrade = (
                f"GET /xvla HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n".encode()
            )
            if self._rng.random() < 0.3:
                upgrade = broken(self._rng, upgrade)
            noise = self._rng.randbytes(self._rng.randrange(1, 200))
            with suppress(ConnectionError):  # a broken head may have been refused, and the connection ended
                raw.sendall(upgrade)
                raw.sendall(noise)
        return "broken"

    def close(self):
        for raw in self._sockets.values():
            raw.close()


def fuzz(served, seen, frames, seed=0, log=lambda line: None):
    """Send frames; return what came of them. Raises where a frame, or a well client, has no answer."""
    attacker = Fuzz(served, seen, seed)
    with Client(served.url, robot=PAIR, timeout=ANSWER_S) as well:
        for number in range(frames):
            attacker.frame()
            if number % WELL_EVERY == 0 or number + 1 == frames:
                assert well.ask(seen.images, seen.state, "go").robot == PAIR
                log(f"{number + 1} frames")
    attacker.close()
    return attacker.outcomes


def main(frames=100_000, seed=0):
    from xvla_ros.control.policy_source import load_policy
    from xvla_ros.robots import load_profiles
    from xvla_ros.types import Observation

    server.RATE = 1e9
    profiles = load_profiles([PAIR])
    policy = load_policy(profiles)
    policy.predict = at_once(policy)
    embodiment = profiles[PAIR].embodiment()
    images = {slot: np.zeros((16, 16, 3), np.uint8) for slot in embodiment.slots}
    seen = Observation(embodiment, 1, images, np.zeros(12, np.float32), "go")
    begun = time.monotonic()
    with serving(policy, profiles) as served:
        outcomes = fuzz(served, seen, frames, seed)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8d}  {outcome}")
    print(f"{frames} frames, seed {seed}, {time.monotonic() - begun:.0f} s: all answered, others too")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
