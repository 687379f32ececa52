# SPDX-License-Identifier: Apache-2.0
"""Plots of a run, each as the bytes of a PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from xvla_ros.evaluation.report.recording import RunRecording, Series, StatusRecord

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

MEASURED, COMMANDED, PREDICTED, LIMIT = "#1273b8", "#e07b00", "#b4bcc8", "#c42e3a"
STATES = {"running": "#2ea060", "holding": "#d68a18", "stopped": "#ce3a3a", "inactive": "#8d97a5"}
RESET, DONE, FAILED, UNDECIDED = "#6a7482", "#2ea060", "#ce3a3a", "#b4bcc8"
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
    for begin, end, status in _spans(recording):
        axes.barh(1, end - begin, left=begin, height=0.8, color=STATES.get(status.state, "#444444"))
        if status.reason and end - begin > 0.08 * max(recording.duration, 1e-3):
            words = status.reason.replace("_", " ")
            axes.text((begin + end) / 2, 1, words, ha="center", va="center", fontsize=8, color="white")
    arrivals = [chunk.received for chunk in recording.chunks]
    axes.plot(arrivals, np.zeros(len(arrivals)), "|", ms=11, color=MEASURED)
    rows = ["chunks", "state"]
    if recording.episodes:
        _draw_episodes(axes, recording, len(rows))
        rows.append("episode")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0.0, max(recording.duration, 1e-3))
    axes.set_xlabel("s since the first command")
    axes.grid(False)
    seen = [state for state in STATES if any(status.state == state for _, _, status in _spans(recording))]
    handles = [_patch(STATES[state], state) for state in seen]
    if handles:
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(handles)}
        axes.legend(handles=handles, frameon=False, fontsize=8, **place)
    return png(drawn)


def _draw_episodes(axes: Any, recording: RunRecording, row: int) -> None:
    """Draw a bar from each reset to the episode's end, numbered as in the table; grey where nobody judged it."""
    for number, episode in enumerate(recording.episodes, start=1):
        end = recording.duration if episode.ended is None else episode.ended
        undecided = episode.ended is None or episode.success is None
        colour = UNDECIDED if undecided else DONE if episode.success else FAILED
        begin = max(episode.begun, 0.0)
        axes.barh(row, end - begin, left=begin, height=0.8, color=colour)
        axes.text((begin + end) / 2, row, str(number), ha="center", va="center", fontsize=8, color="white")


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


def _spans(recording: RunRecording) -> list[tuple[float, float, StatusRecord]]:
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
