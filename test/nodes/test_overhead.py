# SPDX-License-Identifier: Apache-2.0
"""What ``bench/overhead.py`` makes of times it is given; the run itself takes a machine to itself."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import overhead

MS = 1_000_000
CAMERAS = ("front", "left", "right")
# stamp, when the first camera's frame was handed over, when the last one's was
SENT = [[stamp, 1000 * MS + stamp, 1002 * MS + stamp] for stamp in range(0, 100 * MS, 10 * MS)]


def analysed(received, commands, **kwargs):
    noted = {"received": {camera: received for camera in CAMERAS}, "commands": commands}
    return overhead.analyse(SENT, noted, 1000 * MS, 1100 * MS, **{"from_asking": False, **kwargs})


def test_latency_counts_from_the_newest_frame_and_lost_frames_are_counted():
    stamps = [stamp for stamp, _, _ in SENT]
    row = analysed(stamps[1:], [(stamp, last + 5 * MS, last) for stamp, _, last in SENT[1:]])
    assert row["p50_ms"] == row["max_ms"] == pytest.approx(5.0)
    assert (row["frames"], row["lost"], row["commands"]) == (30, 3, 9)
    assert row["lost_percent"] == pytest.approx(10.0) and row["unanswered_percent"] == pytest.approx(10.0)


def test_a_frame_that_waits_to_be_asked_for_counts_from_the_asking():
    stamp, _, last = SENT[3]
    row = analysed([stamp], [(stamp, last + 25 * MS, last + 18 * MS)], from_asking=True)
    assert row["max_ms"] == pytest.approx(7.0)
    early = analysed([stamp], [(stamp, last + 25 * MS, last - 1 * MS)], from_asking=True)
    assert early["max_ms"] == pytest.approx(25.0), "asked for before it was there"


def test_frames_of_another_time_do_not_count():
    with pytest.raises(RuntimeError, match="no command followed"):
        analysed([], [(7, 1005 * MS, 1001 * MS)])
