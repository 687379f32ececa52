"""The page of a run, ``report.html``.

It holds everything it shows (the plots as embedded PNG); only the film beside it is linked.
"""

from __future__ import annotations

import base64
import html
import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.report.figures import Report
from xvla_ros.evaluation.report.html_page import cards, document, embed, table
from xvla_ros.evaluation.report.recording import Recording

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile


def write_html(
    report: Report,
    recording: Recording,
    profile: Profile,
    path: Path,
    *,
    film: Path | None = None,
    poster: NDArray[np.uint8] | None = None,
) -> None:
    """Write ``report.html``.

    Args:
        film: a film in the same folder to link to.
        poster: one frame of it, uint8 [H, W, 3] RGB, shown where the film cannot play (print, mail).
    """
    from xvla_ros.evaluation.report import plots

    joints = [
        (joint, embed(plots.joint_plot(joint, recording, profile)))
        for group in profile.commands.groups
        for joint in profile.commands.by_name[group].joints
    ]
    body = _BODY.format(
        robot=html.escape(report.robot),
        asked=html.escape(_asked(report)),
        weights=_weights(report),
        cards=cards(_cards(report)),
        film=_film(film, poster),
        episodes=_episodes(report),
        timeline=_figure(embed(plots.status_plot(recording)), "What the policy did, and when chunks arrived"),
        resets=" Upright lines: an episode begins, everything is set anew." if report.episodes else "",
        joints="\n".join(_figure(image, joint.replace("_", " ")) for joint, image in joints),
        latency=_figure(embed(plots.latency_plot(recording)), "Inference time of every chunk"),
        latency_table=_latency_table(report),
        frames_table=_frames_table(report),
        run_table=_run_table(report, recording),
    )
    path.write_text(document(f"{report.robot}: {report.duration:.0f} s with X-VLA", body), encoding="utf-8")


def _weights(report: Report) -> str:
    if report.trained:
        return '<p class="note good">Trained weights.</p>'
    return (
        '<p class="note bad"><strong>Untrained.</strong> The checkpoint has no trained row for this robot: the '
        "network ran on random weights. The run shows that everything is connected; the motion means nothing.</p>"
    )


def _asked(report: Report) -> str:
    if report.episodes:
        return f"Task {report.task}: each episode has a layout of its own"
    return f"Instruction: “{report.instruction or '(none)'}”"


def _episodes(report: Report) -> str:
    if not report.episodes:
        return ""
    head = ("", "instruction", "outcome", "after", "seed")
    rows = [
        (str(number), each.instruction, f"{'✓' if each.success else '✗'} {each.outcome}", f"{each.duration:.1f} s",
         str(each.seed))
        for number, each in enumerate(report.episodes, start=1)
    ]  # fmt: skip
    counted = f"{report.successes} of {len(report.episodes)} succeeded."
    return f'<h2>Episodes</h2>\n<p class="quiet">{counted}</p>\n<div class="scroll">{table(head, rows)}</div>\n'


def _cards(report: Report) -> list[tuple[str, str]]:
    frames = report.to_mapping()
    succeeded = [(f"{report.successes} of {len(report.episodes)}", "episodes succeeded")] if report.episodes else []
    return [
        *succeeded,
        (str(report.chunks), "chunks"),
        (str(report.trajectories), "trajectories"),
        *((f"{way:.2f} rad", f"travel, {group.replace('_', ' ')}") for group, way in report.joint_travel_rad.items()),
        (f"{frames['frames_dropped']} of {frames['frames_sent']}", "frames dropped"),
        (str(report.holds), "holds"),
        (f"{report.inference_ms.p50:.0f} ms", "inference, median"),
    ]


def _film(film: Path | None, poster: NDArray[np.uint8] | None) -> str:
    if film is None:
        return ""
    picture = f' poster="{_embed_picture(poster)}"' if poster is not None else ""
    name = html.escape(film.name)
    link = f'<p class=quiet>Film: <a href="{name}">{name}</a></p>'
    return f'<video controls preload="none" src="{name}"{picture}></video>{link}'


def _figure(source: str, caption: str) -> str:
    text = html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _latency_table(report: Report) -> str:
    head = ("", "median", "95 %", "99 %", "most")
    rows = [("inference", report.inference_ms), ("overhead", report.overhead_ms)]
    return table(head, [(name, *(_ms(value) for value in asdict(row).values())) for name, row in rows])


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if math.isfinite(value) else "not measured"


def _frames_table(report: Report) -> str:
    rows = [(camera, str(f.sent), str(f.received), str(f.dropped)) for camera, f in report.frames.items()]
    return table(("camera", "sent", "received", "dropped"), rows)


def _run_table(report: Report, recording: Recording) -> str:
    rows = [
        ("robot", report.robot),
        ("weights", report.label),
        ("checkpoint", report.checkpoint or "(none)"),
        ("seed", str(report.seed)),
        ("duration", f"{report.duration:.2f} s of simulated time"),
        ("speed", f"{report.real_time_factor:.2f} times real time"),
        *((name.replace("_", " "), value) for name, value in report.computing.items()),
        *((f"trajectories to {group}", str(count)) for group, count in recording.trajectories.items()),
        ("late chunks dropped", str(recording.counted("dropped_chunks"))),
        ("points moved by a limit", str(recording.counted("limited_points"))),
    ]
    return table(("", ""), rows)


def _embed_picture(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


_BODY = """<h1>{robot}</h1>
<p class="quiet">{asked}</p>
{weights}
<div class="cards">{cards}</div>
{film}
{episodes}<h2>Course of the run</h2>
<div class="scroll">{timeline}</div>
<h2>Joints: measured against commanded</h2>
<p class="quiet">Blue: measured. Orange, dashed: commanded. Grey: what each chunk predicted. Red: limits of the joint,
where they are near. In rad, sliding joints in m.{resets}</p>
<div class="joints">{joints}</div>
<h2>Latency</h2>
<p class="quiet">Inference is the forward pass; overhead is everything else between the observation and the command.</p>
<div class="scroll">{latency_table}</div>
<div class="scroll">{latency}</div>
<h2>Camera frames</h2>
<p class="quiet">Counted between the first and the last frame that the policy received.</p>
<div class="scroll">{frames_table}</div>
<h2>The run</h2>
<div class="scroll">{run_table}</div>
"""
