# SPDX-License-Identifier: Apache-2.0
"""From the plain mapping of a YAML file or of node parameters to what is wrong with it, all at once.

The mapping is walked beside the schema, so that one bad value hides no other and checks across fields still see
everything that is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from xvla_ros.errors import Problem, brief, did_you_mean
from xvla_ros.limits import ENTRIES
from xvla_ros.robots.profile.consistency import Draft, contradictions
from xvla_ros.robots.profile.schema import NAME_PATTERN, NAMESPACE_PATTERN, TOPIC_PATTERN, NamedSection

_TYPE_NAMES: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_ENTRIES = "by_name"


def find_problems(model: type[BaseModel], raw: Any, *, robot: str, file: str) -> list[Problem]:
    """Return every problem of one robot's settings, as read; an empty list means that ``model`` accepts them."""
    walk = _Walk(file)
    tree = walk.section(model, raw, robot)
    for key, value, allowed, message in contradictions(Draft(tree)):
        walk.problems.append(Problem(file, f"{robot}.{key}", value, allowed, message))
    return walk.problems


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield (dotted path, field) of every setting below ``model``; ``<camera>`` stands for a name the user chooses."""
    for name, field in _fields(model).items():
        section, entry = _section_of(field), _entry_of(model)
        if name == _ENTRIES and entry is not None and issubclass(model, NamedSection):
            yield from settings(entry, f"{prefix}<{model.entry.split()[-1]}>.")
        elif section is not None:
            yield from settings(section, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """Return the values a setting may take, or an empty tuple when it is not a choice."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    """Return the lowest and highest value of a number; None where it is unbounded."""
    low = high = None
    for item in field.metadata:
        if isinstance(item, Ge | Gt):
            low = getattr(item, "ge", getattr(item, "gt", None))
        if isinstance(item, Le | Lt):
            high = getattr(item, "le", getattr(item, "lt", None))
    return low, high


def _range_text(field: FieldInfo) -> str:
    """Return the range of a number as ``(0, 10]``, or nothing for a setting without one."""
    low, high = bounds(field)
    if low is None or high is None:
        return ""
    opened = "(" if any(isinstance(item, Gt) for item in field.metadata) else "["
    closed = ")" if any(isinstance(item, Lt) for item in field.metadata) else "]"
    return f"{opened}{low:g}, {high:g}{closed}"


def unit_of(field: FieldInfo) -> str:
    """Return a setting's unit, or an empty string."""
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def is_changeable(field: FieldInfo) -> bool:
    """Return whether a node that is not active lets a setting change."""
    return bool(_extra(field).get("changeable"))


def type_text(field: FieldInfo) -> str:
    """Return a setting's type in words."""
    items = get_args(field.annotation)
    if get_origin(field.annotation) is tuple:
        if items[1] is Ellipsis:
            return {str: "a list of names", int: "a list of integers"}.get(items[0], "a list of numbers")
        return f"a list of {len(items)} numbers"
    return _TYPE_NAMES.get(field.annotation, "a string")


def allowed_text(field: FieldInfo) -> str:
    """Return in words what a setting allows: choices, or type, range and unit."""
    if choices(field):
        return "one of " + ", ".join(repr(value) if value == "" else str(value) for value in choices(field))
    patterns = [getattr(item, "pattern", None) for item in field.metadata]
    if TOPIC_PATTERN in patterns:
        return "an absolute ROS topic such as /front/image_raw"
    if NAMESPACE_PATTERN in patterns:
        return "an absolute ROS namespace such as /left_cell, or empty"
    text = type_text(field)
    if _range_text(field):
        text += f" in {_range_text(field)}"
    if any(isinstance(item, MinLen) for item in field.metadata):
        text += ", not empty"
    text += "".join(f" of at most {item.max_length} characters" for item in field.metadata if isinstance(item, MaxLen))
    return text + (f", {unit_of(field)}" if unit_of(field) else "")


