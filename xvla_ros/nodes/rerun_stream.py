# SPDX-License-Identifier: Apache-2.0
"""What is seen of one robot, as a stream for the Rerun viewer: into a file, to a viewer, or both. No rclpy here.

===========================  ==========================================================================
entity                       what
===========================  ==========================================================================
``cameras/C``                pictures of camera C
``joints/J/executed``        measured position of joint J, rad or m
``joints/J/predicted/0`` …   what the chunks plan for it; they take turns, so that the lines stay apart
``status``                   state and reason of the robot as text, when they change
``episodes``                 how an episode stands, when that changes
===========================  ==========================================================================

The timeline is ``ros_time``: the stamps of the messages, and for chunks the times at which their waypoints are due.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from xvla_ros.errors import SetupError
from xvla_ros.robots.actions import Trajectory
from xvla_ros.robots.profile import Profile

TIMELINE = "ros_time"
ANSWER_S = 5.0  # s within which a viewer must take what it is sent
TURNS = 4  # chunks that may cover the same time
EXECUTED, PREDICTED = (46, 160, 96), (66, 135, 245)
LEVELS = {"running": "INFO", "holding": "WARN", "stopped": "ERROR"}
WITHOUT_RERUN = "the Rerun SDK cannot be imported ({}); install it with: pip install 'xvla_ros[view]'"


class RerunStream:
    """One recording of one robot.

    Args:
        profile: the robot.
        save: file to write, ``.rrd``.
        connect: address of a viewer, such as rerun+http://127.0.0.1:9876/proxy.
        spawn: whether to open a viewer on this machine.

    Raises:
        SetupError: Rerun is not installed, the file cannot be written, there is no display for a viewer, or no viewer
            answers.
    """

    def __init__(
        self, profile: Profile, *, save: Path | None = None, connect: str | None = None, spawn: bool = False
    ) -> None:
        self._rerun = rerun = _import_rerun()
        self._profile = profile
        self._samples: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._chunks = 0
        self._last_episodes: dict[str, str] = {}
        self._last_status: tuple[str, str, str] | None = None
        self._stream = rerun.RecordingStream("xvla_ros")
        self._stream.set_log_time_enabled(False)
        self._stream.set_log_tick_enabled(False)
        try:
            self._open(save, connect, spawn)
            self._name_series()
        except (OSError, RuntimeError, ValueError) as error:
            raise SetupError(f"the stream cannot be opened: {error}") from error
        try:
            # Rerun would wait for a viewer that never answers, and with it whoever shows something
            self._stream.flush(timeout_sec=ANSWER_S)
        except RuntimeError as error:
            raise SetupError(f"no viewer answers at {connect or 'this machine'}: {error}") from error

    def _open(self, save: Path | None, connect: str | None, spawn: bool) -> None:
        sinks: list[Any] = []
        if save is not None:
            save.parent.mkdir(parents=True, exist_ok=True)
            sinks.append(self._rerun.FileSink(str(save)))
        if spawn:
            _require_display()
            # the viewer comes with the SDK; its folder need not be in PATH
            os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
            self._stream.spawn(connect=False)
        if connect is not None or spawn:
            sinks.append(self._rerun.GrpcSink(connect) if connect is not None else self._rerun.GrpcSink())
        self._stream.set_sinks(*sinks, default_blueprint=self._layout())

    def _layout(self) -> Any:
        import rerun.blueprint as views

        cameras = [views.Spatial2DView(origin=f"cameras/{name}", name=name) for name in self._profile.cameras.slots]
        joints = [
            views.TimeSeriesView(origin=f"joints/{name}", name=name) for name in self._profile.joints.policy_order
        ]
        beside = views.Vertical(*cameras, views.TextLogView(origin="status", name="status"))
        return views.Blueprint(views.Horizontal(beside, views.Grid(*joints), column_shares=[1, 3]))

    def _name_series(self) -> None:
        lines = self._rerun.SeriesLines
        for joint in self._profile.joints.policy_order:
            self._stream.log(f"joints/{joint}/executed", lines(colors=[EXECUTED], names=["executed"]), static=True)
            for turn in range(TURNS):
                self._stream.log(_predicted(joint, turn), lines(colors=[PREDICTED], names=["predicted"]), static=True)

    @property
    def url(self) -> str:
        """Empty: the viewer has no page."""
        return ""

    def picture(self, camera: str, stamp: int, jpeg: bytes) -> None:
        """Show a picture, JPEG, of ROS time ``stamp`` in ns."""
        self._set_time(stamp)
        self._stream.log(f"cameras/{camera}", self._rerun.EncodedImage(contents=jpeg, media_type="image/jpeg"))

    def executed(self, joint: str, stamp: int, position: float) -> None:
        """Take the measured position, rad or m, of a joint by its policy name; shown with the next ``flush``."""
        self._samples[joint].append((stamp, position))

    def predicted(self, path: Trajectory) -> None:
        """Show what a chunk plans."""
        turn, self._chunks = self._chunks % TURNS, self._chunks + 1
        times = np.append(path.times, path.times[-1] + 1)
        for column, joint in enumerate(path.joints):
            # no line from the end of this chunk to the beginning of the one that has the same turn
            self._send(_predicted(joint, turn), times, np.append(path.positions[:, column], np.nan))

    def status(self, stamp: int, state: str, reason: str, detail: str, instruction: str) -> None:
        """Log the robot's state where it, its reason or the instruction has changed."""
        now = (state, reason, instruction)
        if now == self._last_status:
            return
        self._last_status = now
        text = ": ".join(part for part in (state, reason, detail or instruction) if part)
        self._set_time(stamp)
        self._stream.log("status", self._rerun.TextLog(text, level=LEVELS.get(state, "INFO")))

    def episode(self, key: str, instruction: str, outcome: str) -> None:
        """Log how an episode stands, where that has changed."""
        if self._last_episodes.get(key) != outcome:
            self._last_episodes[key] = outcome
            self._stream.log("episodes", self._rerun.TextLog(f"{key}: {instruction}: {outcome}"))

    def flush(self) -> None:
        """Send what has been gathered."""
        samples, self._samples = self._samples, defaultdict(list)
        for joint, found in samples.items():
            self._send(f"joints/{joint}/executed", *map(np.array, zip(*found, strict=True)))

    def close(self) -> None:
        """Send everything, and end the file."""
        self.flush()
        with contextlib.suppress(RuntimeError):  # the viewer was closed; Rerun says so, and the file is whole
            self._stream.flush(timeout_sec=ANSWER_S)
        self._stream.disconnect()

    def _send(self, entity: str, stamps: Any, values: Any) -> None:
        times = self._rerun.TimeColumn(TIMELINE, timestamp=np.asarray(stamps, np.int64).astype("datetime64[ns]"))
        columns = self._rerun.Scalars.columns(scalars=np.asarray(values, np.float64))
        self._rerun.send_columns(entity, indexes=[times], columns=columns, recording=self._stream)

    def _set_time(self, stamp: int) -> None:
        self._stream.set_time(TIMELINE, timestamp=np.datetime64(stamp, "ns"))


def _require_display() -> None:
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise SetupError(
            "a viewer needs a display, and DISPLAY is not set; use --save FILE, or --connect to a viewer "
            "on another machine"
        )


def _predicted(joint: str, turn: int) -> str:
    return f"joints/{joint}/predicted/{turn}"


def _import_rerun() -> Any:
    try:
        import rerun
    except ImportError as error:
        raise SetupError(WITHOUT_RERUN.format(error)) from error
    return rerun
