# SPDX-License-Identifier: Apache-2.0
"""The figures of the explanation pages, as SVG: drawn with the package's own functions where they show numbers.

``python -m pytest test/packaging/test_reference.py --write-docs`` writes them into docs/images.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from xvla_ros.control.limiter import Limiter
from xvla_ros.control.motion import MotionState
from xvla_ros.control.timeline import prefix_weights
from xvla_ros.robots.joints import JointLimits

WIDTH = 720  # px
INK, GREY, TEAL, ORANGE, BLUE, PALE = "#1f2933", "#5b6670", "#00695c", "#b45309", "#1d4ed8", "#e6f2f0"
Point = tuple[float, float]


class Drawing:
    """Lines, boxes and texts on a white ground; coordinates in px, rounded to whole ones."""

    def __init__(self, height: int, title: str) -> None:
        self._size, self._title, self._parts = (WIDTH, height), title, []

    def box(self, x: float, y: float, width: float, height: float, text: str = "", fill: str = PALE) -> None:
        """Draw a box with a text in its middle, lines separated by a line break."""
        self._add(f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" '
                  f'fill="{fill}" stroke="{INK}"/>')  # fmt: skip
        lines = text.split("\n") if text else []
        for number, line in enumerate(lines):
            self.text(x + width / 2, y + height / 2 + 5 + 17 * (number - (len(lines) - 1) / 2), line, "middle")

    def text(self, x: float, y: float, text: str, anchor: str = "start", colour: str = INK, size: int = 13) -> None:
        """Write a line of text."""
        self._add(f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">'
                  f"{escape(text)}</text>")  # fmt: skip

    def line(
        self, points: Sequence[Point], colour: str = INK, width: float = 2, dashes: str = "", arrow: bool = False
    ) -> None:
        """Draw straight lines through points."""
        shown = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
        more = f' stroke-dasharray="{dashes}"' * bool(dashes) + ' marker-end="url(#arrow)"' * arrow
        self._add(f'<polyline points="{shown}" fill="none" stroke="{colour}" stroke-width="{width}"{more}/>')

    def dot(self, x: float, y: float, colour: str, filled: bool = True) -> None:
        """Draw a small circle."""
        self._add(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{colour if filled else "#fff"}" stroke="{colour}"/>')

    def _add(self, part: str) -> None:
        self._parts.append(part)

    def svg(self) -> str:
        """Return the file."""
        width, height = self._size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="system-ui, sans-serif"><title>{escape(self._title)}</title>'
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>'
            f'<rect width="{width}" height="{height}" fill="#fff"/>'
        )
        return head + "\n" + "\n".join(self._parts) + "\n</svg>\n"


def figures() -> dict[str, str]:
    """Return the figures, by their names in docs/images."""
    return {
        "soft-prompts.svg": soft_prompts(),
        "chunks.svg": chunks(),
        "limits.svg": limits(),
        "adaptation.svg": adaptation(),
        "libero.svg": libero(),
        "states.svg": states(),
    }


def soft_prompts() -> str:
    """What all robots share, and what each has of its own."""
    drawing = Drawing(300, "One network for many robots: only the rows of the chosen domain differ")
    drawing.box(10, 20, 130, 44, "camera images")
    drawing.box(10, 84, 130, 44, "instruction")
    drawing.box(10, 236, 130, 44, "state, noise")
    drawing.box(190, 44, 150, 60, "vision and\nlanguage encoder")
    drawing.box(400, 44, 120, 236, "transformer\n(shared)")
    drawing.text(190, 134, "soft prompts, one per domain", size=12, colour=GREY)
    for number, name in enumerate(("domain 9: AgiBot", "domain 19: SO-101 pair", "domain 0: your arm")):
        drawing.box(190, 142 + 26 * number, 170, 22, name, ORANGE_PALE if number == 1 else "#fff")
    drawing.box(190, 236, 150, 44, "action rows, in", ORANGE_PALE)
    drawing.box(570, 236, 140, 44, "action rows, out", ORANGE_PALE)
    drawing.box(570, 120, 140, 44, "chunk of actions")
    for points in (
        [(140, 42), (188, 64)], [(140, 106), (188, 88)], [(340, 74), (398, 74)], [(360, 179), (398, 179)],
        [(140, 258), (188, 258)], [(340, 258), (398, 258)], [(520, 258), (568, 258)], [(640, 236), (640, 166)],
    ):  # fmt: skip
        drawing.line(points, arrow=True)
    drawing.text(570, 40, "orange: chosen by", size=12, colour=ORANGE)
    drawing.text(570, 57, "the profile's domain_id", size=12, colour=ORANGE)
    return drawing.svg()


ORANGE_PALE = "#fde7cf"


def chunks() -> str:
    """Two chunks in time, and the weights with which the second agrees with the first."""
    drawing = Drawing(330, "Real-time chunking: the next chunk is requested early, and agrees with the running one")
    second, count, step = 1_000_000_000, 30, 1 / 30
    asked, late = 0.5, 0.2  # s: when the second chunk's observation was taken, and how long inference takes

    def x(time: float) -> float:
        return 70 + 400 * time

    for row, (start, colour, name) in enumerate(((0.0, TEAL, "chunk 1"), (asked, BLUE, "chunk 2"))):
        drawing.text(10, 65 + 60 * row, name, colour=colour)
        for number in range(count):
            drawing.dot(
                x(start + number * step), 60 + 60 * row, colour, filled=start + number * step >= start + late * row
            )
    drawing.line([(x(asked), 90), (x(asked + late), 90)], ORANGE, 2, arrow=True)
    drawing.text(x(asked) - 6, 95, "inference", "end", ORANGE)
    for time, text in ((asked, "observation"), (asked + late, "chunk 2 arrives")):
        drawing.line([(x(time), 40), (x(time), 280)], GREY, 1, "4 4")
        drawing.text(x(time), 30 if time == asked else 22, text, "end" if time == asked else "start", GREY, 12)
    times = np.arange(count) * int(step * second) + int(asked * second)
    weights = prefix_weights(times, int((asked + late) * second), int((1 - step) * second), "exponential")
    drawing.text(10, 225, "weight of", colour=INK)
    drawing.text(10, 242, "chunk 1", colour=INK)
    drawing.line([(x(asked), 270), (x(asked + 1), 270)], GREY, 1)
    drawing.line([(x(time / second), 270 - 80 * weight) for time, weight in zip(times, weights, strict=True)], ORANGE)
    drawing.text(x(asked + late / 2), 182, "fixed", "middle", ORANGE)
    drawing.text(x(0.86), 215, "falls", "start", ORANGE)
    drawing.text(x(1.2), 262, "free", "middle", ORANGE)
    for time in (0, 0.5, 1, 1.5):
        drawing.text(x(time), 300, f"{time:g} s", "middle", GREY, 12)
    drawing.text(x(0.75), 322, "ROS time; hollow: waypoints that are past when the chunk arrives", "middle", GREY, 12)
    return drawing.svg()


def limits() -> str:
    """What the limiter makes of a jump of half a radian: position and velocity."""
    drawing = Drawing(300, "The limiter turns a jump of the plan into motion within velocity, acceleration and jerk")
    one = np.ones(1)
    limiter = Limiter(JointLimits(("joint",), -2 * one, 2 * one, 1.5 * one, 8 * one, 100 * one))
    times = np.arange(1, 25) / 30
    plan = np.where(times[:, None] > 0.05, 0.5, 0.0)
    path = limiter.follow(MotionState.at_rest(np.zeros(1)), times, plan, np.zeros_like(plan))
    kept = path.times <= times[-1]

    def curve(left: float, values: np.ndarray, scale: float, colour: str, dashes: str = "") -> None:
        drawing.line(
            [(left + 340 * t, 240 - scale * v) for t, v in zip(path.times[kept], values, strict=True)],
            colour,
            2,
            dashes,
        )

    for left, name in ((50, "position, rad"), (410, "velocity, rad/s")):
        drawing.line([(left, 40), (left, 240), (left + 280, 240)], GREY, 1)
        drawing.text(left, 28, name)
        for time in (0, 0.4, 0.8):
            drawing.text(left + 340 * time, 260, f"{time:g}", "middle", GREY, 12)
        drawing.text(left + 140, 284, "time, s", "middle", GREY, 12)
    wanted = np.interp(path.times[kept], times, plan[:, 0])
    curve(50, wanted, 320, GREY, "5 4")
    curve(50, path.positions[kept, 0], 320, TEAL)
    curve(410, path.velocities[kept, 0], 110, TEAL)
    drawing.line([(410, 240 - 110 * 1.5), (690, 240 - 110 * 1.5)], ORANGE, 1, "5 4")
    drawing.text(690, 240 - 110 * 1.5 - 6, "max_velocity", "end", ORANGE, 12)
    drawing.text(120, 70, "plan", "start", GREY)
    drawing.text(225, 130, "command", "start", TEAL)
    drawing.text(44, 85, "0.5", "end", GREY, 12)
    drawing.text(404, 80, "1.5", "end", GREY, 12)
    return drawing.svg()


def adaptation() -> str:
    """Success on a new arm by base and by what is trained: docs/explanation/shipped-policy.md has the numbers."""
    drawing = Drawing(330, "WidowX after 50 demonstrations: successes, by the base and by what was trained")
    y = 20
    bases: tuple[tuple[str, int, dict[str, int]], ...] = (
        ("base of 26 robots", 100, {"prompt": 80, "LoRA": 81, "full": 83, "from scratch": 27}),
        ("base of 2 robots", 40, {"prompt": 12, "LoRA": 14, "full": 20, "from scratch": 9}),
    )
    for base, of, rows in bases:
        drawing.text(10, y + 17, base)
        for name, count in rows.items():
            _bar(drawing, y, name, count, ORANGE_PALE if name == "from scratch" else PALE, of)
            y += 34
        y += 20
    return drawing.svg()


def _bar(drawing: Drawing, y: float, name: str, count: int, fill: str, of: int = 40) -> None:
    """Draw how many of the episodes succeeded."""
    width = 360 * count / of
    drawing.text(270, y + 17, name, "end", GREY)
    drawing.box(280, y, max(width, 1), 24, "", fill)
    drawing.text(290 + width, y + 17, f"{count} of {of}")


def libero() -> str:
    """How the small policy and a blind replay do on two suites: bench/RESULTS.md has the numbers."""
    drawing = Drawing(210, "Successes of 40 episodes: libero_object can be solved blind, libero_object_swap cannot")
    rows = (
        ("libero_object", "policy", 38),
        ("", "blind replay", 40),
        ("libero_object_swap", "policy", 21),
        ("", "blind replay", 0),
    )
    for number, (suite, driver, count) in enumerate(rows):
        y = 20 + 40 * number + 14 * (number > 1)
        drawing.text(10, y + 17, suite)
        _bar(drawing, y, driver, count, PALE if driver == "policy" else ORANGE_PALE)
    return drawing.svg()


def states() -> str:
    """The states of a robot, and what leads from one to another."""
    drawing = Drawing(300, "The states of a robot: inactive, holding, running, stopped")
    boxes = {"inactive": (40, 120), "holding": (290, 30), "running": (540, 120), "stopped": (290, 220)}
    for name, (x, y) in boxes.items():
        drawing.box(x, y, 140, 46, name)
    arrows = (
        ([(150, 118), (288, 60)], "activated", (150, 82)),
        ([(288, 74), (182, 118)], "", (0, 0)),
        ([(432, 46), (590, 118)], "a chunk arrives", (520, 68)),
        ([(552, 118), (432, 66)], "fault, or end of plan", (395, 122)),
        ([(552, 168), (432, 236)], "stop", (508, 212)),
        ([(345, 78), (345, 218)], "stop", (307, 150)),
        ([(375, 218), (375, 78)], "~/clear_stop", (382, 160)),
        ([(288, 236), (150, 168)], "deactivated", (130, 215)),
    )
    for points, text, place in arrows:
        drawing.line(points, arrow=True)
        if text:
            drawing.text(*place, text, colour=GREY, size=12)
    drawing.text(360, 292, "deactivate leads from every state to inactive; activate with a stop set leads to stopped",
                 "middle", GREY, 12)  # fmt: skip
    return drawing.svg()
