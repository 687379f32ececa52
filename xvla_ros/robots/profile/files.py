"""Reading ROS 2 parameters files: which robots a file holds, as plain mappings."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from xvla_ros.errors import Problem, did_you_mean

WILDCARD = "/**"
NODE_PARAMETERS = (
    "robots", "device", "dtype", "threads", "autostart", "checkpoint", "instruction", "seed", "batch_wait",
    "use_sim_time",
)
_FORM = "/**: {ros__parameters: {<robot>: {…}}}"


@dataclass
class ParameterFile:
    """What one file holds: the robots' settings as read, and what is wrong with the file's form."""

    path: Path
    robots: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, key: str, value: Any, expected: str, message: str) -> None:
        """Note a problem of this file."""
        self.problems.append(Problem(str(self.path), key, value, expected, message))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """SafeLoader that notes keys given twice, of which plain YAML keeps the last without a word."""

    duplicates: list[tuple[str, int]]

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                self.duplicates.append((str(key), key_node.start_mark.line + 1))
            seen.add(key if isinstance(key, Hashable) else str(key))
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_parameter_file(path: Path) -> ParameterFile:
    """Return the robots of a profile file. Node-wide parameters beside them are the node's own and left alone."""
    result = ParameterFile(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        result.add("", None, "a readable YAML file in UTF-8", f"cannot be read: {error}")
        return result
    return read_parameters(text, path)


def read_parameters(text: str, path: Path) -> ParameterFile:
    """Return the robots of the text of a profile file; ``path`` is for the messages."""
    result = ParameterFile(path)
    document = _parse(text, result)
    if document is None:
        return result
    node = document.get(WILDCARD) if isinstance(document, dict) else None
    values = node.get("ros__parameters") if isinstance(node, dict) else None
    if not isinstance(values, dict):
        top = sorted(map(str, document)) if isinstance(document, dict) else document
        result.add("/**.ros__parameters", top, _FORM, "the file holds no parameters for every node (/**)")
        return result
    for name, value in values.items():
        if isinstance(value, dict) and name != "qos_overrides":
            result.robots[str(name)] = value
        elif name not in (*NODE_PARAMETERS, "qos_overrides"):
            message = f"{name!r} is neither a robot nor a parameter of the node{did_you_mean(name, NODE_PARAMETERS)}"
            result.add(str(name), value, "a robot's settings, or one of " + ", ".join(NODE_PARAMETERS), message)
    if not result.robots and not result.problems:
        result.add("/**.ros__parameters", sorted(map(str, values)), _FORM, "the file holds no robot")
    return result


def _parse(text: str, result: ParameterFile) -> Any:
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        result.add("", None, "a readable YAML file in UTF-8", f"cannot be read: {error}")
        return None
    loader.duplicates = []
    try:
        document = loader.get_single_data()
    except (yaml.YAMLError, TypeError) as error:
        result.add("", None, "valid YAML", f"is not valid YAML: {' '.join(str(error).split())}")
        return None
    finally:
        loader.dispose()
    for key, line in loader.duplicates:
        result.add(key, None, "each key once in its mapping", f"{key!r} is given twice, again in line {line}")
    if document is None:
        result.add("", None, _FORM, "the file is empty")
    return document
