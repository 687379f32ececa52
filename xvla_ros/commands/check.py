# SPDX-License-Identifier: Apache-2.0
"""``xvla check``: does a profile fit its checkpoint and the running graph, before any arm moves.

A check that could not look at all of it is no success: what is missing is said, and the exit code is not 0.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xvla_ros.commands.checkpoint_checks import REFUSED, checkpoint_findings, computing, of_the_files
from xvla_ros.commands.graph_checks import Finding, graph_findings, topics_of
from xvla_ros.control.policy_source import shipped_policy
from xvla_ros.errors import CheckpointError, KinematicsError, Problem, ProfileError
from xvla_ros.nodes.graph import GraphSnapshot, NoGraph, Reading, snapshot
from xvla_ros.robots.new_robot.profile_text import open_marks
from xvla_ros.robots.profile import Profile, load_profile
from xvla_ros.robots.tools import tool_arms

SCHEMA_VERSION = 1
PARTS = ("profile", "checkpoint", "graph")
OK, WRONG, INCOMPLETE = 0, 1, 3  # exit codes
LEFT_OUT = NoGraph("skipped (--offline)")


@dataclass(frozen=True)
class CheckReport:
    """What was found wrong.

    Attributes:
        robots: names of the checked robots.
        checked: the parts that were compared: ``profile``, ``checkpoint``, ``graph``.
        errors: what keeps a robot from running.
        warnings: what it runs with, but should be known.
        computing: what the checked checkpoints would compute in on this machine's CPU, and why.
        missing: what the check cannot vouch for, and why: ``checkpoint: …``, ``graph: …``.
        teach: robots that their checkpoint does not know; a warning says how it is taught. Their graph may be absent.
        readings: robot → what the reader of the node made of its messages.
        clock: what ROS time was taken from for that: ``/clock`` or ``system``; empty without a graph.
        parts: those that there are to compare.
    """

    robots: tuple[str, ...]
    checked: tuple[str, ...]
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    computing: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    teach: tuple[str, ...] = ()
    readings: Mapping[str, Reading] = field(default_factory=dict)
    clock: str = ""
    parts: tuple[str, ...] = PARTS

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    @property
    def complete(self) -> bool:
        """Whether everything was looked at; with ``ok`` the robot can run."""
        return not self.missing

    @property
    def exit_code(self) -> int:
        """0: the robot can run, or be taught; 1: there are errors; 3: there are none in what could be checked."""
        return WRONG if self.errors else OK if self.complete else INCOMPLETE

    def to_json(self) -> dict[str, Any]:
        """Return the report as ``xvla check --json`` prints it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": self.ok,
            "complete": self.complete,
            "missing": list(self.missing),
            "teach": list(self.teach),
            "robots": list(self.robots),
            "checked": list(self.checked),
            "errors": [problem.to_dict() for problem in self.errors],
            "warnings": [problem.to_dict() for problem in self.warnings],
            "computing": list(self.computing),
            "observations": {robot: self._observations(reading) for robot, reading in self.readings.items()},
        }

    def _observations(self, reading: Reading) -> dict[str, Any]:
        faults = [{**vars(fault), "count": count} for fault, count in reading.faults]
        return {"tried": reading.tried, "built": reading.built, "clock": self.clock, "faults": faults}


@dataclass
class _Findings:
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    computing: dict[str, None] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    teach: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        (self.errors if finding.is_error else self.warnings).append(finding.problem)
        if finding.missing:
            self.missing[finding.missing] = None


def check(
    robot_or_file: str | Path, checkpoint: str | Path | None = None, graph: GraphSnapshot | NoGraph = LEFT_OUT
) -> CheckReport:
    """Check a shipped robot or every robot of a file.

    Args:
        robot_or_file: as for ``load_profile``.
        checkpoint: folder or hub id; None takes what each profile names; where it names none, the policy that comes
            with the package, if it was trained for all of them.
        graph: of the running graph, see ``observe``.
    """
    try:
        profiles = load_profile(robot_or_file)
    except ProfileError as error:
        return CheckReport(
            (),
            ("profile",),
            tuple(error.problems),
            missing=("checkpoint, graph: they are checked once the profile is valid",),
        )
    found = _Findings()
    checked = {"profile"}
    shipped, is_refused = _shipped(profiles.values(), checkpoint, found)
    for profile in profiles.values():
        _check_executable(profile, found)
        _check_marks(profile, found)
        if (is_refused and not profile.policy.checkpoint) or _check_checkpoint(profile, checkpoint, shipped, found):
            checked.add("checkpoint")
        if isinstance(graph, NoGraph) and profile.name in found.teach:
            continue
        if isinstance(graph, NoGraph):
            found.missing[f"graph: {graph.why}"] = None
            continue
        checked.add("graph")
        for finding in graph_findings(profile, graph):
            found.add(finding)
    seen = graph if isinstance(graph, GraphSnapshot) else None
    return CheckReport(
        robots=tuple(profiles),
        checked=tuple(part for part in PARTS if part in checked),
        errors=tuple(found.errors),
        warnings=tuple(found.warnings),
        computing=tuple(found.computing),
        missing=tuple(found.missing),
        teach=tuple(found.teach),
        readings=seen.readings if seen else {},
        clock=seen.clock if seen else "",
    )


