# SPDX-License-Identifier: Apache-2.0
"""The figures of a replay, ``metrics.json`` and ``metrics.csv``: rows of all bags added up, and baselines."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import EvaluationError
from xvla_ros.evaluation.replay.bag import ABLATED, ROWS, BagRecord, layout_of
from xvla_ros.evaluation.replay.measures import GRIPPER, JOINT, RAD, Measure, Measures, joint_factors, joint_measures
from xvla_ros.evaluation.replay.rows import SHIFTS, Rows, blocks
from xvla_ros.evaluation.replay.sources import ablated_rows, ablation_table
from xvla_ros.evaluation.replay.sums import EpisodeSums, ErrorSums, GripperSums, MotionSums, gripper_channels
from xvla_ros.evaluation.report.provenance import provenance
from xvla_ros.observation.faults import FaultTally
from xvla_ros.resources import write_whole
from xvla_ros.robots.profile import Profile
from xvla_ros.types import Floats

SCHEMA_VERSION = 1
COLUMNS = ("policy", "part", "kind", "measure", "value", "unit")
MOST_KINDS = 20  # kinds of faults that are written
PERSISTENCE, MEAN, LAST_COMMAND = "persistence", "mean", "last_command"
Key = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A bag that was replayed, and the folder of its rows."""

    record: BagRecord
    folder: Path

    def blocks(self) -> Iterator[Rows]:
        """Yield its rows, a few at a time."""
        if self.record.frames:
            yield from blocks(self.folder / ROWS, layout_of(self.record).dtype)

    def rows(self, episode: int | None = None, most: int | None = None) -> Rows:
        """Return its rows, or those of one episode; at most the first ``most``."""
        found: list[Rows] = []
        count = 0
        for rows in self.blocks():
            found.append(rows if episode is None else rows[rows["episode"] == episode])
            count += len(found[-1])
            if most is not None and count >= most:
                break
        return np.concatenate(found)[:most]

    def stamps(self) -> set[int]:
        """Return the stamps in ns of its rows."""
        return {int(stamp) for rows in self.blocks() for stamp in rows["stamp"]}


