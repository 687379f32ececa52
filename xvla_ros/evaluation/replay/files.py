"""``metrics.json`` and ``metrics.csv``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("policy", "part", "kind", "measure", "value", "unit")


def write_metrics(document: Mapping[str, Any], folder: Path) -> None:
    """Write both files, each in one piece."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "metrics.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    draft = folder / "metrics.csv.part"
    with draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(table(document))
    draft.replace(folder / "metrics.csv")


def table(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of ``metrics.csv``: one figure each."""
    yield from _errors(document["checkpoint"], document)
    if "compare" in document:
        yield from _errors(document["compare"]["checkpoint"], document["compare"])
    for name, baseline in document["baselines"].items():
        yield from _errors(name, baseline)
    horizon = document["by_horizon"]
    for time, value in zip(horizon["times"], horizon["runs"][0], strict=True):
        yield document["checkpoint"], f"horizon {time:.4f} s", "headline", "mae", _text(value), horizon["unit"]


def _errors(policy: str, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    headline = found["headline"]
    yield policy, "all", "headline", "mae", _text(headline["mae"]), headline["unit"]
    for name, entry in found["per_joint"].items():
        yield from _entry(policy, name, "joint", entry)
    for tool, kinds in found["per_tool"].items():
        for kind, entry in kinds.items():
            yield from _entry(policy, tool, kind, entry)
    for name, entry in found.get("gripper", {}).items():
        yield policy, name, "gripper", "f1", _text(entry["f1"]), ""
        yield policy, name, "gripper", "timing_mae", _text(entry["timing_mae_s"]), "s"


def _entry(policy: str, part: str, kind: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for measure in ("mae", "rmse"):
        yield policy, part, kind, measure, _text(entry[measure]), entry["unit"]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
