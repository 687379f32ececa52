"""The page of a replay, ``report.html``: one file that holds everything it shows."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xvla_ros.evaluation.replay import plots
from xvla_ros.evaluation.replay.metrics import Figures
from xvla_ros.evaluation.replay.worst import KEPT
from xvla_ros.evaluation.report import html_page
from xvla_ros.evaluation.report.html_page import embed, table
from xvla_ros.observation.faults import FaultTally

NS = 1_000_000_000
MOST_EPISODES = 60
MOST_ROWS = 900  # of one episode in a plot; an hour of them is neither legible nor small


def write_page(document: Mapping[str, Any], figures: Figures, path: Path) -> None:
    """Write the page.

    Args:
        document: ``metrics.json``.
        figures: that it was drawn up from, for the plots.
        path: of the page.
    """
    names = _names(document)
    unit = document["headline"]["unit"]
    shown, key = _shown_episode(figures)
    body = _BODY.format(
        robot=html.escape(document["robot"]),
        checkpoint=html.escape(" against ".join(names)),
        verdict=_verdict(document),
        damage=_damage(document),
        cards=html_page.cards(_cards(document)),
        errors=_errors(document),
        compare=_compare(document),
        side="".join([
            _picture(plots.horizon_plot(document["by_horizon"], names), "Error against how far ahead"),
            _picture(plots.episodes_plot(document["episodes"][:MOST_EPISODES], names, unit), "Error by episode"),
            _picture(plots.shift_plot(document["latency_shift"], unit), "Error when late"),
        ]),
        episode=html.escape(key),
        joints="".join(_picture(plots.course_plot(each), each.name) for each in plots.courses(shown, figures.profile)),
        worst=_worst(figures, unit),
        gripper=_gripper(document),
        smooth=_smooth(document),
        timing=_timing(document),
        ablations=_ablations(document),
        bags=_bags(document),
        live=f"<h2>Live</h2><p>{html.escape(document['live']['text'])}</p>" if "live" in document else "",
        settings=table(("", ""), [(name, str(value)) for name, value in document["settings"].items()]),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    title = f"{document['robot']}: replay of {_short(document['checkpoint'])}"
    draft.write_text(html_page.document(title, body, _STYLE), encoding="utf-8")
    draft.replace(path)


def _names(document: Mapping[str, Any]) -> list[str]:
    others = [document["compare"]["checkpoint"]] if "compare" in document else []
    return [_short(name) for name in (document["checkpoint"], *others)]


def _short(name: str) -> str:
    return "/".join(Path(name).parts[-2:]) or "no checkpoint"


def _verdict(document: Mapping[str, Any]) -> str:
    found = document["beats_persistence"]
    apart, unit = found["difference"], document["headline"]["unit"]
    held = document["baselines"]["persistence"]["headline"]["mae"]
    ours = document["headline"]["mae"]
    sure = apart["interval"] is not None and (apart["interval"][0] > 0 or apart["interval"][1] < 0)
    words = (f"Its error, {ours:.3g} {unit}, is {'below' if found['holds'] else 'not below'} that of an arm that stays "
             f"where it is, {held:.3g} {unit}.")
    if not sure:
        words += " With these episodes the difference may be chance."
    note = "" if document["trained"] else (
        "<strong>Untrained.</strong> The checkpoint has no trained row for this robot; its answers mean nothing. ")
    return (f'<p class="note {"good" if found["holds"] and document["trained"] else "bad"}">{note}'
            f"{html.escape(words)}</p>")


def _damage(document: Mapping[str, Any]) -> str:
    bad = [bag for bag in document["bags"] if bag["damaged"]]
    if not bad:
        return ""
    listed = "; ".join(html.escape(f"{bag['path']}: {bag['integrity']}") for bag in bad)
    return f'<p class="note bad"><strong>Damaged bags.</strong> {listed}</p>'


def _cards(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    headline, latency = document["headline"], document["timing"]["inference_ms"]
    still = document["baselines"]["persistence"]["headline"]
    f1 = [each["f1"] for each in document["gripper"].values() if each["f1"] is not None]
    return [
        (f"{_number(headline['mae'])} {headline['unit']}", "mean error"),
        (f"{_number(still['mae'])} {still['unit']}", "staying still"),
        *([(f"{np.mean(f1):.2f}", "gripper F1")] if f1 else []),
        (f"{_number(latency['p50'])} ms", "inference, median"),
        (str(document["frames"]), "observations"),
        (str(len(document["episodes"])), "episodes"),
        (str(sum(document["skipped"].values())), "skipped"),
    ]


def _errors(document: Mapping[str, Any]) -> str:
    still, mean = document["baselines"]["persistence"], document["baselines"]["mean"]
    rows = []
    for name, entry in document["per_joint"].items():
        rows.append(_error_row(name.replace("_", " "), entry, still["per_joint"].get(name),
                               mean["per_joint"].get(name)))
    for tool, kinds in document["per_tool"].items():
        for kind, entry in kinds.items():
            rows.append(_error_row(f"{tool} {kind}", entry, still["per_tool"][tool][kind],
                                   mean["per_tool"][tool][kind]))
    return table(("", "mean error", "RMSE", "staying still", "mean of the recording"), rows)


def _error_row(name: str, entry: Mapping[str, Any], *baselines: Mapping[str, Any] | None) -> tuple[str, ...]:
    shown = f"{_number(entry['mae'])} {entry['unit']}"
    if "mae_degrees" in entry:
        shown += f" ({_number(entry['mae_degrees'])}°)"
    return (name, shown, _number(entry["rmse"]), *("–" if each is None else _number(each["mae"]) for each in baselines))


def _compare(document: Mapping[str, Any]) -> str:
    if "compare" not in document:
        return ""
    other, unit = document["compare"], document["headline"]["unit"]
    names, apart = _names(document), document["compare"]["difference"]
    rows = [("mean error", *(f"{_number(each['headline']['mae'])} {unit}" for each in (document, other)))]
    rows += [(name.replace("_", " "), _number(entry["mae"]), _number(other["per_joint"][name]["mae"]))
             for name, entry in document["per_joint"].items()]
    rows += [(f"{tool} {kind}", _number(entry["mae"]), _number(other["per_tool"][tool][kind]["mae"]))
             for tool, kinds in document["per_tool"].items() for kind, entry in kinds.items()]
    rows += [(f"{name} F1", _number(entry["f1"]), _number(other["gripper"][name]["f1"]))
             for name, entry in document["gripper"].items()]
    low_high = apart["interval"]
    words = f"{names[1]} minus {names[0]}: {apart['mean']:+.3g} {unit}"
    words += "; one episode tells nothing of chance." if low_high is None else (
        f", 95 % interval {low_high[0]:+.3g} to {low_high[1]:+.3g} (bootstrap over {apart['episodes']} episodes).")
    return (f"<h2>Side by side</h2><p>{html.escape(words)}</p><div class=scroll>"
            f"{table(('', *names), rows)}</div>")


def _gripper(document: Mapping[str, Any]) -> str:
    rows = [
        (name.replace("_", " "), _number(each["f1"]), str(each["changes"]), str(each["missed"]), str(each["spurious"]),
         _seconds(each["timing_mae_s"]), _seconds(each["timing_mean_s"]))
        for name, each in document["gripper"].items()
    ]
    if not rows:
        return ""
    head = ("", "F1", "changes", "missed", "out of nowhere", "off by", "late by")
    return f"<h2>Grippers</h2><div class=scroll>{table(head, rows)}</div>"


def _smooth(document: Mapping[str, Any]) -> str:
    jump, clip = document["boundary_jump"], document["limit_clip_rate"]
    rows = [
        (name.replace("_", " "), f"{_number(each['predicted'])} {each['unit']}", _number(each["recorded"]),
         f"{clip['beyond_position'][name]:.1%}", f"{clip['beyond_velocity'][name]:.1%}")
        for name, each in document["jerk_rms"].items()
    ]
    words = "" if not jump else (
        f"Where a chunk takes over from the one before it begins {_number(jump['mean'])} {jump['unit']} away, in 95 % "
        f"of {jump['boundaries']} cases at most {_number(jump['p95'])}.")
    if "out_of_reach" in clip:
        outside = ", ".join(f"{tool} {share:.1%}" for tool, share in clip["outside_workspace"].items())
        words += f" Outside of the workspace: {outside}; out of reach: {clip['out_of_reach']:.1%}."
    head = ("", "jerk, predicted", "recorded", "beyond its range", "beyond its speed")
    return f"<p>{html.escape(words)}</p><div class=scroll>{table(head, rows)}</div>"


def _timing(document: Mapping[str, Any]) -> str:
    timing = document["timing"]
    rows = [
        ("inference, ms", timing["inference_ms"], 1.0),
        ("oldest part of an observation, ms", timing["observation_age_s"], 1e3),
        ("between its cameras, ms", timing["camera_skew_s"], 1e3),
        *((f"age of {part}, ms", each, 1e3) for part, each in timing["age_by_part_s"].items()),
    ]
    cells = [(name, *(_number(None if each[key] is None else each[key] * factor)
                      for key in ("p50", "p95", "p99", "max"))) for name, each, factor in rows]
    return table(("", "median", "95 %", "99 %", "most"), cells)


def _ablations(document: Mapping[str, Any]) -> str:
    if not document["ablations"]:
        return ""
    unit = document["headline"]["unit"]
    rows = [(name, f"{_number(each['mae'])} {unit}", f"{each['mae'] - each['mae_unchanged']:+.3g}",
             f"{_number(each['answers_moved'])} {unit}") for name, each in document["ablations"].items()]
    words = ("What the policy takes from each input: the same observations and noise, one thing changed. An input "
             "whose change leaves the answers where they are is not looked at.")
    head = ("", "error", "more than before", "answers moved by")
    return f"<h2>Ablations</h2><p class=quiet>{words}</p><div class=scroll>{table(head, rows)}</div>"


def _bags(document: Mapping[str, Any]) -> str:
    rows = []
    for bag in document["bags"]:
        skipped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in bag["skipped"].items()) or "–"
        faults = FaultTally(bag["skipped_details"]).lines() if bag["frames"] else []
        notes = [each for each in (bag["error"], *faults, *bag["notes"]) if each]
        rows.append((bag["path"], str(bag["frames"]), str(bag["episodes"]), bag["actions"], skipped,
                     bag["integrity"], "; ".join(notes) or "–"))
    return table(("bag", "observations", "episodes", "actions", "skipped", "integrity", "notes"), rows)


def _worst(figures: Figures, unit: str) -> str:
    moments = sorted(
        ((each, part) for part in figures.parts for each in part.record.worst), key=lambda found: -found[0]["score"])
    shown = []
    for moment, part in moments[:KEPT]:
        episode = part.record.episodes[moment["episode"]]
        pictures = "".join(
            f'<img src="data:image/jpeg;base64,{base64.b64encode((part.folder / name).read_bytes()).decode()}" '
            f'alt="{html.escape(slot)}">' for slot, name in moment["pictures"].items())
        words = (f"{moment['score']:.3g} {unit} off, {(moment['stamp'] - episode['start']) / NS:.1f} s into "
                 f"the episode “{episode['instruction']}” of {Path(part.record.path).name}; "
                 f"{', '.join(moment['pictures'])}")
        caption = f"<figcaption>{html.escape(words)}</figcaption>"
        shown.append(f"<figure class=moment><div>{pictures}</div>{caption}</figure>")
    return "".join(shown)


def _shown_episode(figures: Figures) -> tuple[Any, str]:
    """The rows of the episode whose error is in the middle, and what it is called."""
    means = figures.episodes[0].means()
    ordered = sorted(means, key=lambda key: means[key])
    bag, episode = ordered[len(ordered) // 2]
    part = figures.parts[bag]
    told = part.record.episodes[episode]["instruction"]
    rows = part.rows(episode, MOST_ROWS)
    words = f"“{told}”, {Path(part.record.path).name}, the episode whose error is in the middle"
    return rows, words if len(rows) < MOST_ROWS else f"{words}, its first {MOST_ROWS} observations"


def _picture(content: bytes, caption: str) -> str:
    return f'<figure><img src="{embed(content)}" alt="{html.escape(caption)}"></figure>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


_STYLE = """
.scroll td, .scroll th { white-space: nowrap; overflow-wrap: normal; }
.notes th, .notes td { white-space: normal; overflow-wrap: break-word; }
.notes tr > :first-child { min-width: 10em; overflow-wrap: anywhere; }
.notes tr > :last-child { min-width: 8em; }
.moment { margin: 0 0 16px; }
.moment div { display: flex; gap: 6px; }
.moment img { flex: 0 1 200px; width: auto; min-width: 0; height: auto; object-fit: contain; border-radius: 6px; }
@media print { .moment img { flex-basis: 150px; } .scroll { overflow: visible; }
  .scroll td, .scroll th { white-space: normal; } }