class _Walk:
    """Collects the problems of one mapping and returns what is right in it, defaults filled in."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def section(self, model: type[BaseModel], raw: Any, key: str) -> dict[str, Any]:
        fields = _fields(model)
        own = [name for name in fields if name != _ENTRIES]
        if not isinstance(raw, Mapping):
            self._add(key, raw, "a mapping with " + ", ".join(own), f"{_said(raw)} is not a mapping")
            return {}
        if len(raw) > ENTRIES:
            self._add(key, len(raw), f"at most {ENTRIES} settings", f"has {len(raw)} settings")
            return {}
        tree: dict[str, Any] = {}
        if issubclass(model, NamedSection):
            entries = {str(name): value for name, value in raw.items() if name not in own}
            tree[_ENTRIES] = self._entries(model, entries, own, key)
        else:
            for name in raw:
                if name not in own:
                    message = f"{_said(name)} is not a setting{did_you_mean(str(name), own)}"
                    self._add(f"{key}.{name}", raw[name], "one of " + ", ".join(own), message)
        for name in own:
            self._field(fields[name], raw, name, key, tree)
        return tree

    def _field(self, field: FieldInfo, raw: Mapping[str, Any], name: str, key: str, tree: dict[str, Any]) -> None:
        path, section = f"{key}.{name}", _section_of(field)
        if section is not None and (name in raw or not field.is_required()):
            tree[name] = self.section(section, raw.get(name, {}), path)
        elif section is not None:
            self._add(path, None, "a mapping with " + ", ".join(_fields(section)), f"section {name} is missing")
        elif name in raw and isinstance(raw[name], list | tuple) and len(raw[name]) > ENTRIES:
            self._add(path, len(raw[name]), f"at most {ENTRIES} entries", f"holds {len(raw[name])} entries")
        elif name in raw:
            try:
                tree[name] = _adapter(field).validate_python(raw[name])
            except (ValidationError, ValueError, OverflowError):
                self._add(path, raw[name], allowed_text(field), _refusal(raw[name], field))
        elif field.is_required():
            self._add(path, None, allowed_text(field), f"{name} is missing")
        else:
            tree[name] = field.get_default(call_default_factory=True)

    def _entries(
        self, model: type[NamedSection], entries: Mapping[str, Any], own: list[str], key: str
    ) -> dict[str, dict[str, Any]]:
        entry = _entry_of(model)
        tree: dict[str, dict[str, Any]] = {}
        if entry is None:
            return tree
        known = ", ".join(_fields(entry))
        if not entries and model.model_fields[_ENTRIES].is_required():
            self._add(key, None, f"at least one {model.entry}", f"no {model.entry} is declared")
        for name, value in entries.items():
            path = f"{key}.{name}"
            if not isinstance(value, Mapping):
                message = f"{_said(name)} is neither a setting nor a {model.entry}{did_you_mean(name, own)}"
                self._add(path, value, f"one of {', '.join(own)}, or a {model.entry} with {known}", message)
                continue
            if not re.match(NAME_PATTERN, name):
                self._add(path, name, "letters, digits and single underscores", f"{_said(name)} cannot be a name")
            tree[name] = self.section(entry, value, path)
        return tree

    def _add(self, key: str, value: Any, allowed: str, message: str) -> None:
        self.problems.append(Problem(self.file, key, value, allowed, message))


def _said(value: Any) -> str:
    """Return a value as Python writes it, cut to what a message can hold."""
    return repr(value) if (short := brief(value)) is value or not isinstance(short, str) else short


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the settings of a section under the names a file gives them."""
    return {
        field.alias or name: field for name, field in model.model_fields.items() if not _extra(field).get("internal")
    }


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _entry_of(model: type[BaseModel]) -> type[BaseModel] | None:
    if not issubclass(model, NamedSection):
        return None
    entry: type[BaseModel] = get_args(model.model_fields[_ENTRIES].annotation)[1]
    return entry


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    annotated: Any = Annotated[(field.annotation, None, *field.metadata)]
    return TypeAdapter(annotated, config=ConfigDict(strict=True, allow_inf_nan=False))


def _refusal(value: Any, field: FieldInfo) -> str:
    options = choices(field)
    suggestion = did_you_mean(value, [str(option) for option in options]) if isinstance(value, str) else ""
    return f"{_said(value)} is not allowed{suggestion}"
