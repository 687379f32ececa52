"""The page of a run, ``report.html``.

It holds everything it shows (the plots as embedded PNG); only the film beside it is linked.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.recorder import Recording
from xvla_ros.evaluation.report import Report

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
    from xvla_ros.evaluation import plots

    joints = [
        (joint, embed(plots.joint_plot(joint, recording, profile)))
        for group in profile.commands.groups
        for joint in profile.commands.by_name[group].joints
    ]
    page = _PAGE.format(
        title=html.escape(f"{report.robot}: {report.duration:.0f} s with X-VLA"),
        style=STYLE,
        robot=html.escape(report.robot),
        instruction=html.escape(report.instruction or "(none)"),
        weights=_weights(report),
        cards=_cards(report),
        film=_film(film, poster),
        timeline=_figure(embed(plots.status_plot(recording)), "What the policy did, and when chunks arrived"),
        joints="\n".join(_figure(image, joint.replace("_", " ")) for joint, image in joints),
        latency=_figure(embed(plots.latency_plot(recording)), "Inference time of every chunk"),
        latency_table=_latency_table(report),
        frames_table=_frames_table(report),
        run_table=_run_table(report, recording),
    )
    path.write_text(page, encoding="utf-8")


def _weights(report: Report) -> str:
    if report.trained:
        return '<p class="note good">Trained weights.</p>'
    return (
        '<p class="note bad"><strong>Untrained.</strong> The checkpoint has no trained row for this robot: the '
        "network ran on random weights. The run shows that everything is connected; the motion means nothing.</p>"
    )


def _cards(report: Report) -> str:
    frames = report.to_mapping()
    cards = [
        (str(report.chunks), "chunks"),
        (str(report.trajectories), "trajectories"),
        *((f"{way:.2f} rad", f"travel, {group.replace('_', ' ')}") for group, way in report.joint_travel_rad.items()),
        (f"{frames['frames_dropped']} of {frames['frames_sent']}", "frames dropped"),
        (str(report.holds), "holds"),
        (f"{report.inference_ms.p50:.0f} ms", "inference, median"),
    ]
    return "".join(
        f"<div class=card><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for value, name in cards
    )


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
    last = recording.statuses[-1] if recording.statuses else None
    rows = [
        ("robot", report.robot),
        ("weights", report.label),
        ("checkpoint", report.checkpoint or "(none)"),
        ("seed", str(report.seed)),
        ("duration", f"{report.duration:.2f} s of simulated time"),
        ("speed", f"{report.real_time_factor:.2f} times real time"),
        *((f"trajectories to {group}", str(count)) for group, count in recording.trajectories.items()),
        ("late chunks dropped", str(last.dropped_chunks if last else 0)),
        ("points moved by a limit", str(last.limited_points if last else 0)),
    ]
    return table(("", ""), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in HTML; its cells are escaped."""
    lines = [_row(head, "th")] if any(head) else []
    lines += [_row(row, "td") for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _row(cells: Sequence[str], tag: str) -> str:
    first, *others = (html.escape(cell) for cell in cells)
    return f"<tr><th>{first}</th>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in others) + "</tr>"


def embed(png: bytes) -> str:
    """Return a PNG as the source of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _embed_picture(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 20px 16px 48px; color: #1d2430; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 36px 0 10px; font-size: 1.2rem; border-bottom: 1px solid #dde2ea; padding-bottom: 4px; }
.quiet, figcaption { color: #5b6675; font-size: .88rem; }
.note { margin: 16px 0; padding: 10px 14px; border-radius: 8px; border-left: 5px solid; }
.bad { background: #fdeaf0; border-color: #c42e5c; }
.good { background: #e9f6ee; border-color: #2ea060; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 10px; }
.card { background: #f4f6f9; border-radius: 8px; padding: 10px 12px; }
.card b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.card span { color: #5b6675; font-size: .85rem; }
video { width: 100%; border-radius: 8px; background: #11151c; display: block; margin-top: 18px; aspect-ratio: 16 / 9; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; display: block; }
.joints { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 14px 18px; }
.joints figcaption { display: none; }
.scroll { overflow-x: auto; }
.scroll figure { min-width: 640px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 16px 5px 0; border-bottom: 1px solid #e6eaf0; vertical-align: top; }
th { font-weight: 600; }
td { overflow-wrap: anywhere; }
@media print {
  .scroll figure { min-width: 0; }
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  .joints { grid-template-columns: 1fr 1fr; }
  h2 { break-after: avoid; }
  .card, .note { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{robot}</h1>
<p class="quiet">Instruction: “{instruction}”</p>
{weights}
<div class="cards">{cards}</div>
{film}
<h2>Course of the run</h2>
<div class="scroll">{timeline}</div>
<h2>Joints: measured against commanded</h2>
<p class="quiet">Blue: measured. Orange, dashed: commanded. Grey: what each chunk predicted. Red: limits of the joint,
where they are near. In rad, sliding joints in m.</p>
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
</body>
</html>
"""