"""

_BODY = """<h1>{robot}: replay</h1>
<p class="quiet">{checkpoint}</p>
{verdict}
<p class="note"><strong>A low error here does not promise success.</strong> A recording does not answer: it never shows
what the policy's own motion would have led to, and it counts another good way of doing the task as an error. Before an
arm moves alone, measure success: <code>xvla evaluate</code> in simulation, then a few supervised runs.</p>
{damage}
<div class="cards">{cards}</div>
<h2>Errors</h2>
<p class="quiet">Mean of what predicted and recorded waypoints are apart. An arm that stays where it was measured, and
one that always goes to the mean of everything recorded, know nothing: a policy must be below both.</p>
<div class="scroll">{errors}</div>
{compare}
<h2>Error by time, episode and delay</h2>
<div class="joints">{side}</div>
<h2>Recorded against predicted</h2>
<p class="quiet">{episode}. Blue: recorded. Orange, dashed: first waypoint of each chunk. Grey: whole chunks. Red:
limits.</p>
<div class="joints">{joints}</div>
<h2>Worst moments</h2>
{worst}
{gripper}
<h2>Smoothness and limits</h2>
{smooth}
<h2>Timing</h2>
<div class="scroll">{timing}</div>
{ablations}
{live}
<h2>Bags</h2>
<div class="scroll notes">{bags}</div>
<h2>Settings</h2>
<div class="scroll notes">{settings}</div>
"""
