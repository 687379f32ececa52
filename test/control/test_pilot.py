# SPDX-License-Identifier: Apache-2.0
"""One robot from messages to windows, without ROS."""

from dataclasses import replace

import numpy as np
import pytest

from xvla_ros.control.engine import ChunkRequest
from xvla_ros.control.pilot import Pilot
from xvla_ros.control.timeline import waypoint_times
from xvla_ros.errors import UnreachableError
from xvla_ros.types import ActionChunk

from .conftest import JOINTS, HandClock, profile_of

SECOND = 1_000_000_000
PERIOD = 1 / 30
HOME = np.array([0.1, -0.1])
PICTURE = np.zeros((8, 8, 3), np.uint8)


class Bench:
    """A pilot, what it sees, and a policy that goes up a slope."""

    def __init__(self, **changes):
        self.clock = HandClock()
        self.profile = profile_of(**changes)
        self.pilot = Pilot(self.profile, self.clock, lambda raw, _: raw, "climb")
        self.pilot.controller.start()
        self.measured = HOME

    def run(self, seconds, blocked=False):
        for _ in range(round(seconds / PERIOD)):
            self.clock.advance(PERIOD)
            self.look()
            window = self.pilot.tick()
            if window is not None and not blocked:
                self.measured = window.position_at(self.clock.ros)

    def stand(self, seconds=0.6):
        """Be seen to stand for long enough that a motion may begin."""
        for _ in range(round(seconds / PERIOD)):
            self.clock.advance(PERIOD)
            self.look()

    def look(self):
        self.pilot.add_image("front", self.clock.ros, PICTURE)
        self.pilot.add_joints("/joint_states", self.clock.ros, JOINTS, self.measured)

    def chunk(self, seen, slope=0.02):
        actions = np.asarray(seen.state) + slope * (1 + np.arange(10))[:, None]
        return ActionChunk.of(seen, actions.astype(np.float32), 1.0)

    def ask(self, inference=0.2, **kwargs):
        request = self.pilot.observe()
        self.run(inference)
        assert self.pilot.deliver(request, self.chunk(request.observation, **kwargs))
        return request.observation, request.prefix


@pytest.fixture
def bench():
    made = Bench()
    made.stand()
    return made


def test_the_first_chunk_is_free_and_the_next_agrees_with_what_is_carried_out(bench):
    _, prefix = bench.ask()
    assert prefix is None
    bench.run(0.3)
    seen, prefix = bench.ask()
    first = bench.profile.policy.first_waypoint_offset
    times = seen.stamp + np.rint((first + 0.1 * np.arange(10)) * SECOND).astype(np.int64)
    held = prefix.weights == 1.0
    assert held.any() and not held.all()
    # 0.2 s of inference and the lead pass before it counts
    assert (times[held] <= seen.stamp + 0.27 * SECOND).all()
    assert prefix.guidance == 0.0


def test_a_plan_that_the_arm_does_not_follow_need_not_be_agreed_with(bench):
    """Something is in its way: what the policy sees from there counts, not where the plan believes the arm to be."""
    bench.ask(slope=0.1)
    bench.run(0.1)
    assert bench.pilot.observe().prefix is not None
    bench.run(0.3, blocked=True)
    assert bench.pilot.observe().prefix is None and bench.pilot.controller.is_executing
    bench.run(0.34)
    assert bench.pilot.observe().prefix is not None


def test_what_is_to_be_agreed_with_is_the_chunk_as_it_is_carried_out(bench):
    """The first chunk was asked for at rest and counts from when it landed, not from when it was seen."""
    bench.ask(inference=0.5)
    carried_out = bench.pilot.chunk
    landed = bench.clock.ros
    assert waypoint_times(carried_out)[0] == pytest.approx(landed + 0.05 * SECOND, abs=1e6)
    bench.run(0.3)
    request = bench.pilot.observe()
    seen, prefix = request.observation, request.prefix
    planned = bench.pilot.controller.planned(
        seen.stamp + np.rint((0.1 + 0.1 * np.arange(10)) * SECOND).astype(np.int64)
    )
    held = prefix.weights == 1.0
    np.testing.assert_allclose(prefix.actions[held], planned[held], atol=2e-3)


