# SPDX-License-Identifier: Apache-2.0
"""One port for three protocols: who may enter, how much of everything, and what is counted.

``POST /act`` and the WebSockets at ``/`` (openpi) and ``/xvla`` (ours), ``GET /healthz``, ``/metadata``, ``/metrics``.
aiohttp speaks HTTP; ``fronts`` reads the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial

from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Count

from xvla_ros.errors import RequestError
from xvla_ros.serving import fronts, protocol
from xvla_ros.serving.access import IDLE_S, Access, Connections, address_of
from xvla_ros.serving.service import PolicyService

_LOG = logging.getLogger(__name__)

HELLO_S = 10.0  # until the first message of a client of ours has come
BODY_S = 10.0  # until a body has come, or an answer has gone
HEARTBEAT_S = 20.0
STUCK_S = 60.0  # of one pass, after which the server calls itself unwell
CLOSE_S = 2.0
MAX_CONNECTIONS, MAX_CONNECTIONS_EACH = 512, 128
MAX_REQUESTS, MAX_REQUESTS_EACH = 128, 32  # in progress; a WebSocket is one of them
RATE = 200.0  # requests a second from one address, and as many at once
ACT, OPENPI, NATIVE = "act", "openpi", "xvla"
STATUS = {protocol.RATE: 429, protocol.OVERLOADED: 503, protocol.LATE: 503, protocol.POLICY: 500}


class Metrics:
    """What is counted, for Prometheus."""

    def __init__(self, service: PolicyService, connections: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Count(
            "xvla_requests", "Requests by protocol and outcome: ok, or the reason of the refusal",
            ("protocol", "outcome"), registry=self._registry,
        )  # fmt: skip
        buckets = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
        self.seconds = Histogram(
            "xvla_answer_seconds", "Time from a request to its answer, waiting included", buckets=buckets,
            registry=self._registry,
        )  # fmt: skip
        self.inference = Histogram(
            "xvla_inference_seconds",
            "Time of the pass that produced an answer",
            buckets=buckets,
            registry=self._registry,
        )
        batches = Histogram(
            "xvla_batch_size", "Observations in one pass", buckets=(1, 2, 4, 8, 16), registry=self._registry
        )
        service.batch_sizes = batches.observe
        gauges = {
            "xvla_connections": ("Open connections", connections),
            "xvla_waiting": ("Observations that are waiting", lambda: service.waiting),
        }
        for name, (said, function) in gauges.items():
            Gauge(name, said, registry=self._registry).set_function(function)

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)


class Rates:
    """How often each address asks: a bucket of ``RATE`` tokens, filled as fast."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}

    def require(self, address: str) -> None:
        """Count one question.

        Raises:
            RequestError: the address asks too often.
        """
        now = time.monotonic()
        left, since = self._left.get(address, (RATE, now))
        left = min(left + (now - since) * RATE, RATE)
        if left < 1.0:
            raise RequestError(protocol.RATE, f"{address} sends more than {RATE:g} requests per second")
        if len(self._left) > 10 * MAX_CONNECTIONS:
            self._left.clear()
        self._left[address] = left - 1.0, now


