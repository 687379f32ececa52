# SPDX-License-Identifier: Apache-2.0
"""Pages of reports: one file that holds everything it shows, plots as embedded PNG; only a film beside it is linked.

``templates/base.html`` is the style of all of them, ``run.html`` the page of a run, ``replay.html`` that of a replay.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.report import provenance
from xvla_ros.evaluation.report.figures import Report, joint_plot, latency_plot, spans, status_plot
from xvla_ros.evaluation.report.film import ROW_HEIGHT, caption, row_width
from xvla_ros.evaluation.report.recording import RunRecording, in_words
from xvla_ros.resources import write_whole
from xvla_ros.types import BESIDE, NS

if TYPE_CHECKING:
    from xvla_ros.evaluation.outcomes import Evaluation
    from xvla_ros.robots.profile import Profile

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = {"good": "good", "unsure": "", "not good": "bad"}  # of a verdict


@dataclass(frozen=True)
class Plot:
    """A picture of a page, and what a screen reader says in its place."""

    png: bytes
    alt: str


def span_in_words(values: NDArray[np.float64], unit: str) -> str:
    """Say from where to where values go: "0.12 to 1.4 rad"; "nothing" where none is finite."""
    finite = values[np.isfinite(values)]
    return f"{finite.min():.3g} to {finite.max():.3g} {unit}".rstrip() if finite.size else "nothing"


def write_page(template: str, path: Path, **values: Any) -> None:
    """Write a page in one piece; ``values`` are what its template shows, and a missing one is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["data_uri"] = _data_uri
    write_whole(path, pages.get_template(template).render(**values) + "\n")


def write_html(
    report: Report,
    recording: RunRecording,
    profile: Profile,
    path: Path,
    *,
    film: Path | None = None,
    poster: NDArray[np.uint8] | None = None,
) -> None:
    """Write ``report.html``; what the recording does not hold is left out.

    Args:
        film: a film in the same folder to link to.
        poster: one frame of it, uint8 [H, W, 3] RGB, shown where the film cannot play (print, mail).
    """
    driven = bool(recording.statuses or recording.chunks)
    latencies = {"inference": report.inference_ms, "overhead": report.overhead_ms}
    if report.is_remote:
        latencies["answers"] = report.answer_ms
    write_page(
        "run.html",
        path,
        title=f"{report.robot}: {report.duration:.0f} s" + (" with X-VLA" if driven else ""),
        report=report,
        figures=_cards(report),
        cameras=", ".join(map(caption, ([BESIDE] if recording.beside else []) + list(profile.cameras.slots))),
        film=film.name if film is not None else "",
        poster=_jpeg(poster) if poster is not None else b"",
        episodes=[
            (
                number,
                each.instruction,
                f"{each.sign} {each.outcome}",
                f"{each.duration:.1f} s",
                "" if each.seed is None else each.seed,
            )
            for number, each in enumerate(report.episodes, start=1)
        ],
        timeline=Plot(status_plot(recording), _course_in_words(recording)) if driven or recording.episodes else None,
        resets=recording.resets,
        joints=[
            (
                group.replace("_", " "),
                [
                    Plot(joint_plot(joint, recording, profile), _joint_in_words(joint, recording))
                    for joint in profile.commands.by_name[group].joints
                ],
            )
            for group in profile.commands.groups
        ],
        latency=Plot(latency_plot(recording), _latency_in_words(report)) if driven else None,
        latencies=[(name, *(_ms(value) for value in asdict(row).values())) for name, row in latencies.items()],
        frames=[(camera, each.sent, each.received, each.dropped) for camera, each in report.frames.items()],
        settings=_settings(report, recording),
    )


def write_evaluation_page(evaluation: Evaluation, path: Path) -> None:
    """Write the page of an evaluation; films are linked and lie beside it."""
    from xvla_ros.evaluation.outcomes import judge_episodes

    counted, total, ways = evaluation.counters, len(evaluation.episodes), {"ros": "over ROS", "process": "in process"}
    judged = judge_episodes(evaluation)
    low, high = judged.figures["interval"]
    filmed = (BESIDE, *evaluation.cameras) if evaluation.over == "process" else (BESIDE,)
    write_page(
        "evaluation.html",
        path,
        title=f"{evaluation.robot}, {evaluation.task}: {evaluation.successes} of {total}",
        subtitle=f"{evaluation.checkpoint or 'no checkpoint'}, {ways[evaluation.over]}",
        trained=evaluation.trained,
        judgement={"words": judged.text.split("\n")[-1].strip(), "colour": COLOURS[judged.verdict]},
        figures=[
            (f"{evaluation.successes} of {total}", "episodes succeeded"),
            (f"{low:.0%} to {high:.0%}", "95 % interval of the rate (Wilson)"),
            (str(evaluation.wrongs), "did something else"),
            (str(counted.holds), "holds"),
        ],
        cameras=", ".join(map(caption, filmed)),
        aspect=f"{row_width(filmed)} / {ROW_HEIGHT}",
        films=[
            (
                each.film,
                f"seed {each.seed}: “{each.instruction}”, {in_words(evaluation.task, success=False, wrong=each.wrong)}",
            )
            for each in evaluation.episodes
            if each.film
        ],
        failures=_failures(evaluation),
        episodes=[
            (
                str(each.seed),
                each.instruction,
                ("✓ " if each.success else "✗ ") + in_words(evaluation.task, success=each.success, wrong=each.wrong),
                f"{each.duration:.1f} s",
            )
            for each in evaluation.episodes
        ],
        latencies=[
            (name, *(_ms(value) for value in asdict(row).values()))
            for name, row in {"inference": counted.inference_ms, "overhead": counted.overhead_ms}.items()
            if math.isfinite(row.p50)
        ],
        settings=[
            ("checkpoint", evaluation.checkpoint or "(none)"),
            ("seed of the first episode", str(evaluation.seed)),
            *((name.replace("_", " "), str(value)) for name, value in evaluation.settings.items() if value != ""),
            *provenance.rows(provenance.provenance(), counted.computing),
        ],
    )


