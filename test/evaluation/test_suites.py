# SPDX-License-Identifier: Apache-2.0
"""A policy on a benchmark: what it is asked and what becomes of its answers, episodes kept and gone on with, rates."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from xvla_ros.commands import run
from xvla_ros.commands import suites as command
from xvla_ros.commands.evaluate import Evaluate
from xvla_ros.errors import CheckpointError, EvaluationError, SetupError
from xvla_ros.evaluation.suites.drivers import (
    ExpertPolicy,
    PolicyDriver,
    ReplayDriver,
    embodiment_of,
    load_suite_policy,
    to_simulator,
)
from xvla_ros.evaluation.suites.results import REPLAY, SuiteEpisode, SuiteResult, SuiteRun, parse_tasks
from xvla_ros.evaluation.suites.running import ProcessShare, TaskJob, plan, run_jobs
from xvla_ros.model.checkpoint import save
from xvla_ros.model.checkpoint.pipelines import copy_for_lerobot_eval
from xvla_ros.model.random_policy import random_policy
from xvla_ros.resources import policy_dir
from xvla_ros.simulation.suites.libero import PYTHON, find_interpreter
from xvla_ros.simulation.suites.protocols import CAMERAS, LEROBOT, XVLA
from xvla_ros.simulation.suites.suite import Acted, Beginning, Sight, SuiteTask
from xvla_ros.types import ActionChunk

PEER = os.environ.get("XVLA_LEROBOT_PYTHON", "")
BENCH = Path(__file__).parents[2] / "bench"
HALF_TURN = np.diag([1.0, -1.0, -1.0])
TASKS = tuple(SuiteTask(n, f"task_{n}", f"reach place {n}", 4) for n in range(3))
VERSIONS = {"mujoco": "3.2.3", "robosuite": "1.4.0"}


class StandInArena:
    """A hand that goes where it is told, at once; task n wants it at x = 0.1 n, but from init state 3 never has it.

    Pictures tell where it is: a policy that looks at them sees x in hundredths.
    """

    opened = 0

    def __init__(self, suite="libero_object", protocol=XVLA, python=""):
        self.tasks, self.versions, self.protocol = TASKS, VERSIONS, protocol
        self.asked: list[tuple] = []
        self.closed = False
        type(self).opened += 1

    def begin(self, beginning: Beginning) -> Sight:
        self._beginning, self._at = beginning, np.array([0.5, 0.0, 0.2])
        self.asked.append(("begin", beginning))
        return self._sight(look=True)

    def act(self, actions, *, look=True, film_every=0) -> Acted:
        self.asked.append(("act", len(actions), look, film_every))
        film = [np.full((16, 16, 3), 9, np.uint8) for n in range(len(actions)) if film_every and n % film_every == 0]
        steps, success = 0, False
        for action in actions:
            steps, self._at = steps + 1, action[:3].astype(np.float64)
            success = bool(abs(self._at[0] - 0.1 * self._beginning.task) < 1e-3 and self._beginning.init_state != 3)
            if success:
                break
        return Acted(steps, success, self._sight(look), {name: np.stack(film) for name in CAMERAS if film})

    def close(self):
        self.closed = True

    def _sight(self, look: bool) -> Sight:
        picture = np.zeros((4, 4, 3), np.uint8)
        picture[0, 0] = 200
        images = {"agentview": picture, "robot0_eye_in_hand": picture.copy()} if look else {}
        return Sight(images, self._at, HALF_TURN, self._at + 0.001, np.zeros(7), np.zeros(2), np.zeros(3))


def chunk_of(waypoints):
    """Return a predictor that answers with ``waypoints`` [T, 20], and the observations that it was asked with."""
    asked = []

    def predict(observations, prefixes):
        asked.extend(observations)
        times = np.arange(1, len(waypoints) + 1) / 20
        return [
            ActionChunk(
                each.embodiment.robot, 3, "ee6d", each.instruction, each.stamp, times, np.float32(waypoints), 1.5, 0
            )
            for each in observations
        ]

    return predict, asked


def waypoints(xs, gripper=0.0):
    rows = np.zeros((len(xs), 20))
    rows[:, 0], rows[:, 2] = xs, 0.2
    rows[:, 3:9] = [1, 0, 0, 0, -1, 0]
    rows[:, 9] = gripper
    return rows


def test_waypoints_become_positions_rotation_vectors_and_a_gripper_that_opens_or_closes():
    vectors = np.array([[0.1, -0.2, 0.3], [2.0, 0.5, -1.0], [0.0, 0.0, 0.0]])
    matrices = Rotation.from_rotvec(vectors).as_matrix()
    rows = waypoints([0.3, 0.4, 0.5])
    rows[:, 3:6], rows[:, 6:9] = 1.1 * matrices[:, :, 0], matrices[:, :, 1] + 0.2 * matrices[:, :, 0]
    rows[:, 9] = [0.5, 0.51, 0.0]
    found = to_simulator(np.float32(rows), XVLA)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, :3], rows[:, :3], atol=1e-7)
    np.testing.assert_allclose(found[:, 3:6], vectors, atol=2e-6)
    assert found[:, 6].tolist() == [-1.0, 1.0, -1.0]


def test_the_first_question_has_the_measured_arm_and_the_next_the_commanded_one():
    predict, asked = chunk_of(waypoints([0.3, 0.4, 0.6], gripper=0.9))
    driver, arena = PolicyDriver(predict, embodiment_of(XVLA), XVLA, execute=2), StandInArena()
    driver.begin(TASKS[1], 2)
    sight = arena.begin(Beginning(1, 2, 2, 144))
    actions = driver.actions(sight, 0)
    assert actions[:, 0] == pytest.approx([0.3, 0.4])
    assert actions[:, 6].tolist() == [1.0, 1.0]
    driver.actions(arena.act(actions).sight, 2)
    first, second = asked
    assert first.state == pytest.approx([0.5, 0, 0.2, 1, 0, 0, 0, -1, 0, *[0] * 11])
    # the last waypoint that was carried out, without its gripper
    assert second.state == pytest.approx([0.4, 0, 0.2, 1, 0, 0, 0, -1, 0, *[0] * 11])
    assert second.stamp - first.stamp == 100_000_000
    assert first.instruction == "reach place 1"
    # the scene's picture is turned by half, the wrist's is as it comes
    assert first.images["image"][-1, -1].tolist() == [200] * 3
    assert first.images["image2"][0, 0].tolist() == [200] * 3
    assert (driver.chunks, driver.inference_ms) == (2, [1.5, 1.5])


def test_lerobots_state_is_always_measured_by_the_simulators_observation():
    predict, asked = chunk_of(waypoints([0.3]))
    driver, arena = PolicyDriver(predict, embodiment_of(LEROBOT), LEROBOT, execute=1), StandInArena()
    driver.begin(TASKS[0], 0)
    sight = arena.begin(Beginning(0, 0, 0, 1000))
    driver.actions(arena.act(driver.actions(sight, 0)).sight, 1)
    assert [each.state[0] for each in asked] == pytest.approx([0.501, 0.301])


def test_episodes_of_a_run_are_asked_with_stamps_of_their_own():
    predict, asked = chunk_of(waypoints([0.3]))
    driver, arena = PolicyDriver(predict, embodiment_of(XVLA), XVLA, execute=1), StandInArena()
    for task in TASKS:
        for episode in range(3):
            driver.begin(task, episode)
            driver.actions(arena.begin(Beginning(task.index, episode, episode, 0)), 0)
    assert len({each.stamp for each in asked}) == len(asked) == 9


def test_an_answer_that_is_no_pose_is_named():
    bad = waypoints([0.3])
    bad[:, 3:9] = 0
    driver = PolicyDriver(chunk_of(bad)[0], embodiment_of(XVLA), XVLA, execute=1)
    driver.begin(TASKS[0], 0)
    with pytest.raises(EvaluationError, match="at step 0 cannot be executed: the first vector of a rot6d"):
        driver.actions(StandInArena().begin(Beginning(0, 0, 0, 0)), 0)


def test_a_replayed_path_looks_at_nothing_and_is_held_at_its_end():
    path = np.arange(21, dtype=np.float32).reshape(3, 7)
    driver = ReplayDriver({1: path}.__getitem__)
    driver.begin(TASKS[1], 3)
    arena = StandInArena()
    sight = arena.begin(Beginning(1, 3, 3, 0))
    whole = driver.actions(sight, 0)
    assert not driver.looks
    np.testing.assert_array_equal(whole[:3], path)
    assert (whole[3:] == path[-1]).all() and len(whole) == 23
    assert len(driver.actions(sight, 23)) == 0


def small(tmp_path: Path, embodiment=None, width=20) -> str:
    mean = np.zeros(width, np.float32)
    mean[:9] = [0.1, 0, 0.2, 1, 0, 0, 0, -1, 0]
    chosen = embodiment or embodiment_of(XVLA)
    robot = {chosen.robot: mean}
    std = {chosen.robot: np.full(width, 0.01, np.float32)}
    policy = random_policy([chosen], state_mean=robot, state_std=std, action_mean=robot, action_std=std)
    save(policy, tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(command, "LiberoArena", StandInArena)
    monkeypatch.setattr(StandInArena, "opened", 0)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def drive_with(monkeypatch, predict):
    """Put ``predict`` in place of a checkpoint's policy."""
    make = lambda _: PolicyDriver(predict, embodiment_of(XVLA), XVLA, execute=2)  # noqa: E731
    driven = command._Driven("policy", lambda: nullcontext(make), "mine", "digest", True)
    monkeypatch.setattr(command, "_driven", lambda *_: driven)


