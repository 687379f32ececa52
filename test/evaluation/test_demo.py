# SPDX-License-Identifier: Apache-2.0
"""The demo itself: real nodes, real DDS, and no process left however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from xvla_ros.commands.demo import _prepare
from xvla_ros.errors import SetupError
from xvla_ros.evaluation.report.film import HEIGHT, WIDTH, read_frame

LIMIT = 300.0  # s, only ends a hang
DURATION = 4.0
BEGIN = "import json, sys; from xvla_ros.commands import main, run; given = json.loads(sys.argv[1]); "
CODE = BEGIN + "from xvla_ros.commands.demo import Demo; sys.exit(run(Demo(**given), 'xvla demo'))"
RUN = BEGIN + "from xvla_ros.commands.live import Run; sys.exit(run(Run(**given), 'xvla run'))"
CLI = BEGIN + "sys.exit(main(given['arguments']))"
MARK = "XVLA_TEST_MARK"


class Started:
    """A command of ours in a process of its own, and all that came of it, told by a mark in their environment."""

    def __init__(self, code: str, **arguments: Any) -> None:
        self.mark = uuid.uuid4().hex
        environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(arguments)],
            env={**environment, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.output = ""

    def read_until(self, text: str) -> None:
        """Read stdout up to the line that holds ``text``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} never came:\n{self.output}\n{self.process.communicate()[1]}")

    def end(self, signum: int | None = None) -> tuple[int, str]:
        """Wait for the end, after sending ``signum``; return exit code and stderr."""
        if signum is not None:
            self.process.send_signal(signum)
        output, errors = self.process.communicate(timeout=LIMIT)
        self.output += output
        return self.process.returncode, errors

    def alive(self) -> list[int]:
        """Numbers of the processes that carry the mark and run."""
        wanted = f"{MARK}={self.mark}".encode()
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if wanted in _environment(entry)]


@contextmanager
def started(code: str, **arguments: Any) -> Iterator[Started]:
    command = Started(code, **arguments)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.communicate()


def _environment(entry: Path) -> bytes:
    try:
        return b"" if "Z" in (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] else _read(entry / "environ")
    except OSError:
        return b""


def _read(path: Path) -> bytes:
    return path.read_bytes()


def becomes(condition: Callable[[], bool], limit: float = LIMIT) -> bool:
    deadline = time.monotonic() + limit
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Output folder and console output of one short demo."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "logs").mkdir()
    (folder / "logs" / "theirs.log").write_text("kept")
    with started(CODE, duration=DURATION, seed=7, output=str(folder)) as command:
        code, errors = command.end()
        assert code == 0, command.output + errors
        assert becomes(lambda: not command.alive())
    return folder, command.output


def test_the_figures_hold_together(finished: tuple[Path, str]) -> None:
    report = json.loads((finished[0] / "report.json").read_text())
    assert report["schema_version"] == 1
    assert (report["robot"], report["seed"]) == ("so101_bimanual", 7)
    assert report["duration"] == pytest.approx(DURATION, abs=0.3)
    assert report["chunks"] >= 2
    assert report["trajectories"] >= 20
    assert set(report["joint_travel_rad"]) == {"left_arm", "right_arm"}
    assert all(way > 0.05 for way in report["joint_travel_rad"].values())
    assert report["frames_sent"] - report["frames_received"] == report["frames_dropped"]
    assert 0 <= report["frames_dropped"] <= 0.02 * report["frames_sent"]
    assert report["frames_sent"] > 3 * 30 * 1.0
    for name in ("inference_ms", "overhead_ms"):
        numbers = report[name]
        assert 0 < numbers["p50"] <= numbers["p95"] <= numbers["p99"] <= numbers["max"]
    assert report["holds"] == 0
    assert 0.0 < report["real_time_factor"] <= 1.05
    assert (report["dtype"], report["device"]) == ("float32", "cpu") and report["dtype_reason"]


def test_console_film_and_page_say_the_same_of_the_weights(finished: tuple[Path, str]) -> None:
    folder, console = finished
    report = json.loads((folder / "report.json").read_text())
    page = (folder / "report.html").read_text()
    frame = read_frame(folder / "film.mp4", 1.0)
    assert frame.shape == (HEIGHT, WIDTH, 3)
    red, green, blue = frame[70, 20].astype(int)
    banner = bool(red > 150 > max(green, blue))
    assert report["trained"] is not banner
    assert ("Untrained." in page) is banner
    assert ("untrained" in console) is banner


def test_the_film_shows_the_simulation(finished: tuple[Path, str]) -> None:
    early, late = (read_frame(finished[0] / "film.mp4", second) for second in (0.5, DURATION - 0.5))
    views = slice(130, 480)
    assert early[views].std() > 20
    assert abs(early[views].astype(int) - late[views]).max() > 40


