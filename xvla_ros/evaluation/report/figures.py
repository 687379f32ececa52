# SPDX-License-Identifier: Apache-2.0
"""The figures of a run: made from its recording, written as ``report.json``, printed on the console, plotted as PNG.

The page for people, ``report.html``, is made in ``page``.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xvla_ros.errors import EvaluationError
from xvla_ros.evaluation.report.provenance import COMPUTING, provenance
from xvla_ros.evaluation.report.recording import RunEpisode, RunRecording, Series, StatusRecord
from xvla_ros.robots.joints import gripper_joints
from xvla_ros.types import Percentiles

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

SCHEMA_VERSION = 1
UNTRAINED, NO_POLICY = "untrained", "no policy"
_NUMBERS = ("p50", "p95", "p99", "max")
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
    simulated, ``answer_ms`` (from a question to its answer) where no policy server was asked. ``episodes`` are those
    that came to their end; a run without a task has none.
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
    answer_ms: Percentiles = field(default_factory=lambda: Percentiles.of([]))

    @property
    def label(self) -> str:
        """One word on the weights: "trained", "untrained" where they are random, or "no policy"."""
        return NO_POLICY if self.trained is None else "trained" if self.trained else UNTRAINED

    @property
    def simulated(self) -> bool:
        """Whether a simulation took part."""
        return math.isfinite(self.real_time_factor)

    @property
    def is_remote(self) -> bool:
        """Whether a policy server was asked."""
        return math.isfinite(self.answer_ms.p50)

    @property
    def task(self) -> str | None:
        """Of the episodes; None where none came to its end, or they were marked without a task."""
        return (self.episodes[0].task or None) if self.episodes else None

    @property
    def judged(self) -> int:
        """How many episodes were judged."""
        return sum(episode.success is not None for episode in self.episodes)

    @property
    def successes(self) -> int:
        """How many of those succeeded."""
        return sum(bool(episode.success) for episode in self.episodes)

    @property
    def outcome(self) -> str:
        """Of all episodes, in words."""
        unjudged = len(self.episodes) - self.judged
        if not self.judged:
            return f"{unjudged} not judged"
        return f"{self.successes} of {self.judged} succeeded" + (f", {unjudged} not judged" if unjudged else "")

    def to_mapping(self) -> dict[str, Any]:
        """Return what ``report.json`` holds."""
        frames = self.frames.values()
        return {
            "schema_version": SCHEMA_VERSION,
            **provenance(),
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
            **({"answer_ms": _finite(asdict(self.answer_ms))} if self.is_remote else {}),
            "real_time_factor": round(self.real_time_factor, 3) if self.simulated else None,
            **self.computing,
            "task": self.task,
            "episodes": [episode.to_mapping() for episode in self.episodes],
            "success_rate": self.successes / self.judged if self.judged else None,
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
        raise EvaluationError(
            f"no joints, images or commands of {profile.name} were recorded, so there is nothing to report"
        )
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
        frames=count_frames(values, recording.stamps, tuple(profile.cameras.slots), recording.before),
        holds=recording.counted("holds"),
        inference_ms=Percentiles.of([chunk.inference_ms for chunk in recording.chunks]),
        overhead_ms=_said(values, "overhead_ms"),
        real_time_factor=float(recording.simulation.get("real_time_factor", math.nan)),
        episodes=tuple(episode for episode in recording.episodes if episode.ended is not None),
        computing=computing_of(values),
        answer_ms=_said(values, "answer_ms"),
    )


def _said(values: Mapping[str, str], name: str) -> Percentiles:
    return Percentiles(**{each: float(values.get(f"{name}_{each}", "nan")) for each in _NUMBERS})


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
    sums, order = {}, profile.joints.policy_order
    skipped = {order[index] for index in gripper_joints(profile)}
    for group in profile.commands.groups:
        joints = profile.commands.by_name[group].joints
        counted = [joint for joint in joints if joint not in skipped] or list(joints)
        sums[group] = sum(ways[joint] for joint in counted)
    return sums


def _after_start(series: Series) -> Series:
    later = series.time >= 0.0
    return Series(series.time[later], series.position[later])


def computing_of(diagnostics: Mapping[str, str]) -> dict[str, str]:
    """Return how the policy computes, as far as its diagnostics say."""
    return {name: diagnostics[name] for name in COMPUTING if name in diagnostics}


def count_frames(
    diagnostics: Mapping[str, str],
    stamps: Mapping[str, Sequence[int]],
    cameras: Sequence[str],
    before: Mapping[str, str],
) -> dict[str, Frames]:
    """Count, per camera, what was sent while the policy listened and what of it arrived.

    Only frames between the first and the last stamp the policy received count: before, it was not there yet. What was
    sent is what was recorded, or what the policy received where the recorder missed more of it. Of a part of a run only
    those count that came after the diagnostics ``before`` it, where both are of one node's counter.
    """
    counts = {}
    for camera in cameras:
        received, earlier = (int(said.get(f"frames_received/{camera}", "0")) for said in (diagnostics, before))
        first, last = (int(diagnostics.get(f"{which}_stamp/{camera}", "0")) for which in ("first", "last"))
        if 0 < earlier < received and int(before.get(f"first_stamp/{camera}", "0")) == first:  # the same node counts on
            received, first = received - earlier, int(before.get(f"last_stamp/{camera}", "0")) + 1
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
        (
            "weights",
            "untrained: random weights, the motion is meaningless" if report.trained is False else report.label,
        ),
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
        *([("answers", _in_words(report.answer_ms))] if report.is_remote else []),
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
    return [(report.task or "episodes", f"{report.outcome}{other}")]


def _in_words(values: Percentiles) -> str:
    if math.isnan(values.p50):
        return "not measured"
    return f"median {values.p50:.1f} ms, 99 % below {values.p99:.1f} ms, at most {values.max:.1f} ms"


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(value, 3) if math.isfinite(value) else None for name, value in values.items()}


MEASURED, COMMANDED, PREDICTED, LIMIT = "#1273b8", "#c46a00", "#b4bcc8", "#c42e3a"
# White words stand on these, at a contrast of 4.5 and more (WCAG AA).
STATES = {"running": "#187442", "holding": "#965800", "stopped": "#ba2c2c", "inactive": "#606a7a"}
RESET, DONE, FAILED, UNDECIDED = "#6a7482", "#187442", "#ba2c2c", "#606a7a"
DOTS_PER_INCH = 130
LEAST_SPAN = 0.1  # rad or m: below, a plot would magnify noise
MOST_CHUNKS = 60


def joint_plot(joint: str, recording: RunRecording, profile: Profile) -> bytes:
    """Plot the position of one joint (rad or m) over the run: measured, commanded, predicted, and limits nearby."""
    drawn, axes = figure(4.4, 2.3)
    order = profile.joints.policy_order
    column = order.index(joint)
    step = max(1, len(recording.chunks) // MOST_CHUNKS)
    for chunk in recording.chunks[::step]:
        if chunk.position is not None:
            reset = next((time for time in recording.resets if time > chunk.received), np.inf)
            predicted = Series(chunk.time, chunk.position[:, column]).between(-np.inf, reset)
            axes.plot(predicted.time, predicted.position, color=PREDICTED, lw=0.7, alpha=0.6, zorder=1)
    measured, commanded = recording.measured[joint], recording.commanded[joint]
    for part in measured.stretches(recording.resets):
        axes.plot(part.time, part.position, color=MEASURED, lw=1.6, zorder=3)
    for part in commanded.stretches(recording.resets):
        axes.plot(part.time, part.position, color=COMMANDED, lw=1.2, ls=(0, (4, 2)), zorder=4)
    for time in recording.resets:
        axes.axvline(time, color=RESET, lw=0.8, zorder=2)
    axes.set_xlim(min(0.0, -0.02 * recording.duration), max(recording.duration, 1e-3))
    low, high = _span(np.concatenate([measured.position[measured.time >= 0], commanded.position]))
    limits = profile.joints.by_name[joint]
    for value in (limits.lower, limits.upper):
        if low - 0.3 * (high - low) <= value <= high + 0.3 * (high - low):
            axes.axhline(value, color=LIMIT, lw=1.0)
            low, high = min(low, value), max(high, value)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_title(joint.replace("_", " "), loc="left", fontsize=10)
    axes.set_xlabel("s")
    return png(drawn)


def status_plot(recording: RunRecording) -> bytes:
    """Plot the policy's states as a coloured bar, arrivals of chunks as ticks below, episodes of a task above."""
    drawn, axes = figure(8.8, 2.0 if recording.episodes else 1.5)
    for begin, end, status in spans(recording):
        axes.barh(1, end - begin, left=begin, height=0.8, color=STATES.get(status.state, "#444444"))
        if status.reason and end - begin > 0.08 * max(recording.duration, 1e-3):
            words = status.reason.replace("_", " ")
            axes.text((begin + end) / 2, 1, words, ha="center", va="center", fontsize=8, color="white")
    arrivals = [chunk.received for chunk in recording.chunks]
    axes.plot(arrivals, np.zeros(len(arrivals)), "|", ms=11, color=MEASURED, clip_on=False)
    rows = ["chunks", "state"]
    if recording.episodes:
        _draw_episodes(axes, recording, len(rows))
        rows.append("episode")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    # the first chunk comes before the first command
    axes.set_xlim(min([0.0, *arrivals]) - 0.01 * recording.duration, max([recording.duration, *arrivals, 1e-3]))
    axes.set_xlabel("s since the first command")
    axes.grid(False)
    seen = [state for state in STATES if any(status.state == state for _, _, status in spans(recording))]
    handles = [_patch(STATES[state], state) for state in seen]
    outcomes = {_colour_of(episode)[::-1] for episode in recording.episodes}
    handles += [_patch(colour, f"episode {word}") for word, colour in sorted(outcomes)]
    if handles:
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(handles)}
        axes.legend(handles=handles, frameon=False, fontsize=8, **place)
    return png(drawn)


