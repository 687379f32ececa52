"""The episodes of a task in a watched run: when each began and ended, and what it came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

NANOSECONDS = 1e9
TIME_IS_UP = "time is up"
SOMETHING_ELSE = "did something else"


@dataclass(frozen=True)
class Episode:
    """One episode; times in s since the first command of the run.

    Attributes:
        task, seed, instruction: which, of what layout, and what to do.
        begun: of the reset: what was measured up to then was before it.
        ended: when it was decided or its time was up; None where the run ended first.
        success, wrong: as ``task_server`` has them.
        duration: s from the episode's first command to its end.
    """

    task: str
    seed: int
    instruction: str
    begun: float
    ended: float | None
    success: bool
    wrong: bool
    duration: float

    @property
    def outcome(self) -> str:
        """What it came to, in words; empty before its end."""
        return "" if self.ended is None else in_words(self.task, success=self.success, wrong=self.wrong)

    def to_mapping(self) -> dict[str, Any]:
        """Return its entry in ``report.json``."""
        return {
            "seed": self.seed,
            "instruction": self.instruction,
            "success": self.success,
            "wrong": self.wrong,
            "duration": round(self.duration, 3),
        }


def read_episodes(records: Iterable[Mapping[str, Any]], start: int, end: float) -> tuple[Episode, ...]:
    """Return the episodes that ``outcome`` records tell of, in order.

    Args:
        records: as ``nodes.recording`` has them.
        start: ROS time in ns that counts as 0.
        end: ROS time in ns after which nothing counts.
    """
    newest: dict[int, Mapping[str, Any]] = {}
    for record in records:
        if record["begun"] <= end:
            known = newest.get(record["episode"])
            # an end that came too late leaves the episode as it was
            newest[record["episode"]] = record if record["stamp"] <= end or known is None else known
    return tuple(_episode(newest[number], start, end) for number in sorted(newest))


def at(episodes: Sequence[Episode], time: float) -> Episode | None:
    """Return the episode of ``time``: the last that had begun."""
    return next((episode for episode in reversed(episodes) if episode.begun <= time), None)


@cache
def in_words(task: str, *, success: bool, wrong: bool) -> str:
    """Return what the end of an episode is called."""
    from xvla_ros.simulation.tasks.catalogue import TASKS

    return TASKS[task].done if success else SOMETHING_ELSE if wrong else TIME_IS_UP


def _episode(record: Mapping[str, Any], start: int, end: float) -> Episode:
    over = bool(record["over"]) and record["stamp"] <= end
    return Episode(
        task=record["task"],
        seed=record["seed"],
        instruction=record["instruction"],
        begun=(record["begun"] - start) / NANOSECONDS,
        ended=(record["stamp"] - start) / NANOSECONDS if over else None,
        success=over and record["success"],
        wrong=over and record["wrong"],
        duration=record["elapsed"],
    )
