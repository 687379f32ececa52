# SPDX-License-Identifier: Apache-2.0
"""What a client takes for an answer: nothing that a broken server says moves an arm."""

import re
import socket
import struct
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scripted_server import METADATA, chunk_for, scripted
from served_policy import PAIR, serving
from websockets.exceptions import ConnectionClosedError
from websockets.utils import accept_key

from xvla_ros.errors import RequestError, SetupError, UnreachableError
from xvla_ros.serving import Client, client, protocol
from xvla_ros.serving.client import Link, _plain, url_of
from xvla_ros.serving.remote import RemotePolicy
from xvla_ros.types import Embodiment, Observation

ARM = Embodiment("arm", 19, "joint", ("front",), 0.1, 0.1)
STAMP = 10**9
DEADLINE = 120.0  # s, only ends a hang


@pytest.fixture
def seen():
    picture = np.zeros((8, 8, 3), np.uint8)
    return Observation(ARM, STAMP, {"front": picture}, np.zeros(12, np.float32), "touch the red cube")


def ask(server, seen):
    link = Link(url_of(server))
    try:
        return link.ask([seen], timeout=DEADLINE)[0], link
    finally:
        link.close()


def test_an_answer_in_order_is_taken(seen):
    with scripted(chunk_for) as server:
        ((chunk,), _) = ask(server, seen)
    assert (chunk.robot, chunk.stamp) == ("arm", STAMP)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"stamp": STAMP + 3600 * 10**9}, "stamp is '3601000000000'; expected '1000000000'"),
        ({"robot": "other"}, "robot is 'other'; expected 'arm'"),
        ({"instruction": "throw it"}, "instruction is 'throw it'"),
        ({"domain_id": 3}, "domain_id is '3'; expected '19'"),
        ({"action_mode": "ee6d"}, "action_mode is 'ee6d'"),
        ({"actions": np.full((2, 12), np.nan, "<f4")}, "NaN"),
        ({"actions": np.zeros((0, 12), "<f4"), "times": np.zeros(0)}, "0 waypoints due at no time"),
        ({"times": np.array([0.1, 3600.0])}, "2 waypoints due at 0.1, 3600 "),
        ({"times": np.array([0.2, 0.1])}, "2 waypoints due at 0.2, 0.1 "),
        ({"times": np.array([0.1, np.inf])}, "2 waypoints due at 0.1, inf "),
        ({"actions": "all"}, "actions is a str of 3"),
        ({"inference_ms": float("nan")}, "inference_ms is nan"),
    ],
)
def test_an_answer_that_is_none_to_what_was_asked_is_not_taken(seen, wrong, said):
    """An error of a server must not move an arm late by an hour, as another robot's, or in another task."""
    with (
        scripted(lambda asked: chunk_for(asked) | wrong) as server,
        pytest.raises(UnreachableError, match=f"an answer that cannot be used: .*{said}"),
    ):
        ask(server, seen)


def test_a_server_that_refuses_for_load_is_left_for_the_next_and_without_one_the_arm_holds(profiles, look):
    robot, asked = profiles[PAIR].embodiment(), []

    def busy(seen):
        asked.append(seen["stamp"])
        raise RequestError("overloaded", "256 observations are already waiting; send it again later")

    def free(seen):
        mode = {"domain_id": robot.domain_id, "mode": robot.action_mode}
        return chunk_for(seen, dt=robot.waypoint_dt, offset=robot.first_waypoint_offset, **mode)

    timing = profiles[PAIR].timing.model_copy(update={"inference_timeout": DEADLINE})
    patient = profiles[PAIR].model_copy(update={"timing": timing})

    def connected(servers):
        return closing(RemotePolicy({PAIR: patient}, servers))

    with scripted(busy) as first, scripted(free) as second:
        with connected(f"{first},{second}") as asking:
            (chunk,) = asking.predict([look()])
            assert chunk.stamp == look().stamp
        asked.clear()
        with connected(first) as asking:
            with pytest.raises(
                UnreachableError,
                match=r"overloaded: .*256 observations are already waiting; send it "
                r"again later",
            ):
                asking.predict([look()])
            assert asked == [look().stamp] and asking._servers[0].is_up, "the connection goes on"


def test_a_network_that_takes_no_bytes_does_not_keep_the_one_who_asks(seen):
    """The deadline holds while the question is sent, too."""
    big = replace(seen, images={"front": np.zeros((2000, 2000, 3), np.uint8)})
    with deaf() as server:
        link, outcome = Link(url_of(server)), []

        def send():
            try:
                link.ask([big], timeout=0.5, quality=None)
            except UnreachableError as error:
                outcome.append(str(error))

        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        sending.join(DEADLINE)
        assert outcome and "within 0.5 s" in outcome[0]
        assert not link.is_open


def test_a_server_that_answers_no_ping_has_until_the_deadline(seen, monkeypatch):
    monkeypatch.setattr(client, "connect", partial(client.connect, ping_timeout=0.01))
    monkeypatch.setattr(client, "PING_S", 0.01)
    monkeypatch.setattr(client, "CLOSE_S", 0.01)
    with deaf() as server:
        link = Link(url_of(server))
        with pytest.raises(UnreachableError, match=r"no answer within 0\.5 s"):
            link.ask([seen], timeout=0.5)


