# SPDX-License-Identifier: Apache-2.0
"""How often a policy does a task: the rate's interval, episodes in process, and the same episodes over ROS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.commands import run
from xvla_ros.commands.evaluate import Evaluate
from xvla_ros.errors import EvaluationError
from xvla_ros.evaluation.in_process import InProcess
from xvla_ros.evaluation.outcomes import Counters, EpisodeResult, Evaluation, wilson
from xvla_ros.robots import load_profile
from xvla_ros.simulation.tasks import load_task
from xvla_ros.types import ActionChunk

sys.path.insert(0, str(Path(__file__).parent))
from steadfast import save_steadfast

pytest.importorskip("pinocchio")

ROBOT = "so101_bimanual"
SIZE = 32


@pytest.fixture(scope="module")
def profile():
    return load_profile(ROBOT)[ROBOT]


def test_the_interval_of_a_rate_is_wilsons():
    # Wilson score, 95 %: R's binom::binom.wilson(c(8, 0, 100), c(10, 10, 100))
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(100, 100) == pytest.approx((0.9630065, 1.0), abs=1e-6)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate_and_stays_within_0_and_1(trials):
    successes, total = trials
    low, high = wilson(successes, total)
    assert 0.0 <= low <= successes / total <= high <= 1.0
    mirrored = wilson(total - successes, total)
    assert (1.0 - mirrored[1], 1.0 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_no_trials_have_no_rate():
    with pytest.raises(ValueError, match="0 successes of 0 trials"):
        wilson(0, 0)


def test_a_report_says_what_interfaces_ask_for():
    episodes = (EpisodeResult(4, "touch it", True, False, 1.23456), EpisodeResult(5, "touch it", False, True, 2.0))
    mapping = Evaluation("arm", "touch", "folder", True, 4, "ros", episodes, Counters(3, 40, 1, 10, 9)).to_mapping()
    assert {
        "robot", "checkpoint", "trained", "seed", "duration", "chunks", "trajectories", "joint_travel_rad",
        "frames_sent", "frames_received", "frames_dropped", "holds", "inference_ms", "overhead_ms", "task", "episodes",
        "success_rate", "wrong_rate", "interval", "per_episode", "schema_version",
    } <= set(mapping)  # fmt: skip
    assert (mapping["success_rate"], mapping["wrong_rate"], mapping["frames_dropped"]) == (0.5, 0.5, 1)
    assert mapping["per_episode"][0] == {
        "seed": 4, "instruction": "touch it", "success": True, "wrong": False, "duration": 1.235,
    }  # fmt: skip
    json.dumps(mapping, allow_nan=False)


@pytest.mark.parametrize(
    ("robot", "task"),
    [("so101_bimanual", "touch"), ("agibot", "touch"), ("widowx", "touch"), ("so101_bimanual", "pick_place")],
)
def test_the_expert_succeeds_through_observations_chunks_and_control(robot, task):
    """Plans are good to their end, and what the live node makes of them is good enough."""
    profile = load_profile(robot)[robot]
    runner = InProcess(profile, load_task(profile, task), None, width=SIZE, height=SIZE)
    try:
        results = [runner.episode(seed) for seed in range(3)]
    finally:
        runner.close()
    assert sum(each.success for each in results) >= 2
    assert not any(each.wrong for each in results)
    assert runner.counters.chunks >= 3
    assert runner.counters.frames_sent == runner.counters.frames_received > 0


def test_what_the_policy_sees_does_not_depend_on_whether_it_is_filmed(profile, tmp_path):
    """Pictures, state and stamps of an episode, bit for bit."""

    def seen(films):
        found = []

        def stands(observations, prefixes):
            for each in observations:
                found.append((each.stamp, each.state.tobytes(), *(view.tobytes() for view in each.images.values())))
            return [ActionChunk.of(each, np.tile(each.state, (30, 1)).astype(np.float32), 1.0) for each in observations]

        runner = InProcess(profile, load_task(profile, "touch"), stands, width=48, height=48, films=films, most_films=1)
        result = runner.episode(1)
        runner.close()
        return found, result.film

    plain, without = seen(None)
    filmed, film = seen(tmp_path / "films")
    assert (without, film) == ("", "films/touch-1.mp4")
    assert len(plain) >= 3 and plain == filmed


def test_a_delay_is_one_of_simulated_time_which_counts_from_the_first_command(profile):
    def ended(delay):
        runner = InProcess(profile, load_task(profile, "touch"), None, width=16, height=16, delay=delay)
        try:
            return runner.episode(3), runner.world.time / 1e9
        finally:
            runner.close()

    (prompt, sooner), (late, later) = ended(0.0), ended(0.4)
    assert prompt.success and late.success
    assert later > sooner + 0.2
    assert late.duration == pytest.approx(prompt.duration, abs=0.1)


def test_each_layout_has_noise_of_its_own(profile):
    """Noise is drawn from the stamp of an observation: with the same, episodes would not be independent."""

    class SeenError(Exception):
        pass

    def look(observations, prefixes):
        seen.append(observations[0].stamp)
        raise SeenError

    seen = []
    runner = InProcess(profile, load_task(profile, "touch"), look, width=16, height=16)
    for seed in (3, 4, 3):
        with pytest.raises(EvaluationError):
            runner.episode(seed)
    runner.close()
    assert seen[0] == seen[2] != seen[1]


def test_what_the_policy_raises_ends_the_evaluation(profile):
    def broken(observations, prefixes):
        raise ValueError("no such domain")

    runner = InProcess(profile, load_task(profile, "touch"), broken, width=16, height=16)
    with pytest.raises(EvaluationError, match="no such domain"):
        runner.episode(0)
    runner.close()


def test_a_ctrl_c_while_the_policy_computes_is_not_its_failure(profile):
    def stopped(observations, prefixes):
        raise KeyboardInterrupt

    runner = InProcess(profile, load_task(profile, "touch"), stopped, width=16, height=16)
    with pytest.raises(KeyboardInterrupt):
        runner.episode(0)
    runner.close()


@pytest.fixture(scope="module")
def steadfast(profile, tmp_path_factory):
    """A checkpoint that wants one posture whatever it sees, a seed for which that is a success, and one of another."""
    folder = tmp_path_factory.mktemp("steadfast")
    return folder, save_steadfast(profile, folder)


def evaluate(robot, task, episodes, seed=0, checkpoint=None, **options):
    given = {"robot": robot, "task": task, "episodes": episodes, "seed": seed, "checkpoint": checkpoint, **options}
    return run(Evaluate(**given), "xvla evaluate")


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_command_evaluates_in_process(steadfast, tmp_path, capsys):
    checkpoint, seed = steadfast
    assert evaluate(
        ROBOT, "touch", 2, seed, str(checkpoint), in_process=True, output=tmp_path, image_size=SIZE
    ) == 0  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    said = capsys.readouterr()
    assert "1 of 2 succeeded" in said.out
    report = report_of(tmp_path)
    assert report["per_episode"][0]["success"]
    assert (report["over"], report["trained"], report["episodes"], report["seed"]) == ("process", False, 2, seed)
    assert report["success_rate"] == 0.5
    assert "is untrained in" in said.err and f"{tmp_path / 'films'}: 1 of 1 failures" in said.out
    (failed,) = (each for each in report["per_episode"] if not each["success"])
    assert failed["film"] == f"films/touch-{failed['seed']}.mp4" and "film" not in report["per_episode"][0]
    assert f'src="{failed["film"]}"' in page and "Untrained." in page and "Every failure was filmed" in page
    assert (
        "(the policy does not see this), front camera, left wrist camera, right wrist camera" in page
        and "1 of 2" in page
    )
    frames = film_of(tmp_path / failed["film"])
    assert frames[0].shape == (300, 456 + 768, 3)
    assert all(frames[5][:256, begin : begin + 200].std() > 15 for begin in (20, 480, 740, 1000)), "a view is empty"
    assert len(frames) >= 15 * failed["duration"] - 2  # it begins before the first command


def film_of(file):
    import av

    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_stop_keeps_the_episodes_that_came_to_their_end(monkeypatch, steadfast, tmp_path, capsys):
    checkpoint, seed = steadfast
    episode, done = InProcess.episode, []

    def stopped(self, number, *arguments, **options):
        if done:
            raise KeyboardInterrupt
        done.append(number)
        return episode(self, number, *arguments, **options)

    monkeypatch.setattr(InProcess, "episode", stopped)
    options = {"in_process": True, "output": tmp_path, "image_size": SIZE}
    assert evaluate(ROBOT, "touch", 5, seed, str(checkpoint), **options) == 130
    report = report_of(tmp_path)
    assert (report["episodes"], report["settings"]["episodes_asked"]) == (1, 5)
    assert "stopped after 1 of 5 episodes" in capsys.readouterr().err
    done.append("the first too")
    assert evaluate(ROBOT, "touch", 5, seed, str(checkpoint), **options) == 130
    assert "stopped" in capsys.readouterr().err and report_of(tmp_path) == report


def test_an_error_keeps_the_episodes_that_came_to_their_end(monkeypatch, steadfast, tmp_path, capsys):
    checkpoint, seed = steadfast
    episode = InProcess.episode

    def broken(self, number, *arguments, **options):
        if number > seed:
            raise EvaluationError("the policy failed: connection reset")
        return episode(self, number, *arguments, **options)

    monkeypatch.setattr(InProcess, "episode", broken)
    options = {"in_process": True, "output": tmp_path, "image_size": SIZE}
    assert evaluate(ROBOT, "touch", 5, seed, str(checkpoint), **options) == 1
    assert "connection reset; the report contains the 1 of 5 episodes before it" in capsys.readouterr().err
    report = report_of(tmp_path)
    assert (report["episodes"], report["failure"]) == (1, "the policy failed: connection reset")


def test_an_error_over_ros_keeps_the_episodes_that_came_to_their_end(steadfast, tmp_path, capsys, monkeypatch):
    pytest.importorskip("rclpy")
    from xvla_ros.commands.over_ros import _Heard

    checkpoint, seed = steadfast
    hear = _Heard.hear

    def broken(self, line):
        if self.failed:  # it says nothing more, however late that is read
            return True
        heard = hear(self, line)
        if self.episodes and not self.failed:
            self.failed = "the node /xvla does not answer"
        return heard

    monkeypatch.setattr(_Heard, "hear", broken)
    assert evaluate(ROBOT, "touch", 2, seed, str(checkpoint), output=tmp_path, image_size=SIZE) == 1
    assert "episode 2 of 2: the node /xvla does not answer" in capsys.readouterr().err
    report = report_of(tmp_path)
    assert report["episodes"] == 1 and "does not answer" in report["failure"]


@pytest.mark.parametrize("through_a_link", [False, True])
def test_films_of_an_earlier_run_are_replaced_and_other_files_stay(tmp_path, through_a_link):
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    output.mkdir()
    elsewhere.mkdir()
    films = output / "films"
    films.symlink_to(elsewhere) if through_a_link else films.mkdir()
    ours, theirs = ["touch-1.mp4", "pick_place-20.mp4"], ["holiday.mp4", "touch-it.mp4", "trip-2024.mp4", "touch-1.txt"]
    for name in ours + theirs:
        (films / name).write_text("")
    assert run(Evaluate(expert=True, episodes=1, seed=3, films=0, image_size=SIZE, output=str(output)), "") == 0
    assert {file.name for file in films.iterdir()} == {*theirs, *(ours if through_a_link else ())}


def test_over_ros_topics_the_same_seeds_end_alike(steadfast, tmp_path):
    pytest.importorskip("rclpy")
    checkpoint, seed = steadfast
    here, there = tmp_path / "here", tmp_path / "there"
    arguments = (ROBOT, "touch", 2, seed, str(checkpoint))
    assert evaluate(*arguments, in_process=True, output=here, image_size=SIZE) == 0
    assert evaluate(*arguments, output=there, image_size=SIZE) == 0
    ours, theirs = report_of(here), report_of(there)
    for mine, live in zip(ours["per_episode"], theirs["per_episode"], strict=True):
        assert [mine[key] for key in ("seed", "instruction", "success", "wrong")] == [
            live[key] for key in ("seed", "instruction", "success", "wrong")
        ]
        assert live["duration"] == pytest.approx(mine["duration"], abs=0.5)  # a chunk takes time where it is real
    assert theirs["over"] == "ros"
    assert theirs["checkpoint"] == str(checkpoint)
    assert theirs["frames_received"] > 0 and theirs["chunks"] > 0
    assert theirs["joint_travel_rad"].keys() == ours["joint_travel_rad"].keys()
    assert theirs["inference_ms"]["p50"] > 0.0
    done, failed = sorted(theirs["per_episode"], key=lambda each: not each["success"])
    assert failed["film"] == f"films/touch-{failed['seed']}.mp4" and "film" not in done
    assert [file.name for file in (there / "films").iterdir()] == [f"touch-{failed['seed']}.mp4"]
    frames = film_of(there / failed["film"])
    assert frames[0].shape == (300, 456, 3) and frames[-1][:256].std() > 15
    assert len(frames) >= 0.5 * 15 * failed["duration"]
    page = (there / "report.html").read_text()
    assert f'src="{failed["film"]}"' in page and "from beside the table (the policy does not see this)." in page


def test_what_cannot_be_evaluated_is_named(tmp_path, capsys):
    assert evaluate("widowx", "juggle", 1, output=tmp_path, in_process=True) == 1
    assert "no task 'juggle' for robot 'widowx'" in capsys.readouterr().err
    assert evaluate(ROBOT, "touch", 1, checkpoint=str(tmp_path / "none"), output=tmp_path, in_process=True) == 1
    assert "none" in capsys.readouterr().err
    both = {"checkpoint": str(tmp_path / "none"), "server": "ws://localhost:1"}
    assert evaluate(ROBOT, "touch", 1, output=tmp_path, in_process=True, **both) == 1
    assert "expected only one of them" in capsys.readouterr().err
    assert evaluate(ROBOT, "touch", 1, output=tmp_path, delay=0.1) == 1
    assert "add --in-process" in capsys.readouterr().err
    ended = subprocess.run(
        [sys.executable, "-m", "xvla_ros", "evaluate", "--seed", "-1"], capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "-1 is not a whole number of 0 or more" in ended.stderr