class Figures:
    """Everything that is counted in a replay.

    Args:
        profile: the robot.
        parts: bags with at least one row between them.
        runs: how many policies answered.

    Raises:
        EvaluationError: no bag has rows, or they were made by policies with other chunks.
    """

    def __init__(self, profile: Profile, parts: Sequence[Part], runs: int) -> None:
        self.profile, self.parts = profile, [part for part in parts if part.record.frames]
        self.measures = Measures(profile)
        if not self.parts:
            raise EvaluationError(
                "no observation of any bag could be replayed\n" + "\n".join(_why_not(part.record) for part in parts)
            )
        self.layout = layout_of(self.parts[0].record)
        if any(layout_of(part.record) != self.layout for part in self.parts):
            raise EvaluationError("the bags were replayed with different chunks; replay them again")
        sizes = self.layout.waypoints, self.layout.measures
        self.errors = [ErrorSums(*sizes) for _ in range(runs)]
        self.joint_errors = [ErrorSums(sizes[0], self.layout.joints) for _ in range(runs)]
        self.episodes = [EpisodeSums() for _ in range(runs)]
        self.baselines = {name: ErrorSums(*sizes) for name in (PERSISTENCE, MEAN, LAST_COMMAND)}
        self.baseline_episodes = {name: EpisodeSums() for name in self.baselines}
        self.motion = [MotionSums(profile, self.measures, run) for run in range(runs)]
        self.channels = gripper_channels(profile)
        self.grippers = [{each.name: GripperSums() for each in self.channels} for _ in range(runs)]
        self.shifted = [np.zeros((2, len(SHIFTS), sizes[1])) for _ in range(runs)]
        self.latency = [array("f") for _ in range(runs)]
        self.ages: list[NDArray[np.float32]] = []
        self._add_all(runs)

    def _add_all(self, runs: int) -> None:
        mean = self._mean_action()
        for bag, part in enumerate(self.parts):
            for rows in part.blocks():
                self._add_baselines(bag, rows, mean)
                self.ages.append(rows["age"].copy())
                for run in range(runs):
                    self._add(bag, rows, run)

    def _mean_action(self) -> Floats:
        """Return the mean of everything recorded [D], over all bags."""
        total, count = np.zeros(self.layout.width), 0.0
        for part in self.parts:
            for rows in part.blocks():
                total += rows["recorded"][rows["mask"]].sum(axis=0, dtype=np.float64)
                count += float(rows["mask"].sum())
        mean: Floats = total / max(count, 1.0)
        return mean

    def _add_baselines(self, bag: int, rows: Rows, mean: Floats) -> None:
        guesses = {PERSISTENCE: rows["measured"][:, None], LAST_COMMAND: rows["told"][:, None], MEAN: mean[None, None]}
        for name, guess in guesses.items():
            off = self.measures.differences(guess, rows["recorded"])
            self.baselines[name].add(off, rows["mask"])
            self.baseline_episodes[name].add(bag, rows["episode"], self.measures.headline(off), rows["mask"])

    def _add(self, bag: int, rows: Rows, run: int) -> None:
        mask, predicted = rows["mask"], rows["predicted"][:, run]
        off = self.measures.differences(predicted, rows["recorded"])
        self.errors[run].add(off, mask)
        self.episodes[run].add(bag, rows["episode"], self.measures.headline(off), mask)
        if self.layout.joints:
            apart = np.abs(rows["joints"][:, run].astype(np.float64) - rows["joints_recorded"])
            self.joint_errors[run].add(apart * joint_factors(self.profile), mask)
        self.motion[run].add(bag, rows)
        self.latency[run].frombytes(rows["latency_ms"][:, run].tobytes())
        self.shifted[run][0] += rows["shifted"][:, run].sum(axis=0)
        self.shifted[run][1] += rows["shifted_count"].sum(axis=0)[:, None]
        for channel in self.channels:
            self.grippers[run][channel.name].add(
                predicted[..., channel.column] > channel.middle,
                rows["recorded"][..., channel.column] > channel.middle,
                mask,
                self.profile.policy.waypoint_dt,
            )

    # what is written

    def of_run(self, run: int) -> dict[str, Any]:
        """Return the figures of one policy."""
        sums = self.errors[run]
        return {
            "headline": self._headline(sums, self.episodes[run]),
            **self._tables(sums, self.joint_errors[run]),
            "gripper": {name: found.to_mapping() for name, found in self.grippers[run].items()},
            "latency_shift": self._shift_table(run),
            **self.motion[run].to_mapping(),
            "inference_ms": _percentiles(self.latency[run]),
            "beats_persistence": self._beats(run, PERSISTENCE),
            "beats_mean": self._beats(run, MEAN),
        }

    def of_baselines(self) -> dict[str, Any]:
        """Return the same errors for the baselines, which see nothing."""
        commanded = any(part.record.actions != "measured" for part in self.parts)
        return {
            name: {"headline": self._headline(sums, self.baseline_episodes[name]), **self._tables(sums, None)}
            for name, sums in self.baselines.items()
            if name != LAST_COMMAND or commanded
        }

    def by_horizon(self, runs: int) -> dict[str, Any]:
        """Return the headline error at every waypoint, and each measure's of the first policy."""
        policy = self.profile.policy
        times = policy.first_waypoint_offset + np.arange(self.layout.waypoints) * policy.waypoint_dt
        main = self.measures.headline
        first = self.errors[0].by_waypoint
        return {
            "times": _numbers(times),
            "unit": self.measures.unit,
            "runs": [_numbers(main(self.errors[run].by_waypoint)) for run in range(runs)],
            **{name: _numbers(main(sums.by_waypoint)) for name, sums in self.baselines.items()},
            "per_measure": {each.label: _numbers(first[:, column]) for column, each in enumerate(self.measures.all)},
        }

    def timing(self) -> dict[str, Any]:
        """Return the ages of an observation's parts, and how far apart its cameras are, in s."""
        ages = np.concatenate(self.ages)
        cameras = ages[:, : self.layout.cameras]
        there = np.isfinite(cameras).any(axis=1)
        skew = np.nanmax(cameras[there], axis=1) - np.nanmin(cameras[there], axis=1)
        oldest = np.nanmax(ages[np.isfinite(ages).any(axis=1)], axis=1)
        return {
            "observation_age_s": _percentiles(oldest),
            "camera_skew_s": _percentiles(skew),
            "age_by_part_s": {
                name: _percentiles(column[np.isfinite(column)])
                for name, column in zip(self.layout.parts, ages.T, strict=True)
            },
        }

    def episode_table(self, runs: int) -> list[dict[str, Any]]:
        """Return every episode with the headline error of each policy and of the baselines."""
        means = [sums.means() for sums in self.episodes]
        held = self.baseline_episodes[PERSISTENCE].means()
        table = []
        for key in sorted(means[0]):
            record = self.parts[key[0]].record
            told = record.episodes[key[1]]
            table.append(
                {
                    "bag": record.path,
                    "episode": key[1],
                    "instruction": told["instruction"],
                    "success": told["success"],
                    "mae": [means[run].get(key) for run in range(runs)],
                    PERSISTENCE: held.get(key),
                }
            )
        return table

    def ablations(self) -> dict[str, dict[str, float]]:
        """Return what each ablation changed, over all bags."""
        names = self.parts[0].record.ablations
        if not names:
            return {}
        alike = [part for part in self.parts if part.record.ablations == names]
        rows = [ablated_rows(part.folder / ABLATED, len(names), self.layout.measures) for part in alike]
        return ablation_table(names, np.concatenate(rows), self.measures)

    def difference(self, first: EpisodeSums, second: EpisodeSums) -> dict[str, Any]:
        """Return second minus first, and its interval over episodes."""
        apart = second.less(first)
        return {
            "mean": apart.mean(),
            "interval": apart.interval(),
            "episodes": len(apart.means()),
            "unit": self.measures.unit,
        }

    def _beats(self, run: int, baseline: str) -> dict[str, Any]:
        found = self.difference(self.baseline_episodes[baseline], self.episodes[run])
        return {"holds": bool(found["mean"] < 0.0), "difference": found}

    def _headline(self, sums: ErrorSums, episodes: EpisodeSums) -> dict[str, Any]:
        return {
            "mae": _number(self.measures.headline(sums.mae)),
            "unit": self.measures.unit,
            "interval": episodes.interval(),
        }

    def _tables(self, sums: ErrorSums, joints: ErrorSums | None) -> dict[str, Any]:
        per_joint: dict[str, Any] = {}
        per_tool: dict[str, Any] = {}
        mae, rmse = sums.mae, sums.rmse
        for column, measure in enumerate(self.measures.all):
            entry = _entry(measure, mae[column], rmse[column])
            if measure.kind == JOINT:
                per_joint[measure.name] = entry
            else:
                per_tool.setdefault(measure.name, {})[measure.kind] = entry
        if joints is not None and self.layout.joints:
            mae, rmse = joints.mae, joints.rmse
            for column, measure in enumerate(joint_measures(self.profile)):
                per_joint[measure.name] = _entry(measure, mae[column], rmse[column])
        return {"per_joint": per_joint, "per_tool": per_tool}

    def _shift_table(self, run: int) -> list[dict[str, float | None]]:
        total, count = self.shifted[run]
        with np.errstate(invalid="ignore"):
            mean = self.measures.headline(total / np.where(count > 0, count, np.nan))
        return [{"shift_s": shift, "mae": _number(value)} for shift, value in zip(SHIFTS, mean, strict=True)]


