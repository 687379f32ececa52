# SPDX-License-Identifier: Apache-2.0
"""What a replay shows: ``report.html`` with its plots, in one file, and what the Rerun viewer opens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import SetupError
from xvla_ros.evaluation.replay.metrics import MEAN, PERSISTENCE, Figures
from xvla_ros.evaluation.replay.rows import KEPT, Rows
from xvla_ros.evaluation.report import page, provenance
from xvla_ros.evaluation.report.figures import COMMANDED, LIMIT, MEASURED, PREDICTED, figure, png
from xvla_ros.nodes.rerun_stream import RerunStream
from xvla_ros.observation.faults import FaultTally
from xvla_ros.recordings.action_path import waypoint_times
from xvla_ros.robots.actions import Trajectory
from xvla_ros.robots.joints import from_policy
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, Floats

SECOND, STILL = "#7a4fb5", "#8d97a5"
MOST_CHUNKS = 40
MOST_EPISODES = 60
MOST_ROWS = 900  # of one episode in a plot; a plot of an hour is neither legible nor small


def write_page(document: Mapping[str, Any], figures: Figures, path: Path) -> None:
    """Write the page.

    Args:
        document: ``metrics.json``.
        figures: that it was drawn up from, for the plots.
        path: of the page.
    """
    computing = document["settings"].get("computing", {})
    names, unit = _names(document), document["headline"]["unit"]
    shown, episode = _shown_episode(figures)
    page.write_page(
        "replay.html",
        path,
        title=f"{document['robot']}: replay of {_short(document['checkpoint'])}",
        document=document,
        names=names,
        verdict=verdict(document),
        damaged=[f"{bag['path']}: {bag['integrity']}" for bag in document["bags"] if bag["damaged"]],
        figures=_cards(document),
        errors=_errors(document),
        compare=_compare(document),
        plots=[
            page.Plot(horizon_plot(document["by_horizon"], names), _horizon_in_words(document, names[0])),
            page.Plot(
                episodes_plot(document["episodes"][:MOST_EPISODES], names, unit), _episodes_in_words(document, unit)
            ),
            page.Plot(shift_plot(document["latency_shift"], unit), _shift_in_words(document["latency_shift"], unit)),
        ],
        episode=episode,
        joints=[page.Plot(course_plot(each), each.in_words()) for each in courses(shown, figures.profile)],
        worst=_worst(figures, unit),
        grippers=_grippers(document),
        smooth=_smooth(document),
        timing=_timing(document),
        ablations=_ablations(document),
        bags=_bags(document),
        live=document["live"]["text"] if "live" in document else "",
        settings=[
            *(
                (name.replace("_", " "), value)
                for name, value in document["settings"].items()
                if name not in ("computing", *computing)
            ),
            *provenance.rows(document, computing),
        ],
    )


def _names(document: Mapping[str, Any]) -> list[str]:
    others = [document["compare"]["checkpoint"]] if "compare" in document else []
    return [_short(name) for name in (document["checkpoint"], *others)]


def _short(name: str) -> str:
    return "/".join(Path(name).parts[-2:]) or "no checkpoint"


@dataclass(frozen=True)
class Verdict:
    """What the errors say of a policy.

    Attributes:
        words: the sentence at the top of the page.
        colour: ``good`` where the error is below both baselines and the difference is no chance, ``bad`` where it is
            not below one of them or the policy is untrained; empty where nothing can be said.
        baseline: no policy was asked.
    """

    words: str
    colour: str
    baseline: bool = False


def verdict(document: Mapping[str, Any]) -> Verdict:
    """Judge the first policy of ``metrics.json`` against both baselines."""
    unit, ours = document["headline"]["unit"], document["headline"]["mae"]
    still, mean = (document["baselines"][name]["headline"]["mae"] for name in (PERSISTENCE, MEAN))
    if document["settings"].get("baseline"):
        return Verdict(
            f"No policy was run. The error of a policy must be below {still:.3g} {unit}, the error of an arm that "
            f"does not move, and below {mean:.3g} {unit}, that of one that always goes to the mean of the recording.",
            "",
            baseline=True,
        )
    beats = [document[f"beats_{name}"] for name in (PERSISTENCE, MEAN)]
    said = [
        f"{'below' if found['holds'] else 'not below'} {other:.3g} {unit}, that of {what}"
        for found, other, what in zip(
            beats,
            (still, mean),
            ("an arm that does not move", "one that always goes to the mean of the recording"),
            strict=True,
        )
    ]
    words = f"Its error, {ours:.3g} {unit}, is {said[0]}, and {said[1]}."
    below = all(found["holds"] for found in beats)
    chance = not all(_is_sure(found["difference"]["interval"]) for found in beats)
    if chance:
        words += " With so few episodes the difference may be due to chance."
    colour = "bad" if not (below and document["trained"]) else "" if chance else "good"
    return Verdict(words, colour)


def _is_sure(interval: Sequence[float] | None) -> bool:
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def _horizon_in_words(document: Mapping[str, Any], name: str) -> str:
    horizon = document["by_horizon"]
    values, unit = _floats(horizon["runs"][0]), horizon["unit"]
    first, last = horizon["times"][0], horizon["times"][-1]
    return (
        f"Error by the time of a waypoint after the observation, {first:.2f} to {last:.2f} s: {name} "
        f"{page.span_in_words(values, unit)}, no motion "
        f"{page.span_in_words(_floats(horizon[PERSISTENCE]), unit)}"
    )


def _episodes_in_words(document: Mapping[str, Any], unit: str) -> str:
    shown = document["episodes"][:MOST_EPISODES]
    return f"Error of each of {len(shown)} episodes: {page.span_in_words(_floats([e['mae'][0] for e in shown]), unit)}"


def _shift_in_words(shifts: Sequence[Mapping[str, Any]], unit: str) -> str:
    errors = _floats([each["mae"] for each in shifts])
    return f"Error if the robot is late or early: {page.span_in_words(errors, unit)}"


def _cards(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    headline, latency = document["headline"], document["timing"]["inference_ms"]
    still = document["baselines"]["persistence"]["headline"]
    f1 = [each["f1"] for each in document["gripper"].values() if each["f1"] is not None]
    return [
        (f"{_number(headline['mae'])} {headline['unit']}", "mean error"),
        (f"{_number(still['mae'])} {still['unit']}", "no motion"),
        *([(f"{np.mean(f1):.2f}", "gripper F1")] if f1 else []),
        (f"{_number(latency['p50'])} ms", "inference, median"),
        (str(document["frames"]), "observations"),
        (str(len(document["episodes"])), "episodes"),
        (str(sum(document["skipped"].values())), "skipped"),
    ]


def _errors(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    still, mean = document["baselines"]["persistence"], document["baselines"]["mean"]
    rows = []
    for name, entry in document["per_joint"].items():
        rows.append(
            _error_row(name.replace("_", " "), entry, still["per_joint"].get(name), mean["per_joint"].get(name))
        )
    for tool, kinds in document["per_tool"].items():
        for kind, entry in kinds.items():
            rows.append(
                _error_row(f"{tool} {kind}", entry, still["per_tool"][tool][kind], mean["per_tool"][tool][kind])
            )
    return rows


def _error_row(name: str, entry: Mapping[str, Any], *baselines: Mapping[str, Any] | None) -> tuple[str, ...]:
    shown = f"{_number(entry['mae'])} {entry['unit']}"
    if "mae_degrees" in entry:
        shown += f" ({_number(entry['mae_degrees'])}°)"
    others = ("–" if each is None else f"{_number(each['mae'])} {each['unit']}" for each in baselines)
    return (name, shown, f"{_number(entry['rmse'])} {entry['unit']}", *others)


def _compare(document: Mapping[str, Any]) -> dict[str, Any]:
    if "compare" not in document:
        return {}
    other, unit = document["compare"], document["headline"]["unit"]
    names, apart = _names(document), document["compare"]["difference"]
    rows = [("mean error", *(f"{_number(each['headline']['mae'])} {unit}" for each in (document, other)))]
    rows += [
        (name.replace("_", " "), _number(entry["mae"]), _number(other["per_joint"][name]["mae"]))
        for name, entry in document["per_joint"].items()
    ]
    rows += [
        (f"{tool} {kind}", _number(entry["mae"]), _number(other["per_tool"][tool][kind]["mae"]))
        for tool, kinds in document["per_tool"].items()
        for kind, entry in kinds.items()
    ]
    rows += [
        (f"{name} F1", _number(entry["f1"]), _number(other["gripper"][name]["f1"]))
        for name, entry in document["gripper"].items()
    ]
    low_high = apart["interval"]
    words = f"{names[1]} minus {names[0]}: {apart['mean']:+.3g} {unit}"
    words += (
        "; one episode is too few for an interval."
        if low_high is None
        else f", 95 % interval {low_high[0]:+.3g} to {low_high[1]:+.3g} (over {apart['episodes']} episodes)."
    )
    return {"words": words, "rows": rows}


def _grippers(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name.replace("_", " "),
            _number(each["f1"]),
            str(each["changes"]),
            str(each["missed"]),
            str(each["spurious"]),
            _seconds(each["timing_mae_s"]),
            _seconds(each["timing_mean_s"]),
        )
        for name, each in document["gripper"].items()
    ]


def _smooth(document: Mapping[str, Any]) -> dict[str, Any]:
    jump, clip = document["boundary_jump"], document["limit_clip_rate"]
    rows = [
        (
            name.replace("_", " "),
            f"{_number(each['predicted'])} {each['unit']}",
            f"{_number(each['recorded'])} {each['unit']}",
            f"{clip['beyond_position'][name]:.1%}",
            f"{clip['beyond_velocity'][name]:.1%}",
        )
        for name, each in document["jerk_rms"].items()
    ]
    words = (
        ""
        if not jump
        else (
            f"Where a chunk takes over from the one before it begins {_number(jump['mean'])} {jump['unit']} away, in "
            f"95 % of {jump['boundaries']} cases at most {_number(jump['p95'])}."
        )
    )
    if "out_of_reach" in clip:
        outside = ", ".join(f"{tool} {share:.1%}" for tool, share in clip["outside_workspace"].items())
        words += f" Outside of the workspace: {outside}; out of reach: {clip['out_of_reach']:.1%}."
    return {"words": words, "rows": rows}


def _timing(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    timing = document["timing"]
    rows = [
        ("inference, ms", timing["inference_ms"], 1.0),
        ("oldest part of an observation, ms", timing["observation_age_s"], 1e3),
        ("between its cameras, ms", timing["camera_skew_s"], 1e3),
        *((f"age of {part}, ms", each, 1e3) for part, each in timing["age_by_part_s"].items()),
    ]
    return [
        (name, *(_number(None if each[key] is None else each[key] * factor) for key in ("p50", "p95", "p99", "max")))
        for name, each, factor in rows
    ]


def _ablations(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    unit = document["headline"]["unit"]
    return [
        (
            name,
            f"{_number(each['mae'])} {unit}",
            f"{each['mae'] - each['mae_unchanged']:+.3g}",
            f"{_number(each['answers_moved'])} {unit}",
        )
        for name, each in document["ablations"].items()
    ]


def _bags(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for bag in document["bags"]:
        skipped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in bag["skipped"].items()) or "–"
        faults = FaultTally(bag["skipped_details"]).lines() if bag["frames"] else []
        notes = [each for each in (bag["error"], *faults, *bag["notes"]) if each]
        rows.append(
            (
                bag["path"],
                str(bag["frames"]),
                str(bag["episodes"]),
                bag["actions"],
                skipped,
                bag["integrity"],
                "; ".join(notes) or "–",
            )
        )
    return rows


def _worst(figures: Figures, unit: str) -> list[dict[str, Any]]:
    moments = sorted(
        ((each, part) for part in figures.parts for each in part.record.worst), key=lambda found: -found[0]["score"]
    )
    shown = []
    for moment, part in moments[:KEPT]:
        episode = part.record.episodes[moment["episode"]]
        pictures = [(slot, (part.folder / name).read_bytes()) for slot, name in moment["pictures"].items()]
        words = (
            f"{moment['score']:.3g} {unit} off, {(moment['stamp'] - episode['start']) / NS:.1f} s into "
            f"the episode “{episode['instruction']}” of {Path(part.record.path).name}; "
            f"{', '.join(moment['pictures'])}"
        )
        shown.append({"pictures": pictures, "words": words})
    return shown


def _shown_episode(figures: Figures) -> tuple[Any, str]:
    """Return the rows of the episode with the median error, and its name."""
    means = figures.episodes[0].means()
    ordered = sorted(means, key=lambda key: means[key])
    bag, episode = ordered[len(ordered) // 2]
    part = figures.parts[bag]
    told = part.record.episodes[episode]["instruction"]
    rows = part.rows(episode, MOST_ROWS)
    words = f"“{told}”, {Path(part.record.path).name}, the episode with the median error"
    return rows, words if len(rows) < MOST_ROWS else f"{words}, its first {MOST_ROWS} observations"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # never 3.8e+03


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


@dataclass(frozen=True, eq=False)
class Course:
    """One channel over an episode.

    Attributes:
        name, unit: of it.
        times: [N] s since the first row.
        recorded: [N, T]; predicted: [N, T]; mask: [N, T].
        due: [T] s from a row to its waypoints.
        limits: lowest and highest position; None for tools.
    """

    name: str
    unit: str
    times: Floats
    recorded: Floats
    predicted: Floats
    mask: NDArray[np.bool_]
    due: Floats
    limits: tuple[float, float] | None = None

    def in_words(self) -> str:
        """Say what its plot shows."""
        recorded = page.span_in_words(self.recorded[self.mask], self.unit)
        predicted = page.span_in_words(self.predicted[self.mask], self.unit)
        return f"{self.name} over the episode: recorded {recorded}, predicted {predicted}"


def courses(rows: Rows, profile: Profile) -> list[Course]:
    """Return every joint over the rows of one episode; for tool poses, each tool's positions and gripper."""
    policy = profile.policy
    due = policy.first_waypoint_offset + np.arange(rows["recorded"].shape[1], dtype=np.float64) * policy.waypoint_dt
    times = (rows["stamp"] - rows["stamp"][0]) / NS
    predicted = rows["predicted"][:, 0].astype(np.float64)
    recorded = rows["recorded"].astype(np.float64)
    if profile.action_spec.is_end_effector:
        names = [
            (column, name)
            for column, name in enumerate(profile.channels)
            if "rot6d" not in name and not name.startswith("unused")
        ]
        return [
            Course(
                name,
                "" if name.endswith("gripper") else "m",
                times,
                recorded[..., column],
                predicted[..., column],
                rows["mask"],
                due,
            )
            for column, name in names
        ]
    ours, theirs = from_policy(predicted, profile), from_policy(recorded, profile)
    return [
        Course(
            name.replace("_", " "),
            "rad",
            times,
            theirs[..., column],
            ours[..., column],
            rows["mask"],
            due,
            (joint.lower, joint.upper),
        )
        for column, (name, joint) in enumerate(zip(profile.joints.policy_order, profile.joints.ordered, strict=True))
    ]


