"""Marks in a profile file: ``# CHECK: …`` beside or above a setting that a person still has to look at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from xvla_ros.errors import Problem
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.files import WILDCARD

MARK = "# CHECK:"
_MARK = re.compile(rf"(?:^|\s){MARK}\s*(?P<text>.*)$")


def open_marks(profile: Profile) -> list[Problem]:
    """Return what is still marked in the file a robot was read from, each with the key of its setting.

    A mark on a line of its own belongs to the next setting.
    """
    if profile.source is None or MARK not in (text := profile.source.read_text(encoding="utf-8")):
        return []
    settings = dict(reversed(list(_settings(yaml.compose(text, Loader=yaml.SafeLoader)))))  # the outermost of a line
    problems = []
    for number, line in enumerate(text.splitlines()):
        found = _MARK.search(line)
        if found is None:
            continue
        place = min((row for row in settings if row >= number), default=None)
        key, value = settings[place] if place is not None else ("", None)
        if key.partition(".")[0] != profile.name:
            continue
        message = f"line {number + 1} is still marked: {found['text']}"
        problems.append(Problem(str(profile.source), key, value, f'the right setting, and "{MARK} …" removed', message))
    return problems


def _settings(node: Any, prefix: str = "") -> Iterator[tuple[int, tuple[str, Any]]]:
    """Yield line and (dotted key from the robot's name, value if it is a plain one) of every setting."""
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        is_frame = not prefix and name.value in (WILDCARD, "ros__parameters")
        key = "" if is_frame else f"{prefix}{name.value}"
        if not is_frame:
            yield name.start_mark.line, (key, value.value if isinstance(value, yaml.ScalarNode) else None)
        yield from _settings(value, f"{key}." if key else "")
