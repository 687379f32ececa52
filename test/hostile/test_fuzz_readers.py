# SPDX-License-Identifier: Apache-2.0
"""A slice of ``fuzz_readers.py``; ``make fuzz MINUTES=N`` runs it for longer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign_files import INFO, outcome_of, readers
from fuzz_readers import fuzz, report

from xvla_ros.recordings import cdr

CASES = 50  # of each reader
# What was found: reader → what became neither.
FOUND = {
    "a data set without what is asked for": (
        "info",
        json.dumps({**INFO, "features": {"deep": INFO["features"]}}).encode(),
    ),
    "a shard of a long name": ("index", json.dumps({"weight_map": {"a": "x" * 5000}}).encode()),
    "points of a trajectory of no joints": (cdr.JOINT_TRAJECTORY, cdr.joint_trajectory(5, [], [1, 2], [[], []])),
}


def test_changed_files_are_read_or_refused_by_name(tmp_path: Path) -> None:
    tallies = fuzz(tmp_path, start=7, cases=CASES)
    assert all(each.cases >= CASES / 2 for each in tallies.values()), report(tallies)
    assert not any(each.others for each in tallies.values()), report(tallies)
    assert sum(each.refused for each in tallies.values()) > len(tallies), "nothing was changed"


@pytest.mark.parametrize("found", list(FOUND))
def test_what_was_found_is_refused_by_name(found: str, tmp_path: Path) -> None:
    name, data = FOUND[found]
    reader = readers()[name]
    reader.make(tmp_path)
    (tmp_path / reader.name).write_bytes(data)
    assert outcome_of(reader, tmp_path) == "refused"
