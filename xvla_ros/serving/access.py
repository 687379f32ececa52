# SPDX-License-Identifier: Apache-2.0
"""Where something of ours listens, who may ask, and how many: this machine alone, or who has a token or certificate."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import resource
import socket
import ssl
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvla_ros.errors import SetupError

if TYPE_CHECKING:
    from aiohttp import web

_LOG = logging.getLogger(__name__)

HEAD_S = 10.0  # until the head of a first request, or a TLS handshake, has come
IDLE_S = 30.0  # between two requests on one connection
OTHER_FILES = 512  # that a process with a policy has open beside its connections
SAID_S = 60.0  # between two lines of the same text
_SAID: dict[str, float] = {}


@dataclass(frozen=True)
class Access:
    """Where the server listens, and who may ask.

    Attributes:
        host: address; ``0.0.0.0`` for every one.
        port: 0 takes a free one.
        token: that clients must have; empty for none.
        certificate, key: files of the server's certificate, for TLS.
        client_ca: file of the authority that signs clients' certificates, for TLS.
        insecure: accept requests from everyone who can reach the port.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    insecure: bool = False

    def require_safe(self) -> None:
        """Refuse to listen to strangers unasked.

        Raises:
            SetupError: the address is not this machine's own, and nothing says who may ask.
        """
        if self.client_ca is not None and self.certificate is None:
            raise SetupError(
                "a certificate authority for clients without TLS: give the server a certificate too (--tls-cert, "
                "--tls-key)"
            )
        if self.token or self.client_ca is not None or self.insecure or is_loopback(self.host):
            return
        raise SetupError(
            f"host is {self.host}, which other machines can reach; expected 127.0.0.1, or a token (--token-file), or "
            "client certificates (--tls-client-ca); --insecure accepts requests from everyone who can reach the port"
        )

    def tls(self) -> ssl.SSLContext | None:
        """Return how connections are encrypted, None where they are not.

        Raises:
            SetupError: a file that cannot be used.
        """
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise SetupError(f"TLS: {self.certificate}, {self.key or 'no key'}: {error}") from error
        return context


class Connections:
    """The connections of one server: so many, in all and of one address, and none that stays silent.

    What comes beyond is cut when it arrives, before TLS or HTTP is spoken, so that file descriptors remain for others.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._open = Counter[str]()
        # how many requests began and ended on a connection
        self._heard: weakref.WeakKeyDictionary[asyncio.BaseTransport, int] = weakref.WeakKeyDictionary()

    async def listen(self, access: Access, make: Callable[[], asyncio.BaseProtocol]) -> list[asyncio.Server]:
        """Listen where ``access`` says; ``make`` gives the protocol of a new connection.

        Raises:
            OSError: the port is taken.
            SetupError: a file for TLS cannot be used.
        """
        tls, loop = access.tls(), asyncio.get_running_loop()
        timeout = HEAD_S if tls is not None else None
        self._most = _files_for(self._most)
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(_say_seldom)

        def made() -> asyncio.BaseProtocol:
            connection = make()
            self._cut_unless_heard(connection, HEAD_S)
            return connection

        bound = await loop.create_server(asyncio.Protocol, access.host, access.port, start_serving=False)
        listeners = [_Listener(each.dup(), self) for each in bound.sockets]
        bound.close()
        return [await loop.create_server(made, sock=each, ssl=tls, ssl_handshake_timeout=timeout) for each in listeners]

    def take(self, address: str) -> bool:
        """Count a connection; False where it is one too many, and not counted."""
        if self._open.total() < self._most and self._open[address] < self._most_each:
            self._open[address] += 1
            return True
        once_a_minute(
            _LOG.warning, "a connection of %s was cut: it has %d, all together %d; expected at most %d and %d",
            address, self._open[address], self._open.total(), self._most_each, self._most,
        )  # fmt: skip
        return False

    def give_back(self, address: str) -> None:
        """Count a connection no more."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    @contextlib.contextmanager
    def heard(self, request: web.BaseRequest) -> Iterator[None]:
        """Take note of a request while it is answered; where no other follows, its connection is cut."""
        transport = request.transport
        if transport is None:
            yield
            return
        self._heard[transport] = self._heard.get(transport, 0) + 1
        try:
            yield
        finally:
            self._heard[transport] += 1
            self._cut_unless_heard(request.protocol, IDLE_S)

    def _cut_unless_heard(self, connection: asyncio.BaseProtocol, seconds: float) -> None:
        """Cut a connection that says nothing; aiohttp would wait for ever."""

        def heard() -> int:
            transport = getattr(connection, "transport", None)
            return 0 if transport is None else self._heard.get(transport, 0)

        before = heard()

        def cut() -> None:
            transport = getattr(connection, "transport", None)
            if transport is not None and heard() == before:
                once_a_minute(_LOG.info, "a connection that sent nothing within %g s was closed", seconds)
                transport.abort()

        asyncio.get_running_loop().call_later(seconds, cut)


def address_of(listening: Sequence[asyncio.Server]) -> str:
    """Return where servers listen, as ``host:port``; empty where none does."""
    if not listening:
        return ""
    host, port = listening[0].sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Listener(socket.socket):
    """A listening socket that hands on what ``Connections`` takes."""

    def __init__(self, bound: socket.socket, connections: Connections) -> None:
        super().__init__(fileno=bound.detach())
        self._connections = connections

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, peer = super().accept()
        if not self._connections.take(peer[0]):
            accepted.close()
            raise ConnectionAbortedError  # over which the event loop passes
        return _Counted(accepted, partial(self._connections.give_back, peer[0])), peer


class _Counted(socket.socket):
    """A connection that is counted until it is closed."""

    def __init__(self, accepted: socket.socket, gone: Callable[[], None]) -> None:
        super().__init__(fileno=accepted.detach())
        self._gone = weakref.finalize(self, gone)

    def close(self) -> None:
        super().close()
        self._gone()


def _files_for(connections: int) -> int:
    """Return for how many connections file descriptors suffice, where as many are allowed as are needed and can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    if soft < connections + OTHER_FILES:
        soft = connections + OTHER_FILES if hard == resource.RLIM_INFINITY else min(connections + OTHER_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(connections, soft // 2)


def _say_seldom(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say what asyncio says, but of connections that cannot be accepted one line a minute: else thousands a second."""
    if "accept" in context["message"]:
        once_a_minute(_LOG.warning, "connections cannot be accepted: %s", context.get("exception"))
    else:
        loop.default_exception_handler(context)


def once_a_minute(log: Callable[..., None], text: str, *values: object) -> None:
    """Log a line, unless one of the same text was logged within a minute: strangers could fill the disk."""
    now = time.monotonic()
    if now - _SAID.get(text, -math.inf) >= SAID_S:
        _SAID[text] = now
        log(text, *values)


def is_loopback(host: str) -> bool:
    """Say whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(file: Path) -> str:
    """Return the token in the first line of a file.

    Raises:
        SetupError: there is none, or it could be guessed.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"token file {file}: {error}") from error
    token = lines[0].strip() if lines else ""
    if len(token) < 16:
        raise SetupError(
            f"token file {file} holds a token of {len(token)} characters; expected 16 or more: openssl rand -hex 32"
        )
    return token
