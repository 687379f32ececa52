# SPDX-License-Identifier: Apache-2.0
"""What a server refuses, by name, and that others do not notice."""

import errno
import http.client
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from served_policy import ARM, PAIR, act_body, serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from xvla_ros.errors import RequestError, SetupError, UnreachableError
from xvla_ros.serving import Client, access, fronts, protocol, server
from xvla_ros.serving.access import Access, is_loopback, read_token
from xvla_ros.serving.queue import SeededObservation

TOKEN = "a long enough secret, of 40 characters.."


@pytest.fixture
def well(served, look):
    """Asks as any other client does, and gets its answer."""
    with Client(served.url, robot=PAIR) as client:
        yield lambda: client.ask(look().images, look().state, "go")


def test_a_token_is_needed_where_one_is_set(policy, profiles, look):
    with serving(policy, profiles, token=TOKEN) as served:
        for wrong in ("", "another", TOKEN[:-1], TOKEN + "x"):
            with pytest.raises(RequestError, match=r"401.*token is wrong; expected 'Bearer TOKEN'"):
                Client(served.url, token=wrong)
        with Client(served.url, robot=PAIR, token=TOKEN) as client:
            assert client.ask(look().images, look().state, "go").robot == PAIR
        for page, status in (("metadata", 401), ("metrics", 401), ("healthz", 200)):
            try:
                with urllib.request.urlopen(f"{served.http}/{page}") as answer:
                    found = answer.status
            except urllib.error.HTTPError as error:
                found = error.code
            assert found == status, page


@pytest.mark.parametrize("inside", ["\n", "\r\nX-Other: ", "\0", "\u20ac"])
def test_a_token_is_used_as_its_file_has_it_and_never_told(policy, profiles, inside):
    with serving(policy, profiles, token=TOKEN) as served:
        with Client(served.url, robot=PAIR, token=f"{TOKEN}\n") as client:
            assert client.metadata["robots"]
        with pytest.raises(SetupError, match="the token has a character that no HTTP header can carry") as caught:
            Client(served.url, robot=PAIR, token=f"{TOKEN}{inside}{TOKEN}")
    assert TOKEN not in str(caught.value)


def test_a_token_of_any_bytes_is_wrong_and_not_told_in_the_log(policy, profiles, caplog):
    with serving(policy, profiles, token=TOKEN) as served:
        host, port = served.address.split(":")
        with closing(socket.create_connection((host, int(port)), timeout=60)) as raw:
            raw.sendall(b"GET /metadata HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
            assert raw.recv(4096).startswith(b"HTTP/1.1 401")
    assert not [line for line in caplog.records if line.levelname == "ERROR"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "gpu-server"])
def test_others_may_not_ask_unless_something_says_who(host):
    with pytest.raises(SetupError, match=r"other machines can reach; expected 127.0.0.1, or a token .*--insecure"):
        Access(host).require_safe()
    Access(host, token=TOKEN).require_safe()
    Access(host, insecure=True).require_safe()
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.1.2.3")))


