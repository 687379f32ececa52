# SPDX-License-Identifier: Apache-2.0
"""The world: a profile's scene stepped, commanded, drawn and reset."""

import gc

import mujoco
import numpy as np
import pytest

from xvla_ros.errors import SimulationError
from xvla_ros.robots import load_profile
from xvla_ros.simulation import parts, scenes
from xvla_ros.simulation.cameras import CameraRig
from xvla_ros.simulation.controllers import ControllerOptions, JointTrajectory, TrajectoryPoint
from xvla_ros.simulation.scenes import build_scene, scene_names
from xvla_ros.simulation.world import World

SECOND = 1_000_000_000
ROBOT = "so101_bimanual"
ARM = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
DEGREE = np.pi / 180


@pytest.fixture(scope="module")
def profile():
    return load_profile(ROBOT)[ROBOT]


@pytest.fixture
def world(profile):
    made = World(profile, seed=3, options=ControllerOptions(interpolate_from_desired_state=True))
    yield made
    made.close()


def seconds(world, duration):
    return round(duration / world.timestep)


def move(*points, names=ARM):
    return JointTrajectory(names, tuple(TrajectoryPoint(round(t * SECOND), tuple(p)) for t, p in points))


def test_an_unknown_robot_is_refused_with_those_that_exist():
    with pytest.raises(SimulationError, match=rf"'toaster'.*{ROBOT}"):
        build_scene("toaster", 1 / 600)
    assert ROBOT in scene_names()


def test_a_joint_or_camera_that_the_scene_lacks_is_named(profile):
    mapping = profile.to_mapping()
    mapping["cameras"]["slots"] = ["front", "left_wrist", "ceiling"]
    mapping["cameras"]["ceiling"] = mapping["cameras"].pop("right_wrist")
    with pytest.raises(SimulationError, match=r"no camera 'ceiling'.*front.*left_wrist"):
        World(type(profile).from_mapping(ROBOT, mapping))


def test_another_command_interface_is_refused(profile):
    posed = {name: group.model_copy(update={"tool": "arm"}) for name, group in profile.commands.by_name.items()}
    commands = profile.commands.model_copy(update={"interface": "pose", "by_name": posed})
    other = profile.model_copy(update={"commands": commands})
    with pytest.raises(SimulationError, match=r"'pose'.*'joint_trajectory'"):
        World(other)


@pytest.mark.parametrize("interface", ["forward_command", "joint_state"])
def test_setpoints_are_taken_as_they_come_where_the_profile_says_so(profile, interface):
    mapping = profile.to_mapping()
    mapping["commands"]["interface"] = interface
    world = World(type(profile).from_mapping(ROBOT, mapping), seed=3)
    start = world.positions()
    target = np.array(world.joint_states()[0].positions) + 0.1
    assert world.set_positions("left_arm", (), target) is None
    assert world.set_positions("right_arm", ("gripper", "shoulder_pan"), (0.9, -0.2)) is None
    world.step(seconds(world, 1.0))
    assert world.joint_states()[0].positions == pytest.approx(target, abs=DEGREE)
    assert world.positions()["right_gripper"] == pytest.approx(0.9, abs=DEGREE)
    assert world.positions()["right_shoulder_pan"] == pytest.approx(-0.2, abs=DEGREE)
    assert world.positions()["right_elbow_flex"] == pytest.approx(start["right_elbow_flex"], abs=DEGREE)
    for names, positions, words in (
        ((), target[:5], "5 positions, expected 6"),
        (("tail",), (0.1,), "'tail'"),
        (("gripper",), (float("nan"),), "'gripper': position is nan"),
    ):
        assert words in world.set_positions("left_arm", names, positions).reason
    assert (world.controllers["left_arm"].accepted, world.controllers["left_arm"].rejected) == (1, 3)
    with pytest.raises(SimulationError, match=rf"'left_arm'.*trajectory.*'{interface}'"):
        world.command("left_arm", move((1.0, target)))
    world.reset()
    world.step(seconds(world, 0.5))
    assert world.positions() == pytest.approx(start, abs=DEGREE)