def told(tmp_path: Path, **options) -> Evaluate:
    given = {"checkpoint": "mine", "episodes": 4, "output": str(tmp_path / "out"), "overrides": ("steps=6",)}
    return Evaluate(suite="libero_object", **{**given, **options})


def test_a_run_leaves_rates_with_intervals_a_page_and_a_film(tmp_path, monkeypatch, stand_in, capsys):
    pytest.importorskip("av")
    predict, _ = chunk_of(waypoints([0.3, 0.1]))  # right for task 1
    drive_with(monkeypatch, predict)
    assert run(told(tmp_path, tasks="0-1", baseline="replay", jobs=2), "xvla evaluate") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["suite"], report["checkpoint_digest"], report["versions"]["mujoco"]) == (
        "libero_object",
        "digest",
        "3.2.3",
    )
    assert (report["episodes"], report["successes"], report["success_rate"]) == (8, 3, 0.375)
    assert report["interval"] == [0.1368, 0.6943]  # Wilson of 3 of 8
    by_task = {each["task"]: each for each in report["per_task"]}
    assert [by_task[n]["successes"] for n in (0, 1)] == [0, 3]
    # of task 1 episode 0 is replayed in 1, 2 and 3, which no path succeeds in; of task 0 there is no path
    assert (by_task[1]["baseline"]["episodes"], by_task[1]["baseline"]["successes"]) == (3, 2)
    assert by_task[0]["baseline"] is None
    assert any("replayed without camera images succeeds as often" in line for line in report["advice"])
    assert any("run libero_object_swap" in line for line in report["advice"])
    episode = next(each for each in report["per_episode"] if (each["task"], each["episode"]) == (1, 3))
    assert (episode["init_state"], episode["env_seed"], episode["success"], episode["steps"]) == (3, 145, False, 6)
    film = next(each["film"] for each in report["per_episode"] if each["task"] == 0 and each["film"])
    import av

    with av.open(str(tmp_path / "out" / film)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert frame.shape == (300, 512, 3), "a row of the two cameras, with their names below"
    assert frame[258:276, :200].max() > 150 and frame[258:276, 256:460].max() > 150
    page = (tmp_path / "out" / "report.html").read_text()
    assert film in page and "3 of 8" in page and "close above" in page
    printed = capsys.readouterr().out
    assert "3 of 8, 37.5% (13.7% to 69.4%)" in printed
    assert "no path to replay, because no episode succeeded: task 0" in printed


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch, stand_in):
    predict, asked = chunk_of(waypoints([0.3, 0.1]))
    drive_with(monkeypatch, predict)
    assert run(told(tmp_path, tasks="1", episodes=2, films=0), "xvla evaluate") == 0
    first = len(asked)
    assert run(told(tmp_path, tasks="1", episodes=2, films=0), "xvla evaluate") == 0
    assert len(asked) == first
    assert run(told(tmp_path, tasks="1", episodes=3, films=0), "xvla evaluate") == 0
    assert len(asked) == first + 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["episodes"] == 3


