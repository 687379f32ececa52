"""``xvla check``: does a profile fit its checkpoint and the running graph, before any arm moves."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from xvla_ros.evaluation.graph_checks import graph_findings, topics_of
from xvla_ros.robots.kinematics import KinematicsError
from xvla_ros.robots.marks import open_marks
from xvla_ros.robots.problems import Problem, ProfileError
from xvla_ros.robots.profile import Profile, load_profile, shipped_files
from xvla_ros.robots.tool_arm import tool_arms

if TYPE_CHECKING:
    from xvla_ros.nodes.graph import GraphSnapshot

SCHEMA_VERSION = 1
PARTS = ("profile", "checkpoint", "graph")


@dataclass(frozen=True)
class CheckReport:
    """What was found wrong.

    Attributes:
        robots: names of the checked robots.
        checked: the parts that were compared: ``profile``, ``checkpoint``, ``graph``.
        errors: what keeps a robot from running.
        warnings: what it runs with, but should be known.
        computing: what the checked checkpoints would compute in on this machine's CPU, and why.
    """

    robots: tuple[str, ...]
    checked: tuple[str, ...]
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    computing: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """Return the report as ``xvla check --json`` prints it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": self.ok,
            "robots": list(self.robots),
            "checked": list(self.checked),
            "errors": [problem.to_dict() for problem in self.errors],
            "warnings": [problem.to_dict() for problem in self.warnings],
            "computing": list(self.computing),
        }


@dataclass
class _Findings:
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    computing: dict[str, None] = field(default_factory=dict)

    def add(self, problem: Problem, is_error: bool = True) -> None:
        (self.errors if is_error else self.warnings).append(problem)


def check(
    robot_or_file: str | Path, checkpoint: str | Path | None = None, graph: GraphSnapshot | None = None
) -> CheckReport:
    """Check a shipped robot or every robot of a file.

    Args:
        robot_or_file: as for ``load_profile``.
        checkpoint: folder or hub id; None takes what each profile names, and nothing where it names none.
        graph: of the running graph, see ``observe``; None leaves it out.
    """
    try:
        profiles = load_profile(robot_or_file)
    except ProfileError as error:
        return CheckReport((), ("profile",), tuple(error.problems))
    found = _Findings()
    checked = {"profile"}
    for profile in profiles.values():
        _check_executable(profile, found)
        found.warnings += open_marks(profile)
        if checkpoint or profile.policy.checkpoint:
            checked.add("checkpoint")
            _check_checkpoint(profile, checkpoint, found)
        if graph is not None:
            checked.add("graph")
            for finding in graph_findings(profile, graph):
                found.add(finding.problem, finding.is_error)
    parts = tuple(part for part in PARTS if part in checked)
    return CheckReport(tuple(profiles), parts, tuple(found.errors), tuple(found.warnings), tuple(found.computing))


def observe(robot_or_file: str | Path, seconds: float = 2.0) -> GraphSnapshot | None:
    """Watch the running graph for what the robots need; None when no other node is up or the profile is wrong."""
    try:
        profiles = load_profile(robot_or_file)
    except ProfileError:
        return None
    from xvla_ros.nodes.graph import snapshot

    return snapshot([topic for profile in profiles.values() for topic in topics_of(profile)], seconds)


def print_report(report: CheckReport, json_form: bool = False, stream: TextIO | None = None) -> None:
    """Print a report for people, or as JSON."""
    out = stream or sys.stdout
    if json_form:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False, default=str), file=out)
        return
    for title, problems in (("error", report.errors), ("warning", report.warnings)):
        for problem in problems:
            print(f"{title}: {problem.key or problem.file}", file=out)
            print(f"  {problem.message}", file=out)
            rows = [("file", problem.file), ("found", problem.value), ("expected", problem.expected)]
            for name, value in rows:
                if value is not None:
                    print(f"  {name + ':':<10}{value}", file=out)
    for text in report.computing:
        print(text, file=out)
    robots = ", ".join(report.robots) or "no robot"
    counts = f"{_count(len(report.errors), 'error')}, {_count(len(report.warnings), 'warning')}"
    left_out = [part for part in PARTS if part not in report.checked]
    scope = f"checked {', '.join(report.checked)}" + (f"; not checked: {', '.join(left_out)}" if left_out else "")
    print(f"{robots}: {counts} ({scope})", file=out)


@dataclass(frozen=True)
class RobotSummary:
    """One line of ``xvla robots``."""

    name: str
    file: str
    action_mode: str
    domain_id: int
    joints: int
    cameras: tuple[str, ...]
    checkpoint: str


def list_robots() -> list[RobotSummary]:
    """Return the shipped robots.

    Raises:
        ProfileError: when one of the files is wrong.
    """
    profiles = [profile for path in shipped_files() for profile in load_profile(path).values()]
    return [
        RobotSummary(
            name=profile.name,
            file=str(profile.source),
            action_mode=profile.policy.action_mode,
            domain_id=profile.policy.domain_id,
            joints=len(profile.joints.policy_order),
            cameras=profile.cameras.slots,
            checkpoint=profile.policy.checkpoint,
        )
        for profile in profiles
    ]


def print_robots(robots: list[RobotSummary], json_form: bool = False, stream: TextIO | None = None) -> None:
    """Print the robots as a table, or as JSON."""
    out = stream or sys.stdout
    if json_form:
        document = {"schema_version": SCHEMA_VERSION, "robots": [vars(robot) for robot in robots]}
        print(json.dumps(document, indent=2, ensure_ascii=False), file=out)
        return
    head = ("robot", "action mode", "domain", "joints", "cameras", "file")
    rows = [
        (each.name, each.action_mode, str(each.domain_id), str(each.joints), " ".join(each.cameras), each.file)
        for each in robots
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), file=out)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _check_executable(profile: Profile, found: _Findings) -> None:
    try:
        tool_arms(profile)
    except KinematicsError as error:
        tools = ", ".join(profile.tools)
        expected = "a URDF with the joints and limits of the profile, and Pinocchio"
        found.add(Problem(str(profile.source), f"{profile.name}.tools", tools, expected, str(error)))


def _check_checkpoint(profile: Profile, checkpoint: str | Path | None, found: _Findings) -> None:
    from xvla_ros.evaluation.checkpoint_checks import checkpoint_findings, computing

    own = profile.policy
    given = (str(checkpoint), "") if checkpoint else (own.checkpoint, own.revision)
    for finding in checkpoint_findings(profile, *given):
        found.add(finding.problem, finding.is_error)
    if said := computing(*given):
        found.computing[said] = None
