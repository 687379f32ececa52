# SPDX-License-Identifier: Apache-2.0
"""What is seen of one robot, as a page in a browser: ``xvla view --web``. No rclpy here.

A thread of its own serves ``GET /``, one HTML file without anything from elsewhere, and the WebSocket ``/ws``. There
the newest of everything is sent: a browser that is too slow misses what came in between, and nobody waits for it.

=========  ====================================================================================================
message    what
=========  ====================================================================================================
binary     a picture: one byte with the camera's index, then a JPEG
hello      robot, ``cameras``, ``joints`` with their limits, ``control``: whether requests are taken
status     ``state``, ``reason``, ``detail``, ``instruction``
joints     ``time`` in s of ROS time, ``positions`` of every joint in rad or m, null where none is known
plan       the newest chunk: ``times`` in s of ROS time, ``positions`` of every waypoint
episodes   the latest, the newest last: ``key``, ``instruction``, ``outcome``
answer     to a request: ``ok``, ``text``
=========  ====================================================================================================

A browser sends ``{"token": …}`` first; with ``control`` also ``{"do": "instruction", "text": …}``, ``{"do": "stop"}``
and ``{"do": "clear"}``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import queue
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSMsgType, web

from xvla_ros import limits
from xvla_ros.errors import SetupError
from xvla_ros.robots.actions import Trajectory
from xvla_ros.robots.profile import Profile
from xvla_ros.serving.access import Access, Connections, address_of, is_loopback
from xvla_ros.types import NS

PAGE = Path(__file__).with_name("web_view.html")
MOST_BROWSERS = 8
MOST_CONNECTIONS, MOST_CONNECTIONS_EACH = 128, 64  # a browser opens several; of one address
MOST_BYTES, MOST_LETTERS = 16384, 4096  # of a message; of an instruction
MOST_EPISODES = 20
TOKEN_S = 10.0  # until the token has come
SEND_S = 10.0  # until a message has gone
START_S = 10.0
WRONG_TOKEN, TOO_MANY = 4401, 4429  # closing codes of the WebSocket
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Request:
    """What a browser asks for; ``answer`` takes whether it was done, and a sentence, from any thread."""

    do: Literal["instruction", "stop", "clear"]
    text: str
    answer: Callable[[bool, str], None]


class WebStream:
    """Serves one robot to browsers, from its making to ``close``.

    Args:
        profile: the robot.
        access: where to listen, and who may look.
        control: whether the instruction, stop and clear are taken; they go to ``requests``.

    Raises:
        SetupError: others could reach it without a token, or the port cannot be had.
    """

    def __init__(self, profile: Profile, access: Access, *, control: bool = False) -> None:
        access.require_safe()
        self.requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._profile, self._access, self._control = profile, access, control
        self._cameras, self._joints = tuple(profile.cameras.slots), tuple(profile.joints.policy_order)
        self._positions: dict[str, float] = {}
        self._time = 0
        self._episodes: dict[str, dict[str, str]] = {}
        self._newest: dict[str, tuple[int, str | bytes]] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._connections = Connections(MOST_CONNECTIONS, MOST_CONNECTIONS_EACH)
        self._browsers: dict[web.WebSocketResponse, asyncio.Event] = {}
        self._loop = asyncio.new_event_loop()
        self._ended: asyncio.Event | None = None
        self._address = ""
        self._failure: BaseException | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="web view", daemon=True)
        self._thread.start()
        if not started.wait(START_S) or self._failure is not None:
            raise SetupError(
                f"{access.host}:{access.port} is not available for listening: {self._failure or 'no answer'}"
            )

    @property
    def url(self) -> str:
        """Address of the page; a token belongs behind it, as ``#token=…``."""
        return f"{'http' if self._access.certificate is None else 'https'}://{self._address}/"

    # what the node shows

    def picture(self, camera: str, stamp: int, jpeg: bytes) -> None:
        """Show a picture, JPEG."""
        del stamp
        self._show(f"picture {camera}", bytes([self._cameras.index(camera)]) + jpeg)

    def executed(self, joint: str, stamp: int, position: float) -> None:
        """Take the measured position, rad or m, of a joint by its policy name; shown with the next ``flush``."""
        self._positions[joint], self._time = position, max(stamp, self._time)

    def predicted(self, path: Trajectory) -> None:
        """Show what a chunk plans."""
        columns = [path.joints.index(joint) for joint in self._joints]
        self._tell("plan", times=(path.times / NS).tolist(), positions=_numbers(path.positions[:, columns]))

    def status(self, stamp: int, state: str, reason: str, detail: str, instruction: str) -> None:
        """Show the robot's state."""
        del stamp
        self._tell("status", state=state, reason=reason, detail=detail, instruction=instruction)

    def episode(self, key: str, instruction: str, outcome: str) -> None:
        """Show how an episode stands; the same key again changes its entry."""
        self._episodes[key] = {"key": key, "instruction": instruction, "outcome": outcome}
        while len(self._episodes) > MOST_EPISODES:
            del self._episodes[next(iter(self._episodes))]
        self._tell("episodes", episodes=list(self._episodes.values()))

    def flush(self) -> None:
        """Send the joints."""
        if self._positions:
            positions = [self._positions.get(joint, float("nan")) for joint in self._joints]
            self._tell("joints", time=self._time / NS, positions=_numbers(np.array(positions)))

    def close(self) -> None:
        """Say goodbye to every browser, and end."""
        ended = self._ended
        if ended is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(ended.set)
        self._thread.join()

    def _tell(self, kind: str, **fields: Any) -> None:
        self._show(kind, json.dumps({"type": kind, **fields}))

    def _show(self, what: str, message: str | bytes) -> None:
        with self._lock:
            self._count += 1
            self._newest[what] = self._count, message
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    # the thread of the server

    def _wake(self) -> None:
        for event in self._browsers.values():
            event.set()

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run(started))
        except (OSError, SetupError) as error:
            self._failure = error
        finally:
            started.set()
            self._loop.close()

    async def _run(self, started: threading.Event) -> None:
        self._ended = asyncio.Event()
        app = web.Application(middlewares=[self._guard], client_max_size=MOST_BYTES)
        app.add_routes([web.get("/", self._page), web.get("/ws", self._socket)])
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        listening: list[asyncio.Server] = []
        try:
            if runner.server is None:
                raise RuntimeError("the server has not been set up")
            listening = await self._connections.listen(self._access, runner.server)
            self._address = address_of(listening)
            started.set()
            await self._ended.wait()
            await asyncio.gather(*(each.close() for each in list(self._browsers)), return_exceptions=True)
        finally:
            for each in listening:
                each.close()
            await runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer a request; only a WebSocket, which asks for the token, keeps its connection."""
        with self._connections.heard(request):
            try:
                response = await handler(request)
            except web.HTTPException as error:
                error.force_close()
                raise
        if isinstance(response, web.Response):
            response.force_close()
        return response

    def _admit(self, request: web.Request) -> None:
        """Refuse a page of another site, and a name that only pretends to be this machine's."""
        host = urlsplit(f"//{request.host}").hostname or ""
        own = is_loopback(host) or host == self._access.host
        if not (self._access.token or self._access.client_ca is not None or self._access.insecure or own):
            raise web.HTTPForbidden(text=f"the page was requested with the host {host}; expected {self._access.host}\n")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(
                text=f"the request came from a page of {origin}; expected the page of {request.host}\n"
            )

    async def _page(self, request: web.Request) -> web.Response:
        self._admit(request)
        return web.Response(text=PAGE.read_text(encoding="utf-8"), content_type="text/html", headers=HEADERS)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        self._admit(request)
        socket = web.WebSocketResponse(heartbeat=20.0, max_msg_size=MOST_BYTES)
        await socket.prepare(request)
        if len(self._browsers) >= MOST_BROWSERS:
            await socket.close(code=TOO_MANY, message=f"{MOST_BROWSERS} browsers are already connected".encode())
        elif not await self._is_known(socket):
            await socket.close(code=WRONG_TOKEN, message=b"the token is missing or wrong")
        else:
            self._browsers[socket] = asyncio.Event()
            sender = asyncio.create_task(self._send(socket))
            try:
                async for message in socket:
                    if message.type == WSMsgType.TEXT:
                        self._take(socket, message.data)
            finally:
                sender.cancel()
                del self._browsers[socket]
        return socket

    async def _is_known(self, socket: web.WebSocketResponse) -> bool:
        if not self._access.token:
            return True
        try:
            said = json.loads(await socket.receive_str(timeout=TOKEN_S))
            given = str(said["token"]).encode()
        except (ValueError, KeyError, TypeError, RecursionError, TimeoutError):
            return False
        return hmac.compare_digest(given, self._access.token.encode())

    async def _send(self, socket: web.WebSocketResponse) -> None:
        """Send what is newer than what this browser has, again and again; one at a time."""
        sent, event = 0, self._browsers[socket]
        try:
            await socket.send_str(json.dumps(self._hello()))
            while not socket.closed:
                event.clear()
                with self._lock:
                    newer = sorted(each for each in self._newest.values() if each[0] > sent)
                for count, message in newer:
                    async with asyncio.timeout(SEND_S):
                        await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))
                    sent = count
                await event.wait()
        except (ConnectionError, TimeoutError):  # it has gone, or takes nothing any more
            await socket.close()

    def _hello(self) -> dict[str, Any]:
        limits = _numbers([(joint.lower, joint.upper) for joint in self._profile.joints.ordered])
        joints = [
            {"name": name.replace("_", " "), "lower": lower, "upper": upper}
            for name, (lower, upper) in zip(self._joints, limits, strict=True)
        ]
        cameras = [slot.replace("_", " ") for slot in self._cameras]
        robot = self._profile.name
        return {"type": "hello", "robot": robot, "cameras": cameras, "joints": joints, "control": self._control}

    def _take(self, socket: web.WebSocketResponse, text: str) -> None:
        def answer(ok: bool, said: str) -> None:
            def send() -> None:
                if not socket.closed:
                    message = json.dumps({"type": "answer", "ok": ok, "text": said})
                    self._loop.create_task(_forgiving(socket, message))

            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(send)

        try:
            said = json.loads(text)
            if "token" in said:  # of a page whose server has none
                return
            do, words = said["do"], said.get("text", "")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return answer(False, f"{text[:80]!r} is not a request; expected an object with 'do'")
        if do not in ("instruction", "stop", "clear"):
            return answer(False, f"do is {str(do)[:40]!r}; expected instruction, stop or clear")
        if not self._control:
            return answer(
                False, "this page is read-only; to control the robot start it with: xvla view --web --control"
            )
        words = words.strip() if isinstance(words, str) else ""
        if do == "instruction" and not 0 < len(words) <= MOST_LETTERS:
            return answer(False, f"the instruction is empty or too long; expected 1 to {MOST_LETTERS} letters")
        if not limits.is_text(words):
            return answer(False, "the instruction has half of a surrogate pair; expected Unicode text")
        self.requests.put(Request(do, words, answer))


async def _forgiving(socket: web.WebSocketResponse, message: str) -> None:
    try:
        await socket.send_str(message)
    except ConnectionError:
        return


def _numbers(values: Any) -> Any:
    """Return an array as lists, rounded, with None in the place of what is not finite: JSON has no NaN."""
    rounded = np.round(np.asarray(values, np.float64), 5).astype(object)
    rounded[~np.isfinite(np.asarray(values, np.float64))] = None
    return rounded.tolist()
