# SPDX-License-Identifier: Apache-2.0
"""Pages of reports: one file that holds everything it shows, plots as embedded PNG; only a film beside it is linked.

``templates/base.html`` is the style of all of them, ``run.html`` the page of a run, ``replay.html`` that of a replay.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.report.figures import Report, joint_plot, latency_plot, status_plot
from xvla_ros.evaluation.report.recording import RunRecording

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

TEMPLATES = Path(__file__).parent / "templates"


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
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(pages.get_template(template).render(**values) + "\n", encoding="utf-8")
    draft.replace(path)


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
    joints = [joint for group in profile.commands.groups for joint in profile.commands.by_name[group].joints]
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
        timeline=status_plot(recording) if driven or recording.episodes else b"",
        resets=recording.resets,
        joints=[(joint.replace("_", " "), joint_plot(joint, recording, profile)) for joint in joints],
        latency=latency_plot(recording) if driven else b"",
        latencies=[
            (name, *(f"{value:.1f} ms" if math.isfinite(value) else "not measured" for value in asdict(row).values()))
            for name, row in latencies.items()
        ],
        frames=[(camera, each.sent, each.received, each.dropped) for camera, each in report.frames.items()],
        settings=_settings(report, recording),
    )


def _cards(report: Report) -> list[tuple[str, str]]:
    frames = report.to_mapping()
    succeeded = [(f"{report.successes} of {len(report.episodes)}", "episodes succeeded")] if report.episodes else []
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
        *((name.replace("_", " "), value) for name, value in report.computing.items()),
        *((f"trajectories to {group}", str(count)) for group, count in recording.trajectories.items()),
        *(counted if report.trained is not None else ()),
    ]


def _data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
