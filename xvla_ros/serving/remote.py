# SPDX-License-Identifier: Apache-2.0
"""A policy that runs on other machines, in the place of a loaded one."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xvla_ros.control.clock import LatencyWindow
from xvla_ros.errors import RequestError, SetupError, UnreachableError
from xvla_ros.robots.profile import Profile
from xvla_ros.serving import protocol
from xvla_ros.serving.client import Link, difference, tls_of, url_of
from xvla_ros.types import ActionChunk, Observation, Percentiles, Prefix

RETRY_S = 0.5  # between two looks at servers that are gone, or not asked at present
PROBE_S = 1.0  # until a server that is not asked must say how long its answers take
RATE_S = 5.0  # over which bytes a second are counted
WARM_UP_S = 120.0  # for the first chunk
PATIENCE = 4.0  # times its usual latency that a server may take where another could be asked
SMOOTHING = 0.2  # share of the newest latency in the mean
REMEMBERED = 256  # remarks that are not said again
BETTER = 0.7  # share of the present server's latency below which another one takes over
TOKEN_FILE, CA_FILE = "XVLA_SERVER_TOKEN_FILE", "XVLA_SERVER_CA"
TRANSIENT = (protocol.LATE, protocol.OVERLOADED, protocol.RATE)


@dataclass(frozen=True)
class Credentials:
    """What a server may ask for, and how it is known to be the right one.

    Attributes:
        token: empty for none.
        ca: file of the authority that signed its certificate; None takes the system's.
        certificate: file of this client's certificate and key.
    """

    token: str = ""
    ca: Path | None = None
    certificate: Path | None = None

    @classmethod
    def of_files(cls, token_file: str = "", ca: str = "", certificate: str = "") -> Credentials:
        """Read them; an empty name takes ``XVLA_SERVER_TOKEN_FILE`` and ``XVLA_SERVER_CA``.

        Raises:
            SetupError: the token cannot be read.
        """
        file, authority = token_file or os.environ.get(TOKEN_FILE, ""), ca or os.environ.get(CA_FILE, "")
        try:
            token = Path(file).read_text(encoding="utf-8").partition("\n")[0].strip() if file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"token file {file}: {error}") from error
        return cls(token, Path(authority) if authority else None, Path(certificate) if certificate else None)


@dataclass
class _Server:
    """One address of the list."""

    url: str
    link: Link | None = None
    why_down: str = ""
    latency_s: float | None = None
    busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_up(self) -> bool:
        return self.link is not None and self.link.is_open

    def note(self, seconds: float) -> None:
        known = self.latency_s
        self.latency_s = seconds if known is None else (1 - SMOOTHING) * known + SMOOTHING * seconds


class RemotePolicy:
    """Asks policy servers as a node asks its own policy; one thread asks, another looks after the connections.

    Of several servers the least late is asked. One that breaks, stalls or refuses for load is left for the next within
    the same deadline, and taken back when it answers again. An answer that comes after its deadline is never read.

    Args:
        profiles: the robots, by name.
        servers: addresses with commas between them: ``wss://HOST:PORT``.
        credentials: for all of them.
        log: takes lines on servers that go and come, and once what should be known of an instruction.

    Raises:
        SetupError: an address is none, the servers have different weights, or a profile does not fit.
        UnreachableError: no server answers.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        servers: str,
        credentials: Credentials | None = None,
        log: Callable[[str], object] = lambda line: None,
    ) -> None:
        urls = list(dict.fromkeys(url_of(each) for each in servers.split(",") if each.strip()))
        if not urls:
            raise SetupError(f"server is {servers!r}; expected addresses, wss://HOST:PORT, separated by commas")
        self._profiles, self._credentials, self._log = dict(profiles), credentials or Credentials(), log
        self._hello = [{"name": name, "profile": profile.to_mapping()} for name, profile in profiles.items()]
        self._tls = tls_of("wss", self._credentials.ca, self._credentials.certificate) if _any_tls(urls) else None
        self._servers = [_Server(url) for url in urls]
        self._current: _Server | None = None
        self._metadata: dict[str, Any] = {}
        self._sent: deque[tuple[float, int]] = deque()
        self._answers = LatencyWindow()
        self._remarked: dict[str, None] = {}
        self._ended, self._look = threading.Event(), threading.Event()
        self._connect_first()
        self._keeper = threading.Thread(target=self._keep, name="servers", daemon=True)
        self._keeper.start()

    # what a policy has

    @property
    def source(self) -> str:
        """The checkpoint, and where it runs."""
        where = ", ".join(server.url.removesuffix(protocol.PATH) for server in self._servers)
        return f"{self._metadata['checkpoint']} at {where}"

    def is_trained(self, domain_id: int) -> bool:
        """Return whether the servers' policy was trained for a domain; True where they do not say."""
        trained = self._metadata.get("trained_domains")
        return trained is None or domain_id in trained

    def computing(self) -> dict[str, str]:
        """Say what computes, and which server was asked last, for reports and diagnostics."""
        said = {str(key): str(value) for key, value in dict(self._metadata.get("computing") or {}).items()}
        current = self._current
        return {**said, "server": "" if current is None else current.url.removesuffix(protocol.PATH)}

    def bytes_per_second(self) -> float:
        """Return what was sent to servers, over the last seconds."""
        oldest = time.monotonic() - RATE_S
        return sum(size for when, size in list(self._sent) if when >= oldest) / RATE_S

    @property
    def answer_ms(self) -> Percentiles:
        """Times from the question to the answer, the network and other clients' turns included."""
        return self._answers.percentiles()

    def warm_up(self, observations: Sequence[Observation]) -> None:
        """Ask every server that is there for a first chunk, with patience; one must answer.

        Raises:
            UnreachableError: none answered; says of each what happened.
            RequestError: as ``predict``.
        """
        said: list[str] = []
        for server in self._servers:
            try:
                self._ask(server, observations, (), 0, WARM_UP_S)
                server.latency_s = None  # the first is slow
                self._ask(server, observations, (), 0, WARM_UP_S)
            except UnreachableError as error:
                said.append(str(error))
        if len(said) == len(self._servers):
            raise UnreachableError("; ".join(said))

    def predict(
        self,
        observations: Sequence[Observation],
        *,
        seed: int | None = None,
        prefix: Sequence[Prefix | None] | None = None,
    ) -> list[ActionChunk]:
        """Answer each observation, as ``Policy.predict``; within the shortest ``inference_timeout`` of its robots.

        Raises:
            UnreachableError: no server answered by then; says of each what happened.
            RequestError: a server refuses what was asked, and says why.
        """
        begun = time.monotonic()
        timeout = min(self._profiles[each.embodiment.robot].timing.inference_timeout for each in observations)
        deadline = begun + timeout
        said: list[str] = []
        ordered = self._ordered()
        for number, server in enumerate(ordered):
            left = deadline - time.monotonic()
            if left <= 0.0:
                said.append(f"{server.url}: no answer within {timeout:g} s: no time was left for it")
                continue
            if number + 1 < len(ordered):  # leave time for the next
                left = min(left, max(PATIENCE * (server.latency_s or 0.0), left / 2))
            try:
                chunks, remarks = self._ask(server, observations, prefix or (), seed, left)
                self._answers.add((time.monotonic() - begun) * 1e3)
                self._remark(remarks)
                return chunks
            except UnreachableError as error:
                said.append(str(error))
        down = [
            f"{server.url}: {server.why_down or 'the connection broke'}"
            for server in self._servers
            if server not in ordered
        ]
        raise UnreachableError("; ".join([*said, *down]))

    def close(self) -> None:
        """End the connections."""
        self._ended.set()
        self._look.set()
        self._keeper.join()
        for server in self._servers:
            if server.link is not None:
                server.link.close()

    # servers

    def _ordered(self) -> list[_Server]:
        """Return the servers that can be asked, the least late first; the present one unless another is far better."""
        up = sorted((each for each in self._servers if each.is_up), key=lambda each: each.latency_s or 0.0)
        current = self._current
        if current in up and (up[0].latency_s or 0.0) > BETTER * (current.latency_s or 0.0):
            up.remove(current)
            up.insert(0, current)
        return up

    def _ask(
        self,
        server: _Server,
        observations: Sequence[Observation],
        prefixes: Sequence[Prefix | None],
        seed: int | None,
        timeout: float,
    ) -> tuple[list[ActionChunk], Any]:
        """Return the chunks of one server, and its remarks as they came.

        Raises:
            UnreachableError: it did not answer by then, or has no time for this.
            RequestError: it refuses what was asked, as any other would.
        """
        begun = time.monotonic()
        if not server.busy.acquire(timeout=timeout):
            raise UnreachableError(f"{server.url}: no answer within {timeout:g} s")
        try:
            link = server.link
            if link is None:
                raise UnreachableError(f"{server.url}: {server.why_down}")
            before = link.sent
            try:
                chunks, answer = link.ask(
                    observations, prefixes, seed=seed, timeout=max(timeout - (time.monotonic() - begun), 1e-3)
                )
            except UnreachableError as error:
                self._lose(server, link, str(error))
                raise
            except RequestError as error:
                if error.reason in TRANSIENT:  # another server may answer
                    raise UnreachableError(str(error)) from error
                raise
            finally:
                self._count(link.sent - before)
        finally:
            server.busy.release()
        server.note(time.monotonic() - begun)
        self._current = server
        return chunks, answer.get("remarks")

    def _remark(self, remarks: Any) -> None:
        """Log what a server says of instructions, each remark once; an older server says nothing."""
        for remark in remarks if isinstance(remarks, list) else ():
            said = str(remark)[: 2 * protocol.MAX_TEXT]
            if said not in self._remarked:
                self._log(said)
            self._remarked[said] = None
        for oldest in list(self._remarked)[:-REMEMBERED]:
            del self._remarked[oldest]

    def _count(self, size: int) -> None:
        now = time.monotonic()
        self._sent.append((now, size))
        while self._sent[0][0] < now - RATE_S:
            self._sent.popleft()

    def _lose(self, server: _Server, link: Link, why: str) -> None:
        self._log(f"policy server lost: {why}")
        if server.link is not link:
            return  # it has been taken back meanwhile
        server.link, server.latency_s, server.why_down = None, None, why.removeprefix(f"{server.url}: ")
        self._look.set()

    def _open(self, server: _Server) -> None:
        """Connect a server.

        Raises:
            UnreachableError, RequestError: as ``Link``.
            SetupError: it serves another checkpoint than the others.
        """
        tls = self._tls if server.url.startswith("wss") else None
        link = Link(server.url, self._hello, token=self._credentials.token, tls=tls)
        if self._metadata and (said := difference(self._metadata, link.metadata)):
            link.close()
            raise SetupError(f"{server.url} {said}, as when this node was configured")
        self._metadata = link.metadata
        server.link, server.why_down = link, ""

    def _connect_first(self) -> None:
        """Connect every server that is there: one at least, and none that refuses."""
        for server in self._servers:
            try:
                self._open(server)
            except UnreachableError as error:
                server.why_down = str(error).removeprefix(f"{server.url}: ")
            except RequestError as error:
                raise SetupError(str(error)) from error
        lost = [f"{server.url}: {server.why_down}" for server in self._servers if not server.is_up]
        if len(lost) == len(self._servers):
            raise UnreachableError("no policy server answers: " + "; ".join(lost))
        for each in lost:
            self._log(f"policy server not available: {each}")

    def _keep(self) -> None:
        """Take back servers that were lost, and ask those that are not used how late they would be."""
        while not self._ended.is_set():
            self._look.wait(RETRY_S)
            self._look.clear()
            for server in self._servers:
                if self._ended.is_set():
                    return
                try:
                    if not server.is_up:
                        self._take_back(server)
                    elif server is not self._current and len(self._servers) > 1:
                        self._probe(server)
                except BaseException as error:  # without this thread no server would ever be taken back
                    self._log(f"policy server {server.url}: {type(error).__name__}: {error}")
            self._ended.wait(RETRY_S / 10)  # a server that breaks at once is not tried in a tight loop

    def _take_back(self, server: _Server) -> None:
        try:
            self._open(server)
        except (UnreachableError, RequestError, SetupError) as error:
            why = str(error).removeprefix(f"{server.url}: ")
            if isinstance(error, SetupError | RequestError) and why != server.why_down:
                self._log(f"policy server refused: {error}")
            server.why_down = why
        else:
            self._log(f"policy server is available: {server.url}")

    def _probe(self, server: _Server) -> None:
        link = server.link
        if link is None or not server.busy.acquire(blocking=False):
            return
        try:
            begun = time.monotonic()
            if server.link is link:
                load = link.load(PROBE_S)
                server.note(time.monotonic() - begun + (load["inference_ms"] + load["queue_ms"]) / 1e3)
        except UnreachableError as error:
            self._lose(server, link, str(error))
        except (RequestError, KeyError, TypeError):
            return  # it has other things to do
        finally:
            server.busy.release()


def _any_tls(urls: Sequence[str]) -> bool:
    return any(url.startswith("wss") for url in urls)


def trained_at(server: str, domain_id: int, credentials: Credentials | None = None) -> bool:
    """Return whether the policy at the first server of a list that answers was trained for a domain.

    Raises:
        UnreachableError: none answers.
    """
    given = credentials or Credentials.of_files()
    said = []
    for each in filter(str.strip, server.split(",")):
        url = url_of(each)
        try:
            link = Link(url, token=given.token, tls=tls_of(url, given.ca, given.certificate))
        except UnreachableError as error:
            said.append(str(error))
            continue
        link.close()
        trained = link.metadata.get("trained_domains")
        return trained is None or domain_id in trained
    raise UnreachableError("no policy server answers: " + "; ".join(said))
