# SPDX-License-Identifier: Apache-2.0
"""What every benchmark prints and writes: a table of rows, the promises it holds them against, an exit code."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xvla_ros.evaluation.report.provenance import provenance


@dataclass(frozen=True)
class Promise:
    """A figure and the limit it must not pass."""

    name: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    return made


def finish(rows: Sequence[dict[str, Any]], promises: Sequence[Promise], json_file: Path | None) -> int:
    """Print the table and the promises, write the JSON, return the exit code: 1 where a promise does not hold."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([_shown(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )
    print()
    for promise in promises:
        sign = "≤" if promise.at_most else "≥"
        verdict = "holds" if promise.holds else "DOES NOT HOLD"
        print(f"{promise.name}: {_shown(promise.value)} {sign} {_shown(promise.limit)}: {verdict}")
    if json_file is not None:
        document = {
            "schema_version": 1,
            **provenance(),
            "machine": {"processor": platform.machine(), "python": platform.python_version()},
            "rows": list(rows),
            "promises": [{**asdict(promise), "holds": promise.holds} for promise in promises],
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if all(promise.holds for promise in promises) else 1


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
