# SPDX-License-Identifier: Apache-2.0
"""Many episodes of a benchmark: shared out over simulators and processes, kept as they end, gone on with later."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import SetupError
from xvla_ros.evaluation.report.film import encode, side_by_side
from xvla_ros.evaluation.suites.drivers import Driver
from xvla_ros.evaluation.suites.results import REPLAY, EpisodeStore, SuiteEpisode
from xvla_ros.simulation.suites.protocols import SuiteProtocol
from xvla_ros.simulation.suites.suite import Arena, Beginning, SuiteTask
from xvla_ros.types import BESIDE

FILM_RATE = 5  # pictures of a film in a second
Simulator = TypeVar("Simulator", bound=Arena)
Driving = TypeVar("Driving")
MOST_EPISODES = 1000  # of a task: each has a time of its own, from which its noise is drawn


@dataclass(frozen=True)
class TaskJob:
    """Episodes of one task, one after the other in one simulator."""

    task: SuiteTask
    episodes: tuple[int, ...]


@dataclass(frozen=True)
class ProcessShare:
    """Which part of the work is this process's, as torchrun tells it in the environment.

    Attributes:
        rank, world: this one of so many.
        local: which of this machine's devices is its own.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> ProcessShare:
        """Read ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; alone where they are not set.

        Raises:
            SetupError: they are no numbers, or do not fit.
        """
        try:
            share = cls(
                *(int(os.environ.get(name, d)) for name, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
            )
        except ValueError as error:
            raise SetupError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from None
        if not 0 <= share.rank < share.world:
            raise SetupError(f"RANK is {share.rank} and WORLD_SIZE {share.world}, expected a rank from 0 to below it")
        return share


def plan(
    tasks: Sequence[SuiteTask], episodes: int, jobs: int, share: ProcessShare, done: set[tuple[int, int]]
) -> list[TaskJob]:
    """Share out episodes 0 … ``episodes`` of each task: as few changes of scene as keep everyone busy.

    Args:
        jobs: simulators of each process.
        done: (task, episode) that need not be run.
    """
    parts = -(-jobs * share.world // len(tasks))
    planned = []
    for task in tasks:
        for part in np.array_split(np.arange(episodes), min(parts, episodes)):
            planned.append(TaskJob(task, tuple(int(n) for n in part)))
    own = planned[share.rank :: share.world]
    left = [replace(job, episodes=tuple(n for n in job.episodes if (job.task.index, n) not in done)) for job in own]
    return [job for job in left if job.episodes]


def run_jobs(
    jobs: Sequence[TaskJob],
    arena_of: Callable[[], Simulator],
    driver_of: Callable[[Simulator], Driving],
    handle: Callable[[Simulator, Driving, SuiteTask, int], None],
    simulators: int,
) -> None:
    """Run episodes in so many simulators at once, each in a thread with a driver of its own.

    Args:
        handle: runs one episode and keeps it.

    Raises:
        Exception: the first that a thread raised; the others stop after their episode.
    """
    waiting: queue.SimpleQueue[TaskJob] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    stop, errors = threading.Event(), list[BaseException]()
    arenas: list[Simulator] = []

    def work() -> None:
        try:
            arena = arena_of()
            arenas.append(arena)
            driver = driver_of(arena)
            while True:
                job = waiting.get_nowait()
                for episode in job.episodes:
                    if stop.is_set():
                        return
                    handle(arena, driver, job.task, episode)
        except queue.Empty:
            return
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(simulators, len(jobs)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        for arena in arenas:
            arena.close()
    if errors:
        raise errors[0]


@dataclass(frozen=True)
class EpisodeRunner:
    """Runs single episodes and keeps them.

    Attributes:
        suite, protocol: which and how.
        name: of the driver in results.
        store: where they are kept.
        films: of failed episodes, at most so many of each task.
    """

    suite: str
    protocol: SuiteProtocol
    name: str
    store: EpisodeStore
    films: int = 1

    def beginning(self, task: SuiteTask, episode: int) -> Beginning:
        """Return how an episode begins."""
        return Beginning(task.index, episode, episode % task.init_states, self.protocol.seed_of(episode))

    def run(self, arena: Arena, driver: Driver, task: SuiteTask, episode: int) -> SuiteEpisode:
        """Run an episode and keep it; a failure is run again from its actions to film it."""
        begun, beginning = time.perf_counter(), self.beginning(task, episode)
        limit = self.protocol.steps_of(self.suite)
        sight = arena.begin(beginning)
        driver.begin(task, episode)
        taken: list[NDArray[np.float32]] = []
        steps, success = 0, False
        while steps < limit and not success:
            actions = driver.actions(sight, steps)[: limit - steps]
            if not len(actions):
                break
            acted = arena.act(actions, look=driver.looks and steps + len(actions) < limit)
            taken.append(actions[: acted.steps])
            sight, success, steps = acted.sight, acted.success, steps + acted.steps
            if acted.over:
                break
        path = np.concatenate(taken) if taken else np.zeros((0, 7), np.float32)
        film = "" if success or self.name == REPLAY else self._film(arena, beginning, path, task)
        result = SuiteEpisode(
            self.name,
            task.index,
            episode,
            beginning.init_state,
            beginning.env_seed,
            success,
            steps,
            driver.chunks,
            tuple(round(each, 2) for each in driver.inference_ms),
            time.perf_counter() - begun,
            film,
        )
        self.store.keep(result, path)
        return result

    def _film(self, arena: Arena, beginning: Beginning, path: NDArray[np.float32], task: SuiteTask) -> str:
        folder = self.store.folder / "films"
        there = list(folder.glob(f"{self.name}-{task.index:02d}-*.mp4"))
        if len(there) >= self.films or not len(path):
            return ""
        folder.mkdir(exist_ok=True)
        arena.begin(beginning)
        every = round(self.protocol.rate / FILM_RATE)
        film = arena.act(path, look=False, film_every=every).film
        if not film:
            return ""
        views = sorted(film, key=lambda view: view != BESIDE)
        seconds = every / self.protocol.rate
        frames = (
            side_by_side(dict(zip(views, shown, strict=True)), f"{index * seconds:4.1f} s  “{task.instruction}”")
            for index, shown in enumerate(zip(*(film[view] for view in views), strict=True), start=1)
        )
        file = folder / f"{self.name}-{task.index:02d}-{beginning.episode:03d}.mp4"
        encode(frames, file, rate=FILM_RATE)
        return f"films/{file.name}"
