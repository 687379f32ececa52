"""A replay for the Rerun viewer: recorded joints, every chunk's prediction, pictures of the worst moments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xvla_ros.evaluation.graph import SetupError
from xvla_ros.evaluation.replay.metrics import Figures
from xvla_ros.evaluation.replay.rows import Rows
from xvla_ros.nodes.rerun_stream import RerunStream, ViewError
from xvla_ros.recordings.action_path import waypoint_times
from xvla_ros.robots.actions import Trajectory
from xvla_ros.robots.joints import from_policy
from xvla_ros.robots.profile import Profile


def write_rerun(figures: Figures, path: Path) -> None:
    """Write a ``.rrd`` file with the timeline of the recordings.

    Raises:
        SetupError: Rerun is not installed, or the file cannot be written.
    """
    try:
        stream = RerunStream(figures.profile, save=path)
    except ViewError as error:
        raise SetupError(str(error)) from error
    try:
        for part in figures.parts:
            for rows in part.blocks():
                _show(stream, figures.profile, rows)
                stream.flush()
            for moment in part.record.worst:
                for slot, name in moment["pictures"].items():
                    stream.picture(slot, moment["stamp"], (part.folder / name).read_bytes())
    finally:
        stream.close()


def _show(stream: RerunStream, profile: Profile, rows: Rows) -> None:
    for row, recorded, predicted in _positions(profile, rows):
        due = waypoint_times(int(row["stamp"]), profile, len(predicted))
        for column, joint in enumerate(profile.joints.policy_order):
            stream.executed(joint, int(due[0]), float(recorded[0, column]))
        stream.predicted(Trajectory(profile.name, profile.joints.policy_order, due, predicted))


def _positions(profile: Profile, rows: Rows) -> Iterator[tuple[Any, Rows, Rows]]:
    """Yield rows with the joints [T, J] that were recorded and predicted, rad or m."""
    if profile.action_spec.is_end_effector:
        yield from ((row, row["joints_recorded"], row["joints"][0].astype(np.float64)) for row in rows)
    else:
        yield from ((row, from_policy(row["recorded"], profile), from_policy(row["predicted"][0], profile))
                    for row in rows)
