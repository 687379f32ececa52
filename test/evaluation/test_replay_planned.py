# SPDX-License-Identifier: Apache-2.0
"""Figures of a replay against whole plans: zero for who repeats them, else what numpy makes of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from xvla_ros.evaluation.replay.bag import ReplaySettings, replay_bag
from xvla_ros.evaluation.replay.metrics import Figures, Part, metrics
from xvla_ros.evaluation.replay.sources import Answer
from xvla_ros.robots import load_profile
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.kinematics.chain import Poses

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from recorded import AHEAD, START, Session, changed, curve, recorded_plans

pytest.importorskip("pinocchio")

T = 30


class Repeats:
    """Answers with what was recorded, off by a noise that depends on the stamp alone."""

    name, trained, waypoints, policy = "repeats", True, T, None

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def of(self, stamp, shape):
        return np.random.default_rng(stamp).normal(0.0, self.noise, shape).astype(np.float32)

    def answer(self, questions):
        return [Answer(each.recorded + self.of(each.seen.stamp, each.recorded.shape), 5.0) for each in questions]


def replayed(profile, bag, source, folder, every=1):
    part = Part(replay_bag(bag, profile, [source], ReplaySettings(every=every), folder), folder)
    assert part.record.error == "" and part.record.actions == "planned"
    figures = Figures(profile, [part], 1)
    return part.rows(), metrics(figures, [part], [(source.name, True)], {})


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    pytest.importorskip("mujoco")
    from xvla_ros.simulation.demonstrations import DemoSettings, record_all

    profile = load_profile("so101_bimanual")["so101_bimanual"]
    settings = DemoSettings(profile, "touch", seed=20, width=32, height=32)
    (made,) = record_all(settings, 1, tmp_path_factory.mktemp("demos"))
    return profile, made.path


def test_who_repeats_the_plans_of_a_demonstration_scores_zero(tmp_path, demonstration):
    rows, found = replayed(*demonstration, Repeats(0.0), tmp_path)
    assert len(rows) >= 15 and rows["mask"].all()
    assert found["headline"]["mae"] == 0.0 and found["baselines"]["persistence"]["headline"]["mae"] > 0.01
    assert all((each["mae"], each["rmse"]) == (0.0, 0.0) for each in found["per_joint"].values())
    assert all(each["f1"] == 1.0 for each in found["gripper"].values())


def test_errors_against_plans_equal_an_independent_computation(tmp_path, demonstration):
    profile, bag = demonstration
    source = Repeats(0.5)
    rows, found = replayed(profile, bag, source, tmp_path)
    plans = recorded_plans(profile, bag)
    scale = np.array([joint.scale for joint in profile.joints.ordered])
    offset = np.array([joint.offset for joint in profile.joints.ordered])

    # a plan of the experts has its points where the waypoints of its picture are due, after the first one: now
    truth = np.stack([plans[int(stamp)][1:] for stamp in rows["stamp"]])
    guess = (truth * scale + offset).astype(np.float32) + np.stack(
        [source.of(int(stamp), truth.shape[1:]) for stamp in rows["stamp"]]
    )
    off = np.abs((guess - offset) / scale - truth)
    for column, name in enumerate(profile.joints.policy_order):
        assert found["per_joint"][name]["mae"] == pytest.approx(off[..., column].mean(), rel=1e-3)
        assert found["per_joint"][name]["rmse"] == pytest.approx(np.sqrt((off[..., column] ** 2).mean()), rel=1e-3)
    arms = [i for i, name in enumerate(profile.joints.policy_order) if not name.endswith("gripper")]
    assert found["headline"]["mae"] == pytest.approx(off[..., arms].mean(), rel=1e-3)
    np.testing.assert_allclose(found["by_horizon"]["runs"][0], off[..., arms].mean(axis=(0, 2)), rtol=1e-3)
    measured = (rows["measured"] - offset) / scale
    still = np.abs(measured[:, None] - truth)[..., arms].mean()
    assert found["baselines"]["persistence"]["headline"]["mae"] == pytest.approx(still, rel=1e-3)
    shifted = {each["shift_s"]: each["mae"] for each in found["latency_shift"]}
    assert shifted[0.0] == pytest.approx(found["headline"]["mae"], rel=1e-6), "of the same plan, as far as it is known"


def test_plans_of_tools_are_measured_where_the_joints_lead(tmp_path):
    """Joints of the newest plan by hand, its poses by forward kinematics, distances and angles by numpy."""
    arm = changed("widowx", ("instruction", "go"))
    session = Session(arm, end=2.5).record().mark(0.2, "start", actions="planned").mark(2.3, "end", success=True)
    bag = session.write(tmp_path / "bag.mcap")
    source = Repeats(0.0)
    rows, found = replayed(arm, bag, source, tmp_path / "zero", every=4)
    assert found["headline"] == {**found["headline"], "mae": 0.0, "unit": "mm"}
    assert all(each["mae"] == 0.0 for each in found["per_tool"]["arm"].values())

    seconds = (rows["stamp"] - START) / 1e9
    begun = np.floor(seconds * 10 + 1e-6) / 10  # ten plans a second
    due = seconds[:, None] + arm.policy.first_waypoint_offset + np.arange(T) * arm.policy.waypoint_dt
    np.testing.assert_array_equal(rows["mask"], due <= begun[:, None] + 0.5 + 1e-8)
    joints = np.stack([hand_made_plan(arm, begin, at) for begin, at in zip(begun, due, strict=True)])
    known = rows["mask"]
    np.testing.assert_allclose(rows["joints_recorded"][known], joints[known], atol=1e-5)

    encoder = StateEncoder(arm)
    poses, still = encoder.tool_poses(joints)["arm"], encoder.tool_poses(curve(arm, seconds))["arm"]
    way = 1e3 * np.linalg.norm(poses.positions - still.positions[:, None], axis=-1)[known].mean()
    turn = np.degrees(angle(poses, Poses(still.positions[:, None], still.rotations[:, None])))[known].mean()
    persistence = found["baselines"]["persistence"]["per_tool"]["arm"]
    assert way > 10 and turn > 1
    assert persistence["position"]["mae"] == pytest.approx(way, rel=2e-3)
    assert persistence["rotation"]["mae"] == pytest.approx(turn, rel=2e-3)


def hand_made_plan(arm, begin, at):
    points = np.arange(1, 11) * 0.05
    knots = np.concatenate([[begin], begin + points])
    values = np.concatenate([curve(arm, begin)[None], curve(arm, begin + points + AHEAD)])
    return np.stack([np.interp(at, knots, column) for column in values.T], axis=-1)


def angle(first, second):
    between = np.swapaxes(first.rotations, -1, -2) @ second.rotations
    return np.arccos(np.clip((np.trace(between, axis1=-2, axis2=-1) - 1) / 2, -1, 1))
