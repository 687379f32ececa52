# SPDX-License-Identifier: Apache-2.0
"""What clients wait for: asks in a fair order, as the engine takes them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from xvla_ros.control.engine import ChunkRequest, EngineClient
from xvla_ros.errors import RequestError
from xvla_ros.serving.protocol import LATE, OVERLOADED
from xvla_ros.types import ActionChunk, Observation, Prefix

MAX_BATCH = 16
MAX_STEPS_OF_A_PASS = 160  # denoising steps of all its observations together: others wait for its end
MAX_WAITING, MAX_WAITING_EACH = 256, 64
MAX_BYTES, MAX_BYTES_EACH = 1 << 30, 1 << 28  # of the pictures of what waits, decoded


@dataclass(frozen=True)
class SeededObservation(Observation):
    """An observation as the server has it.

    Attributes:
        seed: of its noise.
        known_as: the name by which the policy knows the robot's statistics.
        remarks: what its client should know of its instruction.
    """

    seed: int = 0
    known_as: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class QueuedChunk:
    """A chunk, with the ms for which it waited to be computed, and what its client should know of its instruction."""

    chunk: ActionChunk
    queue_ms: float
    remarks: tuple[str, ...] = ()


class Ask:
    """One observation on its way through the engine, whose client it is.

    Args:
        observation: checked already: nothing of it makes the policy raise.
        prefix: what the chunk must agree with, or None.
        views: that are fed, which decides with the steps who shares a pass.
        owner: whose share of the policy this takes.
        deadline_s: steady time in s after which nobody waits for the answer.
        queue: that it waits in.
    """

    def __init__(
        self,
        observation: SeededObservation,
        prefix: Prefix | None,
        views: int,
        owner: str,
        deadline_s: float,
        queue: FairQueue,
    ) -> None:
        self.observation, self.prefix, self.owner = observation, prefix, owner
        self.shape = (views, observation.embodiment.denoising_steps)
        self._deadline_s, self._queue = deadline_s, queue
        self._asked_s = self._begun_s = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[QueuedChunk] = self._loop.create_future()

    # what the engine calls

    def wants_chunk(self) -> bool:
        return True

    def due_in(self) -> float | None:
        return None

    def observe(self) -> ChunkRequest | None:
        if not self._queue.take(self):
            return None  # its client has gone
        self._begun_s = time.monotonic()
        if self._begun_s > self._deadline_s:
            waited = (self._begun_s - self._asked_s) * 1e3
            self.policy_failed(
                RequestError(LATE, f"waited {waited:.0f} ms for the policy, which is longer than its deadline")
            )
            return None
        return ChunkRequest(self.observation, self.prefix)

    def deliver(self, request: ChunkRequest, chunk: ActionChunk) -> None:
        self._settle(QueuedChunk(chunk, (self._begun_s - self._asked_s) * 1e3, self.observation.remarks))

    def policy_failed(self, error: BaseException) -> None:
        # an event loop would end for what is no Exception
        self._settle(error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}"))

    def _settle(self, outcome: QueuedChunk | Exception) -> None:
        def settle() -> None:
            if self.answer.done():
                return
            if isinstance(outcome, QueuedChunk):
                self.answer.set_result(outcome)
            else:
                self.answer.set_exception(outcome)

        self._loop.call_soon_threadsafe(settle)


class _Coming:
    """What is still being read, as the engine sees it: it will ask within the time that others wait to share a pass."""

    def wants_chunk(self) -> bool:
        return False

    def due_in(self) -> float | None:
        return 0.0

    def observe(self) -> ChunkRequest | None:
        return None

    def deliver(self, request: ChunkRequest, chunk: ActionChunk) -> None:
        raise RuntimeError("nothing was asked")

    def policy_failed(self, error: BaseException) -> None:
        raise RuntimeError("nothing was asked")


class FairQueue:
    """The asks that wait; iterating gives those that share the next pass.

    An engine waits a little for those that are being read, so that clients who ask together share a pass: else the
    first of them would be computed alone, and the others after it.

    Each owner has a share of the policy's time, however many asks it makes: a pass is charged by its denoising steps,
    and the owner who was charged least is next. With it go others in the same order whose views and steps are the same.
    An owner who comes anew starts where the others are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asks: list[Ask] = []
        self._reading, self._bytes = Counter[str](), Counter[str]()  # by owner
        self._charged: dict[str, float] = {}
        self._now = 0.0  # charge of the owner served last

    def __len__(self) -> int:
        return len(self._asks)

    def __contains__(self, ask: object) -> bool:
        return ask in self._asks

    def __iter__(self) -> Iterator[EngineClient]:
        with self._lock:
            asks = self._next()
            coming = [_Coming()] if self._reading and len(asks) < MAX_BATCH else []
            return iter([*asks, *coming])

    @contextlib.contextmanager
    def reading(self, owner: str, count: int) -> Iterator[None]:
        """Keep places for asks of one owner that are being read, and will be added within the block.

        Raises:
            RequestError: too many wait already, of this owner or in all.
        """
        with self._lock:
            own = sum(ask.owner == owner for ask in self._asks) + self._reading[owner]
            total = len(self._asks) + self._reading.total()
            if own + count > MAX_WAITING_EACH:
                raise RequestError(
                    OVERLOADED, f"{own} observations of {owner} are already waiting; send it again later"
                )
            if total + count > MAX_WAITING:
                raise RequestError(OVERLOADED, f"{total} observations are already waiting; send it again later")
            self._reading[owner] += count
        try:
            yield
        finally:
            with self._lock:
                _subtract(self._reading, owner, count)

    @contextlib.contextmanager
    def memory(self, owner: str) -> Iterator[Callable[[int], None]]:
        """Yield what is called with the bytes of each picture before it is decoded; after the block they count no more.

        It raises RequestError where the pictures of the owner, or of all, would take too much. Any thread may call it.
        """
        taken, has_ended = 0, False

        def take(size: int) -> None:
            nonlocal taken
            with self._lock:
                own, total = self._bytes[owner] + size, self._bytes.total() + size
                if has_ended:
                    raise RequestError(LATE, "the client no longer waits for the answer")
                if own > MAX_BYTES_EACH or total > MAX_BYTES:
                    raise RequestError(
                        OVERLOADED,
                        f"images of {owner} that wait would take {own >> 20} MiB, and all together {total >> 20} MiB; "
                        f"expected at most {MAX_BYTES_EACH >> 20} and {MAX_BYTES >> 20}: send fewer or smaller images, "
                        "or send it again later",
                    )
                self._bytes[owner] += size
                taken += size

        try:
            yield take
        finally:
            with self._lock:
                has_ended = True
                _subtract(self._bytes, owner, taken)

    def _next(self) -> list[Ask]:
        charged = {ask.owner: self._charged.get(ask.owner, self._now) for ask in self._asks}
        ordered = []
        for ask in self._asks:  # in the order they came, each owner's n-th after the others' n-th
            ordered.append((charged[ask.owner], ask))
            charged[ask.owner] += ask.shape[1]
        ordered.sort(key=lambda each: each[0])
        if not ordered:
            return []
        shape = ordered[0][1].shape
        most = max(min(MAX_BATCH, MAX_STEPS_OF_A_PASS // shape[1]), 1)
        return [ask for _, ask in ordered if ask.shape == shape][:most]

    def add(self, *asks: Ask) -> None:
        """Let asks wait, together, for which ``reading`` keeps the places."""
        with self._lock:
            self._asks += asks

    def take(self, ask: Ask) -> bool:
        """Take an ask out, charging its owner; return whether it still waited."""
        with self._lock:
            if ask not in self._asks:
                return False
            self._asks.remove(ask)
            self._now = max(self._charged.get(ask.owner, self._now), self._now)
            self._charged[ask.owner] = self._now + ask.shape[1]
            if len(self._charged) > MAX_WAITING:  # those at or below the present charge start anew just as well
                self._charged = {owner: charge for owner, charge in self._charged.items() if charge > self._now}
            return True

    def drop(self, ask: Ask) -> None:
        """Forget an ask whose client has gone."""
        with self._lock:
            if ask in self._asks:
                self._asks.remove(ask)


def _subtract(counts: Counter[str], owner: str, count: int) -> None:
    counts[owner] -= count
    if not counts[owner]:
        del counts[owner]