def _failures(evaluation: Evaluation) -> str:
    failed = [each for each in evaluation.episodes if not each.success]
    if not failed:
        return "No episode failed."
    filmed = sum(bool(each.film) for each in failed)
    if filmed == len(failed):
        return "Every failure was filmed."
    again = (
        f"xvla evaluate --robot {evaluation.robot} --task {evaluation.task} --seed {failed[filmed].seed} --episodes 1"
    )
    return (
        f"{filmed} of {len(failed)} failures were filmed. More: --films N; one of them: {again} --in-process, with the "
        "same checkpoint."
    )


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if math.isfinite(value) else "not measured"


def _course_in_words(recording: RunRecording) -> str:
    shares: dict[str, float] = {}
    for begin, end, status in spans(recording):
        said = f"{status.state}: {status.reason.replace('_', ' ')}" if status.reason else status.state
        shares[said] = shares.get(said, 0.0) + end - begin
    whole = max(recording.duration, 1e-9)
    parts = [f"{said} {share / whole:.0%}" for said, share in shares.items()]
    ended = [f"episode {number} {each.outcome}" for number, each in enumerate(recording.episodes, start=1)]
    return "; ".join(["Timeline of the run", *parts, f"{len(recording.chunks)} chunks arrived", *ended])


def _joint_in_words(joint: str, recording: RunRecording) -> str:
    measured, commanded = recording.measured[joint], recording.commanded[joint]
    return (
        f"{joint.replace('_', ' ')} over time: measured {span_in_words(measured.position, '')}, "
        f"commanded {span_in_words(commanded.position, '')}"
    )


def _latency_in_words(report: Report) -> str:
    found = report.inference_ms
    if not math.isfinite(found.p50):
        return "Inference time of every chunk: none was measured"
    return f"Inference time of {report.chunks} chunks: median {found.p50:.0f} ms, at most {found.max:.0f} ms"


def _cards(report: Report) -> list[tuple[str, str]]:
    frames = report.to_mapping()
    succeeded = [(f"{report.successes} of {report.judged}", "episodes succeeded")] if report.judged else []
    found = [
        *succeeded,
        (str(report.chunks), "chunks"),
        (str(report.trajectories), "trajectories"),
        *((f"{way:.2f} rad", f"travel, {group.replace('_', ' ')}") for group, way in report.joint_travel_rad.items()),
        (f"{frames['frames_dropped']} of {frames['frames_sent']}", "frames dropped"),
        (str(report.holds), "holds"),
        (f"{report.inference_ms.p50:.0f} ms", "inference, median"),
    ]
    of_policy = ("chunks", "frames dropped", "holds", "inference, median")
    return [(value, name) for value, name in found if report.trained is not None or name not in of_policy]


def _settings(report: Report, recording: RunRecording) -> list[tuple[str, str]]:
    clock = " of simulated time" if report.simulated else ""
    policy = [("weights", report.label), ("checkpoint", report.checkpoint or "(none)")]
    counted = [
        ("late chunks dropped", str(recording.counted("dropped_chunks"))),
        ("points moved by a limit", str(recording.counted("limited_points"))),
    ]
    return [
        ("robot", report.robot),
        *(policy if report.trained is not None else ()),
        *([("seed", str(report.seed))] if report.seed is not None else []),
        ("duration", f"{report.duration:.2f} s{clock}"),
        *([("speed", f"{report.real_time_factor:.2f} times real time")] if report.simulated else []),
        *((f"trajectories to {group}", str(count)) for group, count in recording.trajectories.items()),
        *(counted if report.trained is not None else ()),
        *([] if report.simulated else [("recorded", _date(recording.start))]),
        *provenance.rows(provenance.provenance(), report.computing),
    ]


def _date(stamp: int) -> str:
    return datetime.fromtimestamp(stamp // NS, UTC).isoformat(timespec="seconds")


def _data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