def test_what_struck_before_the_deadline_is_not_called_one(seen, monkeypatch):
    def send(data):
        raise ConnectionClosedError(None, None) from TimeoutError("timed out while closing connection")

    with deaf() as server:
        link = Link(url_of(server))
        monkeypatch.setattr(link._socket, "send", send)
        with pytest.raises(UnreachableError, match="the connection broke: no close frame received or sent"):
            link.ask([seen], timeout=60.0)


def test_a_client_asks_on_after_an_answer_that_came_too_late(seen):
    may_go, asked = threading.Event(), []

    def slow(question):
        asked.append(question["instruction"])
        assert question["instruction"] != "late" or may_go.wait(DEADLINE)
        return chunk_for(question)

    with scripted(slow) as server, Client(server, embodiment=ARM, timeout=0.2) as asking:
        while "late" not in asked:  # a busy server may not have read it when it is given up
            with pytest.raises(UnreachableError, match=r"no answer within 0\.2 s"):
                asking.ask(seen.images, seen.state, "late")
        may_go.set()
        asking._timeout = DEADLINE
        assert asking.ask(seen.images, seen.state, "in time").instruction == "in time"
    assert asked.count("in time") == 1


def test_a_client_asks_on_after_ctrl_c(seen, monkeypatch):
    """The answer to what was interrupted is not read as that to the next question."""

    def interrupted(timeout):
        raise KeyboardInterrupt

    with scripted(chunk_for) as server, Client(server, embodiment=ARM, timeout=DEADLINE) as asking:
        monkeypatch.setattr(asking._link._socket, "recv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            asking.ask(seen.images, seen.state, "interrupted")
        assert not asking._link.is_open
        assert asking.ask(seen.images, seen.state, "go").instruction == "go"


def test_a_client_asks_on_after_its_server_was_started_again(policy, profiles, look):
    question = look().images, look().state, "go"
    with serving(policy, profiles) as first:
        asking, port = Client(first.url, robot=PAIR, timeout=DEADLINE), int(first.address.rpartition(":")[2])
        asking.ask(*question)
    sent, end = asking.sent_bytes, time.monotonic() + DEADLINE
    while asking._link.is_open:  # until it has seen the server go: what it sent before would count
        assert time.monotonic() < end
        time.sleep(0.01)
    for _ in range(2):
        with pytest.raises(UnreachableError):
            asking.ask(*question)
    with serving(policy, profiles, port=port):
        assert asking.ask(*question).robot == PAIR
        assert 1.5 * sent < asking.sent_bytes < 2.5 * sent
        asking.close()
        with pytest.raises(UnreachableError):
            asking.ask(*question)


SERVED = {"domain_id": 19, "action_mode": "joint", "views": ["front"], "waypoint_dt": 0.1, "first_waypoint_offset": 0.1,
          "denoising_steps": 10, "trained": True}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"digest": "bb"}, "serves other weights: one of digest bb; expected one of digest aa"),
        ({"trained_domains": [0]}, r"says trained_domains is \[0\]; expected \[19\]"),
        ({"robots": {"arm": SERVED | {"waypoint_dt": 0.2}}}, r"says arm is .*0\.2.*; expected .*0\.1"),
        ({"robots": {}}, "says arm is None; expected"),
    ],
)
def test_a_client_does_not_ask_another_policy_than_it_connected_to(seen, changed, said):
    """An arm that moves by one checkpoint must not move on by another, because somebody restarted the server."""
    known = METADATA | {"digest": "aa", "robots": {"arm": SERVED}}
    now, question = [known], (seen.images, seen.state, "go")
    with scripted(chunk_for, lambda: now[0]) as server, Client(server, robot="arm", timeout=DEADLINE) as asking:
        assert asking.ask(*question).robot == "arm"
        now[0] = known | changed
        asking._link.close()
        for _ in range(2):
            with pytest.raises(SetupError, match=f"{said}.*; make a new Client to use it"):
                asking.ask(*question)
        assert asking.metadata["digest"] == "aa"
        now[0] = known
        assert asking.ask(*question).robot == "arm"


def test_a_robot_that_its_client_describes_may_be_served_otherwise_by_name(seen):
    now = [METADATA | {"robots": {"arm": SERVED}}]
    with scripted(chunk_for, lambda: now[0]) as server, Client(server, embodiment=ARM, timeout=DEADLINE) as asking:
        now[0] = METADATA
        asking._link.close()
        assert asking.ask(seen.images, seen.state, "go").robot == "arm"
        now[0] = METADATA | {"admitted": {"arm": SERVED}}
        asking._link.close()
        with pytest.raises(SetupError, match="says admitted is"):
            asking.ask(seen.images, seen.state, "go")


