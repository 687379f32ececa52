# SPDX-License-Identifier: Apache-2.0
"""The inference thread: one policy, any number of robots, one batch of those that wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xvla_ros.types import ActionChunk, Observation, Prefix

POLL_S = 0.005
BATCH_WAIT_S = 0.01
SHORTEST_WAIT_S = 0.0005  # between two looks at which robots ask
ERROR_PAUSE_S = 1.0
INFERENCE_THREAD = "inference"


@dataclass(frozen=True)
class Ticket:
    """Says when a chunk was asked for.

    Attributes:
        generation: of the robot's chunks then; the answer is void once there is a newer one.
        asked_s: steady time in s.
        is_standing: whether no chunk was being carried out, nor the way to rest, so that the observation still
            holds when the answer comes.
    """

    generation: int
    asked_s: float
    is_standing: bool


NO_TICKET = Ticket(-1, 0.0, False)  # the answer to it is void


@dataclass(frozen=True, eq=False)
class ChunkRequest:
    """An observation on its way through the policy, with what is needed to use its answer.

    Attributes:
        observation: what the policy is given.
        prefix: what the answer must agree with, None where it is free.
        ticket: when it was asked for.
        start: float64 [J] rad or m, where the joints were commanded to be; None where that is unknown.
        shift: ns from the observation to the time of the state that the policy is given.
        observe_ms: how long it took to make this request.
    """

    observation: Observation
    prefix: Prefix | None = None
    ticket: Ticket = NO_TICKET
    start: NDArray[np.float64] | None = None
    shift: int = 0
    observe_ms: float = 0.0


class EngineClient(Protocol):
    """One robot as the engine sees it. Every call comes from the inference thread."""

    def wants_chunk(self) -> bool:
        """Say whether the plan is to be renewed now."""

    def due_in(self) -> float | None:
        """Return the seconds until the plan is to be renewed; None while the robot holds or where that is unknown."""

    def observe(self) -> ChunkRequest | None:
        """Ask about the newest observation; None while something is missing or stale."""

    def deliver(self, request: ChunkRequest, chunk: ActionChunk) -> object:
        """Take the answer to a request."""

    def policy_failed(self, error: BaseException) -> None:
        """Take note that the policy raised on a batch with this robot's observation."""


# An error in the place of a chunk is that of this observation alone.
Predict = Callable[[list[Observation], list[Prefix | None]], Sequence[ActionChunk | Exception]]


class Engine:
    """Runs a policy beside the execution of what it planned before.

    A robot whose observation is missing is left out of the batch; it delays nobody. An error of the policy is handed
    to the robots of that batch and followed by a pause, so that a broken model does not spin. So is an error of any
    class, a panic of a library in Rust included, that is raised elsewhere in this thread; ``death`` says of a thread
    that ended all the same.

    Args:
        predict: the policy, and what its chunks must agree with.
        clients: the robots. Looked through at every step: they may come and go.
        batch_wait: s that robots wait at most for others that run and will ask within this time; those that hold, or
            whose observation is missing, are not waited for.
    """

    def __init__(self, predict: Predict, clients: Collection[EngineClient], batch_wait: float = BATCH_WAIT_S) -> None:
        self._predict = predict
        self._clients = clients
        self._batch_wait = batch_wait
        self._stop = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._killed_by: BaseException | None = None

    def start(self) -> None:
        """Start the inference thread."""
        if self._thread is not None:
            raise RuntimeError("the engine is already running; stop it before starting it again")
        self._stop.clear()
        self._killed_by = None
        thread = threading.Thread(target=self._run, name=INFERENCE_THREAD, daemon=True)
        thread.start()
        self._thread = thread  # once it is alive: until then ``death`` has nothing to say of it

    def wake(self) -> None:
        """Look at once for robots that wait, instead of at the next poll."""
        self._woken.set()

    @property
    def is_running(self) -> bool:
        """Whether the inference thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    def death(self) -> str:
        """Say why the inference thread has ended though nobody asked it to; empty while it has not."""
        if self._thread is None or self._thread.is_alive() or self._stop.is_set():
            return ""
        cause = "" if self._killed_by is None else f": {type(self._killed_by).__name__}: {self._killed_by}"
        return f"the inference thread has ended{cause}"

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Ask the thread to end after the pass it is in; return whether it has."""
        self._stop.set()
        self._woken.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        ended = not self._thread.is_alive()
        if ended:
            self._thread = None
        return ended

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if not self._step_guarded():
                    self._woken.wait(POLL_S)
                    self._woken.clear()
        except BaseException as error:
            self._killed_by = error
            raise

    def _step_guarded(self) -> bool:
        """Serve as ``step`` does; hand what a robot raised where the policy was not asked to all robots."""
        try:
            return self.step()
        except BaseException as error:
            self._fail(list(self._clients), error)
            self._stop.wait(ERROR_PAUSE_S)
            return True

    def step(self) -> bool:
        """Serve the robots that wait, once; return whether any waited."""
        if any(client.wants_chunk() for client in self._clients):
            self._wait_for_others()
        asked, has_failed = self._ask()
        if not asked:
            return has_failed
        requests = [request for _, request in asked]
        try:
            chunks = self._predict([each.observation for each in requests], [each.prefix for each in requests])
            answers = list(zip(asked, chunks, strict=True))
        except BaseException as error:
            self._fail([client for client, _ in asked], error)
            self._stop.wait(ERROR_PAUSE_S)
            return True
        for (client, request), chunk in answers:
            if self._stop.is_set():
                break
            if isinstance(chunk, Exception):
                self._fail([client], chunk)
                continue
            try:
                client.deliver(request, chunk)
            except BaseException as error:  # one robot's trouble must not end the thread that serves the others
                self._fail([client], error)
        return True

    def _ask(self) -> tuple[list[tuple[EngineClient, ChunkRequest]], bool]:
        """Return the requests of the robots that wait, and whether one of them raised."""
        asked, has_failed = [], False
        for client in self._clients:
            if not client.wants_chunk():
                continue
            try:
                request = client.observe()
            except BaseException as error:  # one robot's trouble must not keep the others from their chunks
                self._fail([client], error)
                has_failed = True
                continue
            if request is not None:
                asked.append((client, request))
        return asked, has_failed

    def _wait_for_others(self) -> None:
        """Wait for the robots that will ask within ``batch_wait`` from now."""
        deadline = time.monotonic() + self._batch_wait
        while (left := deadline - time.monotonic()) > 0.0:
            dues = [client.due_in() for client in self._clients if not client.wants_chunk()]
            soon = [due for due in dues if due is not None and due <= left]
            if not soon or self._stop.wait(max(min(soon), SHORTEST_WAIT_S)):
                return

    def _fail(self, clients: Sequence[EngineClient], error: BaseException) -> None:
        if not self._stop.is_set():
            for client in clients:
                client.policy_failed(error)
