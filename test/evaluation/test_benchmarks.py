# SPDX-License-Identifier: Apache-2.0
"""bench/scaling.py goes through to its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import scaling


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_is_that_of_the_larger_sizes(power: float) -> None:
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0]
    values = [100.0, 100.0, *(size**power for size in sizes[2:])]
    assert scaling.exponent(sizes, values) == pytest.approx(power)


def test_growth_is_measured_promised_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growth = scaling.Growth((200, 1000), scaling.frames, 9.0, 9.0)
    monkeypatch.setattr(scaling, "GROWTHS", {"frames": growth})
    picture, document = tmp_path / "made" / "growth.svg", tmp_path / "growth.json"
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--picture", str(picture), "--json", str(document)])
    threads = torch.get_num_threads()
    try:
        assert scaling.main() == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "exponent of processor ms over frames" in printed and "exponent of MB over frames" in printed
    rows = json.loads(document.read_text(encoding="utf-8"))["rows"]
    assert [row["size"] for row in rows] == [200, 1000] and all(row[scaling.TIME] > 0 for row in rows)
    drawn = picture.read_text(encoding="utf-8")
    assert "processor ms ~ frames^" in drawn and len(drawn) < 60_000


@pytest.mark.parametrize("name", [name for name in scaling.GROWTHS if name != "frames"])
def test_smallest_size_runs(name: str, tmp_path: Path) -> None:
    growth = scaling.GROWTHS[name]
    growth.prepare(growth.sizes[0], tmp_path)()
