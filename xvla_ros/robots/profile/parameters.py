# SPDX-License-Identifier: Apache-2.0
"""A profile as ROS 2 parameters: names, types, values and descriptors, as plain data for a node to declare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from xvla_ros.robots.profile.profile import Profile, shipped_settings, with_likeness
from xvla_ros.robots.profile.validation import allowed_text, bounds, is_changeable, settings, unit_of

ParameterValue = bool | int | float | str | list[str] | list[int] | list[float]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter to declare.

    Attributes:
        name: dotted, beginning with the robot's name.
        type: ``bool``, ``integer``, ``double``, ``string``, ``string_array``, ``integer_array`` or ``double_array``.
        value: from the profile; it is the declared default.
        description: with unit.
        constraints: what is allowed, in words.
        read_only: whether it is fixed when the node starts.
        floating_range, integer_range: lowest and highest value; None without bounds. A bound that the schema
            excludes is refused when the profile is validated.
    """

    name: str
    type: str
    value: ParameterValue
    description: str
    constraints: str
    read_only: bool
    floating_range: tuple[float, float] | None = None
    integer_range: tuple[int, int] | None = None


def parameters(profile: Profile) -> list[ParameterSpec]:
    """Return every setting of ``profile`` as a parameter, in its order; ``profile_of_parameters`` undoes it."""
    mapping = profile.to_mapping() | {"like": profile.like}
    specs = []
    for pattern, field in settings(Profile):
        for path, value in _matches(mapping, pattern.split("."), ()):
            specs.append(_spec(f"{profile.name}.{path}", field, value))
    return specs


def profile_of_parameters(
    name: str, values: Mapping[str, Any], neighbours: Callable[[str], Mapping[str, Any] | None] = lambda name: None
) -> Profile:
    """Return the profile of the robot called ``name`` from ROS parameters.

    Args:
        values: plain values by dotted path, with or without the robot's name in front; arrays of any kind count as
            lists.
        neighbours: the values of another robot that this one may be like, None where there is none.

    Raises:
        ProfileError: naming everything that is wrong.
    """

    def neighbour(other: str) -> dict[str, Any] | None:
        found = neighbours(other)
        return None if found is None else _tree(other, found)

    file = "node parameters"
    raw = with_likeness(name, _tree(name, values), neighbour, shipped_settings, file=file)
    return Profile.from_mapping(name, raw, file=file)


def _tree(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in sorted(values.items()):
        _insert(tree, path.removeprefix(f"{name}.").split("."), value)
    return tree


def _insert(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Put a parameter's value at ``path``. Where a value stands in a section's place it stays, to be refused there."""
    *sections, last = path
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            return
        tree = child
    tree[last] = value if isinstance(value, bool | int | float | str) else list(value)


def _matches(node: Any, pattern: list[str], done: tuple[str, ...]) -> list[tuple[str, Any]]:
    if not pattern:
        return [(".".join(done), node)]
    head, *rest = pattern
    names = [head] if not head.startswith("<") else [name for name, item in node.items() if isinstance(item, dict)]
    return [found for name in names for found in _matches(node[name], rest, (*done, name))]


def _spec(name: str, field: FieldInfo, value: Any) -> ParameterSpec:
    kind = parameter_type(field)
    low, high = bounds(field)
    bounded = low is not None and high is not None
    unit = f" [{unit_of(field)}]" if unit_of(field) else ""
    return ParameterSpec(
        name=name,
        type=kind,
        value=value,
        description=f"{field.description}{unit}",
        constraints=allowed_text(field),
        read_only=not is_changeable(field),
        floating_range=(float(low), float(high)) if bounded and kind == "double" else None,  # type: ignore[arg-type]
        integer_range=(int(low), int(high)) if bounded and kind == "integer" else None,  # type: ignore[arg-type]
    )


def parameter_type(field: FieldInfo) -> str:
    """Return the ROS 2 parameter type of a setting."""
    annotation = field.annotation
    if get_origin(annotation) is tuple:
        return {str: "string_array", int: "integer_array"}.get(get_args(annotation)[0], "double_array")
    if annotation is bool:
        return "bool"
    if annotation is int or (get_args(annotation) and isinstance(get_args(annotation)[0], int)):
        return "integer"
    return "double" if annotation is float else "string"