@pytest.mark.parametrize("speed", [1.0, 0.5, 0.1])
def test_a_share_of_the_speed_is_the_same_path_in_that_much_more_time(speed):
    bench = Bench(safety__speed=speed)
    bench.stand()
    bench.ask()
    chunk, begun = bench.pilot.chunk, bench.clock.ros
    fastest, paths = 0.0, []
    while bench.clock.ros < begun + 0.9 * SECOND / speed:
        bench.run(PERIOD)
        window = bench.pilot.controller.last_window
        fastest = max(fastest, float(np.abs(window.velocities).max()))
        paths.append(np.append((bench.clock.ros - begun) / SECOND * speed, window.position_at(bench.clock.ros)))
    limit = bench.profile.joints.ordered[0].max_velocity
    assert fastest <= limit * speed + 1e-9
    assert np.ptp(np.diff(chunk.times)) < 1e-9 and np.diff(chunk.times)[0] == pytest.approx(0.1 / speed)
    # as far along the chunk as at full speed, and the joints in step: a straight line in the space of joints
    assert paths[-1][1] == pytest.approx(HOME[0] + 0.02 * 9.0, abs=0.03)
    np.testing.assert_allclose([each[1] - each[2] for each in paths], HOME[0] - HOME[1], atol=1e-6)


def test_at_a_share_of_the_speed_the_next_chunk_agrees_with_what_is_carried_out():
    bench = Bench(safety__speed=0.25)
    bench.stand()
    bench.ask(inference=0.5)
    bench.run(0.6)
    request = bench.pilot.observe()
    seen, prefix = request.observation, request.prefix
    due = seen.stamp + np.rint((0.1 + 0.1 * np.arange(10)) / 0.25 * SECOND).astype(np.int64)
    held = prefix.weights == 1.0
    assert held.any()
    np.testing.assert_allclose(prefix.actions[held], bench.pilot.controller.planned(due)[held], atol=2e-3)


def test_guided_and_other_methods_say_so():
    for method, guidance in (("guided", 5.0), ("switch", None), ("ensemble", None)):
        bench = Bench(smoothing__method=method)
        bench.stand()
        bench.ask()
        bench.run(0.2)
        _, prefix = bench.ask()
        assert (prefix.guidance if prefix else None) == guidance


def test_a_rolled_forward_state_is_that_of_the_plan_when_the_chunk_arrives():
    bench = Bench(smoothing__roll_forward=True)
    bench.stand()
    bench.ask()
    bench.run(0.2)
    then = bench.pilot.controller.committed_until(bench.clock.ros)
    expected = bench.pilot.controller.planned(np.array([then]))[0]
    request = bench.pilot.observe()
    seen = request.observation
    np.testing.assert_allclose(seen.state, expected, atol=1e-6)
    assert (seen.state > bench.measured + 0.01).all()
    bench.run(0.2)
    assert bench.pilot.deliver(request, bench.chunk(seen))
    assert waypoint_times(bench.pilot.chunk)[0] == then + round(0.1 * SECOND)


def test_an_answer_to_no_question_is_ignored(bench):
    seen = bench.pilot.builder.build(bench.clock.ros, bench.clock.steady, "climb")
    assert not bench.pilot.deliver(ChunkRequest(seen), bench.chunk(seen))
    bench.run(0.2)
    assert bench.pilot.controller.last_window is None


def test_without_an_instruction_nothing_is_asked():
    bench = Bench()
    bench.pilot.instruction = ""
    bench.look()
    bench.run(0.1)
    assert not bench.pilot.wants_chunk()
    assert bench.pilot.status.detail == "waiting for an instruction"