def _draw_episodes(axes: Any, recording: RunRecording, row: int) -> None:
    """Draw a bar from each reset to the episode's end, numbered as in the table; grey where nobody judged it."""
    for number, episode in enumerate(recording.episodes, start=1):
        end = recording.duration if episode.ended is None else episode.ended
        colour, _ = _colour_of(episode)
        begin = max(episode.begun, 0.0)
        axes.barh(row, end - begin, left=begin, height=0.8, color=colour)
        axes.text((begin + end) / 2, row, str(number), ha="center", va="center", fontsize=8, color="white")


def _colour_of(episode: RunEpisode) -> tuple[str, str]:
    if episode.ended is None or episode.success is None:
        return UNDECIDED, "not judged"
    return (DONE, "succeeded") if episode.success else (FAILED, "failed")


def latency_plot(recording: RunRecording) -> bytes:
    """Plot the inference time of every chunk over the run."""
    drawn, axes = figure(8.8, 2.2)
    values = [chunk.inference_ms for chunk in recording.chunks]
    axes.plot([chunk.received for chunk in recording.chunks], values, "o", ms=3.5, color=MEASURED)
    if values:
        median = float(np.median(values))
        axes.axhline(median, color=COMMANDED, lw=1.0)
        axes.text(1.005, median, "median", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_ylim(0.0, 1.1 * max(values, default=1.0))
    axes.set_xlabel("s since the first command")
    axes.set_ylabel("ms")
    return png(drawn)


def spans(recording: RunRecording) -> list[tuple[float, float, StatusRecord]]:
    """Return the spans of equal state and reason within the run: begin, end, and the status that opened each."""
    spans: list[tuple[float, float, StatusRecord]] = []
    for status in recording.statuses:
        time = min(max(status.time, 0.0), recording.duration)
        if spans and (spans[-1][2].state, spans[-1][2].reason) == (status.state, status.reason):
            continue
        if spans:
            spans[-1] = (spans[-1][0], time, spans[-1][2])
        spans.append((time, recording.duration, status))
    return [span for span in spans if span[1] > span[0]]


def _span(values: Any) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return -LEAST_SPAN, LEAST_SPAN
    low, high = float(finite.min()), float(finite.max())
    room = max(0.0, LEAST_SPAN - (high - low)) / 2
    return low - room, high + room


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def figure(width: float, height: float) -> tuple[Any, Any]:
    """Return an empty figure of our style, inches, and its axes."""
    from matplotlib.figure import Figure  # not pyplot: it would look for a display

    drawn = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    axes = drawn.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    axes.grid(alpha=0.25)
    return drawn, axes


def png(drawn: Any) -> bytes:
    """Return a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()