def test_a_token_file_without_a_good_token_is_named(tmp_path):
    file = tmp_path / "token"
    with pytest.raises(SetupError, match="No such file"):
        read_token(file)
    file.write_text("short\n")
    with pytest.raises(SetupError, match="token of 5 characters; expected 16 or more: openssl rand"):
        read_token(file)
    file.write_text(f" {TOKEN} \nnot this\n")
    assert read_token(file) == TOKEN


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """An authority, and a certificate of it for this machine; skipped without openssl."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        try:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("there is no openssl")

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    openssl(
        *new, "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost", "-CA", "ca.pem", "-CAkey", "ca.key",
        "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    (folder / "both.pem").write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return folder


def test_tls_and_certificates_of_clients(policy, profiles, look, certificates):
    ca, both = certificates / "ca.pem", certificates / "both.pem"
    files = {"certificate": certificates / "cert.pem", "key": certificates / "key.pem"}
    with serving(policy, profiles, **files) as served:
        with Client(served.url, robot=PAIR, ca=ca) as client:
            assert client.ask(look().images, look().state, "go").robot == PAIR
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            Client(served.url)
    with serving(policy, profiles, client_ca=ca, **files) as served:
        with Client(served.url, robot=PAIR, ca=ca, certificate=both) as client:
            assert client.ask(look().images, look().state, "go").robot == PAIR
        with pytest.raises(UnreachableError):
            Client(served.url, ca=ca)
    with pytest.raises(SetupError, match="a certificate authority for clients without TLS"):
        Access(client_ca=ca).require_safe()
    with pytest.raises(SetupError, match=r"nothing\.pem"):
        Access(certificate=certificates / "nothing.pem").tls()
    assert ssl.create_default_context(cafile=ca)


@contextmanager
def native(served, robots=(), version=protocol.VERSION):
    with connect(f"{served.url}{protocol.PATH}", compression=None) as raw:
        raw.send(protocol.pack({"type": "hello", "protocol": version, "robots": list(robots)}))
        yield raw


def said(raw):
    return msgpack.unpackb(raw.recv(timeout=60))


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_version_is_refused_by_name(served, well, version):
    with native(served, version=version) as raw:
        answer = said(raw)
        assert (answer["type"], answer["reason"]) == ("error", "version")
        assert "expected 1" in answer["detail"]
        with pytest.raises(ConnectionClosed) as closed:
            raw.recv(timeout=60)
        assert closed.value.rcvd.code == 1008
    well()


def changed(profile, **policy):
    return {"name": profile.name, "profile": profile.to_mapping() | {"policy": profile.to_mapping()["policy"] | policy}}


def test_a_robot_that_the_policy_cannot_drive_is_refused_by_name(served, profiles, well):
    for robot, expected in (
        (changed(profiles[PAIR], domain_id=60000), r"so101_bimanual\.policy\.domain_id.*found 60000"),
        (changed(profiles[PAIR], action_mode="joint99"), "action mode 'joint99' is unknown"),
        ({"name": PAIR, "profile": [1, 2]}, PAIR),
        ({"name": PAIR, "profile": {"cameras": 3}}, PAIR),
        ({"embodiment": {"robot": "x"}}, "slots is nothing"),
        ("me", "not a map"),
    ):
        with native(served, [robot]) as raw:
            answer = said(raw)
            assert answer["reason"] == "robot", answer
            assert re.search(expected, answer["detail"])
    well()


@pytest.fixture
def ask_of(look):
    """Makes an ask: ask_of(changes of the observation)."""

    def make(**changes):
        seen = protocol.observation_message(look(), None, None) | changes
        return {"type": "ask", "id": 1, "observations": [seen]}

    return make


# the head of a JPEG of 65520 x 65520 pixels
BOMB = bytes.fromhex(
    "ffd8 ffe0 0010 4a46494600 0101 00 0001 0001 00 00 ffc0 0011 08 fff0 fff0 03 012200 021101 031101 ffda" + "00" * 20
)


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"views": {}}, "observation", "no image of front, left_wrist, right_wrist"),
        ({"state": np.full(12, np.nan, np.float32)}, "observation", "state is not finite in channels"),
        ({"state": np.full(12, 1e300)}, "observation", "state is not finite in channels"),
        ({"state": np.zeros(7, np.float32)}, "observation", r"state has shape \[7\]"),
        ({"state": np.zeros((2, 6), np.float32)}, "observation", r"state has shape \[2, 6\]"),
        ({"state": [0.0] * 12}, "message", "state is a list of 12; expected an array"),
        ({"state": {"dtype": "|O", "shape": [1], "data": b"x" * 8}}, "message", "dtype '|O'; expected one of"),
        ({"state": {"dtype": "<f4", "shape": [1 << 40], "data": b""}}, "message", "has shape"),
        ({"state": {"dtype": "<f4", "shape": [1 << 20], "data": b"1234"}}, "message", "has 4 bytes of data; expected"),
        ({"state": {"dtype": "<f4", "shape": [-1], "data": b"1234"}}, "message", "has shape"),
        ({"robot": "so101_bimanul"}, "robot", "did you mean 'so101_bimanual'"),
        ({"stamp": "now"}, "message", "stamp is a str of 3; expected a whole number"),
        ({"stamp": True}, "message", "stamp is a bool"),
        ({"instruction": "x" * 5000}, "message", "instruction is a str of 5000"),
        ({"views": {"front": b"", b"front": b""}}, "message", "views is not a map from at most 8 names"),
        ({"steps": 1000}, "message", "steps is 1000; expected a whole number of 1 … 100"),
        ({"prefix": {"actions": np.zeros((3, 12), np.float32), "weights": np.zeros(3, np.float32)}}, "observation",
         "prefix has actions"),
        ({"prefix": 7}, "message", "prefix is a int"),
    ],
)  # fmt: skip
def test_an_ask_that_cannot_be_answered_is_refused_by_name(served, ask_of, well, changes, reason, detail):
    with native(served) as raw:
        assert said(raw)["type"] == "welcome"
        raw.send(protocol.pack(ask_of(**changes)))
        answer = said(raw)
        assert (answer["type"], answer["id"], answer["reason"]) == ("error", 1, reason)
        assert re.search(detail, answer["detail"]), answer
        raw.send(protocol.pack(ask_of()))
        assert said(raw)["type"] == "chunks", "the connection goes on"
    well()


@pytest.mark.parametrize(
    ("view", "detail"),
    [
        (b"", "expected a JPEG or PNG"),
        (b"GIF89a" + b"\x00" * 40, "expected a JPEG or PNG"),
        (BOMB, "4292870400 pixels.*expected at most 4194304"),
        (np.zeros((3000, 1600, 3), np.uint8), r"\[3000, 1600, 3\]; expected at most"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \[8, 8, 4\]; expected \[any, any, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"\[0, 8, 3\]; expected uint8"),
        (protocol.encode_picture(np.zeros((64, 64, 3), np.uint8))[:300], "front"),
    ],
)
def test_a_picture_that_is_none_is_refused_before_it_takes_memory(served, ask_of, look, well, view, detail):
    views = protocol.observation_message(look(), None, None)["views"] | {"front": view}
    with native(served) as raw:
        said(raw)
        raw.send(protocol.pack(ask_of(views=views)))
        answer = said(raw)
        assert answer["reason"] == "observation"
        assert re.search(detail, answer["detail"]), answer
    well()


def test_entries_of_a_text_within_a_body_are_counted_too(served, well, monkeypatch):
    """An escaped comma is none in the body, and one in the text that the body holds."""
    parsed, loads = [], json.loads
    monkeypatch.setattr(fronts, "json", SimpleNamespace(loads=lambda data: parsed.append(len(data)) or loads(data)))
    numbers = "[0" + "\\u002c0" * 5000 + "]"
    body = f'{{"domain_id": 19, "image0": [0], "image1": [0], "image2": [0], "proprio": "{numbers}"}}'.encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{served.http}/act", body))
    said = json.load(refused.value)["error"]["detail"]
    assert said == "proprio has 5001 entries of lists and objects; expected 4096 at most"
    assert parsed == [len(body)]
    well()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"nonsense", b"[" * 100_000, b'{"domain_id": 19}', b"[" + b"0," * 70_000 + b"0]",
        b'{"domain_id": 19, "proprio": "{\\"__numpy__\\": \\"!!\\", \\"dtype\\": \\"<f4\\", \\"shape\\": [1]}"}',
        b'{"domain_id": 19, "proprio": {"__numpy__": "", "dtype": [["a", "|O"]], "shape": [1]}}',
        b'{"domain_id": 4711, "proprio": [1.0]}',
    ],
)  # fmt: skip
def test_a_body_of_act_that_is_none_is_refused_by_name(served, well, body):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{served.http}/act", body))
    assert refused.value.code == 400
    error = json.load(refused.value)["error"]
    assert error["reason"] in protocol.REASONS and error["detail"]
    well()


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"proprio": [10**400] * 12}, "proprio is 1000000000000000000000000000000000000000…"),
        ({"domain_id": 10**400}, "domain_id is 1000000000000000000000000000000000000000…"),
        ({"language_instruction": "\ud800"}, "language_instruction has half of a surrogate pair"),
    ],
)  # fmt: skip
def test_json_that_no_number_and_no_text_can_hold_is_refused_by_name(served, look, well, changes, detail):
    body = act_body(look()) | changes
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{served.http}/act", json.dumps(body).encode()))
    assert refused.value.code == 400
    error = json.load(refused.value)["error"]
    assert error["reason"] == "message" and error["detail"].startswith(detail)
    well()


def test_what_no_reader_foresaw_is_refused_and_said_once_in_the_log(served, ask_of, monkeypatch, caplog):
    """Were it said each time, one client could fill the disk."""
    monkeypatch.setattr(access, "_SAID", {})
    monkeypatch.setattr(protocol, "prefix_of", lambda _: {}["unforeseen"])
    with native(served) as raw:
        said(raw)
        for _ in range(3):
            raw.send(protocol.pack(ask_of()))
            answer = said(raw)
            assert (answer["reason"], answer["detail"]) == ("message", "it cannot be read: KeyError: 'unforeseen'")
    (line,) = [each for each in caplog.records if each.levelname in ("WARNING", "ERROR")]
    assert "127.0.0.1" in line.getMessage() and line.exc_info is None


def test_a_page_in_a_browser_is_refused(served, well):
    request = urllib.request.Request(f"{served.http}/act", b"{}", {"Origin": "http://somewhere"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert (refused.value.code, json.load(refused.value)["error"]["reason"]) == (403, "origin")
    well()


def upgraded(served):
    """A bare socket on which the WebSocket has begun."""
    host, port = served.address.split(":")
    raw = socket.create_connection((host, int(port)), timeout=60)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    raw.sendall(f"GET /xvla HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n".encode())
    assert b"101" in raw.recv(4096)
    return raw


def test_a_frame_of_2_gb_is_refused_by_its_header(served, well):
    with closing(upgraded(served)) as raw:
        raw.sendall(b"\x82\xff" + struct.pack(">Q", 2 << 30) + b"mask" + b"x" * 1000)
        answer = raw.recv(4096)
        assert answer[0] == 0x88 and struct.unpack(">H", answer[2:4])[0] == 1009, "message too big"
    well()


def test_one_who_says_nothing_is_cut_and_nobody_waits_for_it(policy, profiles, look, monkeypatch):
    with serving(policy, profiles) as served, Client(served.url, robot=PAIR) as client:

        def well():
            return client.ask(look().images, look().state, "go").robot == PAIR

        host, port = served.address.split(":")
        # each is short for its own alone: on a busy machine who speaks may take as long
        with monkeypatch.context() as short, ExitStack() as stack:
            short.setattr(access, "HEAD_S", 0.2)
            silent = [socket.create_connection((host, int(port)), timeout=60) for _ in range(5)]
            for each in silent:
                stack.enter_context(closing(each))
                with suppress(ConnectionError):  # it has been cut
                    each.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nX-A: ")
            assert well()
            assert all(map(cut, silent))
        with monkeypatch.context() as short:
            short.setattr(server, "HELLO_S", 0.2)
            with closing(upgraded(served)) as no_hello:
                assert well()
                assert cut(no_hello)
        assert well()


def test_a_body_that_trickles_in_is_refused_and_nobody_waits_for_it(policy, profiles, look, monkeypatch):
    monkeypatch.setattr(server, "BODY_S", 0.2)
    with serving(policy, profiles) as served, Client(served.url, robot=PAIR) as client:
        host, port = served.address.split(":")
        slow = [socket.create_connection((host, int(port)), timeout=60) for _ in range(5)]
        for each in slow:
            each.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert client.ask(look().images, look().state, "go").robot == PAIR
        for each in slow:
            with closing(each):
                answer = b"".join(iter(partial(each.recv, 4096), b""))
                assert answer.startswith(b"HTTP/1.1 408") and b"the body took longer than 0.2 s" in answer
        assert client.ask(look().images, look().state, "go").robot == PAIR


def test_one_who_keeps_asking_on_a_connection_keeps_it(served, monkeypatch):
    monkeypatch.setattr(access, "HEAD_S", 1.0)
    monkeypatch.setattr(access, "IDLE_S", 1.0)
    while True:
        with closing(http.client.HTTPConnection(served.address, timeout=60)) as connection:
            begun = last = time.monotonic()
            connection.connect()
            slowest = 0.0
            try:
                while last - begun < 1.5:
                    connection.request("GET", "/healthz")
                    assert connection.getresponse().read() == b"OK"
                    now = time.monotonic()
                    slowest, last = max(slowest, now - last), now
                return
            except (ConnectionError, http.client.HTTPException):
                slowest = max(slowest, time.monotonic() - last)
                assert slowest > 0.5, "cut though it asked all the time"


def cut(raw):
    try:
        while received := raw.recv(4096):
            assert received[:1] == b"\x88", "nothing but a goodbye"
    except ConnectionResetError:
        pass
    return True


def test_one_who_asks_too_often_is_refused_and_may_ask_again(served, ask_of, monkeypatch):
    monkeypatch.setattr(server, "RATE", 3.0)
    with native(served) as raw:
        said(raw)
        reasons = []
        while "rate" not in reasons:  # after two, unless so long passes that the bucket fills meanwhile
            raw.send(protocol.pack({"type": "nothing"}))
            reasons.append(said(raw)["reason"])
        assert reasons == ["message"] * (len(reasons) - 1) + ["rate"] and len(reasons) > 2, "the hello counts too"
        while True:  # the bucket fills
            raw.send(protocol.pack(ask_of()))
            if said(raw)["type"] == "chunks":
                break


def test_a_message_of_very_many_parts_is_refused_before_others_wait_for_it(served, well):
    """16 MiB of small numbers, read whole, would hold the event loop for a fifth of a second."""
    with native(served) as raw:
        assert said(raw)["type"] == "welcome"
        raw.send(msgpack.packb({"type": "ask", "id": 1, "observations": [[1] * 4096] * 17}))
        answer = said(raw)
        assert answer["reason"] == "message" and "more than 65536 entries" in answer["detail"]
    well()


def test_connections_of_strangers_shut_nobody_out(policy, profiles, look, monkeypatch):
    """They take no more than their share, and a file descriptor of it only for a moment."""
    monkeypatch.setattr(server, "MAX_CONNECTIONS_EACH", 10)
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 12)
    monkeypatch.setattr(access, "HEAD_S", 600.0)
    with serving(policy, profiles, token=TOKEN) as served, ExitStack() as stack:

        def stranger(number):
            host, port = served.address.split(":")
            raw = socket.create_connection((host, int(port)), timeout=60, source_address=(f"127.0.0.{number}", 0))
            return stack.enter_context(closing(raw))

        kept = [stranger(2) for _ in range(10)]
        assert all(cut(stranger(2)) for _ in range(20)), "of one address"
        with Client(served.url, robot=PAIR, token=TOKEN) as client:
            assert client.ask(look().images, look().state, "go").robot == PAIR
            kept.append(stranger(3))
            assert cut(stranger(4)), "in all"
        for each in kept:
            each.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert each.recv(4096).startswith(b"HTTP/1.1 200") and cut(each), "answered, and not kept"
        with Client(served.url, robot=PAIR, token=TOKEN) as client:
            assert client.ask(look().images, look().state, "go").robot == PAIR


def test_connections_that_cannot_be_accepted_are_said_once(served, well, monkeypatch, caplog):
    """asyncio writes a traceback for each attempt, thousands in a second."""
    inner, failures = access._Listener.accept, iter(range(50))

    def accept(listener):
        if next(failures, None) is not None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return inner(listener)

    monkeypatch.setattr(access, "_SAID", {})
    monkeypatch.setattr(access._Listener, "accept", accept)
    with Client(served.url, robot=PAIR):
        well()
    (line,) = [each for each in caplog.records if each.levelname in ("WARNING", "ERROR")]
    assert line.getMessage() == "connections cannot be accepted: [Errno 24] Too many open files"
    assert line.exc_info is None


@pytest.mark.parametrize(
    ("allowed", "asked_for", "connections"),
    [((1024, 4096), None, 512), ((256, 4096), (1024, 4096), 512), ((256, 256), (256, 256), 128), ((-1, -1), None, 512)],
)
def test_as_many_files_are_asked_for_as_connections_need(monkeypatch, allowed, asked_for, connections):
    asked = []
    monkeypatch.setattr(access.resource, "getrlimit", lambda _: allowed)
    monkeypatch.setattr(access.resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert access._files_for(512) == connections
    assert asked == ([] if asked_for is None else [asked_for])


def test_too_many_connections_of_one_are_refused(served, monkeypatch):
    monkeypatch.setattr(server, "MAX_REQUESTS_EACH", 2)
    with native(served) as one, native(served) as other:
        assert said(one)["type"] == said(other)["type"] == "welcome"
        with pytest.raises(RequestError, match=r"503.*3 requests and connected clients of 127.0.0.1"):
            Client(served.url)
    while True:  # until the server has seen them go
        try:
            Client(served.url, robot=PAIR).close()
            break
        except RequestError:
            continue


def test_an_error_of_the_policy_is_said_and_the_next_answer_comes(served, policy, look, monkeypatch):
    inner = policy.predict

    def predict(observations, **settings):
        if any("break" in seen.instruction for seen in observations):
            raise RuntimeError("out of memory")
        return inner(observations, **settings)

    monkeypatch.setattr(policy, "predict", predict)
    seen = look()
    with Client(served.url, robot=PAIR) as client:
        with pytest.raises(RequestError, match=r"policy: .*RuntimeError: out of memory"):
            client.ask(seen.images, seen.state, "break")
        assert client.ask(seen.images, seen.state, "go").robot == PAIR


def test_actions_that_are_not_finite_are_refused_and_no_others_of_the_pass(served, policy, look, well, monkeypatch):
    inner = policy.predict

    def predict(observations, **settings):
        chunks = inner(observations, **settings)
        for seen, chunk in zip(observations, chunks, strict=True):
            if seen.state[0] == 7:
                chunk.actions[3, 1] = np.nan
        return chunks

    monkeypatch.setattr(policy, "predict", predict)
    spoilt = np.full(12, 7, np.float32)
    with pytest.raises(urllib.error.HTTPError) as refused:
        body = act_body(replace(look(), state=spoilt))
        urllib.request.urlopen(urllib.request.Request(f"{served.http}/act", json.dumps(body).encode()))
    error = json.load(refused.value)["error"]
    assert error["reason"] == "policy"
    assert "robot 'so101_bimanual': actions contain NaN or Inf" in error["detail"]
    well()
    embodiment = look().embodiment
    both = [
        SeededObservation(embodiment, 1, look().images, state, "go", known_as=PAIR) for state in (spoilt, spoilt * 0)
    ]
    bad, good = served.service._predict(both, [None, None])
    assert isinstance(bad, RequestError) and np.isfinite(good.actions).all()


def test_the_client_names_a_server_that_is_not_there_or_another():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnreachableError, match=f"ws://127.0.0.1:{port}/xvla: ConnectionRefusedError"):
        Client(f"127.0.0.1:{port}")
    with pytest.raises(SetupError, match="expected ws://HOST:PORT, or wss"):
        Client("http://127.0.0.1:8000")


def test_a_client_whose_robot_is_not_served_is_told_which_are(served, profiles):
    with pytest.raises(RequestError, match="robot is 'nobody'; expected one of those served: so101_bimanual, widowx"):
        Client(served.url, robot="nobody")
    known = profiles[PAIR].embodiment()
    with Client(served.url, embodiment=known) as client:
        assert client.metadata["admitted"][PAIR]["domain_id"] == known.domain_id
    turned = replace(known, slots=known.slots[::-1])
    with pytest.raises(RequestError, match="expected front, left_wrist, right_wrist, as in training: right_wrist,"):
        Client(served.url, embodiment=turned)
    with pytest.raises(RequestError, match="robot 'strange' is not in the checkpoint, which was trained for"):
        Client(served.url, embodiment=replace(known, robot="strange"))


@pytest.mark.parametrize(
    ("robot", "changes", "said"),
    [
        (PAIR, {"domain_id": 7}, r"so101_bimanual\.domain_id: .* at domain 19; found 7; expected 19"),
        (PAIR, {"action_mode": "franka_joint7"}, "cannot drive so101_bimanual"),
        (ARM, {"action_mode": "agibot_ee6d"}, r"widowx\.action_mode: .* was trained for action mode ee6d"),
        (PAIR, {"waypoint_dt": 0.1}, r"so101_bimanual\.waypoint_dt: .* wrong timing; found 0\.1; expected 0\.0333"),
        (PAIR, {"first_waypoint_offset": 0.5}, r"so101_bimanual\.first_waypoint_offset: .*found 0\.5"),
        (PAIR, {"image_pipeline": "squash"}, r"so101_bimanual\.image_pipeline: .* image pipeline letterbox"),
        (PAIR, {"slots": ("front",)}, r"so101_bimanual\.slots: .* other views, .*expected \['front', 'left_wrist', "),
        (PAIR, {"slots": ("front", "left", "right")}, r"so101_bimanual\.slots: .* was trained with other views"),
        (ARM, {"rot6d": "columns"}, r"widowx\.rot6d: .* was trained with rot6d interleaved; found columns"),
    ],
)
def test_a_robot_described_otherwise_than_in_training_is_refused(served, profiles, robot, changes, said):
    known = profiles[robot].embodiment()
    with pytest.raises(RequestError, match=said):
        Client(served.url, embodiment=replace(known, **changes))
    same = {"waypoint_dt": known.waypoint_dt * 1.001, "denoising_steps": 3}
    with Client(served.url, embodiment=replace(known, **same)) as client:
        assert robot in client.metadata["admitted"]