def test_joint_states_follow_the_profiles_topics_and_names(world):
    left, right = world.joint_states()
    assert (left.topic, right.topic) == ("/left/joint_states", "/right/joint_states")
    assert left.names == right.names == ARM
    assert left.positions == pytest.approx([world.scene.home[f"left_{joint}"] for joint in ARM])
    assert len(left.velocities) == 6


def test_names_on_the_topics_are_the_profiles_to_choose(profile):
    mapping = profile.to_mapping()
    for number, joint in enumerate(ARM, start=1):
        mapping["joints"][f"left_{joint}"]["name"] = str(number)
    world = World(type(profile).from_mapping(ROBOT, mapping))
    assert world.joint_states()[0].names == ("1", "2", "3", "4", "5", "6")
    target = world.joint_states()[0].positions
    assert world.command("left_arm", move((1.0, target), names=("6", "5", "4", "3", "2", "1"))) is None
    assert "'shoulder_pan'" in world.command("left_arm", move((1.0, target))).reason


def test_the_arms_hold_still_for_twenty_seconds(world):
    sites = ("left_tool", "right_tool")
    start = {site: world.data.site(site).xpos.copy() for site in sites}
    worst = 0.0
    for _ in range(20):
        world.step(seconds(world, 1.0))
        worst = max(worst, *(float(np.linalg.norm(world.data.site(site).xpos - start[site])) for site in sites))
    assert worst < 0.002
    assert np.abs(world.data.qvel[: world.model.nu]).max() < 1e-3
    assert world.time == 20 * SECOND


@pytest.mark.parametrize(
    "pose", [(0, 0, 0, 0, 0, 0), (1.2, 0.9, -1.0, 0.6, 2.0, 1.6), (-1.9, -1.7, 1.6, -1.6, -2.7, -0.17)]
)
def test_an_arm_at_full_stretch_is_stable_too(world, pose):
    world.command("left_arm", move((1.5, pose)))
    world.step(seconds(world, 3.0))
    assert np.isfinite(world.data.qpos).all()
    settled = np.array(world.joint_states()[0].velocities)
    assert np.abs(settled).max() < 0.01


def test_a_sine_is_tracked_within_three_degrees(world):
    home = np.array(world.joint_states()[0].positions)
    swing = np.array([0.5, 0.3, 0.3, 0.3, 0.6, 0.4])

    def target(t):
        return home + swing * np.sin(2 * np.pi * 0.4 * t)

    times = np.arange(0.05, 5.01, 0.05)
    assert world.command("left_arm", move(*((t, target(t)) for t in times))) is None
    worst = 0.0
    for tick in range(1, 101):
        world.step(seconds(world, 0.05))
        error = np.abs(np.array(world.joint_states()[0].positions) - target(tick * 0.05))
        worst = max(worst, float(error.max()))
    assert worst < 3 * DEGREE


def test_only_the_commanded_arm_moves(world):
    before = world.positions()
    target = np.array(world.joint_states()[0].positions) + 0.2
    world.command("left_arm", move((0.5, target)))
    world.step(seconds(world, 1.0))
    after = world.positions()
    for joint in ARM:
        assert after[f"left_{joint}"] == pytest.approx(before[f"left_{joint}"] + 0.2, abs=DEGREE)
        assert after[f"right_{joint}"] == pytest.approx(before[f"right_{joint}"], abs=0.1 * DEGREE)


def test_a_target_beyond_the_limits_stops_at_them(world):
    world.command("left_arm", move((0.5, (5.0, -0.5, 0.45, 1.3, 0.0, 0.6))))
    world.step(seconds(world, 3.0))
    assert world.positions()["left_shoulder_pan"] == pytest.approx(1.91986, abs=0.5 * DEGREE)