def test_a_task_that_ends_brings_the_arm_to_rest_though_the_next_follows_at_once(bench):
    """As where a goal of run_policy is accepted before the next tick."""
    bench.ask(slope=0.1)
    bench.run(0.3)
    request = bench.pilot.observe()
    bench.pilot.instruction = ""
    bench.pilot.instruction = "climb"
    assert bench.pilot.status.state == "holding" and not bench.pilot.controller.is_executing
    assert not bench.pilot.deliver(request, bench.chunk(request.observation))
    bench.run(0.6)
    assert not np.ptp(bench.pilot.controller.last_window.positions, axis=0).any()
    assert (bench.pilot.status.state, bench.pilot.status.reason, bench.pilot.status.holds) == ("holding", "", 1)
    assert bench.pilot.wants_chunk()
    bench.ask()
    bench.run(PERIOD)
    assert bench.pilot.status.state == "running"


def test_a_chunk_of_the_words_before_is_dropped_and_asked_for_again_while_the_arm_goes_on(bench):
    bench.ask()
    bench.run(0.2)
    assert not bench.pilot.wants_chunk()
    request = bench.pilot.observe()
    bench.pilot.instruction = "descend"
    assert bench.pilot.wants_chunk(), "the first chunk of the new words does not wait for the old one's end"
    assert not bench.pilot.deliver(request, bench.chunk(request.observation))
    bench.run(PERIOD)
    assert bench.pilot.status.state == "running" and bench.pilot.wants_chunk()
    seen, _ = bench.ask(slope=-0.02)
    assert seen.instruction == "descend" and bench.pilot.status.holds == 0


def test_an_observation_made_before_the_words_changed_and_asked_about_after_is_no_use(bench):
    bench.pilot.instruction = "descend"
    request = bench.pilot.observe()
    early = replace(request, observation=replace(request.observation, instruction="climb"))
    assert not bench.pilot.deliver(early, bench.chunk(early.observation))
    assert bench.pilot.deliver(request, bench.chunk(request.observation))


def test_an_ensemble_does_not_average_two_tasks():
    bench = Bench(smoothing__method="ensemble", smoothing__ensemble_decay=0.1)
    bench.stand()
    bench.ask()
    bench.run(0.2)
    bench.pilot.instruction = "descend"
    seen, _ = bench.ask(slope=-0.02)
    last = waypoint_times(bench.pilot.chunk)[-2:-1]
    expected = bench.chunk(seen, slope=-0.02).actions[-2]
    np.testing.assert_allclose(bench.pilot.controller.planned(last)[0], expected, atol=1e-6)


def test_a_policy_that_is_not_reached_is_no_error_of_the_policy(bench):
    bench.ask()
    bench.pilot.observe()
    bench.pilot.policy_failed(UnreachableError("ws://gpu:8000: no answer within 2 s"))
    bench.run(0.1)
    assert (bench.pilot.status.reason, bench.pilot.status.detail) == (
        "policy_unreachable", "ws://gpu:8000: no answer within 2 s"
    )  # fmt: skip


@pytest.mark.parametrize(("changes", "kept"), [({}, True), ({"cameras__front": {"topic": "/f", "rotate": 180}}, False)])
def test_a_picture_goes_on_as_its_camera_gave_it_where_all_of_it_is_used(changes, kept):
    profile, clock = profile_of(**changes), HandClock()
    pilot = Pilot(profile, clock, lambda raw, _: PICTURE, "climb", encoded=lambda raw, _: raw)
    pilot.controller.start()
    for _ in range(20):
        clock.advance(PERIOD)
        pilot.add_image("front", clock.ros, b"as it came")
        pilot.add_joints("/joint_states", clock.ros, JOINTS, HOME)
    assert pilot.observe().observation.encoded == ({"front": b"as it came"} if kept else {})
