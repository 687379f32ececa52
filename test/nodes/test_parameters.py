# SPDX-License-Identifier: Apache-2.0
"""Profiles as parameters of a node: declared with what a user needs to know, overridden, refused by name."""

import pytest

from xvla_ros import ros_env

ros_env.prepare()
rclpy = pytest.importorskip("rclpy")

from rclpy.parameter import Parameter  # noqa: E402

from xvla_ros.errors import ProfileError  # noqa: E402
from xvla_ros.nodes.parameters import read_profile  # noqa: E402
from xvla_ros.robots.profile import Profile, load_profile  # noqa: E402
from xvla_ros.robots.profile.parameters import parameters  # noqa: E402

ROBOTS = ("so101_bimanual", "so101_bimanual_split", "widowx", "agibot")
PAIR = "so101_bimanual"


@pytest.fixture
def make_node(ros_domain):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)

    def make(**overrides):
        given = [Parameter(name.replace("__", "."), value=value) for name, value in overrides.items()]
        return rclpy.create_node("declaring", context=context, parameter_overrides=given)

    yield make
    rclpy.shutdown(context=context)


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_shipped_profile_is_declared_whole_and_reads_back_the_same(make_node, robot):
    node = make_node()
    profile = read_profile(node, robot)
    assert profile == load_profile(robot)[robot]
    for spec in parameters(profile):
        assert node.has_parameter(spec.name)
        if spec.value != []:
            assert list_or_value(node.get_parameter(spec.name).value) == spec.value
    assert read_profile(node, robot).to_mapping() == profile.to_mapping(), "as activate reads it again"


def list_or_value(value):
    return value if isinstance(value, bool | int | float | str) else list(value)


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_parameter_explains_itself(make_node, robot):
    node = make_node()
    for spec in parameters(read_profile(node, robot)):
        descriptor = node.describe_parameter(spec.name)
        assert descriptor.description == spec.description
        assert descriptor.read_only == spec.read_only
        if spec.floating_range is not None:
            [bounds] = descriptor.floating_point_range
            assert (bounds.from_value, bounds.to_value) == spec.floating_range
        if spec.integer_range is not None:
            [bounds] = descriptor.integer_range
            assert (bounds.from_value, bounds.to_value) == spec.integer_range


def test_overrides_lie_over_the_shipped_values(make_node):
    node = make_node(
        **{f"{PAIR}__timing__lookahead": 0.8, f"{PAIR}__instruction": "fold", f"{PAIR}__cameras__front__topic": "/top"}
    )
    profile = read_profile(node, PAIR)
    assert (profile.timing.lookahead, profile.instruction) == (0.8, "fold")
    assert profile.cameras.by_name["front"].topic == "/top"
    assert profile.timing.lead == load_profile(PAIR)[PAIR].timing.lead
    assert node.get_parameter(f"{PAIR}.timing.lookahead").value == 0.8


def test_what_may_change_changes_and_the_rest_is_refused(make_node):
    node = make_node()
    before = read_profile(node, PAIR)
    changed = Parameter(f"{PAIR}.timing.lead", value=0.1)
    assert node.set_parameters([changed])[0].successful
    assert read_profile(node, PAIR).timing.lead == 0.1
    for name, value in (("policy.domain_id", 3), ("joints.policy_order", ["a"]), ("commands.interface", "pose")):
        answer = node.set_parameters([Parameter(f"{PAIR}.{name}", value=value)])[0]
        assert not answer.successful
    assert not node.set_parameters([Parameter(f"{PAIR}.timing.lead", value=99.0)])[0].successful, "out of range"
    assert read_profile(node, PAIR).policy == before.policy


def test_a_robot_of_ones_own_needs_no_file(make_node):
    shipped = load_profile(PAIR)[PAIR]
    mine = Profile.from_mapping("mine", shipped.to_mapping())
    node = make_node(**{spec.name: spec.value for spec in parameters(mine) if spec.value != []})
    assert read_profile(node, "mine").to_mapping() == mine.to_mapping()


def test_equal_arms_are_like_one_and_say_what_differs(make_node):
    """Like a shipped robot with this node's changes, as a parameters file of a fleet gives them."""
    node = make_node(
        **{"so101__timing__lead": 0.1, "arm_a__like": "so101", "arm_a__namespace": "/a", "arm_a__instruction": "wave"}
    )
    profile = read_profile(node, "arm_a")
    assert (profile.timing.lead, profile.instruction, profile.namespace) == (0.1, "wave", "/a")
    assert profile.cameras.by_name["wrist"].topic == "/a/wrist/image_raw"
    assert node.get_parameter("arm_a.cameras.wrist.topic").value == "/wrist/image_raw"
    assert read_profile(node, "arm_a") == profile, "as activate reads it again"


def test_a_copy_of_a_shipped_file_that_says_less_is_filled_by_what_it_is_like(make_node):
    """Not by the shipped robot of its own name, so that file and node agree."""
    copied = "so101_bimanual_split"
    profile = read_profile(make_node(**{f"{copied}__like": PAIR, f"{copied}__instruction": "fold"}), copied)
    assert profile.to_mapping() == load_profile(PAIR)[PAIR].to_mapping() | {"instruction": "fold"}


def test_being_like_nobody_is_refused(make_node):
    with pytest.raises(ProfileError, match=r"arm_a\.like: like names 'so100', and there is no such robot"):
        read_profile(make_node(arm_a__like="so100"), "arm_a")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({f"{PAIR}__timing__lead": -1.0}, "timing.lead"),
        ({f"{PAIR}__timing__leed": 0.1}, "did you mean 'lead'"),
        ({f"{PAIR}__timing__lead": "soon"}, "timing.lead"),
        ({f"{PAIR}__policy__action_mode": "so101_bimanul"}, "so101_bimanual"),
        ({f"{PAIR}__joints__left_gripper__max_velocity": 0.0}, "left_gripper.max_velocity"),
    ],
)
def test_a_wrong_parameter_is_named_and_nothing_is_declared(make_node, overrides, expected):
    node = make_node(**overrides)
    with pytest.raises(ProfileError, match=expected) as caught:
        read_profile(node, PAIR)
    assert len(caught.value.problems) == 1
    assert not node.get_parameters_by_prefix(PAIR)


def test_an_unknown_robot_is_named_with_those_there_are(make_node):
    with pytest.raises(ProfileError, match=r"'so101_bimanul' is unknown \(did you mean 'so101_bimanual'\?\)"):
        read_profile(make_node(), "so101_bimanul")
