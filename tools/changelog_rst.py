# SPDX-License-Identifier: Apache-2.0
"""Writes CHANGELOG.rst as bloom reads it, from CHANGELOG.md: python tools/changelog_rst.py CHANGELOG.rst

Made for a release and not kept beside CHANGELOG.md: one of the two would be old.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TITLE = "Changelog for package xvla_ros"
UNRELEASED, FORTHCOMING = "Unreleased", "Forthcoming"


def converted(markdown: str) -> str:
    """Return the changelog in reStructuredText: a section a version, with its date as ``0.1.0 (2026-11-29)``."""
    lines = ["^" * len(TITLE), TITLE, "^" * len(TITLE)]
    for block in re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        released = re.sub(r"^\[?([\d.]+)\]? - (\S+)$", r"\1 (\2)", head.strip())
        version = FORTHCOMING if head.strip() == UNRELEASED else released
        lines += ["", version, "-" * len(version), *_entries(body)]
    return "\n".join(lines) + "\n"


def _entries(body: str) -> list[str]:
    """Return sections as bullets and their entries below them, each on one line."""
    lines: list[str] = []
    for section in re.split(r"^### ", body, flags=re.MULTILINE)[1:]:
        head, _, rest = section.partition("\n")
        lines += [f"* {head.strip()}", ""]
        entries = re.split(r"^- ", rest, flags=re.MULTILINE)[1:]
        lines += [*(f"  * {_inline(' '.join(entry.split()))}" for entry in entries), ""]
    return lines


def _inline(text: str) -> str:
    """Return a sentence with its code and links; a link into the repository leaves its words."""
    parts = re.split(r"`([^`]+)`", text)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", parts[index])
        parts[index] = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", parts[index])
    return "".join(f"``{part}``" if index % 2 else part for index, part in enumerate(parts))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(converted((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")), encoding="utf-8")
