# SPDX-License-Identifier: Apache-2.0
from xvla_ros.observation.faults import CAMERA_STALE, JOINTS_INVALID, Fault, FaultTally


def test_faults_that_differ_in_numbers_only_are_one():
    tally = FaultTally()
    for age in (0.31, 0.32, 12):
        tally.add(Fault(CAMERA_STALE, f"front: newest message on /front is {age} s old"))
    tally.add(Fault(CAMERA_STALE, "left: newest message on /left is 0.4 s old"))
    tally.add(Fault(JOINTS_INVALID, "pan = nan"))
    assert len(tally) == 5
    assert next((fault.detail, count) for fault, count in tally.commonest()) == (
        "front: newest message on /front is 0.31 s old",
        3,
    )
    assert FaultTally(tally.records()).commonest() == tally.commonest()
    assert tally.lines(1) == [
        "3 camera_stale: front: newest message on /front is 0.31 s old",
        "2 more, of 2 other kinds",
    ]
    assert len(tally.lines()) == 3
    assert tally.by_reason() == {CAMERA_STALE: 4, JOINTS_INVALID: 1}
