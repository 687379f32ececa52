# SPDX-License-Identifier: Apache-2.0
"""Moments: pictures of a task without an episode, with the plans that lead on from them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("pinocchio")

from xvla_ros.robots import load_profile
from xvla_ros.simulation.tasks.hands import hands_of
from xvla_ros.simulation.tasks.moments import DEEP, Moments


@pytest.fixture(scope="module", params=["so101_bimanual", "agibot", "widowx"])
def moments(request):
    made = Moments(load_profile(request.param)[request.param], "touch", pixels=32)
    yield made
    made.close()


def named(instruction: str) -> tuple[str, str]:
    """The cube and the arm of an instruction."""
    words = instruction.split()
    return f"{words[2]}_cube", words[6] if len(words) > 4 else ""


def test_every_plan_ends_with_the_fingertips_of_the_named_arm_on_the_named_cube(moments):
    hands = hands_of(moments.world)
    for seed in range(8):
        (moment,) = moments.draw(np.random.default_rng(seed), 2, pictures=False)
        assert len({each.instruction for each in moment.asked}) == 2
        for each in moment.asked:
            prop, arm = named(each.instruction)
            cube = moments.world.data.body(prop).xpos
            able = [hands[arm]] if arm else list(hands.values())
            end = each.plan.at([each.plan.duration + 1.0])[0]
            tips = [hand.point(end[hand.columns], hand.figures.tip) for hand in able]
            assert min(np.linalg.norm(tip[:2] - cube[:2]) for tip in tips) < 0.01
            np.testing.assert_allclose(each.plan.at([0.0])[0], moment.positions, rtol=0, atol=1e-12)


def test_a_moment_depends_on_its_generator_alone_and_shows_where_the_arms_are(moments):
    (one,) = moments.draw(np.random.default_rng(3), 2)
    moments.draw(np.random.default_rng(4), 1)
    (other,) = moments.draw(np.random.default_rng(3), 2)
    np.testing.assert_array_equal(one.positions, other.positions)
    assert [each.instruction for each in one.asked] == [each.instruction for each in other.asked]
    times = np.linspace(0.0, 3.0, 7)
    np.testing.assert_array_equal(one.asked[1].plan.at(times), other.asked[1].plan.at(times))
    for slot, image in one.images.items():
        assert image.shape == (32, 32, 3)
        np.testing.assert_array_equal(image, other.images[slot])
        np.testing.assert_array_equal(image, moments.world.render(slot, 32, 32))
    np.testing.assert_array_equal(list(moments.world.positions().values()), one.positions)


def test_arms_are_at_the_start_on_the_way_and_beside_it_but_never_in_the_table(moments):
    hands, order = hands_of(moments.world), moments.profile.joints.policy_order
    home = np.array([moments.world.scene.home[joint] for joint in order])
    drawn = np.array([moments.draw(np.random.default_rng(seed), 1, pictures=False)[0].positions for seed in range(40)])
    near = np.abs(drawn - home).max(axis=1) < 0.07
    assert 4 <= near.sum() <= 24
    for positions in drawn:
        for hand in hands.values():
            assert hand.point(positions[hand.columns], hand.figures.tip)[2] > DEEP - 0.01


@pytest.fixture(scope="module")
def grasping():
    made = Moments(load_profile("so101_bimanual")["so101_bimanual"], "pick_place", pixels=32)
    yield made
    made.close()


def test_of_a_task_that_grasps_the_cube_is_on_the_table_in_the_hand_or_in_the_bowl(grasping):
    """And the plan from there grasps it, lets it go over the bowl, or goes home."""
    world, hands = grasping.world, hands_of(grasping.world)
    home = np.array([world.scene.home[joint] for joint in grasping.profile.joints.policy_order])
    found, grips = {"table": 0, "hand": 0, "bowl": 0}, []
    for seed in range(40):
        (moment,) = grasping.draw(np.random.default_rng(seed), 1, pictures=False)
        (asked,) = moment.asked
        cube = world.data.body(f"{asked.instruction.split()[2]}_cube").xpos
        held = [
            hand
            for hand in hands.values()
            if np.linalg.norm(hand.point(moment.positions[hand.columns], hand.figures.grasp) - cube) < 0.03
            and asked.plan.at([0.0])[0][hand.gripper] == hand.figures.closed
        ]
        end = asked.plan.at([asked.plan.duration + 1.0])[0]
        np.testing.assert_allclose(end, home, atol=1e-6)
        path = asked.plan.at(np.linspace(0.0, asked.plan.duration, 400))
        if held:
            found["hand"] += 1
            (hand,) = held
            gripper = path[:, hand.gripper]
            opening = int(np.argmax(gripper > hand.figures.holding + 0.05))
            tip = hand.point(path[opening][hand.columns], hand.figures.grasp)
            assert np.linalg.norm(tip[:2] - world.data.body("bowl").xpos[:2]) < 0.03
            grips.append(moment.positions[hand.gripper])
        elif np.linalg.norm(cube[:2] - world.data.body("bowl").xpos[:2]) < 0.03:
            found["bowl"] += 1
            assert cube[2] > world.data.body("bowl").xpos[2] and path[:, [5, 11]].min() > 0.1
        else:
            found["table"] += 1
            assert cube[2] < 0.02 and path[:, [5, 11]].min() < 0.0
    assert min(found.values()) >= 2, found
    assert max(grips) > min(grips) + 0.02, "cubes are held by faces and by corners"


def test_a_part_of_them_is_played_and_physics_brings_what_no_posture_shows(grasping, monkeypatch):
    """Fingers rest on a cube, a cube is lifted; the plan from there begins there and goes home."""
    monkeypatch.setattr("xvla_ros.simulation.tasks.moments.PLAYED", 1.0)
    world, hands = grasping.world, hands_of(grasping.world)
    home = np.array([world.scene.home[joint] for joint in grasping.profile.joints.policy_order])
    grippers = [hand.gripper for hand in hands.values()]
    heights, sunk = [], 0
    for seed in range(12):
        played = grasping.draw(np.random.default_rng(seed), 6, pictures=False)
        again = grasping.draw(np.random.default_rng(seed), 6, pictures=False)
        np.testing.assert_array_equal([each.positions for each in played], [each.positions for each in again])
        assert sum(len(each.asked) for each in played) == 6
        for moment in played:
            (asked,) = moment.asked
            begin, end = asked.plan.at([0.0, asked.plan.duration + 1.0])
            np.testing.assert_allclose(np.delete(begin - moment.positions, grippers), 0.0, atol=1e-12)
            np.testing.assert_allclose(end, home, atol=1e-6)
            heights.append(asked.place[2])
            inside = [hand.point(moment.positions[hand.columns], hand.figures.tip)[2] for hand in hands.values()]
            sunk += min(inside) < DEEP - 0.01
    assert sunk == 0, "fingers stay above the table"
    assert max(heights) > 0.04 and min(heights) > 0.008, "lifted, and never in the table"


def test_a_policy_plays_part_of_them_from_what_it_sees_and_the_expert_says_what_to_do(grasping, monkeypatch):
    monkeypatch.setattr("xvla_ros.simulation.tasks.moments.PLAYED", 1.0)
    expert = [grasping.draw(np.random.default_rng(seed), 4) for seed in range(2)]
    told = []

    def player(images, positions, instruction, seed):
        """Move every joint by 1 rad/s."""
        told.append((images, positions, instruction, seed))
        return lambda times: positions + np.outer(times, np.ones(len(positions)))

    monkeypatch.setattr(grasping, "player", player)
    monkeypatch.setattr("xvla_ros.simulation.tasks.moments.BY_POLICY", 1.0)
    made = grasping.draw(np.random.default_rng(0), 4)
    assert len(told) == 4 and set(told[0][0]) == set(grasping.profile.cameras.slots)
    for (images, positions, instruction, _), moment, before in zip(told, made, [None, *made], strict=False):
        assert instruction == moment.asked[0].instruction
        assert (moment.positions > positions + 0.02).sum() >= 6, "the arms went where the player sent them"
        assert before is None or (images is before.images and np.array_equal(positions, before.positions))
    again = grasping.draw(np.random.default_rng(0), 4)
    np.testing.assert_array_equal([each.positions for each in made], [each.positions for each in again])
    assert [seed for *_, seed in told[:4]] == [seed for *_, seed in told[4:]]
    monkeypatch.setattr(grasping, "player", None)
    for seed, drawn in enumerate(expert):
        np.testing.assert_array_equal(
            [each.positions for each in grasping.draw(np.random.default_rng(seed), 4)],
            [each.positions for each in drawn],
        )
