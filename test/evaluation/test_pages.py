# SPDX-License-Identifier: Apache-2.0
"""Pages of reports: where they come from, what they say in words, and what axe-core finds at two widths."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from browser import NARROW, WIDE, Browser, needs_axe
from recorded_run import RecordedRun

from xvla_ros.commands import run
from xvla_ros.commands.report import write_report
from xvla_ros.evaluation.outcomes import Counters, EpisodeResult, Evaluation
from xvla_ros.evaluation.replay.page import verdict
from xvla_ros.evaluation.report import film, provenance
from xvla_ros.evaluation.report.page import write_evaluation_page
from xvla_ros.robots import load_robot

pytest.importorskip("jinja2", reason="needs the replay extra")
pytest.importorskip("matplotlib", reason="needs the replay extra")

SAID = {"trained": "true", "dtype": "bfloat16", "device": "cuda:0", "threads": "8", "instruction_set": "AVX2"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of two seconds: the first chunk arrives before the first command."""
    profile, folder = load_robot("so101"), tmp_path_factory.mktemp("report")
    with RecordedRun(folder / "run.mcap", profile) as bag:
        times = profile.policy.first_waypoint_offset + np.arange(30) * profile.policy.waypoint_dt
        for tick in range(21):
            now = 10.0 + 0.1 * tick
            for slot in profile.cameras.slots:
                bag.picture(now, slot)
            bag.joints(now, np.full(6, 0.01 * tick).tolist())
            bag.status(now, **({"state": "running"} if tick < 12 else {"state": "holding", "reason": "camera_stale"}))
            if tick in (0, 8, 16):
                bag.chunk(now, now, times, np.zeros((30, 6)), profile.policy.action_mode)
            if tick >= 1:
                bag.command(now, np.full(6, 0.02 * tick).tolist())
        bag.diagnostics(12.0, SAID)
    write_report(folder / "run.mcap", profile, folder, film=find_spec("av") is not None)
    return folder


def test_a_report_says_where_it_comes_from(report: Path) -> None:
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))
    page = (report / "report.html").read_text(encoding="utf-8")
    made = provenance.provenance()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date"])
    assert {name: found[name] for name in ("version", "commit", "command")} == {
        name: made[name] for name in ("version", "commit", "command")
    }
    for name in ("dtype", "device", "threads", "instruction_set"):
        assert found[name] == SAID[name]
        assert f"<th scope=row>{name.replace('_', ' ')}</th><td>{SAID[name]}</td>" in page
    assert f"<td>{made['date']}</td>" in page and "<th scope=row>command</th>" in page
    assert "<th scope=row>recorded</th><td>1970-01-01T00:00:10+00:00</td>" in page


def test_a_name_of_a_file_that_is_not_utf_8_stands_on_the_page(tmp_path: Path) -> None:
    """A page is written when all work is done."""
    page = evaluation(tmp_path, checkpoint=os.fsdecode(b"folder\xff"))
    assert "folder\\udcff" in page.read_text(encoding="utf-8")


def test_a_command_line_can_be_typed_again() -> None:
    line = provenance.command_line(["/opt/ros/bin/xvla", "demo", "--instruction", "touch it"])
    assert line == "xvla demo --instruction 'touch it'"
    assert provenance.command_line(["/somewhere/xvla_ros/__main__.py", "robots"]) == "python -m xvla_ros robots"


