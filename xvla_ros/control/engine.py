"""The inference thread: one policy, any number of robots, a batch of whichever wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from xvla_ros.model.data import ActionChunk, Observation, Prefix

POLL_S = 0.005
ERROR_PAUSE_S = 1.0
INFERENCE_THREAD = "inference"


class EngineClient(Protocol):
    """One robot as the engine sees it. Every call comes from the inference thread."""

    def wants_chunk(self) -> bool:
        """Whether the plan is to be renewed now."""

    def observe(self) -> Observation | None:
        """The newest observation, None while something is missing or stale."""

    def prefix(self) -> Prefix | None:
        """What the answer to the last observation must agree with, None where it is free."""

    def deliver(self, chunk: ActionChunk) -> object:
        """Take the answer to the last observation."""

    def policy_failed(self, error: Exception) -> None:
        """The policy raised on a batch that held this robot's observation."""


Predict = Callable[[list[Observation], list[Prefix | None]], list[ActionChunk]]


class Engine:
    """Runs a policy beside the execution of what it planned before.

    A robot whose observation is missing is left out of the batch; it delays nobody. An error of the policy is handed
    to the robots of that batch and followed by a pause, so that a broken model does not spin.
    """

    def __init__(self, predict: Predict, clients: Sequence[EngineClient]) -> None:
        self._predict = predict
        self._clients = tuple(clients)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the inference thread."""
        if self._thread is not None:
            raise RuntimeError("the engine is already running; stop it before starting it again")
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=INFERENCE_THREAD, daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Ask the thread to end after the pass it is in; return whether it has."""
        self._stop.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        ended = not self._thread.is_alive()
        if ended:
            self._thread = None
        return ended

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self.step():
                self._stop.wait(POLL_S)

    def step(self) -> bool:
        """Serve the robots that wait, once; return whether there was any."""
        waiting = [(client, seen) for client in self._clients if client.wants_chunk() and (seen := client.observe())]
        if not waiting:
            return False
        clients = [client for client, _ in waiting]
        try:
            chunks = self._predict([seen for _, seen in waiting], [client.prefix() for client in clients])
            answers = list(zip(clients, chunks, strict=True))
        except Exception as error:
            self._fail(clients, error)
            self._stop.wait(ERROR_PAUSE_S)
            return True
        for client, chunk in answers:
            if self._stop.is_set():
                break
            try:
                client.deliver(chunk)
            except Exception as error:  # one robot's trouble must not end the thread that serves the others
                self._fail([client], error)
        return True

    def _fail(self, clients: Sequence[EngineClient], error: Exception) -> None:
        if not self._stop.is_set():
            for client in clients:
                client.policy_failed(error)
