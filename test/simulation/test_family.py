# SPDX-License-Identifier: Apache-2.0
"""The family of drawn arms: robots like any other by their names, that reach their tables, none of them a WidowX."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xvla_ros.commands import main
from xvla_ros.errors import SimulationError
from xvla_ros.recordings.bag_recording import profile_of_bag
from xvla_ros.robots import ProfileError, load_profiles, load_robot
from xvla_ros.robots import family as arms
from xvla_ros.robots.family import arm_named, draw_arm
from xvla_ros.robots.kinematics import Chain, RobotDescription
from xvla_ros.robots.tools import tool_arms
from xvla_ros.simulation import family as scenes
from xvla_ros.simulation import parts, widowx
from xvla_ros.simulation.demonstrations import Demonstrator, DemoSettings
from xvla_ros.simulation.scenes import GRAPHITE, build_scene
from xvla_ros.simulation.tasks import load_task, task_names
from xvla_ros.simulation.world import World

SEEDS = st.integers(0, 999_999_999)
ROBOTS = [f"family_{seed}" for seed in range(8)]
few = settings(max_examples=12)


def turned(arm):
    """The rotation of an arm's base in its scene."""
    return np.array([[np.cos(arm.yaw), -np.sin(arm.yaw), 0], [np.sin(arm.yaw), np.cos(arm.yaw), 0], [0, 0, 1]])


@given(SEEDS)
def test_a_seed_gives_one_arm_of_five_to_seven_joints(seed):
    arm = draw_arm(seed)
    assert draw_arm.__wrapped__(seed) == arm
    assert 5 <= len(arm.joints) <= 7 and 1 <= len(arm.slots) <= 3
    assert arm_named(arm.name) is arm


def test_arms_differ_in_what_an_embodiment_is():
    drawn = [draw_arm(seed) for seed in range(60)]
    assert {len(arm.joints) for arm in drawn} == {5, 6, 7} and {len(arm.slots) for arm in drawn} == {1, 2, 3}
    assert {arm.hinged for arm in drawn} == {True, False} and {bool(arm.place[2]) for arm in drawn} == {True, False}
    assert len({tuple(joint.name for joint in arm.joints) for arm in drawn}) == 7
    lengths = np.array([(arm.upper, arm.forearm, arm.hand, arm.shoulder[1], arm.yaw) for arm in drawn])
    assert np.all(lengths.std(axis=0) > (0.04, 0.04, 0.02, 0.03, 0.1))


@given(SEEDS)
@few
def test_profile_urdf_and_design_agree(seed):
    """The fingertips of the URDF come to every place for a cube in the postures that the arm was drawn by."""
    arm = draw_arm(seed)
    profile = load_robot(arm.name)
    assert profile.name == arm.name and profile.policy.action_mode == "ee6d" and profile.cameras.slots == arm.slots
    chain = Chain(RobotDescription.from_file(f"{arm.name}.urdf"), "base_link", "tool")
    assert chain.joints == tuple(joint.name for joint in arm.joints)
    for x, y in arm.spots:
        joints = arm.posture(x, y, 2 * arm.cube_half, arm.leaning(x, y))
        pose = chain.poses(np.array(list(joints.values())))
        tip = pose.positions + pose.rotations @ (0.0, 0.0, arm.tip)
        np.testing.assert_allclose(turned(arm) @ tip + arm.place, (x, y, 2 * arm.cube_half), atol=1e-3)


@given(SEEDS)
@example(155)  # was drawn so that it did not come over its large cubes as high as the expert goes
@example(365)  # was drawn too near to a place at the height of the touch, though not below and above
@few
def test_an_arm_reaches_all_of_its_table_inside_its_workspace(seed):
    arm = draw_arm(seed)
    assert arm.reaches
    profile = load_robot(arm.name)
    ((_, tool),) = tool_arms(profile).items()
    lower = np.array([joint.lower for joint in arm.joints])
    upper = np.array([joint.upper for joint in arm.joints])
    for x, y in arm.spots:
        for height in (2 * arm.cube_half - 0.003, 5.5 * arm.cube_half):
            joints = np.array(list(arm.posture(x, y, height, arm.leaning(x, y)).values()))
            assert np.all(joints > lower) and np.all(joints < upper)
            place = tool.chain.poses(joints).positions
            assert np.all(place >= tool.tool.workspace_min) and np.all(place <= tool.tool.workspace_max)


def test_the_figures_of_the_widowx_are_its_scenes_own():
    joints = widowx.JOINTS
    upper = np.hypot(joints["elbow"].xyz[0], joints["elbow"].xyz[2])
    forearm = joints["forearm_roll"].xyz[0] + joints["wrist_angle"].xyz[0]
    hand = joints["wrist_rotate"].xyz[0] + widowx.TOOL_XYZ[0] + 0.0114  # to its fingertips, as its expert touches
    height = joints["waist"].xyz[2] + joints["shoulder"].xyz[2]
    np.testing.assert_allclose(arms.WIDOWX, (upper, forearm, hand, height), atol=1e-4)
    model = build_scene("widowx", 1 / 600).model
    np.testing.assert_allclose(model.camera("front").pos, scenes.WIDOWX_EYE)
    assert GRAPHITE[:3] == scenes.WIDOWX_COLOUR


