# SPDX-License-Identifier: Apache-2.0
"""A bag played to the live node gives the chunks that the replay makes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from xvla_ros.commands import main
from xvla_ros.errors import SetupError
from xvla_ros.evaluation.replay.live import CHUNKS, check_live, compare_live, remapped_commands, replay_settings
from xvla_ros.evaluation.replay.sources import PolicySource

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from recorded import Session, changed

PAIR = changed("so101_bimanual", ("instruction", "fold"))


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    pytest.importorskip("rclpy")
    folder = tmp_path_factory.mktemp("live")
    # it is played as fast as it was recorded, and a busy machine answers only a while after its begin
    bag = Session(PAIR, end=9.0).record().mark(0.02, "start", instruction="fold it").mark(8.9, "end")
    bag = bag.write(folder / "bag.mcap")
    assert main(["replay", str(bag), "--live", "--seed", "5", "--every", "18", "--output", str(folder / "out")]) == 0
    return bag, folder / "out"


def test_live_and_offline_answers_are_equal(played):
    _, output = played
    found = json.loads((output / "metrics.json").read_text())["live"]
    assert found["equal"] and found["largest"] <= 1e-5
    assert found["chunks"] >= 1 and found["share"] == 1.0
    assert f"{found['common']} of {found['chunks']} chunks (100%)" in found["text"]
    live = np.load(output / CHUNKS)
    assert set(live["seeds"]) == {5} and "fold it" in set(live["instructions"])
    assert "100%" in (output / "report.html").read_text()


@pytest.mark.parametrize("copies", [1, 2])
def test_an_answer_that_differs_is_found(played, tmp_path, copies):
    """Two chunks have one stamp where the task changed between two observations."""
    from xvla_ros.control.policy_source import load_policy

    bag, output = played
    live = {name: np.concatenate([rows[:1]] * (copies - 1) + [rows]) for name, rows in np.load(output / CHUNKS).items()}
    live["actions"][0, 3, 2] += 0.01
    np.savez(tmp_path / "other.npz", **live)
    source = PolicySource(load_policy({PAIR.name: PAIR}), PAIR, 5, None)
    found = compare_live(tmp_path / "other.npz", [], bag, PAIR, source)
    assert not found["equal"] and found["largest"] == pytest.approx(np.radians(0.01), rel=0.05), "joint 2 is in degrees"
    assert found["common"] == found["chunks"] == len(live["stamps"])


def test_nothing_reaches_an_arm():
    profile = changed("widowx")
    assert [other for _, other in remapped_commands(profile)] == [
        f"/replay{profile.commands.by_name[group].topic}" for group in profile.commands.groups
    ]
    settings = replay_settings(profile, steps=3)
    assert settings["widowx.smoothing.method"] == "switch"
    assert settings["widowx.policy.proprio_source"] == "measured"
    assert settings["widowx.policy.denoising_steps"] == 3


def test_a_gripper_that_takes_actions_is_refused():
    profile = changed("widowx", ("commands.gripper.interface", "gripper_action"))
    with pytest.raises(SetupError, match="serves no controllers for"):
        check_live(profile)