class PolicyServer:
    """Serves a ``PolicyService`` on one port, from ``start`` to ``stop``; every method runs in the event loop."""

    def __init__(self, service: PolicyService, access: Access) -> None:
        access.require_safe()
        access.tls()  # a file that cannot be used is named before anything starts
        self._service, self._access = service, access
        self._rates, self._active = Rates(), Counter[str]()
        self._connections = Connections(MAX_CONNECTIONS, MAX_CONNECTIONS_EACH)
        self._sockets: set[web.WebSocketResponse] = set()
        app = web.Application(middlewares=[self._guard], client_max_size=protocol.MAX_MESSAGE)
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/metadata", self._metadata),
                web.get("/metrics", self._metrics_page),
                web.post("/act", self._act),
                web.get("/", self._openpi),
                web.get(protocol.PATH, self._native),
            ]
        )
        # broken HTTP is answered, and not told in the log, which strangers could fill
        quiet = logging.getLogger(f"{__name__}.http")
        quiet.setLevel(logging.CRITICAL)
        # who has gone is not computed for: its handler is cancelled, which takes its asks out of the queue
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=IDLE_S, logger=quiet, handler_cancellation=True
        )
        self.metrics = Metrics(service, lambda: len(self._sockets))
        self._listening: list[asyncio.Server] = []

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        return address_of(self._listening)

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the port is taken.
        """
        self._service.start()
        await self._runner.setup()
        if self._runner.server is None:
            raise RuntimeError("the server has not been set up")
        self._listening = await self._connections.listen(self._access, self._runner.server)

    async def stop(self) -> None:
        """Say goodbye to every client and end."""
        for each in self._listening:
            each.close()
        goodbye = (each.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends") for each in set(self._sockets))
        await asyncio.gather(*goodbye, return_exceptions=True)
        await self._runner.cleanup()
        self._service.stop()

    # connections

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        address = request.remote or ""
        self._active[address] += 1
        try:
            with self._connections.heard(request):
                self._admit(request, address)
                return await handler(request)
        except RequestError as error:
            _LOG.info("%s %s: %s", address, request.path, error)
            return _refusal(STATUS.get(error.reason, 400), error.reason, error.detail)
        except web.HTTPException as error:
            error.force_close()  # who is refused keeps no connection
            raise
        except ConnectionError:
            return web.Response(status=400)  # it has gone, and reads no answer
        except Exception:
            _LOG.exception("%s %s failed", address, request.path)
            raise
        finally:
            self._active[address] -= 1
            if not self._active[address]:
                del self._active[address]

    def _admit(self, request: web.Request, address: str) -> None:
        """Refuse who may not ask, or asks for too much."""
        own, total = self._active[address], self._active.total()
        if total > MAX_REQUESTS or own > MAX_REQUESTS_EACH:
            detail = (
                f"{own} requests and connected clients of {address}, all together {total}; expected at most "
                f"{MAX_REQUESTS_EACH} and {MAX_REQUESTS}"
            )
            raise _http(web.HTTPServiceUnavailable, "connections", detail)
        if "Origin" in request.headers:
            raise _http(web.HTTPForbidden, "origin", "the request came from a page in a browser; expected a program")
        if request.path == "/healthz" or not self._access.token:
            return
        given = request.headers.get("Authorization", "").partition(" ")[2].strip()
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._access.token.encode()):
            detail = "Authorization is missing, or its token is wrong; expected 'Bearer TOKEN'"
            raise _http(web.HTTPUnauthorized, "token", detail)

    # pages

    async def _health(self, _: web.Request) -> web.Response:
        unwell = self._service.unwell(STUCK_S)
        response = web.Response(status=503 if unwell else 200, text=unwell or "OK")
        if self._access.token:  # which this needs not: strangers keep no connection
            response.force_close()
        return response

    async def _metadata(self, _: web.Request) -> web.Response:
        return web.json_response(self._service.metadata())

    async def _metrics_page(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _act(self, request: web.Request) -> web.Response:
        begun, address = time.monotonic(), request.remote or ""
        try:
            self._rates.require(address)
            try:
                async with asyncio.timeout(BODY_S):
                    body = await request.read()
            except TimeoutError:
                raise _http(web.HTTPRequestTimeout, "slow", f"the body took longer than {BODY_S:g} s") from None
            answers = await self._service.answer([lambda: fronts.act_question(self._service, body)], address)
        except RequestError as error:
            self._count(ACT, error.reason)
            raise
        self._count(ACT, "ok", begun, answers[0].chunk.inference_ms)
        return web.json_response(fronts.act_answer(answers[0]))

    # sockets

    async def _openpi(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return web.Response(text="xvla serve: POST /act, WebSockets at / (openpi) and /xvla; /healthz, /metadata\n")
        async with self._socket(request) as socket:
            await _send(socket, fronts.openpi_metadata(self._service))
            async with contextlib.aclosing(self._messages(socket)) as messages:
                async for data in messages:
                    await self._openpi_answer(socket, data, request.remote or "")
        return socket

    async def _openpi_answer(self, socket: web.WebSocketResponse, data: bytes, address: str) -> None:
        begun = time.monotonic()
        try:
            self._rates.require(address)
            message = protocol.unpack(data)
            answers = await self._service.answer([lambda: fronts.openpi_question(self._service, message)], address)
        except RequestError as error:
            self._count(OPENPI, error.reason)
            async with asyncio.timeout(BODY_S):
                await socket.send_str(str(error))
            return
        self._count(OPENPI, "ok", begun, answers[0].chunk.inference_ms)
        await _send(socket, fronts.openpi_answer(answers[0], (time.monotonic() - begun) * 1e3))

    async def _native(self, request: web.Request) -> web.StreamResponse:
        async with self._socket(request) as socket:
            try:
                async with asyncio.timeout(HELLO_S):
                    hello = await _received(socket)
                if hello is None:
                    return socket
                address = request.remote or ""
                self._rates.require(address)
                said = protocol.unpack(hello)
                session, welcome = await self._service.beside(
                    partial(fronts.native_hello, self._service, said), address
                )
            except RequestError as error:
                self._count(NATIVE, error.reason)
                await _send(socket, fronts.native_error(None, error))
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=error.reason.encode())
                return socket
            await _send(socket, protocol.pack(welcome))
            async with contextlib.aclosing(self._messages(socket)) as messages:
                async for data in messages:
                    await self._native_answer(socket, session, data, request.remote or "")
        return socket

    async def _native_answer(
        self, socket: web.WebSocketResponse, session: fronts.NativeSession, data: bytes, address: str
    ) -> None:
        begun, number = time.monotonic(), None
        try:
            self._rates.require(address)
            message = protocol.unpack(data)
            if message.get("type") == "load":
                await _send(socket, protocol.pack({"type": "load", **self._service.load()}))
                return
            number = message["id"] if type(message.get("id")) is int else None
            number, deadline, questions = fronts.native_questions(self._service, session, message)
            answers = await self._service.answer(list(questions), address, deadline)
        except RequestError as error:
            self._count(NATIVE, error.reason)
            await _send(socket, fronts.native_error(number, error))
            return
        self._count(NATIVE, "ok", begun, answers[0].chunk.inference_ms)
        server_ms = (time.monotonic() - begun) * 1e3
        await _send(socket, fronts.native_answer(number, answers, server_ms, self._service.load()))

    @contextlib.asynccontextmanager
    async def _socket(self, request: web.Request) -> AsyncIterator[web.WebSocketResponse]:
        # no compression: pictures are compressed already, and a small message must not unpack to a large one
        socket = web.WebSocketResponse(
            max_msg_size=protocol.MAX_MESSAGE, heartbeat=HEARTBEAT_S, compress=False, timeout=CLOSE_S, decode_text=False
        )
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            yield socket
        except (TimeoutError, ConnectionError):
            _LOG.info("%s: the client is too slow, or disconnected", request.remote)
        finally:
            self._sockets.discard(socket)
            await socket.close()

    async def _messages(self, socket: web.WebSocketResponse) -> AsyncGenerator[bytes, None]:
        """Yield the binary messages of a client; the next is yielded when the last has been answered.

        It is waited for meanwhile: only who waits answers pings, and clients leave a server that answers none.
        """
        coming = asyncio.ensure_future(_received(socket))
        try:
            while (data := await coming) is not None:
                coming = asyncio.ensure_future(_received(socket))
                yield data
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    def _count(self, front: str, outcome: str, begun: float | None = None, inference_ms: float = 0.0) -> None:
        self.metrics.requests.labels(front, outcome).inc()
        if begun is not None:
            self.metrics.seconds.observe(time.monotonic() - begun)
            self.metrics.inference.observe(inference_ms / 1e3)


async def _received(socket: web.WebSocketResponse) -> bytes | None:
    """Return the next binary message of a client; None where the connection ends."""
    received = await socket.receive()
    if received.type is WSMsgType.BINARY:
        data: bytes = received.data
        return data
    if received.type is WSMsgType.TEXT:
        await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"expected binary messages")
    return None  # closed, closing, or an error that aiohttp has answered: a frame too large, a broken one


async def _send(socket: web.WebSocketResponse, data: bytes) -> None:
    """Send a message to a client that reads; one that does not is left."""
    async with asyncio.timeout(BODY_S):
        await socket.send_bytes(data)


def _refusal(status: int, reason: str, detail: str) -> web.Response:
    return web.json_response({"error": {"reason": reason, "detail": detail}}, status=status)


def _http(kind: type[web.HTTPException], reason: str, detail: str) -> web.HTTPException:
    said = _refusal(kind.status_code, reason, detail)
    return kind(text=said.text, content_type="application/json")