def test_another_evaluation_is_not_mixed_in(tmp_path, monkeypatch, stand_in, capsys):
    drive_with(monkeypatch, chunk_of(waypoints([0.1]))[0])
    assert run(told(tmp_path, tasks="1", films=0), "xvla evaluate") == 0
    assert run(told(tmp_path, tasks="1", films=0, seed=5), "xvla evaluate") == 1
    assert "contains another evaluation: seed was 0 and is 5" in capsys.readouterr().err
    assert run(told(tmp_path, tasks="1", films=0, dtype="bfloat16"), "xvla evaluate") == 1
    assert "contains another evaluation: dtype was" in capsys.readouterr().err


def test_paths_of_another_evaluation_are_a_baseline_by_themselves(tmp_path, monkeypatch, stand_in):
    drive_with(monkeypatch, chunk_of(waypoints([0.3, 0.1]))[0])
    assert run(told(tmp_path, tasks="1", films=0), "xvla evaluate") == 0
    monkeypatch.undo()
    monkeypatch.setattr(command, "LiberoArena", StandInArena)
    source, output = str(tmp_path / "out"), str(tmp_path / "blind")
    blind = Evaluate(
        suite="libero_object_swap", tasks="1", episodes=4, baseline="replay", replay_of=source, output=output
    )
    assert run(blind, "xvla evaluate") == 0
    report = json.loads((tmp_path / "blind" / "report.json").read_text())
    assert (report["driver"], report["baseline_of"]) == ("replay", source)
    assert (report["baseline"]["episodes"], report["baseline"]["successes"]) == (4, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checkpoint": None}, "nothing drives the arm in libero_object"),
        ({"checkpoint": None, "baseline": "replay"}, "has nothing to replay"),
        ({"replay_of": "somewhere"}, "--replay-of needs --baseline replay"),
        ({"tasks": "7"}, "task '7' is unknown; the suite has 0 to 2: 0 reach place 0"),
        ({"robot": "widowx"}, "--robot applies to this package's own tasks"),
        ({"episodes": 5000}, "5000 episodes of each task were requested, expected at most 1000"),
        ({"overrides": ("speed=2",)}, "is not a setting of a protocol"),
        ({"checkpoint": "/nowhere"}, "is not a folder"),
        ({"server": "ws://gpu:8000"}, "--server is ws://gpu:8000, but the policy of a benchmark runs in this process"),
        ({"expert": True}, "--expert and --checkpoint both name what drives"),
    ],
)
def test_bad_input_is_named_before_an_episode(tmp_path, stand_in, capsys, options, said):
    assert run(told(tmp_path, **options), "xvla evaluate") == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "episodes").is_dir() or not list((tmp_path / "out" / "episodes").iterdir())


