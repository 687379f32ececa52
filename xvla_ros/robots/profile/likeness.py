"""Robots that say ``like: another``: the other's settings, and what they say themselves on top.

Equal arms need one profile between them: ``arm_a: {like: so101, namespace: /a}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xvla_ros.errors import Problem, ProfileError

# Sections whose entries are listed in an order of their own, and the key of that list.
LISTED = (
    ("cameras", "slots"), ("joints", "policy_order"), ("commands", "groups"), ("tools", "order"), ("view", "order"),
)
# Settings as read of a robot by its name, None where there is no such robot.
Find = Callable[[str], Any]


def with_likeness(name: str, raw: Any, neighbours: Find, shipped: Find, *, file: str = "") -> Any:
    """Return the settings of the robot ``name`` with those of the robot it is like below them.

    A list of names given here leaves out what it does not name: with ``cameras: {slots: [front]}`` the other's wrist
    camera is gone. Any other list takes the place of the other's.

    Args:
        name: of the robot.
        raw: its settings as read.
        neighbours: robots of the same file or node; they come before shipped ones, except the robot itself.
        shipped: robots of the package, which are like one another only.
        file: for messages.

    Raises:
        ProfileError: there is no robot of that name, or it is like this one.
    """
    return _resolved(raw, [neighbours, shipped], file, [(name, 0)])


def _resolved(raw: Any, places: list[Find], file: str, chain: list[tuple[str, int]]) -> Any:
    """Return the settings of the last robot of ``chain``, which holds names and the number of the place of each."""
    other = raw.get("like") if isinstance(raw, Mapping) else None
    if not isinstance(other, str) or not other:
        return raw
    for place in range(chain[-1][1], len(places)):
        found = None if (other, place) in chain else places[place](other)
        if isinstance(found, Mapping):
            base = _resolved(found, places, file, [*chain, (other, place)])
            return _listed(_merged(base, raw), raw)
    raise ProfileError([_missing(other, file, [name for name, _ in chain])])


def _missing(other: str, file: str, chain: list[str]) -> Problem:
    expected = "the name of a shipped robot (xvla robots lists them), or of another robot beside it"
    if other in chain:
        message = f"{' is like '.join((*chain, other))}: nobody says what they are like"
    else:
        message = f"there is no robot {other!r} to be like"
    return Problem(file, f"{chain[-1]}.like", other, expected, message)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _listed(merged: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Drop inherited entries that a list given here does not name, and put the others in its order."""
    for section, key in LISTED:
        own = given.get(section)
        if not isinstance(own, Mapping) or not isinstance(own.get(key), list | tuple):
            continue
        whole = merged[section]
        plain = {name: value for name, value in whole.items() if not isinstance(value, Mapping)}
        names = [name for name in (*own[key], *own) if isinstance(name, str) and name in whole]
        merged[section] = {**plain, **{name: whole[name] for name in names}}
    return merged
