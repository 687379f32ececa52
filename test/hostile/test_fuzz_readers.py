# SPDX-License-Identifier: Apache-2.0
"""A slice of ``fuzz_readers.py``; ``make fuzz MINUTES=N`` runs it for longer."""

from __future__ import annotations

from pathlib import Path

from fuzz_readers import fuzz, report

CASES = 50  # of each reader


def test_changed_files_are_read_or_refused_by_name(tmp_path: Path) -> None:
    tallies = fuzz(tmp_path, start=7, cases=CASES)
    assert all(each.cases >= CASES / 2 for each in tallies.values()), report(tallies)
    assert not any(each.others for each in tallies.values()), report(tallies)
    assert sum(each.refused for each in tallies.values()) > len(tallies), "nothing was changed"
