# SPDX-License-Identifier: Apache-2.0
"""Draws the wiring pictures of docs/bring-up from the profiles: python tools/wiring.py docs/bring-up

What is wired to what, which driver speaks to it, and on which topics; topics are those of the profile.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from xvla_ros.robots import load_robot
from xvla_ros.robots.profile import Profile

COLUMNS = ((20, 170), (250, 190), (520, 280), (840, 130))  # left edge and width of each, pixels
HEADS = ("hardware", "driver", "topics", "policy")
ROW, GAP, TOP, LINE = 26, 18, 64, 17
OWN = ("a driver of yours:", "none is public")
CAMERA_DRIVERS = ("usb_cam, v4l2_camera or", "realsense2_camera")
INK, FAINT, EDGE, PANEL, COMMAND, SENSE = "#1d2430", "#5b6675", "#6a7482", "#f4f6f9", "#a05600", "#1273b8"


@dataclass(frozen=True)
class Row:
    """One cable: what it leads to, by what it is driven, and the topics, each with whether it is a command."""

    hardware: tuple[str, ...]
    cable: str
    driver: tuple[str, ...]
    topics: tuple[tuple[str, bool], ...]

    @property
    def height(self) -> int:
        return max(ROW + LINE * max(len(self.hardware), len(self.driver), len(self.topics)) - 4, 52)


def arm(profile: Profile, part: str, hardware: Sequence[str], cable: str, driver: Sequence[str]) -> Row:
    """The row of the joints and command groups whose topics contain ``part``."""
    states = [topic for topic in profile.joints.topics if part in topic]
    commands = [profile.commands.by_name[group].topic for group in profile.commands.groups]
    told = [topic for topic in commands if part in topic]
    return Row(
        tuple(hardware), cable, tuple(driver), (*((each, False) for each in states), *((each, True) for each in told))
    )


def cameras(profile: Profile, cable: str, driver: Sequence[str] = CAMERA_DRIVERS) -> list[Row]:
    """A row for each camera."""
    return [
        Row((slot.replace("_", " "), "camera"), cable, tuple(driver), ((profile.cameras.by_name[slot].topic, False),))
        for slot in profile.cameras.slots
    ]


def pictures() -> dict[str, str]:
    """File name → SVG of each picture."""
    pair, widowx, agibot = (load_robot(name) for name in ("so101_bimanual", "widowx", "agibot"))
    servo = ("ros2_control with", "feetech_ros2_driver")
    return {
        "so101-pair.svg": svg("SO-101 pair", [
            arm(pair, "/left/", ("left SO-101", "supply with a switch"), "USB", servo),
            arm(pair, "/right/", ("right SO-101", "supply with a switch"), "USB", servo),
            *cameras(pair, "USB"),
        ]),
        "widowx.svg": svg("WidowX 250s", [
            arm(widowx, "/wx250s/", ("WidowX 250s, U2D2", "12 V, with a switch"), "USB",
                ("interbotix_xsarm_", "ros_control")),
            *cameras(widowx, "USB"),
        ]),
        "agibot.svg": svg("AgiBot G1", [
            arm(agibot, "/", ("AgiBot G1", "own emergency stop"), "network", OWN),
            *cameras(agibot, "network", OWN),
        ]),
    }  # fmt: skip


def svg(title: str, rows: Sequence[Row]) -> str:
    """A picture with one row below the other, and the policy node beside all of them."""
    tops, y = [], TOP
    for row in rows:
        tops.append(y)
        y += row.height + GAP
    width = COLUMNS[-1][0] + COLUMNS[-1][1] + 20
    described = "; ".join(
        f"{row.hardware[0]} by {row.cable} to {' '.join(row.driver)}: "
        + ", ".join(f"{topic} ({'commands' if told else 'measured'})" for topic, told in row.topics)
        for row in rows
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>Wiring of the {escape(title)}</title><desc>{escape(described)}</desc>",
        f'<rect width="{width}" height="{y}" fill="#ffffff"/>',
        *(_text(left, 40, head, FAINT) for (left, _), head in zip(COLUMNS, HEADS, strict=True)),
    ]
    for row, top in zip(rows, tops, strict=True):
        parts += _row(row, top)
    left, wide = COLUMNS[-1]
    parts += [*_box(left, TOP, wide, y - GAP - TOP, ("/xvla", "policy node"))]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(row: Row, top: int) -> list[str]:
    (hardware, hardware_wide), (driver, driver_wide), (topics, _), (policy, _) = COLUMNS
    middle = top + row.height / 2
    parts = [
        *_box(hardware, top, hardware_wide, row.height, row.hardware),
        *_box(driver, top, driver_wide, row.height, row.driver),
        _line(hardware + hardware_wide, middle, driver, middle, EDGE),
        _text(hardware + hardware_wide + 6, middle - 6, row.cable, FAINT, size=11),
    ]
    first = middle - LINE * (len(row.topics) - 1) / 2
    for index, (topic, told) in enumerate(row.topics):
        y, colour = first + LINE * index, COMMAND if told else SENSE
        ends = (topics - 14, driver + driver_wide) if told else (driver + driver_wide, topics - 14)
        parts += [_line(ends[0], y, ends[1], y, colour, arrow=True), _text(topics, y + 4, topic, colour)]
        ends = (policy, policy - 24) if told else (policy - 24, policy)
        parts.append(_line(ends[0], y, ends[1], y, colour, arrow=True))
    return parts


def _box(x: float, y: float, width: float, height: float, words: Sequence[str]) -> list[str]:
    first = y + height / 2 - LINE * (len(words) - 1) / 2 + 4
    return [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{PANEL}" stroke="{EDGE}"/>',
        *(_text(x + 12, first + LINE * index, word, FAINT if index else INK) for index, word in enumerate(words)),
    ]


def _text(x: float, y: float, words: str, colour: str, size: int = 13) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, arrow: bool = False) -> str:
    way = 1 if x2 > x1 else -1
    head = f" M{x2 - 7 * way:g} {y2 - 4:g} L{x2:g} {y2:g} L{x2 - 7 * way:g} {y2 + 4:g}" if arrow else ""
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}{head}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


if __name__ == "__main__":
    for name, picture in pictures().items():
        (Path(sys.argv[1]) / name).write_text(picture, encoding="utf-8")
