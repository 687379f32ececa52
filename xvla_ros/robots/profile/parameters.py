"""A profile as ROS 2 parameters: names, types, values and descriptors, as plain data for a node to declare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from xvla_ros.robots.profile import Profile
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
    """Return every setting of ``profile`` as a parameter, in the order of the schema; ``from_parameters`` undoes it."""
    mapping = profile.to_mapping() | {"like": profile.like}
    specs = []
    for pattern, field in settings(Profile):
        for path, value in _matches(mapping, pattern.split("."), ()):
            specs.append(_spec(f"{profile.name}.{path}", field, value))
    return specs


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