def observe(
    robot_or_file: str | Path, seconds: float = 2.0, use_sim_time: bool | None = None
) -> GraphSnapshot | NoGraph:
    """Watch the running graph for what the robots need; see ``snapshot`` for seconds and time."""
    try:
        profiles = load_profile(robot_or_file).values()
    except ProfileError:
        return NoGraph("the profile is not valid, so its topics are unknown")
    topics = [topic for profile in profiles for topic in topics_of(profile)]
    return snapshot(topics, seconds, profiles, use_sim_time)


def text_of(report: CheckReport, *, as_json: bool = False) -> str:
    """Return a report as lines for people, or as JSON."""
    if as_json:
        return json.dumps(report.to_json(), indent=2, ensure_ascii=False, default=str)
    return "\n".join(_lines(report))


def _lines(report: CheckReport) -> Iterator[str]:
    for title, problems in (("error", report.errors), ("warning", report.warnings)):
        for problem in problems:
            yield f"{title}: {problem.key or problem.file}"
            yield f"  {problem.message}"
            for name, value in (("file", problem.file), ("found", problem.value), ("expected", problem.expected)):
                if value is not None:
                    yield f"  {name + ':':<10}{value}"
    yield from report.computing
    for robot, reading in report.readings.items():
        yield f"{robot}: observations: {reading.built} of {reading.tried} (ROS time: {report.clock})"
    if report.teach:
        yield f"needs training before it can run: {', '.join(report.teach)}"
    for text in report.missing:
        yield f"incomplete: {text}"
    robots = ", ".join(report.robots) or "no robot"
    counts = f"{_count(len(report.errors), 'error')}, {_count(len(report.warnings), 'warning')}"
    counts += "" if report.complete else ", incomplete"
    left_out = [part for part in report.parts if part not in report.checked]
    scope = f"checked {', '.join(report.checked)}" + (f"; not checked: {', '.join(left_out)}" if left_out else "")
    yield f"{robots}: {counts} ({scope})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _check_executable(profile: Profile, found: _Findings) -> None:
    try:
        tool_arms(profile)
    except KinematicsError as error:
        tools = ", ".join(profile.tools)
        expected = "a URDF with the joints and limits of the profile, and Pinocchio"
        found.add(Finding(Problem(str(profile.source), f"{profile.name}.tools", tools, expected, str(error))))


def _shipped(
    profiles: Collection[Profile], checkpoint: str | Path | None, found: _Findings
) -> tuple[Path | None, bool]:
    """Return the policy that comes with the package, where the node would take it, and whether it would refuse it."""
    if checkpoint or all(profile.policy.checkpoint for profile in profiles):
        return None, False
    try:
        return shipped_policy(profiles), False
    except ProfileError as error:
        found.errors += error.problems
    except CheckpointError as error:
        for finding in of_the_files("the shipped policy", error.problems):
            found.add(finding)
    return None, True


def _check_marks(profile: Profile, found: _Findings) -> None:
    if marks := open_marks(profile):
        found.warnings += marks
        found.missing[f"marks: {_count(len(marks), 'setting')} of {profile.name} with an open CHECK mark"] = None


def _check_checkpoint(profile: Profile, checkpoint: str | Path | None, shipped: Path | None, found: _Findings) -> bool:
    """Compare a profile with the checkpoint that the node would load; return whether there is one."""
    own = profile.policy
    given = (str(checkpoint), "") if checkpoint else (own.checkpoint, own.revision)
    is_shipped = not given[0] and shipped is not None
    if is_shipped:
        given = (str(shipped), "")
    if not given[0]:
        consequence = "as safety.allow_untrained allows" if profile.safety.allow_untrained else REFUSED
        trained = f"the shipped policy was not trained for it (domain {own.domain_id})"
        text = f"checkpoint: {profile.name} names none, and {trained}: the robot moves at random, {consequence}"
        found.missing[text] = None
        return False
    for finding in checkpoint_findings(profile, *given, is_shipped=is_shipped):
        found.add(finding)
        if finding.teaches:
            found.teach.append(profile.name)
    if said := computing(*given):
        found.computing[said] = None
    return True