def course_plot(course: Course) -> bytes:
    """Plot recorded and predicted: the first waypoint of every chunk, and whole chunks in grey."""
    drawn, axes = figure(4.4, 2.3)
    step = max(1, len(course.times) // MOST_CHUNKS)
    for index in range(0, len(course.times), step):
        known = course.mask[index]
        axes.plot(
            course.times[index] + course.due[known], course.predicted[index][known], color=PREDICTED, lw=0.7, zorder=1
        )
    instants = course.times + course.due[0]
    axes.plot(instants, course.recorded[:, 0], color=MEASURED, lw=1.8, zorder=3)
    axes.plot(instants, course.predicted[:, 0], color=COMMANDED, lw=1.2, ls=(0, (4, 2)), zorder=4)
    low, high = axes.get_ylim()
    for limit in course.limits or ():
        if low <= limit <= high:
            axes.axhline(limit, color=LIMIT, lw=1.0)
    axes.set_title(course.name, loc="left", fontsize=10)
    axes.set_xlabel("s")
    axes.set_ylabel(course.unit, fontsize=8)
    return png(drawn)


def horizon_plot(horizon: Mapping[str, Any], labels: Sequence[str]) -> bytes:
    """Plot the error against how far ahead a waypoint lies, with the baselines."""
    drawn, axes = figure(4.4, 2.3)
    times = _floats(horizon["times"])
    lines = [
        *zip(labels, horizon["runs"], (COMMANDED, SECOND), strict=False),
        ("does not move", horizon["persistence"], STILL),
        ("mean of the recording", horizon["mean"], "#c9ced6"),
    ]
    for label, values, colour in lines:
        axes.plot(times, _floats(values), color=colour, lw=1.8 if colour in (COMMANDED, SECOND) else 1.3, label=label)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("s from the observation to the waypoint")
    axes.set_ylabel(horizon["unit"])
    axes.set_title("error by time ahead", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=7)
    return png(drawn)


def shift_plot(shifts: Sequence[Mapping[str, Any]], unit: str) -> bytes:
    """Plot the error if everything predicted happened later or earlier."""
    drawn, axes = figure(4.4, 2.3)
    axes.plot(
        [each["shift_s"] for each in shifts], _floats([each["mae"] for each in shifts]), "o-", ms=3.5, color=COMMANDED
    )
    axes.axvline(0.0, color=STILL, lw=0.8)
    axes.set_xlabel("s late")
    axes.set_ylabel(unit)
    axes.set_title("error if the robot is late", loc="left", fontsize=10)
    return png(drawn)


def episodes_plot(episodes: Sequence[Mapping[str, Any]], labels: Sequence[str], unit: str) -> bytes:
    """Plot the error of every episode, for each policy and for staying still."""
    drawn, axes = figure(4.4, 2.3)
    places = np.arange(len(episodes))
    for run, (label, colour) in enumerate(zip(labels, (COMMANDED, SECOND), strict=False)):
        axes.plot(places, _floats([each["mae"][run] for each in episodes]), "o", ms=4, color=colour, label=label)
    axes.plot(places, _floats([each["persistence"] for each in episodes]), "_", ms=9, color=STILL)
    axes.set_ylim(bottom=0.0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("episode")
    axes.set_ylabel(unit)
    axes.set_title("error by episode; grey: an arm that does not move", loc="left", fontsize=10)
    return png(drawn)


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def write_rerun(figures: Figures, path: Path) -> None:
    """Write a ``.rrd`` file with the timeline of the recordings.

    Raises:
        SetupError: Rerun is not installed, or the file cannot be written.
    """
    try:
        stream = RerunStream(figures.profile, save=path)
    except SetupError as error:
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
        yield from (
            (row, from_policy(row["recorded"], profile), from_policy(row["predicted"][0], profile)) for row in rows
        )