def test_a_refused_trajectory_moves_nothing(world):
    before = world.data.qpos.copy()
    rejection = world.command("left_arm", move((0.5, (0.0,) * 5), names=ARM[:5]))
    assert rejection is not None and "'gripper'" in rejection.reason
    idle = World(world.profile, seed=3)
    for each in (world, idle):
        each.step(seconds(each, 0.5))
    np.testing.assert_array_equal(world.data.qpos, idle.data.qpos)
    assert np.abs(world.data.qpos[:12] - before[:12]).max() < 0.01


def test_a_cube_can_be_grasped_and_lifted(world):
    """Friction and the servo's force suffice: the props are there to be handled."""
    home = np.array(world.joint_states()[0].positions)
    closed = np.append(home[:5], -0.17)
    lifted = closed + np.array([0.0, -0.35, 0.0, 0.0, 0.0, 0.0])
    world.command("left_arm", move((0.8, closed), (1.2, closed), (2.4, lifted)))
    while not touching(world, "red_cube", "left_gripper_link"):
        put_between_fingers(world, "red_cube")
        world.step()
    start = world.data.body("red_cube").xpos[2]
    world.step(seconds(world, 3.0))
    assert world.data.body("red_cube").xpos[2] > start + 0.03


def touching(world, *bodies):
    """Whether two bodies touch."""
    pair = {world.model.body(body).id for body in bodies}
    return any({world.model.geom_bodyid[c.geom1], world.model.geom_bodyid[c.geom2]} == pair for c in world.data.contact)


def put_between_fingers(world, prop):
    """Puts a cube at rest against the inside of the left hand's fixed finger, near its tip."""
    body, hand = world.model.body(prop), world.data.body("left_wrist_roll_link")
    place, speed = world.model.jnt_qposadr[body.jntadr[0]], world.model.jnt_dofadr[body.jntadr[0]]
    turn = hand.xmat.reshape(3, 3)
    world.data.qpos[place : place + 3] = hand.xpos + turn @ np.array([0.006, 0.0, -0.090])
    world.data.qpos[place + 3 : place + 7] = hand.xquat
    world.data.qvel[speed : speed + 6] = 0.0


def test_the_same_seed_and_commands_give_the_same_states(profile):
    def final(seed):
        world = World(profile, seed=seed)
        world.command("left_arm", move((0.7, (0.5, 0.3, 0.2, 0.9, 0.1, 1.0))))
        world.step(seconds(world, 1.0))
        return world.data.qpos.copy()

    np.testing.assert_array_equal(final(5), final(5))
    assert np.abs(final(5) - final(6)).max() > 0.01


def test_reset_restores_the_episode_and_lets_time_go_on(profile, world):
    world.command("left_arm", move((0.3, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0))))
    world.step(seconds(world, 0.5))
    assert world.positions()["left_shoulder_pan"] > 0.5
    time = world.time
    world.reset()
    np.testing.assert_array_equal(world.data.qpos, World(profile, seed=3).data.qpos)
    assert world.time == time
    world.step(seconds(world, 1.0))
    assert world.positions()["left_shoulder_pan"] == pytest.approx(0.0, abs=0.1 * DEGREE)
    world.reset(seed=4)
    np.testing.assert_array_equal(world.data.qpos, World(profile, seed=4).data.qpos)


@pytest.mark.parametrize("seed", range(30))
def test_layouts_keep_props_on_the_table_and_apart(seed):
    scene = build_scene(ROBOT, 1 / 600)
    places = {name: np.array(place[:2]) for name, place in scene.layout(np.random.default_rng(seed)).items()}
    assert set(places) == set(scene.props)
    spots = [np.array([0.30, 0.0]), *places.values()]
    for i, spot in enumerate(spots):
        assert 0.15 < spot[0] < 0.4 and abs(spot[1]) < 0.3
        assert all(np.linalg.norm(spot - other) > 0.06 for other in spots[:i])