@given(SEEDS)
@few
def test_no_arm_has_the_proportions_the_camera_or_the_colour_of_the_widowx(seed):
    arm = draw_arm(seed)
    lengths = np.array([np.hypot(arm.upper, arm.bend), arm.forearm, arm.hand, arm.shoulder[1]])
    figures = np.array(arms.WIDOWX)
    assert np.linalg.norm(lengths / lengths.sum() - figures / figures.sum()) >= 0.08
    model = build_scene(arm.name, 1 / 600).model
    theirs = build_scene("widowx", 1 / 600).model.camera("front").pos
    fixed = [slot for slot in arm.slots if slot != "wrist"]
    assert all(np.linalg.norm(model.camera(slot).pos - theirs) > 0.25 for slot in fixed)
    link = max(i for i in range(model.ngeom) if model.geom_bodyid[i] == model.body("base").id)
    assert np.linalg.norm(model.geom_rgba[link][:3] - (0.24, 0.25, 0.29)) > 0.3


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_scene_stands_as_the_urdf_and_its_cameras_see_the_cubes(robot):
    arm, world = arm_named(robot), World(load_robot(robot))
    world.reset(1)
    chain = Chain(RobotDescription.from_file(f"{robot}.urdf"), "base_link", "tool")
    pose = chain.poses(np.array(arm.home))
    site = world.data.site("tool")
    np.testing.assert_allclose(site.xpos, turned(arm) @ pose.positions + arm.place, atol=1e-6)
    np.testing.assert_allclose(site.xmat.reshape(3, 3), turned(arm) @ pose.rotations, atol=1e-6)
    task = load_task(world.profile, "touch")
    first, seen = arm.slots[0], np.zeros(3)
    for seed in range(4):
        task.reset(world, np.random.default_rng(seed))
        numbers = [world.model.body(cube).geomadr[0] for cube in world.scene.props]
        with mujoco.Renderer(world.model, 128, 128) as renderer:
            renderer.enable_segmentation_rendering()
            renderer.update_scene(world.data, first)
            geoms = renderer.render()[..., 0]
        seen += [(geoms == number).sum() > 12 for number in numbers]
    assert np.all(seen >= 3)  # the arm may hide one
    world.close()


def test_surfaces_have_no_cubes_colour():
    rng = np.random.default_rng(0)
    for _ in range(200):
        colour = np.array(scenes._colour(rng, 0.9, (0.2, 0.9))[:3])
        for cube in parts.CUBES.values():
            assert np.linalg.norm(colour / colour.max() - np.array(cube[:3]) / max(cube[:3])) > 0.55


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_expert_touches(robot, tmp_path):
    profile = load_robot(robot)
    assert task_names(profile) == ("touch",)
    demonstrator = Demonstrator(DemoSettings(profile, "touch", 7, width=16, height=16))
    assert all(demonstrator.record(index, tmp_path / "episode.mcap").outcome.success for index in range(4))
    demonstrator.close()


def test_fingers_meet_where_the_tool_points():
    for robot in ROBOTS:
        arm, model = arm_named(robot), build_scene(robot, 1 / 600).model
        data = mujoco.MjData(model)
        pads = [i for i in range(model.ngeom) if model.geom_condim[i] == 4 and model.geom_contype[i] == 2]
        gaps = []
        for opening in (arm.shut, arm.opened):
            for finger in arm.fingers:
                data.joint(finger.name).qpos[0] = opening
            mujoco.mj_forward(model, data)
            gaps.append(mujoco.mj_geomDistance(model, data, *pads, 0.2, np.zeros(6)))
            end = data.geom_xpos[pads].mean(axis=0)
            along = data.site("tool").xmat.reshape(3, 3).T @ (end - data.site("tool").xpos)
            np.testing.assert_allclose(along[:2], 0.0, atol=1e-6)
        assert abs(gaps[0]) < 1e-4 and gaps[1] > 2 * arm.cube_half - 0.004


def test_a_name_is_a_robot_wherever_one_is_taken(tmp_path, capsys):
    folder = tmp_path / "demos"
    told = ["demos", "--robot", "family_3", "--task", "touch", "--episodes", "1", "--image-size", "16"]
    assert main([*told, "--output", str(folder)]) == 0
    assert "1 episodes recorded" in capsys.readouterr().out
    assert profile_of_bag(folder / "episode_000000.mcap") == load_robot("family_3")
    own = tmp_path / "own.yaml"
    own.write_text("/**: {ros__parameters: {mine: {like: family_3, namespace: /mine}}}\n")
    mine = load_profiles([own])["mine"]
    assert mine.joints.topics == ("/mine/joint_states",) and mine.tools == load_robot("family_3").tools
    told = ["demos", "--robot", str(own), "--task", "touch", "--episodes", "1", "--image-size", "16"]
    assert main([*told, "--output", str(tmp_path / "own")]) == 0
    assert "1 episodes recorded" in capsys.readouterr().out
    profile = profile_of_bag(tmp_path / "own" / "episode_000000.mcap")
    assert profile.name == "mine" and profile.joints.topics == mine.joints.topics


@pytest.mark.parametrize("name", ["family_", "family_-1", "family_007", "family_1e3", "family_1000000000", "family_²"])
def test_another_spelling_is_no_arm(name):
    assert arm_named(name) is None
    with pytest.raises(ProfileError, match=r"is unknown.*family_SEED"):
        load_robot(name)
    with pytest.raises(SimulationError, match="family_SEED"):
        build_scene(name, 1 / 600)