def test_nothing_but_results_and_logs_is_left(finished: tuple[Path, str]) -> None:
    names = {path.name for path in finished[0].iterdir()}
    assert names == {"report.json", "report.html", "film.mp4", "run.mcap", "logs"}
    assert (finished[0] / "logs" / "theirs.log").read_text() == "kept"


def test_a_demo_replaces_what_a_demo_left_and_nothing_else(tmp_path: Path) -> None:
    theirs, before = tmp_path / "run.mcap", tmp_path / "before"
    theirs.write_text("a recording of hours")
    with pytest.raises(SetupError, match=r"contains run\.mcap, but no logs/watch\.log, .*: name another folder"):
        _prepare(tmp_path)
    assert theirs.read_text() == "a recording of hours"
    (before / "logs").mkdir(parents=True)
    left = [before / name for name in ("run.mcap", "report.json", "logs/watch.log", "logs/lead.log")]
    for file in left:
        file.write_text("of an earlier demo")
    _prepare(before)
    assert not any(file.exists() for file in left)


@pytest.mark.parametrize(
    ("signum", "code", "moment"), [(signal.SIGINT, 130, "of 600 s"), (signal.SIGTERM, 143, "the simulation runs")]
)
def test_a_demo_told_to_stop_leaves_no_process(tmp_path: Path, signum: int, code: int, moment: str) -> None:
    with started(CODE, duration=600, task="none", output=str(tmp_path)) as command:
        command.read_until(moment)
        assert becomes(lambda: len(command.alive()) == 4)  # what a library started to look round has ended
        returned, errors = command.end(signum)
        assert returned == code
        assert "Traceback" not in errors
        assert becomes(lambda: not command.alive())
    if moment == "of 600 s":
        assert "the film and the report show what was recorded" in errors
        assert {"film.mp4", "report.html", "report.json"} <= {path.name for path in tmp_path.iterdir()}


def test_a_demo_whose_policy_dies_leaves_film_and_report_and_says_where_to_look(tmp_path: Path) -> None:
    with started(CODE, duration=600, task="none", output=str(tmp_path)) as command:
        command.read_until("of 600 s")
        (policy,) = [pid for pid in command.alive() if b"policy_node" in _read(Path(f"/proc/{pid}/cmdline"))]
        os.kill(policy, signal.SIGKILL)
        code, errors = command.end()
        assert becomes(lambda: not command.alive())
    assert code == 1
    assert "ended early: policy" in errors and str(tmp_path / "logs") in errors and "Traceback" not in errors
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dtype"] == "float32" and report["dtype_reason"] and report["instruction_set"]
    assert read_frame(tmp_path / "film.mp4", 0.0).shape == (HEIGHT, WIDTH, 3)


def test_a_demo_killed_outright_leaves_no_process(tmp_path: Path) -> None:
    with started(CODE, duration=600, task="none", output=str(tmp_path)) as command:
        command.read_until("the simulation runs")
        assert becomes(lambda: len(command.alive()) == 4)  # what a library started to look round has ended
        command.process.kill()
        assert becomes(lambda: not command.alive())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"robot": "no_such_arm"}, "no_such_arm"),
        ({"duration": -1.0}, "duration is -1.0 s"),
        ({"checkpoint": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_what_cannot_be_run_is_one_clear_message(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with started(CODE, output=str(tmp_path), **arguments) as command:
        code, errors = command.end()
    assert code == 1
    assert re.search(rf"^xvla demo: .*{re.escape(message)}", errors, re.MULTILINE | re.DOTALL)
    assert "Traceback" not in errors
    assert becomes(lambda: not command.alive())


def test_run_follows_its_nodes_until_it_is_told_to_stop(tmp_path: Path, ros_domain: int) -> None:
    with started(RUN, sim=True, output=str(tmp_path)) as command:
        command.read_until("running so101_bimanual")
        assert becomes(lambda: len(command.alive()) == 3)
        code, errors = command.end(signal.SIGINT)
        assert code == 0, errors
        assert becomes(lambda: not command.alive())


def test_run_moves_an_untrained_arm_in_simulated_time_only(tmp_path: Path, ros_domain: int) -> None:
    arguments = ["run", "--robot", "so101", "--output", str(tmp_path)]
    with started(CLI, arguments=arguments) as command:
        code, errors = command.end()
        assert code == 1
        assert "cannot activate: so101: untrained: domain 28 is not trained" in errors and "allow_untrained" in errors
    with started(CLI, arguments=[*arguments, "--use-sim-time"]) as command:
        command.read_until("running so101")
        assert becomes(lambda: "inactive → active" in (tmp_path / "logs" / "policy.log").read_text())
        code, errors = command.end(signal.SIGINT)
        assert code == 0, errors
