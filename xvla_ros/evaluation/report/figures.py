# SPDX-License-Identifier: Apache-2.0
"""The figures of a run: made from its recording, written as ``report.json``, printed on the console.

The page for people, ``report.html``, is made in ``page``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvla_ros.errors import EvaluationError
from xvla_ros.evaluation.report.recording import RunEpisode, RunRecording, Series
from xvla_ros.types import Percentiles

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

SCHEMA_VERSION = 1
UNTRAINED, NO_POLICY = "untrained", "no policy"
_NUMBERS = ("p50", "p95", "p99", "max")
# What a policy says of how it computes, see ``Policy.computing``.
COMPUTING = ("dtype", "dtype_reason", "engine", "device", "threads", "instruction_set")
# Encoder noise and servo hum stay below this; without it, standing still for an hour would count as travel.
TRAVEL_DEADBAND = 1e-3


@dataclass(frozen=True)
class Frames:
    """Pictures of one camera between the first and the last that the policy received."""

    sent: int
    received: int

    @property
    def dropped(self) -> int:
        """Pictures that were sent and not received."""
        return self.sent - self.received


@dataclass(frozen=True)
class Report:
    """What a run amounted to. Units: duration in s of ROS time, travel in rad (m for a prismatic gripper group).

    ``trained`` is None where no policy ran, ``seed`` where none is known, ``real_time_factor`` NaN where nothing was
    simulated. ``episodes`` are those that came to their end; a run without a task has none.
    """

    robot: str
    checkpoint: str
    trained: bool | None
    seed: int | None
    instruction: str
    duration: float
    chunks: int
    trajectories: int
    joint_travel_rad: dict[str, float]
    frames: dict[str, Frames]
    holds: int
    inference_ms: Percentiles
    overhead_ms: Percentiles
    real_time_factor: float
    episodes: tuple[RunEpisode, ...] = ()
    computing: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """One word on the weights: "trained", "untrained" where they are random, or "no policy"."""
        return NO_POLICY if self.trained is None else "trained" if self.trained else UNTRAINED

    @property
    def simulated(self) -> bool:
        """Whether a simulation took part."""
        return math.isfinite(self.real_time_factor)

    @property
    def task(self) -> str | None:
        """Of the episodes; None where none came to its end, or they were marked without a task."""
        return (self.episodes[0].task or None) if self.episodes else None

    @property
    def successes(self) -> int:
        """How many episodes succeeded."""
        return sum(bool(episode.success) for episode in self.episodes)

    def to_mapping(self) -> dict[str, Any]:
        """Return what ``report.json`` holds."""
        frames = self.frames.values()
        return {
            "schema_version": SCHEMA_VERSION,
            "robot": self.robot,
            "checkpoint": self.checkpoint,
            "trained": self.trained,
            "weights": self.label,
            "seed": self.seed,
            "instruction": self.instruction,
            "duration": round(self.duration, 3),
            "chunks": self.chunks,
            "trajectories": self.trajectories,
            "joint_travel_rad": {group: round(way, 4) for group, way in self.joint_travel_rad.items()},
            "frames_sent": sum(count.sent for count in frames),
            "frames_received": sum(count.received for count in frames),
            "frames_dropped": sum(count.dropped for count in frames),
            "holds": self.holds,
            "inference_ms": _finite(asdict(self.inference_ms)),
            "overhead_ms": _finite(asdict(self.overhead_ms)),
            "real_time_factor": round(self.real_time_factor, 3) if self.simulated else None,
            **self.computing,
            "task": self.task,
            "episodes": [episode.to_mapping() for episode in self.episodes],
            "success_rate": self.successes / len(self.episodes) if self.episodes else None,
        }


def make_report(recording: RunRecording, profile: Profile) -> Report:
    """Make the report of a recording.

    Raises:
        EvaluationError: a policy ran and never said what it is (no diagnostics), or nothing was recorded.
    """
    values = recording.diagnostics
    if "trained" not in values and (recording.chunks or recording.statuses):
        raise EvaluationError(
            "the policy node sent no diagnostics that say whether its weights are trained; "
            "expected /diagnostics with the key 'trained' once a second"
        )
    if not recording.start:
        raise EvaluationError(f"no joints, pictures or commands of {profile.name} were recorded: there is no run")
    last = recording.statuses[-1] if recording.statuses else None
    return Report(
        robot=profile.name,
        checkpoint=values.get("checkpoint", ""),
        trained=values["trained"] == "true" if "trained" in values else None,
        seed=int(values["seed"]) if "seed" in values else None,
        instruction=last.instruction if last else profile.instruction,
        duration=recording.duration,
        chunks=len(recording.chunks),
        trajectories=sum(recording.trajectories.values()),
        joint_travel_rad=joint_travel(recording, profile),
        frames=count_frames(values, recording.stamps, tuple(profile.cameras.slots)),
        holds=recording.counted("holds"),
        inference_ms=Percentiles.of([chunk.inference_ms for chunk in recording.chunks]),
        overhead_ms=Percentiles(**{name: float(values.get(f"overhead_ms_{name}", "nan")) for name in _NUMBERS}),
        real_time_factor=float(recording.simulation.get("real_time_factor", math.nan)),
        episodes=tuple(episode for episode in recording.episodes if episode.ended is not None),
        computing=computing_of(values),
    )


def travel(series: Series, deadband: float = TRAVEL_DEADBAND) -> float:
    """Return how far one joint moved: the sum of its movements, counted in steps of at least ``deadband``.

    A movement counts once the joint is ``deadband`` away from where the last counted movement ended.
    """
    total = 0.0
    if not series.position.size:
        return total
    anchor = float(series.position[0])
    for position in series.position.tolist():
        step = abs(position - anchor)
        if step >= deadband:
            total += step
            anchor = position
    return total


def joint_travel(recording: RunRecording, profile: Profile) -> dict[str, float]:
    """Return how far the joints of each command group moved, in rad: the sum over its joints without grippers.

    A group that holds nothing but grippers counts those. Only what was measured after the first command counts,
    and no reset.
    """
    ways = {
        joint: sum(travel(_after_start(part)) for part in track.stretches(recording.resets))
        for joint, track in recording.measured.items()
    }
    return travel_by_group(ways, profile)


def travel_by_group(ways: Mapping[str, float], profile: Profile) -> dict[str, float]:
    """Return how far each command group moved, from how far each joint did, by the rule of ``joint_travel``."""
    skipped, sums = grippers(profile), {}
    for group in profile.commands.groups:
        joints = profile.commands.by_name[group].joints
        counted = [joint for joint in joints if joint not in skipped] or list(joints)
        sums[group] = sum(ways[joint] for joint in counted)
    return sums


def grippers(profile: Profile) -> frozenset[str]:
    """Return the policy names of the joints that are grippers, by the profile's action mode or tools."""
    spec = profile.action_spec
    if spec.is_end_effector:
        return frozenset(tool.gripper.joint for tool in profile.tools.values())
    order = profile.joints.policy_order
    return frozenset(order[index] for index in spec.gripper if index < len(order))


