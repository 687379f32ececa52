"""YAML with comments: the values go through a YAML writer, the comments to the lines it wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

NOTE_COLUMN = 42
Path = tuple[str, ...]


class Row(dict[str, Any]):
    """A mapping that is written on one line."""


@dataclass
class Page:
    """A mapping to be written, and what is to be said about its keys.

    Attributes:
        settings: key → value; mappings within are blocks, or lines where they are ``Row``.
        head: lines on top.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)
    _above: dict[Path, list[str]] = field(default_factory=dict)
    _beside: dict[Path, str] = field(default_factory=dict)

    def put(self, path: Path, value: Any, note: str = "") -> None:
        """Set a value, its comment beside it."""
        mapping = self.settings
        for key in path[:-1]:
            mapping = mapping.setdefault(key, {})
        mapping[path[-1]] = value
        if note:
            self._beside[path] = note

    def say(self, path: Path, *notes: str) -> None:
        """Put comments above a key; an empty one is an empty line."""
        self._above.setdefault(path, []).extend(notes)

    def text(self) -> str:
        """Return the page.

        Raises:
            yaml.YAMLError: a value that YAML cannot hold.
        """
        written = yaml.dump(
            self.settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"),
            default_flow_style=False,
        )
        lines = written.splitlines()
        above: dict[int, list[str]] = {}
        for path, first, last in _places(yaml.compose(written, Loader=yaml.SafeLoader)):
            indent = " " * 2 * (len(path) - 1)
            above[first] = [f"{indent}# {_line(note)}" if note else "" for note in self._above.get(path, ())]
            if path in self._beside:
                lines[last] = f"{lines[last].ljust(NOTE_COLUMN - 2)}  # {_line(self._beside[path])}"
        body = [line for number, line in enumerate(lines) for line in (*above.get(number, ()), lines[number])]
        return "\n".join([*(f"# {_line(note)}".rstrip() for note in self.head), *body]) + "\n"


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _mapping(dumper: _Dumper, row: Row) -> Any:
    return dumper.represent_mapping("tag:yaml.org,2002:map", row, flow_style=True)


def _sequence(dumper: _Dumper, items: list[Any]) -> Any:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


def _scalar(dumper: _Dumper, text: str) -> Any:
    # On one line whatever is in it: line breaks and the like as escapes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(Row, _mapping)
_Dumper.add_representer(list, _sequence)
_Dumper.add_representer(str, _scalar)


def _places(node: Any, prefix: Path = ()) -> Iterator[tuple[Path, int, int]]:
    """Yield path, first and last line of every key; the last of a block is that of the key."""
    for key, value in node.value:
        path = (*prefix, key.value)
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        yield path, key.start_mark.line, (key if is_block else value).end_mark.line
        if is_block:
            yield from _places(value, path)


def _line(note: str) -> str:
    """Return a comment as one line that YAML takes."""
    return "".join(letter if letter.isprintable() else " " for letter in note)