def test_what_is_not_installed_is_said_before_an_episode(tmp_path, monkeypatch, stand_in, capsys):
    monkeypatch.setattr(command, "find_spec", lambda module: None if module in ("av", "pinocchio") else module)
    assert run(told(tmp_path, through="control"), "xvla evaluate") == 1
    assert "install xvla_ros[kinematics,sim]" in capsys.readouterr().err
    assert run(told(tmp_path, films=0, tasks="9"), "xvla evaluate") == 1
    assert "install" not in capsys.readouterr().err


def test_a_setting_of_suites_needs_a_suite(capsys):
    assert run(Evaluate(jobs=2), "xvla evaluate") == 1
    assert "--jobs applies to benchmarks only; name one with --suite" in capsys.readouterr().err


def test_a_checkpoint_of_another_robot_is_refused_before_its_weights_are_read():
    with pytest.raises(CheckpointError, match=r"statistics\.state: .*belongs to another robot; found 12; expected 20"):
        load_suite_policy(str(policy_dir()), XVLA)


def test_lerobots_protocol_takes_the_checkpoints_domain_and_ours_the_published_one(tmp_path):
    checkpoint = small(tmp_path, replace(embodiment_of(XVLA), domain_id=7))
    assert load_suite_policy(checkpoint, LEROBOT)[1].domain_id == 7
    assert load_suite_policy(checkpoint, XVLA)[1].domain_id == 3