def _after_start(series: Series) -> Series:
    later = series.time >= 0.0
    return Series(series.time[later], series.position[later])


def computing_of(diagnostics: Mapping[str, str]) -> dict[str, str]:
    """Return how the policy computes, as far as its diagnostics say."""
    return {name: diagnostics[name] for name in COMPUTING if name in diagnostics}


def count_frames(
    diagnostics: Mapping[str, str], stamps: Mapping[str, Sequence[int]], cameras: Sequence[str]
) -> dict[str, Frames]:
    """Count, per camera, what was sent while the policy listened and what of it arrived.

    Only frames between the first and the last stamp the policy received count: before, it was not there yet. What was
    sent is what was recorded, or what the policy received where the recorder missed more of it.
    """
    counts = {}
    for camera in cameras:
        received = int(diagnostics.get(f"frames_received/{camera}", "0"))
        first, last = (int(diagnostics.get(f"{which}_stamp/{camera}", "0")) for which in ("first", "last"))
        sent = sum(first <= stamp <= last for stamp in stamps.get(camera, ())) if received else 0
        counts[camera] = Frames(max(sent, received), received)
    return counts


def write_json(report: Report, path: Path) -> None:
    """Write ``report.json``."""
    path.write_text(json.dumps(report.to_mapping(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def summary(report: Report) -> str:
    """Return the short table at the end of a demo; without a policy it has only what was measured."""
    frames = report.to_mapping()
    dropped = 100.0 * frames["frames_dropped"] / max(1, frames["frames_sent"])
    clock = f" of simulated time at {report.real_time_factor:.2f} times real time" if report.simulated else ""
    rows = [
        ("weights", "untrained: random weights, the motion means nothing" if report.trained is False else report.label),
        ("measured", f"{report.duration:.1f} s{clock}"),
        ("computes in", "{dtype}: {dtype_reason}".format(**report.computing) if report.computing else "not said"),
        *_episodes_in_words(report),
        ("chunks", str(report.chunks)),
        ("trajectories", str(report.trajectories)),
        *((f"travel {group}", f"{way:.2f} rad") for group, way in report.joint_travel_rad.items()),
        ("frames", f"{frames['frames_received']} of {frames['frames_sent']} received, {dropped:.1f} % dropped"),
        ("holds", str(report.holds)),
        ("inference", _in_words(report.inference_ms)),
        ("overhead", _in_words(report.overhead_ms)),
    ]
    absent = ("computes in", "chunks", "frames", "holds", "inference", "overhead") if report.trained is None else ()
    rows = [(name, value) for name, value in rows if name not in absent]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _episodes_in_words(report: Report) -> list[tuple[str, str]]:
    if not report.episodes:
        return []
    wrong = sum(episode.wrong for episode in report.episodes)
    other = f", {wrong} did something else" if report.task else ""
    return [(report.task or "episodes", f"{report.successes} of {len(report.episodes)} succeeded{other}")]


def _in_words(values: Percentiles) -> str:
    if math.isnan(values.p50):
        return "not measured"
    return f"median {values.p50:.1f} ms, 99 % below {values.p99:.1f} ms, at most {values.max:.1f} ms"


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(value, 3) if math.isfinite(value) else None for name, value in values.items()}