def metrics(
    figures: Figures, parts: Sequence[Part], names: Sequence[tuple[str, bool]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what ``metrics.json`` holds.

    Args:
        figures: of the bags that have rows.
        parts: all bags.
        names: checkpoint and whether it was trained, of each policy.
        settings: of the run, for whoever repeats it.
    """
    (checkpoint, trained), *others = names
    skipped: dict[str, int] = {}
    faults = FaultTally(record for part in parts for record in part.record.skipped_details)
    for part in parts:
        for reason, count in (part.record.skipped or {}).items():
            skipped[reason] = skipped.get(reason, 0) + count
    document = {
        "schema_version": SCHEMA_VERSION,
        **provenance(),
        "robot": figures.profile.name,
        "checkpoint": checkpoint,
        "trained": trained,
        "settings": dict(settings),
        "bags": [_bag(part.record) for part in parts],
        "frames": sum(part.record.frames for part in parts),
        "skipped": skipped,
        "skipped_details": faults.records()[:MOST_KINDS],
        **figures.of_run(0),
        "by_horizon": figures.by_horizon(len(names)),
        "baselines": figures.of_baselines(),
        "timing": figures.timing(),
        "ablations": figures.ablations(),
        "episodes": figures.episode_table(len(names)),
    }
    document["timing"]["inference_ms"] = document.pop("inference_ms")
    if others:
        document["compare"] = {
            "checkpoint": others[0][0],
            "trained": others[0][1],
            **figures.of_run(1),
            "difference": figures.difference(figures.episodes[0], figures.episodes[1]),
        }
    return document


def _why_not(record: BagRecord) -> str:
    told = {each["reason"] for each in record.skipped_details}
    left_out = ", ".join(f"{count} {reason}" for reason, count in (record.skipped or {}).items() if reason not in told)
    error = record.error.replace("\n", "\n  ")
    return f"  {record.path}: {error}" + (f"\n    skipped: {left_out}" if left_out else "")


def _bag(record: BagRecord) -> dict[str, Any]:
    return {
        "path": record.path,
        "frames": record.frames,
        "episodes": len(record.episodes),
        "actions": record.actions,
        "skipped": record.skipped or {},
        "skipped_details": list(record.skipped_details[:MOST_KINDS]),
        "error": record.error,
        "integrity": record.integrity,
        "damaged": record.damaged,
        "notes": list(record.notes),
    }


def _entry(measure: Measure, mae: float, rmse: float) -> dict[str, Any]:
    entry = {"mae": _number(mae), "rmse": _number(rmse), "unit": measure.unit}
    if measure.unit == RAD and measure.kind != GRIPPER:
        entry |= {"mae_degrees": _number(np.degrees(mae)), "rmse_degrees": _number(np.degrees(rmse))}
    return entry


def _percentiles(values: Any) -> dict[str, float | None]:
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        return {"p50": None, "p95": None, "p99": None, "max": None}
    p50, p95, p99 = np.percentile(found, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(found.max())}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _numbers(values: Any) -> list[float | None]:
    return [_number(value) for value in values]


def write_metrics(document: Mapping[str, Any], folder: Path) -> None:
    """Write both files, each in one piece."""
    write_whole(folder / "metrics.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    stream = StringIO(newline="")
    csv.writer(stream).writerows([COLUMNS, *table(document)])
    write_whole(folder / "metrics.csv", stream.getvalue())


def table(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of ``metrics.csv``: one figure each."""
    yield from _csv_errors(document["checkpoint"], document)
    if "compare" in document:
        yield from _csv_errors(document["compare"]["checkpoint"], document["compare"])
    for name, baseline in document["baselines"].items():
        yield from _csv_errors(name, baseline)
    horizon = document["by_horizon"]
    for time, value in zip(horizon["times"], horizon["runs"][0], strict=True):
        yield document["checkpoint"], f"horizon {time:.4f} s", "headline", "mae", _text(value), horizon["unit"]


def _csv_errors(policy: str, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    headline = found["headline"]
    yield policy, "all", "headline", "mae", _text(headline["mae"]), headline["unit"]
    for name, entry in found["per_joint"].items():
        yield from _csv_entry(policy, name, "joint", entry)
    for tool, kinds in found["per_tool"].items():
        for kind, entry in kinds.items():
            yield from _csv_entry(policy, tool, kind, entry)
    for name, entry in found.get("gripper", {}).items():
        yield policy, name, "gripper", "f1", _text(entry["f1"]), ""
        yield policy, name, "gripper", "timing_mae", _text(entry["timing_mae_s"]), "s"


def _csv_entry(policy: str, part: str, kind: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for measure in ("mae", "rmse"):
        yield policy, part, kind, measure, _text(entry[measure]), entry["unit"]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"
