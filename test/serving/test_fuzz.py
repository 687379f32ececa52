# SPDX-License-Identifier: Apache-2.0
"""A slice of ``fuzz.py``; ``python test/serving/fuzz.py`` sends 100,000 frames."""

from fuzz import at_once, fuzz
from served_policy import serving

from xvla_ros.serving import server

FRAMES = 600


def test_whatever_comes_is_answered_and_others_are_too(policy, profiles, look, monkeypatch, caplog):
    monkeypatch.setattr(server, "RATE", 1e9)
    monkeypatch.setattr(policy, "predict", at_once(policy))
    with serving(policy, profiles) as served:
        outcomes = fuzz(served, look(size=(16, 16)), FRAMES)
    assert outcomes.total() == FRAMES
    refused = {name.partition(": ")[2] for name in outcomes}
    assert {"message", "observation", "robot", "chunks", "actions"} <= refused
    assert not any("policy" in name for name in refused), "nothing broken reached the policy"
    assert not [each.getMessage() for each in caplog.records if each.levelname in ("WARNING", "ERROR")]