def test_a_message_that_no_server_takes_is_not_sent(seen):
    large = dict.fromkeys(("front", "wrist"), np.zeros((2048, 2048, 3), np.uint8))
    with scripted(chunk_for) as server, Client(server, embodiment=ARM, quality=None) as asking:
        with pytest.raises(RequestError, match=r"has 25\d{6} bytes; expected fewer than 16777216: send smaller images"):
            asking.ask(large, seen.state, "go")
        assert asking.ask(seen.images, seen.state, "go").robot == "arm"


GREY = np.full((8, 8, 3), 90, np.uint8)


@pytest.mark.parametrize("quality", [protocol.JPEG_QUALITY, None])
@pytest.mark.parametrize(
    ("picture", "found"),
    [
        ((GREY / 255).astype(np.float32), r"float32 \[8, 8, 3\]"),
        (GREY / 255, r"float64 \[8, 8, 3\]"),
        (GREY.astype(np.uint16) * 257, r"uint16 \[8, 8, 3\]"),
        (GREY.astype(np.int8), r"int8 \[8, 8, 3\]"),
        (GREY > 100, r"bool \[8, 8, 3\]"),
        (GREY.transpose(2, 0, 1), r"uint8 \[3, 8, 8\]"),
        (GREY[..., 0], r"uint8 \[8, 8\]"),
        (np.dstack([GREY, GREY[..., :1]]), r"uint8 \[8, 8, 4\]"),
        (GREY[:0], r"uint8 \[0, 8, 3\]"),
    ],
)
def test_a_picture_that_is_none_is_not_sent(seen, picture, found, quality):
    """Were it encoded, the policy would see black or white."""
    with scripted(chunk_for) as server, Client(server, embodiment=ARM, quality=quality) as asking:
        with pytest.raises(RequestError, match=rf"view 'front' is {found}; expected uint8 \[H, W, 3\] RGB"):
            asking.ask({"front": picture}, seen.state, "go")
        assert asking.ask(seen.images, seen.state, "go").robot == "arm"


def test_an_encoded_picture_goes_as_it_is(seen):
    """An empty one too, which the server refuses; it is not taken for a black picture."""
    views = []

    def answer(question):
        views.append(question["views"])
        return chunk_for(question)

    with scripted(answer) as server, Client(server, embodiment=ARM) as asking:
        for encoded in (b"", b"a JPEG"):
            asking.ask({"front": encoded}, seen.state, "go")
    assert views == [{"front": b""}, {"front": b"a JPEG"}]


@contextmanager
def deaf():
    """A server that says welcome, and then reads no more."""
    kept = []

    def serve_one(listening):
        raw, _ = listening.accept()
        kept.append(raw)
        head = b""
        while b"\r\n\r\n" not in head:
            head += raw.recv(4096)
        key = re.search(rb"Sec-WebSocket-Key: (.*)\r\n", head)[1].decode()
        upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
        said = protocol.pack(METADATA)
        frame = b"\x82\x7e" + struct.pack(">H", len(said)) + said
        raw.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{upgrade}".encode() + frame)

    with closing(socket.socket()) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        threading.Thread(target=serve_one, args=(listening,), daemon=True).start()
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
        for raw in kept:
            raw.close()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trained_domains": [0]}, r"says trained_domains is \[0\]; expected \[19\]"),
        ({"admitted": {"arm": {"trained": False}}}, "says admitted is"),
        ({"checkpoint": "two"}, "serves two; expected one"),
    ],
)
def test_a_server_that_comes_back_with_a_policy_that_says_otherwise_is_not_asked(seen, changed, said):
    """The same path may hold another checkpoint by then: one that was never trained for this arm, for one."""
    now = [METADATA]
    with scripted(chunk_for, lambda: now[0]) as server:
        asking = RemotePolicy({}, server)
        try:
            (kept,) = asking._servers
            now[0] = METADATA | changed
            kept.link.close()
            end = time.monotonic() + DEADLINE
            while not kept.why_down:
                assert time.monotonic() < end
                time.sleep(0.01)
            assert re.search(said, kept.why_down)
        finally:
            asking.close()


def test_a_fresh_connection_is_not_thrown_away_for_the_old_one():
    with scripted(chunk_for) as server:
        asking = RemotePolicy({}, server)
        try:
            (kept,) = asking._servers
            old, kept.link = kept.link, Link(url_of(server))
            asking._lose(kept, old, "broken")
            assert kept.is_up
            old.close()
        finally:
            asking.close()


def test_the_thread_that_takes_servers_back_outlives_any_error(monkeypatch):
    said = []
    with scripted(chunk_for) as server:
        asking = RemotePolicy({}, server, log=said.append)
        try:
            monkeypatch.setattr(asking, "_open", lambda server: 1 / 0)
            asking._servers[0].link.close()
            end = time.monotonic() + DEADLINE
            while not any("ZeroDivisionError" in line for line in said):
                assert time.monotonic() < end
                time.sleep(0.01)
            assert asking._keeper.is_alive()
        finally:
            asking.close()


def test_a_robot_goes_whole_to_the_server():
    robot = replace(ARM, action_width=7, relative=(0, 2), image_pipeline="letterbox", rot6d="columns")
    assert protocol.embodiment_of(protocol.unpack(protocol.pack({"it": _plain(robot)}))["it"]) == robot
