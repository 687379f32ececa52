# SPDX-License-Identifier: Apache-2.0
"""The supervisor with real processes: early ends, stubborn children, signals, a killed parent."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from xvla_ros.errors import Interrupted
from xvla_ros.evaluation.processes import ChildError, StopTimes, Supervisor, free_domain, line_to_show

QUICK = StopTimes(interrupt=1.0, terminate=0.5)
LIMIT = 120.0  # s, only ends a hang


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def exists(pid: int) -> bool:
    """Whether ``pid`` is a process that still runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, limit: float = LIMIT) -> bool:
    deadline = time.monotonic() + limit
    while exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not exists(pid)


def test_a_child_that_dies_early_is_named_with_its_code_and_last_lines(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("arm", python("print('no such joint'); raise SystemExit(3)"))
        with pytest.raises(ChildError, match=r"(?s)arm ended with exit code 3.*no such joint"):
            supervisor.wait_for(lambda: False, LIMIT, "never")
    assert (tmp_path / "arm.log").read_text() == "no such joint\n"


def test_a_child_killed_by_a_signal_is_said_so(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("arm", python("import os; os.kill(os.getpid(), 9)"))
        with pytest.raises(ChildError, match="arm was killed by SIGKILL"):
            supervisor.wait_for(lambda: False, LIMIT, "never")


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_child_that_cannot_be_heard_any_more_is_named(tmp_path: Path, error: type[BaseException]) -> None:
    """It would stand still as soon as the pipe is full, and nobody would know."""

    def read(line: str) -> bool:
        raise error(f"no progress: {line}")

    with Supervisor(tmp_path) as supervisor:
        supervisor.start("arm", python("print('half a line'); import time; time.sleep(600)"), on_line=read)
        said = f"the output of arm can no longer be read: {error.__name__}: no progress: half"
        with pytest.raises(ChildError, match=said):
            supervisor.wait_for(lambda: False, LIMIT, "never")


def test_a_program_that_does_not_exist_is_a_child_error(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor, pytest.raises(ChildError, match="arm cannot be started"):
        supervisor.start("arm", ["/no/such/program"])


def test_a_condition_that_stays_false_names_what_was_awaited(tmp_path: Path) -> None:
    with Supervisor(tmp_path, stop_times=QUICK) as supervisor:
        supervisor.start("arm", python("import time; time.sleep(600)"))
        with pytest.raises(ChildError, match="waited 0 s for the first command"):
            supervisor.wait_for(lambda: False, 0.3, "the first command")


def test_only_a_clean_end_is_allowed_to_a_child_that_may_end(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("recorder", python("pass"), may_end=True)
        supervisor.wait_for(lambda: not child.running, LIMIT, "the end")
        bad = supervisor.start("other", python("raise SystemExit(1)"), may_end=True)
        with pytest.raises(ChildError, match="other ended with exit code 1"):
            supervisor.wait_for(lambda: not bad.running and False, LIMIT, "never")


def test_sigint_first_so_that_a_child_can_finish_its_files(tmp_path: Path) -> None:
    code = (
        "import signal, pathlib\nsignal.pthread_sigmask(signal.SIG_BLOCK, {2})\nprint('ready', flush=True)\n"
        f"signal.sigwait({{2}})\npathlib.Path({str(tmp_path / 'done')!r}).touch()"
    )
    heard: list[str] = []
    with Supervisor(tmp_path, stop_times=StopTimes(LIMIT, LIMIT)) as supervisor:
        child = supervisor.start("sim", python(code), on_line=lambda line: bool(heard.append(line)))
        supervisor.wait_for(lambda: heard == ["ready"], LIMIT, "ready")
        assert supervisor.stop(child) == {"sim": 0}
    assert (tmp_path / "done").exists()


def test_stubborn_children_and_their_own_children_are_killed(tmp_path: Path) -> None:
    inner = (
        "import signal; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; print('in', flush=True); signal.pause()"
    )
    code = (
        "import signal, subprocess, sys\n"
        "[signal.signal(s, signal.SIG_IGN) for s in (2, 15)]\n"
        f"p = subprocess.Popen([sys.executable, '-c', {inner!r}])\nprint(p.pid, flush=True)\nsignal.pause()"
    )
    heard: list[str] = []
    with Supervisor(tmp_path, stop_times=StopTimes(0.2, 0.2)) as supervisor:
        child = supervisor.start("stubborn", python(code), on_line=lambda line: bool(heard.append(line)))
        supervisor.wait_for(lambda: len(heard) == 2, LIMIT, "both")
        pids = [child.process.pid, *(int(line) for line in heard if line.isdigit())]
        assert len(pids) == 2
        assert all(map(exists, pids))
    assert all(map(gone, pids))
    assert child.process.returncode == -signal.SIGKILL


def test_an_exception_in_the_block_leaves_no_child(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Supervisor(tmp_path, stop_times=QUICK) as supervisor:
        child = supervisor.start("arm", python("import time; time.sleep(600)"))
        raise ZeroDivisionError
    assert gone(child.process.pid)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_and_the_handlers_come_back(tmp_path: Path, signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught, Supervisor(tmp_path, stop_times=QUICK) as supervisor:
        child = supervisor.start("arm", python("import time; time.sleep(600)"))
        os.kill(os.getpid(), signum)
        supervisor.wait_for(lambda: False, LIMIT, "never")
    assert caught.value.exit_code == 128 + signum
    assert gone(child.process.pid)
    assert signal.getsignal(signum) is before


def test_a_second_signal_while_stopping_kills_at_once(tmp_path: Path) -> None:
    """Only SIGKILL ends the child, and without the second signal its turn comes later than any test may take."""
    code = (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {2})\nsignal.signal(15, signal.SIG_IGN)\n"
        "print('ready', flush=True)\nsignal.sigwait({2})\nprint('asked', flush=True)\nsignal.pause()"
    )

    def hear(line: str) -> bool:
        heard.append(line)
        os.kill(os.getpid(), signal.SIGINT)  # first when the child is there, again when it has been asked to end
        return True

    heard: list[str] = []
    with pytest.raises(Interrupted), Supervisor(tmp_path, stop_times=StopTimes(3600, 3600)) as supervisor:
        child = supervisor.start("arm", python(code), on_line=hear)
        supervisor.wait_for(lambda: False, LIMIT, "never")
    assert heard == ["ready", "asked"]
    assert gone(child.process.pid)
    assert child.process.returncode == -signal.SIGKILL


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom xvla_ros.evaluation.processes import Supervisor\nimport sys\n"
        f"with Supervisor(Path({str(tmp_path)!r})) as s:\n"
        "    child = s.start('arm', [sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    print(child.process.pid, flush=True)\n    s.wait_for(lambda: False, None, 'never')\n"
    )
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert exists(pid)
        parent.kill()
    assert gone(pid)


def test_two_runs_get_two_domains_and_a_wanted_one_is_kept() -> None:
    with free_domain() as first, free_domain() as second, free_domain(first) as wanted:
        assert first != second
        assert wanted == first
        assert {first, second} <= set(range(1, 102))


@pytest.mark.parametrize("obstacle", ["link", "hard link", "pipe"])
def test_what_others_put_in_the_place_of_a_lock_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(random.SystemRandom, "shuffle", lambda self, candidates: candidates.sort())
    monkeypatch.setattr("xvla_ros.evaluation.processes._is_unused", lambda domain: True)  # by other tests, even so
    first = tmp_path / f"xvla_ros_domain_{os.getuid()}_1.lock"
    if obstacle == "link":
        first.symlink_to(victim)
    elif obstacle == "pipe":
        os.mkfifo(first)
    else:
        first.hardlink_to(victim)
    with free_domain() as domain:
        assert (domain == 1) == (obstacle == "hard link"), "a link of one's own file is locked as it is"
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("offset", [0, 10, 12])
def test_a_domain_with_a_participant_is_passed_over(
    offset: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with free_domain() as taken, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
        participant.bind(("", 7400 + 250 * taken + offset))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other locks than this run's
        monkeypatch.setattr(random.SystemRandom, "shuffle", lambda _, domains: domains.sort(key=taken.__ne__))
        with free_domain() as other:
            assert other != taken


@pytest.mark.parametrize(
    ("line", "verbose", "shown"),
    [
        ("[INFO] [1732300000.1] [xvla]: loading", True, "loading"),
        ("[INFO] [1732300000.1] [xvla]: loading", False, None),
        ("[WARN] [1732300000.1] [xvla]: no camera", False, "WARN: no camera"),
        ("[ERROR] [1732300000.1] [xvla]: lost", False, "ERROR: lost"),
        ("Traceback (most recent call last):", True, None),
    ],
)
def test_what_of_a_line_is_shown(line: str, verbose: bool, shown: str | None) -> None:
    assert line_to_show(line, verbose) == shown
