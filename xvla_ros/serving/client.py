# SPDX-License-Identifier: Apache-2.0
"""Asking a policy server, from any Python program: no torch, no ROS."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike, NDArray
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from xvla_ros.errors import RequestError, SetupError, UnreachableError
from xvla_ros.serving import protocol
from xvla_ros.types import ActionChunk, Embodiment, Observation, Prefix

CONNECT_S = 5.0
PING_S = 20.0
CLOSE_S = 0.5
SHORTEST_S = 1e-3  # of a deadline
SCHEMES = {"ws": 8000, "wss": 8000}
# what a server that comes back, or one beside others, must say as the first did
SAME = ("digest", "chunk_size", "action_mode", "views", "domains", "trained_domains", "admitted")


def url_of(server: str) -> str:
    """Return the URL of a server given as ``host``, ``host:port``, ``ws://…`` or ``wss://…``.

    Raises:
        SetupError: another scheme, no host, or no port of 1 … 65535.
    """
    scheme, found, rest = server.strip().rpartition("://")
    scheme = scheme if found else "ws"
    if scheme not in SCHEMES or not rest.strip("/"):
        raise SetupError(f"server is {server!r}; expected ws://HOST:PORT, or wss://HOST:PORT for TLS")
    host = rest.rstrip("/").removesuffix(protocol.PATH)
    if not host.rpartition("]")[2].rpartition(":")[1]:
        host = f"{host}:{SCHEMES[scheme]}"
    try:
        parts = urlsplit(f"{scheme}://{host}")
        is_whole = bool(parts.hostname and parts.port)
    except ValueError:
        is_whole = False
    if not is_whole:
        raise SetupError(
            f"server is {server!r}; expected HOST:PORT with a port of 1 … 65535, and an IPv6 address in brackets: "
            f"[::1]:{SCHEMES[scheme]}"
        )
    return f"{scheme}://{host}{protocol.PATH}"


def tls_of(url: str, ca: Path | None, certificate: Path | None = None) -> ssl.SSLContext | None:
    """Return how a connection to a URL is encrypted: None for ``ws``.

    Raises:
        SetupError: a file that cannot be used.
    """
    if not url.startswith("wss"):
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(
            f"TLS: {ca or 'the system authorities'}, {certificate or 'no certificate'}: {error}"
        ) from error
    return context


class Link:
    """One connection to one server; for one thread at a time.

    Args:
        url: of ``url_of``.
        robots: that the hello names: maps of ``name`` and ``profile``, or of ``embodiment``.
        token: empty for none; white space around it does not count.
        tls: of ``tls_of``.
        timeout: s until it is connected and welcome.

    Raises:
        SetupError: the token has a character that no HTTP header has.
        UnreachableError: nobody answers there, or not in our protocol.
        RequestError: the server refuses, and says why.
    """

    def __init__(
        self,
        url: str,
        robots: Sequence[Mapping[str, Any]] = (),
        *,
        token: str = "",
        tls: ssl.SSLContext | None = None,
        timeout: float = CONNECT_S,
    ) -> None:
        self.url, self.sent = url, 0
        self._number = 0
        self._lock = threading.Lock()
        token = token.strip()  # as a file has it
        if not token.isprintable() or max(token, default="") > "\xff":
            raise SetupError("the token has a character that no HTTP header can carry; expected one line of letters")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            opened = connect(
                url, ssl=tls, additional_headers=headers, compression=None, max_size=protocol.MAX_MESSAGE,
                open_timeout=timeout, ping_interval=PING_S, ping_timeout=None, close_timeout=CLOSE_S, proxy=None,
            )  # fmt: skip
            self._socket: ClientConnection = opened.__enter__()
        except InvalidStatus as error:
            said = error.response.body.decode("utf-8", "replace")[:300]
            refused = RequestError("access", f"{url} refuses with {error.response.status_code}: {said}")
            raise refused from error
        except (OSError, InvalidHandshake, InvalidURI, EOFError, ConnectionClosed) as error:
            raise UnreachableError(f"{url}: {type(error).__name__}: {error}") from error
        try:
            hello = {"type": "hello", "protocol": protocol.VERSION, "robots": list(robots)}
            self.metadata = self._exchange(hello, "welcome", timeout)
        except BaseException:
            self.close()
            raise

    def ask(
        self,
        observations: Sequence[Observation],
        prefixes: Sequence[Prefix | None] = (),
        *,
        seed: int | None = None,
        timeout: float,
        quality: int | None = protocol.JPEG_QUALITY,
    ) -> tuple[list[ActionChunk], dict[str, Any]]:
        """Return a chunk for each observation, and the server's answer beside them: ``timing`` and ``load``.

        After an error that is no refusal the connection is closed, so that no late answer is ever read.

        Raises:
            UnreachableError: no answer within ``timeout`` s, or the connection broke.
            RequestError: the server refuses, and says why.
        """
        with self._lock:
            self._number += 1
            pairs = zip(observations, prefixes or [None] * len(observations), strict=True)
            message = {
                "type": "ask",
                "id": self._number,
                "deadline_ms": min(timeout, protocol.LONGEST_WAIT_S) * 1e3,
                "seed": seed,
                "observations": [protocol.observation_message(seen, prefix, quality) for seen, prefix in pairs],
            }
            answer = self._exchange(message, "chunks", timeout)
            chunks = answer.get("chunks")
            if answer.get("id") != self._number or not isinstance(chunks, list) or len(chunks) != len(observations):
                self.close()
                raise UnreachableError(f"{self.url}: an answer to another request")
            try:
                answered = zip(chunks, observations, strict=True)
                return [protocol.answer_to(seen, protocol.chunk_in(each)) for each, seen in answered], answer
            except RequestError as error:
                self.close()
                raise UnreachableError(f"{self.url}: an answer that cannot be used: {error.detail}") from error

    def load(self, timeout: float = CONNECT_S) -> dict[str, Any]:
        """Return how long answers take at the server: ``inference_ms``, ``queue_ms``, ``waiting``.

        Raises:
            UnreachableError, RequestError: as ``ask``.
        """
        with self._lock:
            return self._exchange({"type": "load"}, "load", timeout)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    @property
    def is_open(self) -> bool:
        """Whether the connection is there, as far as is known."""
        return self._socket.protocol.state.name == "OPEN"

    def _exchange(self, message: Mapping[str, Any], expected: str, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        data = protocol.pack(message)
        if len(data) >= protocol.MAX_MESSAGE:
            raise RequestError(
                protocol.MESSAGE,
                f"{self.url}: the message has {len(data)} bytes; expected fewer than {protocol.MAX_MESSAGE}: send "
                "smaller images, or JPEGs (quality is not None)",
            )
        try:
            # a network that stalls takes no more bytes: without this, sending would wait until TCP gives up
            self._socket.socket.settimeout(max(timeout, SHORTEST_S))
            self._socket.send(data)
            self.sent += len(data)
            received = self._socket.recv(timeout=max(deadline - time.monotonic(), 0.0))
        except TimeoutError:
            self._socket.close_socket()  # a goodbye would wait for the answer of one that does not answer
            raise UnreachableError(f"{self.url}: no answer within {timeout:g} s") from None
        except (ConnectionClosed, OSError) as error:
            if isinstance(error.__cause__, TimeoutError) and time.monotonic() >= deadline:
                raise UnreachableError(f"{self.url}: it accepted no request within {timeout:g} s") from None
            self.close()
            raise UnreachableError(f"{self.url}: the connection broke: {error}") from error
        except BaseException:  # Ctrl-C: the answer to this would be read as that to the next question
            self._socket.close_socket()
            raise
        if isinstance(received, str):
            self.close()
            raise UnreachableError(f"{self.url}: a text message, which is not part of the protocol: {received[:100]!r}")
        answer = protocol.unpack(received)
        if answer.get("type") == "error":
            raise RequestError(str(answer.get("reason")), f"{self.url}: {answer.get('detail')}")
        if answer.get("type") != expected:
            self.close()
            raise UnreachableError(f"{self.url}: {str(answer.get('type'))[:40]!r}, expected {expected!r}")
        return answer


class Client:
    """Asks one server for chunks.

        >>> with Client("ws://gpu-server:8000", robot="so101_bimanual", token="…") as client:
        ...     chunk = client.ask({"front": picture, …}, state, "touch the red cube")
        >>> chunk.times, chunk.actions  # s after the observation, the policy's units

    Args:
        server: ``ws://HOST:PORT``, or ``wss://HOST:PORT`` for TLS.
        robot: one the server knows by name; empty takes its only one.
        embodiment: of a robot that it does not know.
        token: that the server was given, as its file has it.
        ca: file of the authority that signed the server's certificate; None takes the system's.
        certificate: file of this client's certificate and key.
        quality: of the JPEG that a picture is sent as; None sends it raw.
        timeout: s until an answer must be there.

    Raises:
        SetupError: the server's address, the token, or a file for TLS cannot be used.
        UnreachableError: nobody answers there.
        RequestError: the server refuses, and says why.
    """

    def __init__(
        self,
        server: str,
        *,
        robot: str = "",
        embodiment: Embodiment | None = None,
        token: str = "",
        ca: Path | None = None,
        certificate: Path | None = None,
        quality: int | None = protocol.JPEG_QUALITY,
        timeout: float = 10.0,
    ) -> None:
        url = url_of(server)
        self._quality, self._timeout = quality, timeout
        self._sent, self._ended = 0, False
        said = [] if embodiment is None else [{"embodiment": _plain(embodiment)}]
        self._open = partial(Link, url, said, token=token, tls=tls_of(url, ca, certificate))
        self._link = self._open()
        self._embodiment = embodiment or self._known(robot)
        self._by_name = "" if embodiment else self._embodiment.robot

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says of itself: ``robots``, ``checkpoint``, ``chunk_size``, ``domains``, …."""
        return self._link.metadata

    @property
    def sent_bytes(self) -> int:
        """How much has been sent."""
        return self._sent + self._link.sent

    def ask(
        self,
        views: Mapping[str, NDArray[np.uint8] | bytes],
        state: ArrayLike,
        instruction: str,
        *,
        stamp: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
        prefix: Prefix | None = None,
    ) -> ActionChunk:
        """Return the chunk for one observation; a connection that broke is opened again, to the same policy alone.

        Args:
            views: slot → uint8 [H, W, 3] RGB, or a JPEG or PNG as it is.
            state: [P], the policy's units.
            instruction: what to do, in words.
            stamp: ns; now if None.
            steps: denoising steps; the robot's own if None.
            seed: of the noise; fresh if None.
            prefix: waypoints to agree with.

        Raises:
            UnreachableError: no answer in time.
            RequestError: the server refuses, and says why.
            SetupError: the server came back with another policy, or drives the robot otherwise.
        """
        from dataclasses import replace

        if not self._link.is_open and not self._ended:
            self._connect_again()
        embodiment = self._embodiment if steps is None else replace(self._embodiment, denoising_steps=steps)
        encoded = {slot: bytes(view) for slot, view in views.items() if not isinstance(view, np.ndarray)}
        nothing = np.zeros((1, 1, 3), np.uint8)  # beside a view that is encoded already
        images = {slot: view if isinstance(view, np.ndarray) else nothing for slot, view in views.items()}
        seen = Observation(
            embodiment,
            time.time_ns() if stamp is None else stamp,
            images,
            np.asarray(state, np.float32),
            instruction,
            encoded=encoded,
        )
        chunks, _ = self._link.ask([seen], [prefix], seed=seed, timeout=self._timeout, quality=self._quality)
        return chunks[0]

    def close(self) -> None:
        """End the connection."""
        self._ended = True
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect_again(self) -> None:
        link, lost = self._open(), self._link
        if said := difference(lost.metadata, link.metadata, self._by_name):
            link.close()
            raise SetupError(f"{link.url} {said}, as when this client connected; make a new Client to use it")
        self._sent += lost.sent
        self._link = link

    def _known(self, robot: str) -> Embodiment:
        robots: dict[str, Any] = self.metadata["robots"]
        name = robot or (next(iter(robots)) if len(robots) == 1 else "")
        if name not in robots:
            self._link.close()
            raise RequestError(
                protocol.ROBOT,
                f"robot is {robot!r}; expected one of those served: {', '.join(sorted(robots)) or 'none'}",
            )
        said = robots[name]
        return Embodiment(
            name,
            said["domain_id"],
            said["action_mode"],
            tuple(said["views"]),
            said["waypoint_dt"],
            said["first_waypoint_offset"],
            said["denoising_steps"],
        )


def difference(known: Mapping[str, Any], found: Mapping[str, Any], robot: str = "") -> str:
    """Say what a server has otherwise than the first had; empty where nothing.

    The same files are the same checkpoint, wherever they lie; only where a server knows none, names are compared.

    Args:
        known: metadata of the first.
        found: of the other.
        robot: that the first serves by name, and the other must serve alike; empty for none.
    """
    for key in SAME if known.get("digest") else ("checkpoint", *SAME):
        if known.get(key) == found.get(key):
            continue
        if key == "digest":
            return (
                f"serves other weights: {found.get('checkpoint')} of digest {found.get(key) or 'none'}; "
                f"expected {known.get('checkpoint')} of digest {known.get(key) or 'none'}"
            )
        what = "serves" if key == "checkpoint" else f"says {key} is"
        return f"{what} {found.get(key)}; expected {known.get(key)}"
    if robot and (now := found.get("robots", {}).get(robot)) != (served := known["robots"][robot]):
        return f"says {robot} is {now}; expected {served}"
    return ""


def _plain(embodiment: Embodiment) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(embodiment), "slots": list(embodiment.slots)}