def test_jobs_keep_a_task_together_and_share_out_all_of_it():
    assert plan(TASKS, 4, 1, ProcessShare(), set()) == [TaskJob(task, (0, 1, 2, 3)) for task in TASKS]
    assert [job.episodes for job in plan(TASKS[:1], 4, 2, ProcessShare(), {(0, 1)})] == [(0,), (2, 3)]
    shares = [plan(TASKS, 5, 1, ProcessShare(rank, 4), set()) for rank in range(4)]
    everything = sorted((job.task.index, n) for jobs in shares for job in jobs for n in job.episodes)
    assert everything == [(task, n) for task in range(3) for n in range(5)]


def test_the_share_is_read_as_torchrun_gives_it(monkeypatch):
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert ProcessShare.of_environment() == ProcessShare(3, 4, 1)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(SetupError, match="RANK is 4 and WORLD_SIZE 4"):
        ProcessShare.of_environment()
    monkeypatch.setenv("RANK", "a")
    with pytest.raises(SetupError, match="must be whole numbers"):
        ProcessShare.of_environment()


def test_what_a_simulator_raises_ends_the_run_and_closes_all():
    arenas = []

    def arena():
        arenas.append(StandInArena())
        return arenas[-1]

    def handle(_arena, _driver, task, episode):
        if task.index == 1:
            raise EvaluationError("it fell over")

    jobs = [TaskJob(task, (0, 1)) for task in TASKS]
    with pytest.raises(EvaluationError, match="it fell over"):
        run_jobs(jobs, arena, lambda _: ReplayDriver({}.__getitem__), handle, 2)
    assert arenas and all(each.closed for each in arenas)


def test_tasks_are_chosen_by_number_range_or_name():
    assert [task.index for task in parse_tasks("2,0", TASKS)] == [0, 2]
    assert [task.index for task in parse_tasks("1-2", TASKS)] == [1, 2]
    assert parse_tasks("task_1", TASKS) == (TASKS[1],)
    assert parse_tasks("", TASKS) == TASKS


def test_a_better_rate_than_blind_has_no_such_note_and_an_untrained_one_has():
    episodes = [SuiteEpisode("policy", 0, n, n, 0, True, 9, 1, (1.0,), 1.0) for n in range(40)]
    episodes += [SuiteEpisode(REPLAY, 0, n, n, 0, n < 4, 9, 0, (), 1.0) for n in range(40)]
    told = SuiteRun("libero_object_swap", XVLA, "policy", "policy", "mine", "", 0, "float32", VERSIONS)
    assert SuiteResult(told, TASKS[:1], tuple(episodes), True).advice() == []
    assert "untrained" in SuiteResult(told, TASKS[:1], tuple(episodes), False).advice()[0]


def test_the_expert_is_asked_as_a_policy_is_and_plans_once_an_episode():
    plans = []

    def shapes():
        plans.append(1)
        edge = np.linspace(-0.02, 0.02, 5)
        cube = np.stack(np.meshgrid(edge, edge, edge + 0.02), axis=-1).reshape(-1, 3)
        return {"cube": cube + np.array([0.1, 0.1, 0]), "basket": 4 * cube + np.array([0.1, -0.2, 0])}

    driver = PolicyDriver(ExpertPolicy(shapes, "columns").predict, embodiment_of(XVLA), XVLA, 30)
    arena = StandInArena()
    for episode in range(2):
        driver.begin(TASKS[0], episode)
        sight = arena.begin(Beginning(0, episode, 0, 0))
        first, then = driver.actions(sight, 0), driver.actions(sight, 30)
        assert len(plans) == episode + 1
        assert np.linalg.norm(np.diff(np.concatenate([first, then])[:, :3], axis=0), axis=1).max() < 0.013
        assert np.linalg.norm(first[0, :3] - sight.position) < 0.013
        assert first[:, 6].tolist() == [-1.0] * 30


def test_the_expert_knows_one_suite(tmp_path, stand_in, capsys):
    goal = Evaluate(suite="libero_goal", expert=True, output=str(tmp_path / "out"))
    assert run(goal, "xvla evaluate") == 1
    assert "supports libero_object and its variations, not libero_goal" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("through", ["policy", "control", "ros"])