def share_of(image, colour, tolerance=40):
    """Share of the pixels whose hue is that of a geom's colour, whatever the light on it."""
    pixels = image.reshape(-1, 3).astype(float)
    bright = pixels.max(axis=1) > 40
    shade = pixels / np.maximum(pixels.max(axis=1, keepdims=True), 1.0)
    wanted = np.array(colour[:3]) / max(colour[:3])
    return float((bright & (np.abs(shade - wanted).max(axis=1) < tolerance / 255)).mean())


def test_the_front_camera_sees_both_arms_the_bowl_and_every_cube(world):
    image = world.render("front", 256, 256)
    assert image.shape == (256, 256, 3) and image.dtype == np.uint8
    # From the front the left arm is on the right.
    assert share_of(image[:, 128:], scenes.AMBER) > 0.02 > share_of(image[:, :128], scenes.AMBER)
    assert share_of(image[:, :128], scenes.TEAL) > 0.02 > share_of(image[:, 128:], scenes.TEAL)
    for colour in (*parts.CUBES.values(), parts.BOWL):
        assert share_of(image, colour) > 0.001


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_wrist_camera_sees_table_and_both_fingers(profile, world, side):
    """By segmentation: geoms of the hand, of the jaw and the table are in the picture."""
    with mujoco.Renderer(world.model, 128, 128) as renderer:
        renderer.enable_segmentation_rendering()
        renderer.update_scene(world.data, f"{side}_wrist")
        seen = renderer.render()[..., 0]
    bodies = {name: world.model.body(f"{side}_{name}_link").id for name in ("wrist_roll", "gripper")}
    shares = {
        name: float(np.isin(seen, np.flatnonzero(world.model.geom_bodyid == body)).mean())
        for name, body in bodies.items()
    }
    assert shares["wrist_roll"] > 0.05
    assert shares["gripper"] > 0.005
    assert float((seen == world.model.geom("table").id).mean()) > 0.3


def test_images_show_what_moves(world):
    before = world.render("left_wrist", 128, 128)
    np.testing.assert_array_equal(before, world.render("left_wrist", 128, 128))
    world.command("left_arm", move((0.5, (0.6, -0.5, 0.45, 1.3, 0.0, 0.6))))
    world.step(seconds(world, 1.0))
    assert np.abs(before.astype(int) - world.render("left_wrist", 128, 128)).mean() > 3.0


def test_every_size_is_drawn_in_its_own_shape(world):
    assert world.render("front", 320, 240).shape == (240, 320, 3)
    assert world.render("front", 64, 64).shape == (64, 64, 3)
    large = world.render("front", 1280, 960)
    assert large.shape == (960, 1280, 3)
    # Drawn to the last corner, and the same view as the small one.
    small = world.render("front", 320, 240).astype(int)
    assert np.abs(large[::4, ::4] - small).mean() < 5.0
    assert large[-1, -1].any() and large[0, 0].any()


def test_a_rig_keeps_what_it_captured(world):
    rig = world.camera_rig(96, 96)
    rig.capture(world.data)
    first = rig.draw("front")
    world.command("left_arm", move((0.4, (1.0, 0.5, 0.0, 0.0, 0.0, 0.0))))
    world.step(seconds(world, 0.5))
    np.testing.assert_array_equal(rig.draw("front"), first)
    rig.capture(world.data)
    assert (rig.draw("front") != first).any()
    rig.close()


def test_an_unknown_camera_is_refused_with_those_that_exist(world):
    with pytest.raises(SimulationError, match=r"'back'.*front"):
        world.render("back", 64, 64)
    with pytest.raises(SimulationError, match=r"'back'.*front"):
        CameraRig(world.model, ["back"], 64, 64)


def test_a_world_that_is_dropped_takes_no_pictures_from_another():
    profile = load_profile("so101")["so101"]
    kept, dropped = World(profile), World(profile)
    dropped.render("front", 32, 32)
    front, wrist = kept.render("front", 32, 32), kept.render("wrist", 32, 32)
    del dropped
    gc.collect()
    np.testing.assert_array_equal(kept.render("front", 32, 32), front)
    np.testing.assert_array_equal(kept.render("wrist", 32, 32), wrist)
    kept.close()