def test_pictures_are_said_in_words(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    said = re.findall(r'alt="([^"]*)"', page)
    assert "shoulder pan over time: measured 0 to 0.2, commanded 0.02 to 0.4" in said
    assert any("running 5" in each and "camera stale" in each and "3 chunks arrived" in each for each in said)
    assert any(each.startswith("Inference time of 3 chunks: median") for each in said)


def test_the_chunks_of_the_card_are_all_in_the_timeline(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xvla_ros.evaluation.report import figures
    from xvla_ros.evaluation.report.recording import read_recording

    drawn: list[Any] = []
    monkeypatch.setattr(figures, "png", lambda figure: drawn.append(figure) or b"")
    recording = read_recording(report / "run.mcap", load_robot("so101"))
    assert recording.chunks[0].received < 0.0
    figures.status_plot(recording)
    (axes,) = drawn[0].axes
    (ticks,) = (line for line in axes.get_lines() if line.get_marker() == "|")
    low, high = axes.get_xlim()
    shown = [time for time in ticks.get_xdata() if low <= time <= high]
    assert len(shown) == len(recording.chunks) == json.loads((report / "report.json").read_text())["chunks"]


def document(ours: float, still: float, mean: float, *, apart: float = 0.1, **other: Any) -> dict[str, Any]:
    """What of ``metrics.json`` a verdict reads; ``apart`` is half the width of the intervals."""

    def beats(baseline: float) -> dict[str, Any]:
        difference = ours - baseline
        return {"holds": difference < 0, "difference": {"interval": [difference - apart, difference + apart]}}

    return {
        "headline": {"mae": ours, "unit": "rad"},
        "trained": True,
        "settings": {"baseline": False},
        "baselines": {"persistence": {"headline": {"mae": still}}, "mean": {"headline": {"mae": mean}}},
        "beats_persistence": beats(still),
        "beats_mean": beats(mean),
    } | other


@pytest.mark.parametrize(
    ("found", "colour", "words"),
    [
        (document(0.2, 0.5, 0.6), "good", "is below 0.5 rad, that of an arm that does not move, and below 0.6"),
        (document(0.2, 0.5, 0.1, apart=0.01), "bad", "below 0.5 rad, that of an arm that does not move, and not b"),
        (document(0.6, 0.5, 0.9, apart=0.01), "bad", "is not below 0.5 rad"),
        (document(0.4, 0.5, 0.6, apart=0.3), "", "may be due to chance"),
        (document(0.2, 0.5, 0.6, trained=False), "bad", "is below"),
        (
            document(0.5, 0.5, 0.6, settings={"baseline": True}),
            "",
            "No policy was run. The error of a policy must be below 0.5",
        ),
    ],
)
def test_a_replay_is_judged_by_the_rules_of_its_page(found: dict[str, Any], colour: str, words: str) -> None:
    made = verdict(found)
    assert made.colour == colour and words in made.words


def contrast(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """Contrast of two colours by WCAG 2."""

    def luminance(colour: tuple[int, ...]) -> float:
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_words_of_a_film_can_be_read() -> None:
    grounds = [*film.STATE_COLOURS.values(), film.DONE_COLOUR, film.FAILED_COLOUR, film.UNTRAINED_COLOUR]
    pairs = [*product([film.INK], grounds), *product([film.INK, film.FAINT], [film.BACKGROUND, film.PANEL])]
    assert min(contrast(*pair) for pair in pairs) >= 4.5


def replay(folder: Path) -> Path:
    pytest.importorskip("tqdm", reason="needs the replay extra")
    from xvla_ros.commands.replay import Replay

    sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
    from recorded import Session, changed

    Session(changed("so101_bimanual", ("instruction", "wave")), end=1.2).record().write(folder / "bag.mcap")
    asked = Replay(bags=(str(folder / "bag.mcap"),), output=str(folder), every=8, baseline=True)
    assert run(asked, "xvla replay") == 0
    return folder / "report.html"


def evaluation(folder: Path, checkpoint: str = "folder") -> Path:
    film = "films/touch-1.mp4"
    episodes = (EpisodeResult(0, "touch", True, False, 1.0), EpisodeResult(1, "touch", False, True, 9.0, film))
    made = Evaluation(
        "so101", "touch", checkpoint, True, 0, "process", episodes, Counters(), cameras=("front", "wrist")
    )
    write_evaluation_page(made, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pytest.importorskip("websockets", reason="needs the serve extra")
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@needs_axe
@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("kind", ["run", "replay", "evaluation"])
def test_axe_finds_nothing_and_nothing_is_cut_off(
    kind: str, width: int, report: Path, browser: Browser, tmp_path: Path
) -> None:
    shown = {"run": lambda _: report / "report.html", "replay": replay, "evaluation": evaluation}[kind](tmp_path)
    browser.resize(width)
    browser.open(shown.as_uri())
    assert browser.violations() == []
    assert browser.too_wide() <= 0


@needs_axe
def test_axe_would_find_a_picture_without_words(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><html lang=en><title>t</title><body><main><h1>h</h1><img src=x></main></body></html>"
    )
    browser.open(page.as_uri())
    assert [each[0] for each in browser.violations()] == ["image-alt"]
