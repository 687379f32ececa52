# SPDX-License-Identifier: Apache-2.0
"""``xvla view --web`` in a process of its own beside a robot: what browsers are sent, may ask, and show."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_connection
from urllib.error import HTTPError
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")
pytest.importorskip("aiohttp", reason="needs the serve extra")
pytest.importorskip("websockets", reason="needs the serve extra")

import cv2
from std_msgs.msg import String
from std_srvs.srv import Trigger
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
from browser import AXE, NARROW, WIDE, Browser, needs_chromium
from watched_robot import PROFILE, ROBOT, SIZE, spun

from xvla_ros import ros_env
from xvla_ros.commands import main
from xvla_ros.errors import SetupError
from xvla_ros.msg import EpisodeOutcome
from xvla_ros.nodes import qos
from xvla_ros.nodes.view_node import Controls
from xvla_ros.nodes.web_view import TOO_MANY, WRONG_TOKEN, Request, WebStream
from xvla_ros.robots.actions import Trajectory
from xvla_ros.serving.access import Access

DEADLINE = 240.0  # s, ends what hangs
TOKEN = "a-token-of-24-characters"


@pytest.fixture
def robot(ros_domain):
    """The robot, which also takes instructions, stop and clear, and whose episodes are judged."""
    for made in spun(ros_domain):
        made.told, made.asked = [], []

        def hear_instruction(message, made=made):
            made.told.append(message.data)

        made.node.create_subscription(String, f"/xvla/{ROBOT}/instruction", hear_instruction, qos.LATCHED)

        def serve(name, made=made):
            def answer(_, response):
                made.asked.append(name)
                response.success, response.message = name == "stop", "" if name == "stop" else "/estop says true"
                return response

            made.node.create_service(Trigger, f"/xvla/{name}", answer)

        serve("stop")
        serve("clear_stop")
        made.outcomes = made.node.create_publisher(EpisodeOutcome, f"/sim/{ROBOT}/outcome", qos.LATCHED)
        yield made


@contextmanager
def view(robot, *options):
    """The command beside a robot that publishes; the address of its page."""
    watcher = subprocess.Popen(
        [sys.executable, "-m", "xvla_ros", "view", "--robot", ROBOT, "--web", "--port", "0", *options],
        env=ros_env.child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    ended = threading.Event()
    publishing = threading.Thread(target=lambda: [robot.publish() for _ in iter(lambda: ended.wait(0.02), True)])
    try:
        lines = []
        while (said := re.search(r" on (http\S+/);", "".join(lines[-1:]))) is None:
            lines.append(watcher.stdout.readline())
            assert lines[-1], f"the view ended with {watcher.wait()}: {''.join(lines)}"
        publishing.start()
        yield said[1]
        watcher.send_signal(signal.SIGINT)
        rest, _ = watcher.communicate(timeout=DEADLINE)
        assert watcher.returncode == 0 and "Traceback" not in rest, rest
    finally:
        ended.set()
        if publishing.is_alive():
            publishing.join()
        if watcher.poll() is None:
            watcher.kill()


def socket_of(address, **options):
    return connect(address.replace("http", "ws", 1) + "ws", open_timeout=DEADLINE, **options)


def hear(socket, *kinds):
    """Messages by kind, until one of each has come; pictures are ``picture INDEX``."""
    heard, ends = {}, time.monotonic() + DEADLINE
    while not set(kinds) <= set(heard):
        assert time.monotonic() < ends, heard.keys()
        message = socket.recv(timeout=DEADLINE)
        if isinstance(message, bytes):
            heard[f"picture {message[0]}"] = message[1:]
        else:
            said = json.loads(message)
            heard[said["type"]] = said
    return heard


def test_a_browser_is_sent_everything_and_may_ask_for_nothing(robot):
    with view(robot) as address, socket_of(address) as socket:
        robot.outcomes.publish(EpisodeOutcome(task="touch", episode=2, instruction="touch it", success=True, over=True))
        heard = hear(socket, "hello", "status", "joints", "plan", "episodes", "picture 0", "picture 1", "picture 2")
        socket.send(json.dumps({"do": "stop"}))
        refused = hear(socket, "answer")["answer"]
        assert robot.rivals() == 0
        assert robot.node.count_publishers(f"/xvla/{ROBOT}/instruction") == 0
    assert heard["hello"]["cameras"] == ["front", "left wrist", "right wrist"] and heard["hello"]["control"] is False
    assert [each["name"].replace(" ", "_") for each in heard["hello"]["joints"]] == list(PROFILE.joints.policy_order)
    assert heard["status"]["instruction"] == "wave"
    assert len(heard["joints"]["positions"]) == len(PROFILE.joints.policy_order)
    assert np.shape(heard["plan"]["positions"]) == (30, len(PROFILE.joints.policy_order))
    assert heard["episodes"]["episodes"] == [{"key": "touch 2", "instruction": "touch it", "outcome": "succeeded"}]
    picture = cv2.imdecode(np.frombuffer(heard["picture 1"], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (*SIZE, 3)
    assert not refused["ok"] and "is read-only" in refused["text"] and robot.asked == []


def test_with_control_instruction_stop_and_clear_reach_the_node(robot):
    with view(robot, "--control") as address, socket_of(address) as socket:
        hear(socket, "hello", "status")

        def ask(**request):
            socket.send(json.dumps(request))
            return hear(socket, "answer")["answer"]

        ends = time.monotonic() + DEADLINE
        while not ask(do="instruction", text=" fold the cloth ")["ok"]:  # until the two have found each other
            assert time.monotonic() < ends
        while not ask(do="stop")["ok"]:
            assert time.monotonic() < ends
        while "no node offers the service" in (cleared := ask(do="clear"))["text"]:
            assert time.monotonic() < ends
        wrong = [ask(do="dance"), ask(do="instruction", text="  "), ask(do="instruction", text="x" * 5000)]
    assert robot.told[-1] == "fold the cloth"
    assert robot.asked[-2:] == ["stop", "clear_stop"]
    assert cleared == {"type": "answer", "ok": False, "text": "/estop says true"}
    assert "expected instruction, stop or clear" in wrong[0]["text"]
    assert all("expected 1 to 4096 letters" in each["text"] for each in wrong[1:])


def test_no_request_ends_the_view_and_with_it_the_stop_button(robot):
    with view(robot, "--control") as address, socket_of(address) as socket:
        hear(socket, "hello", "status")
        for broken, said in (
            ('{"do": "instruction", "text": "\\ud800"}', "half of a surrogate pair; expected Unicode text"),
            ("[" * 16000, "is not a request; expected an object with 'do'"),
        ):
            socket.send(broken)
            assert said in hear(socket, "answer")["answer"]["text"]
        ends, answer = time.monotonic() + DEADLINE, {"ok": False}
        while not answer["ok"]:  # until the two have found each other
            assert time.monotonic() < ends
            socket.send(json.dumps({"do": "stop"}))
            answer = hear(socket, "answer")["answer"]
    assert robot.asked[-1] == "stop"


def test_a_request_that_fails_is_answered(robot):
    answers = []
    controls = Controls(robot.node, "/xvla", ROBOT)
    controls.carry_out(Request("instruction", "\ud800", lambda ok, said: answers.append((ok, said))))
    ((ok, said),) = answers
    assert not ok and "instruction failed: UnicodeEncodeError" in said


@pytest.fixture
def page(tmp_path):
    """A page of this process without a node; its token is ``TOKEN``."""
    stream = WebStream(PROFILE, Access(port=0, token=TOKEN))
    yield stream
    stream.close()


def test_without_the_token_nothing_is_seen(page):
    page.status(0, "running", "", "", "wave")
    for said in ('{"token": "wrong"}', "{}", "[1]", '{"token": "\\ud800"}', "[" * 16000):
        with socket_of(page.url) as socket, pytest.raises(ConnectionClosed) as closed:
            socket.send(said)
            socket.recv(timeout=DEADLINE)
        assert closed.value.rcvd.code == WRONG_TOKEN
    with socket_of(page.url) as socket:
        socket.send(json.dumps({"token": TOKEN}))
        assert hear(socket, "status")["status"]["state"] == "running"


def test_a_page_of_another_site_is_refused(page):
    with pytest.raises(InvalidStatus, match="403"):
        socket_of(page.url, origin="http://example.org")


def test_a_name_that_only_leads_to_this_machine_is_refused_where_no_token_is_asked_for():
    stream = WebStream(PROFILE, Access(port=0))
    try:
        for path in ("", "ws"):
            with pytest.raises(HTTPError, match="403"):
                urlopen(UrlRequest(stream.url + path, headers={"Host": "example.org"}), timeout=DEADLINE)
        assert b"<main>" in urlopen(stream.url, timeout=DEADLINE).read()
    finally:
        stream.close()


def test_more_browsers_than_it_serves_are_told(page, monkeypatch):
    monkeypatch.setattr("xvla_ros.nodes.web_view.MOST_BROWSERS", 0)
    with socket_of(page.url) as socket, pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=DEADLINE)
    assert closed.value.rcvd.code == TOO_MANY


def test_silent_connections_are_cut_and_shut_nobody_out(monkeypatch):
    """Were they kept, anybody could take every connection, and with them the stop button."""
    monkeypatch.setattr("xvla_ros.nodes.web_view.MOST_CONNECTIONS_EACH", 3)
    stream = WebStream(PROFILE, Access(port=0, token=TOKEN))
    with ExitStack() as stack:
        stack.callback(stream.close)
        port = int(stream.url.rstrip("/").rsplit(":", 1)[1])

        def silent(address, count):
            to, of = ("127.0.0.1", port), (address, 0)
            return [stack.enter_context(create_connection(to, DEADLINE, of)) for _ in range(count)]

        monkeypatch.setattr("xvla_ros.serving.access.HEAD_S", DEADLINE)
        assert is_cut(silent("127.0.0.2", 6)[-1]), "one too many of an address"
        with socket_of(stream.url) as socket:
            socket.send(json.dumps({"token": TOKEN}))
            hear(socket, "hello")
        monkeypatch.setattr("xvla_ros.serving.access.HEAD_S", 0.1)
        assert all(map(is_cut, silent("127.0.0.3", 3))), "these say nothing"


def is_cut(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_who_is_slow_gets_the_newest_and_holds_nobody_up(page):
    with socket_of(page.url, max_queue=1) as socket:
        socket.send(json.dumps({"token": TOKEN}))
        hear(socket, "hello")
        for count in range(500):
            page.picture("front", count, bytes(200_000))
            page.status(count, "running", "", str(count), "")
        while hear(socket, "status")["status"]["detail"] != "499":
            pass
        path = np.full((2, len(PROFILE.joints.policy_order)), np.nan)
        page.predicted(Trajectory(ROBOT, PROFILE.joints.policy_order, np.array([10**9, 2 * 10**9]), path))
        plan = hear(socket, "plan")["plan"]
    assert plan["times"] == [1.0, 2.0] and plan["positions"][0][0] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--web", "--save", "x.rrd"], "--save applies to the Rerun viewer"),
        (["--control"], "--control applies to the web page only; add --web"),
        (["--port", "1"], "--port applies to the web page only; add --web"),
        (["--web", "--host", "0.0.0.0"], "expected 127.0.0.1, or a token (--token-file)"),
    ],
)
def test_what_does_not_go_together_is_named(options, message, capsys):
    assert main(["view", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(page):
    port = int(page.url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(SetupError, match=f"127.0.0.1:{port} is not available for listening"):
        WebStream(PROFILE, Access(port=port))


@needs_chromium
def test_the_page_is_shown_at_the_width_of_a_desktop_and_of_a_phone(robot, tmp_path):
    with view(robot, "--control") as address, Browser(tmp_path / "browser") as browser:
        browser.resize(WIDE)
        outcome = {"task": "touch", "episode": 1, "instruction": "touch it", "over": True, "success": True}
        robot.outcomes.publish(EpisodeOutcome(**outcome))
        browser.open(address)
        browser.wait("document.querySelector('#cameras img')?.naturalWidth > 0")
        browser.wait("document.querySelectorAll('#episodes tr').length === 1")
        browser.wait("[...document.querySelectorAll('.joint b')].every(each => each.textContent !== '–')")
        for width in (WIDE, NARROW):
            browser.resize(width)
            assert browser.too_wide() <= 0
            if AXE.is_file():
                browser.ask("Page.setBypassCSP", enabled=True)
                assert browser.violations() == []
            browser.screenshot(tmp_path / f"view-{width}.png")
            shown = cv2.imread(str(tmp_path / f"view-{width}.png"))
            assert shown.shape[1] == width and shown.std() > 10
        assert browser.run("document.querySelector('#cameras img').alt") == "Camera front"
        browser.run("document.getElementById('words').value = 'wave'; document.querySelector('#say button').click()")
        browser.wait("document.getElementById('answer').textContent === '“wave” was sent'")
        browser.run("document.getElementById('stop').click()")
        browser.wait("document.getElementById('answer').textContent === 'stopped'")
    assert robot.told[-1] == "wave" and robot.asked[-1] == "stop"


@needs_chromium
def test_a_page_whose_view_has_ended_says_so(tmp_path):
    stream = WebStream(PROFILE, Access(port=0))
    with Browser(tmp_path / "browser") as browser:
        browser.open(stream.url)
        browser.wait("document.getElementById('robot').textContent === 'so101_bimanual'")
        browser.wait("document.getElementById('why').textContent.includes('has not said anything yet')")
        stream.close()
        browser.wait("document.getElementById('state').textContent === 'not connected'")
        assert "is lost" in browser.run("document.getElementById('lost').textContent")
        assert browser.run("document.getElementById('control').hidden")