def test_the_expert_passes_liberos_own_judge(tmp_path, monkeypatch, through):
    if through == "ros":
        pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")
        pytest.importorskip("aiohttp", reason="needs xvla_ros[serve]")
    try:
        monkeypatch.setenv(PYTHON, str(find_interpreter()))
    except SetupError as error:
        pytest.skip(str(error))
    expert = Evaluate(
        suite="libero_object", expert=True, protocol="harness", tasks="0", episodes=1, through=through, films=0,
        overrides=("pixels=64",), output=str(tmp_path / "out"),
    )  # fmt: skip
    assert run(expert, "xvla evaluate") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["successes"], report["episodes"], report["through"]) == (1, 1, through)
    if through == "ros":
        log = (tmp_path / "out" / "logs" / "policy.log").read_text()
        assert "[xvla]: inactive → active" in log and "running: 'pick up the alphabet soup" in log


@pytest.mark.slow
def test_libero_runs_from_command_to_report(tmp_path, monkeypatch):
    try:
        monkeypatch.setenv(PYTHON, str(find_interpreter()))
    except SetupError as error:
        pytest.skip(str(error))
    options = {"checkpoint": small(tmp_path), "tasks": "0", "episodes": 1, "overrides": ("steps=4", "pixels=64")}
    assert run(told(tmp_path, protocol="harness", **options), "xvla evaluate") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["episodes"], report["trained"], report["versions"]["robosuite"]) == (1, False, "1.4.0")
    (episode,) = report["per_episode"]
    assert (episode["steps"], episode["chunks"], episode["env_seed"]) == (4, 1, 7)


def test_a_copy_for_lerobot_eval_leaves_pictures_to_the_environment(tmp_path):
    source, copy = Path(small(tmp_path, replace(embodiment_of(XVLA), domain_id=7))), tmp_path / "copy"
    copy_for_lerobot_eval(source, copy)
    written = [json.loads((folder / "policy_preprocessor.json").read_text())["steps"] for folder in (source, copy)]
    before, after = ({step["registry_name"] for step in steps} for steps in written)
    assert before - after == {"xvla_image_to_float", "xvla_imagenet_normalize"}
    assert {each.name for each in copy.iterdir()} == {each.name for each in source.iterdir()}
    # read here, it is the same policy: a protocol states both steps itself
    policy, embodiment = load_suite_policy(str(copy), LEROBOT)
    assert embodiment.domain_id == 7
    ours, _ = load_suite_policy(str(source), LEROBOT)
    asked = PolicyDriver(None, embodiment, LEROBOT, 1)
    asked.begin(TASKS[0], 0)
    seen = asked.observation(StandInArena().begin(Beginning(0, 0, 0, 0)), 0)
    np.testing.assert_array_equal(policy.predict([seen], seed=1)[0].actions, ours.predict([seen], seed=1)[0].actions)
    with pytest.raises(FileExistsError):
        copy_for_lerobot_eval(source, copy)
    with pytest.raises(CheckpointError, match=r"policy_preprocessor\.json: is missing"):
        copy_for_lerobot_eval(tmp_path, tmp_path / "another")


@pytest.mark.slow
@pytest.mark.skipif(not PEER, reason="XVLA_LEROBOT_PYTHON names no interpreter with lerobot==0.4.4")
@pytest.mark.parametrize("which", ["libero_object/0", "libero_spatial/2", "libero_goal/7"])
def test_libero_here_is_libero_in_lerobot(tmp_path, monkeypatch, which):
    try:
        python = find_interpreter()
    except SetupError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    import libero_parity

    goldens = libero_parity.find_goldens()
    if goldens is None:
        pytest.skip("no golden vectors")
    suite, _, task = which.partition("/")
    # in LeRobot's files, and the reverse: as this package saves it, in LeRobot's own evaluation
    for checkpoint in libero_parity.golden(goldens, tmp_path):
        row = libero_parity.compare(PEER, python, checkpoint, suite, int(task), tmp_path)
        assert (row["steps"], row["chunks"]) == (libero_parity.STEPS, 5)
        assert (row["pictures equal"], row["state differs by"], row["gripper flips"]) == (True, 0, 0)
        assert row["position m"] < libero_parity.POSITION_LIMIT
        assert row["rotation rad"] < libero_parity.ROTATION_LIMIT
