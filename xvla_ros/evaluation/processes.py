# SPDX-License-Identifier: Apache-2.0
"""Child processes that a command starts, follows and always takes down again.

Nothing of ROS here. A child lives in a session of its own, so a Ctrl-C of the terminal reaches the supervisor alone,
which then stops the children in order. Should the supervisor itself be killed, the kernel kills the children.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import queue
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TextIO

from xvla_ros.errors import Interrupted, XvlaError
from xvla_ros.resources import open_lock

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
KEPT_LINES = 30
POLL = 0.2
ROS_LOG_LINE = re.compile(r"^\[(DEBUG|INFO|WARN|ERROR|FATAL)\]\s*(?:\[[^\]]*\]\s*:?\s*)*(.*)$")
IMPORTANT = ("WARN", "ERROR", "FATAL")
# Domains 0 to 101 keep every DDS port below Linux's ephemeral range.
LAST_DOMAIN = 101
DOMAIN_PORT_BASE, DOMAIN_PORT_GAIN = 7400, 250
# Ports of multicast and of the first participants; a participant that keeps to this host has no multicast.
DOMAIN_PORT_OFFSETS = (0, 10, 12, 14, 16)


class ChildError(XvlaError, RuntimeError):
    """A child ended before it was asked to, or a condition did not come true in time."""


@dataclass(frozen=True)
class StopTimes:
    """Seconds that a child has to end after SIGINT, and then after SIGTERM, before SIGKILL."""

    interrupt: float = 10.0
    terminate: float = 3.0


class Child:
    """One running child: its process, its log file and the last lines it said."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path, may_end: bool) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.may_end = may_end
        self.stopping = False
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.reader: threading.Thread | None = None
        self.reader_error: BaseException | None = None

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet. Once it has, whatever it started itself is killed too."""
        if self.process.returncode is not None:
            return False
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return True
        # Not reaped yet, so the number of the group still belongs to the child and cannot hit a stranger.
        self.signal(signal.SIGKILL)
        self.process.wait()
        return False

    def signal(self, signum: int) -> None:
        """Send ``signum`` to the child and to everything it started; nothing once it has been reaped."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signum)

    def describe_end(self) -> str:
        """Say how the child ended, with its last lines."""
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        said = "\n".join(f"    {line}" for line in list(self.last_lines)[-12:]) or "    (no output)"
        return f"{self.name} {how}; its last lines (all of them in {self.log}):\n{said}"


class Supervisor:
    """Starts children, reads what they print, and stops all of them when the ``with`` block ends, in whatever way.

    Use it in the main thread: there it takes SIGINT, SIGTERM and SIGHUP, which end a wait with :class:`Interrupted`.
    The thread that starts a child must live as long as the child does (Linux ties the parent-death signal to it).

    Args:
        logs: folder that receives ``<name>.log`` of every child.
        environment: environment of the children; None gives them this process's own.
        stop_times: patience while stopping.
        echo: receives the lines worth showing, already prefixed; None logs them as warnings.
        verbose: also echo INFO lines of the children. It may be changed while running.
    """

    def __init__(
        self,
        logs: Path,
        environment: Mapping[str, str] | None = None,
        *,
        stop_times: StopTimes | None = None,
        echo: Callable[[str], None] | None = None,
        verbose: bool = True,
    ) -> None:
        self.logs = logs
        self.environment = dict(os.environ if environment is None else environment)
        self.stop_times = stop_times or StopTimes()
        self.verbose = verbose
        self._echo = echo or log.warning
        self._children: list[Child] = []
        self._events: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._signum: int | None = None
        self._kill_now = False
        self._stopping = False
        self._old_handlers: dict[int, object] = {}

    def __enter__(self) -> Supervisor:
        self.logs.mkdir(parents=True, exist_ok=True)
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._old_handlers[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            for signum, handler in self._old_handlers.items():
                signal.signal(signum, handler)  # type: ignore[arg-type]
            self._old_handlers.clear()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        on_line: Callable[[str], bool] | None = None,
        may_end: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start ``command`` as the child called ``name``.

        Args:
            on_line: gets every line (in a thread of its own) before it is logged; True means "dealt with": the line
                is then neither logged nor echoed.
            may_end: the child may end by itself with exit code 0 without that being an error.
            environment: extra variables of this child.

        Raises:
            ChildError: the program cannot be started.
            Interrupted: a signal had already asked to end.
        """
        self.check()
        log = self.logs / f"{name}.log"
        try:
            process = subprocess.Popen(
                list(command),
                env={**self.environment, "PYTHONUNBUFFERED": "1", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                bufsize=1,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
        except OSError as error:
            raise ChildError(f"{name} cannot be started: {error}; command: {' '.join(command)}") from error
        child = Child(name, process, log, may_end)
        self._children.append(child)
        child.reader = threading.Thread(target=self._read, args=(child, on_line), name=f"read {name}", daemon=True)
        child.reader.start()
        return child

    def check(self) -> None:
        """Raise if a signal asked to end or a child has ended early.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGHUP came.
            ChildError: naming the child, its exit code and its last lines, or why it is no longer heard.
        """
        if self._signum is not None:
            raise Interrupted(self._signum)
        for child in self._children:
            if child.reader_error is not None and not child.stopping:
                cause = f"{type(child.reader_error).__name__}: {child.reader_error}"
                raise ChildError(f"the output of {child.name} can no longer be read: {cause}") from child.reader_error
            if child.running or child.stopping or (child.may_end and child.process.returncode == 0):
                continue
            if child.reader is not None:
                child.reader.join(timeout=2.0)
            raise ChildError(child.describe_end())

    def wait_for(
        self,
        condition: Callable[[], bool],
        timeout: float | None,
        what: str | Callable[[], str],
        *,
        each: Callable[[], None] | None = None,
    ) -> None:
        """Wait until ``condition()`` holds; look again whenever a child says something.

        Args:
            timeout: seconds on the steady clock; None waits without end.
            what: name, in the error, of what was waited for.
            each: called at every look, for instance to refresh a progress line.

        Raises:
            ChildError: a child ended early, or the time is over.
            Interrupted: a signal asked to end.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self.check()
            if condition():
                return
            if each is not None:
                each()
            if deadline is not None and time.monotonic() > deadline:
                missing = what() if callable(what) else what
                raise ChildError(f"waited {timeout:.0f} s for {missing}; logs of the processes: {self.logs}")
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=POLL)
                while True:
                    self._events.get_nowait()

    def stop(self, *children: Child) -> dict[str, int]:
        """Stop the given children, or all of them, the latest started first: SIGINT, then SIGTERM, then SIGKILL.

        A second Ctrl-C meanwhile kills at once.

        Returns:
            Exit code by child name.
        """
        everyone = not children
        chosen = list(children) or list(self._children)
        self._stopping = everyone
        if everyone:
            # All are asked together: one that waits for another's topics must not wait for its turn as well.
            self._end(chosen[::-1])
            self._children = []
        else:
            self._end(chosen)
        return {child.name: child.process.returncode for child in chosen}

    def _end(self, children: list[Child]) -> None:
        for child in children:
            child.stopping = True
        for signum, patience in (
            (signal.SIGINT, self.stop_times.interrupt),
            (signal.SIGTERM, self.stop_times.terminate),
            (signal.SIGKILL, 5.0),
        ):
            alive = [child for child in children if child.running]
            for child in alive:
                child.signal(signum)
            self._await_end(alive, patience, giving_up_on_kill=signum != signal.SIGKILL)
        for child in children:
            if child.reader is not None:
                child.reader.join(timeout=2.0)

    def _await_end(self, children: list[Child], patience: float, *, giving_up_on_kill: bool) -> None:
        deadline = time.monotonic() + patience
        while any(child.running for child in children) and time.monotonic() < deadline:
            if self._kill_now and giving_up_on_kill:
                return
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=0.05)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        # Only a flag and a reentrant queue: an exception raised here could fall between fork and bookkeeping.
        if self._signum is not None or self._stopping:
            self._kill_now = self._stopping or self._kill_now
        self._signum = self._signum or signum
        self._events.put(None)

    def _read(self, child: Child, on_line: Callable[[str], bool] | None) -> None:
        stream = child.process.stdout
        if stream is None:
            return
        try:
            with child.log.open("w", encoding="utf-8") as log:
                for raw in stream:
                    line = raw.rstrip("\n")
                    if on_line is None or not on_line(line):
                        self._note(child, line, log)
                    self._events.put(None)
        except BaseException as error:  # a child that nobody reads would stand still at its next line, and say nothing
            child.reader_error = error
        self._events.put(None)

    def _note(self, child: Child, line: str, log: TextIO) -> None:
        log.write(line + "\n")
        log.flush()
        child.last_lines.append(line)
        shown = line_to_show(line, self.verbose)
        if shown is not None and not child.stopping:  # what it says of being stopped is no news
            self._echo(f"[{child.name}] {shown}")


def line_to_show(line: str, verbose: bool) -> str | None:
    """Return what of a child's line a user should see, or None.

    ROS log lines lose their time and node name; warnings and errors keep their level. INFO is shown when ``verbose``;
    lines that are no ROS log lines stay in the log file.
    """
    match = ROS_LOG_LINE.match(line)
    if match is None:
        return None
    level, text = match.groups()
    if level in IMPORTANT:
        return f"{level}: {text}"
    return text if verbose and level == "INFO" else None


@contextlib.contextmanager
def free_domain(wanted: int | None = None) -> Iterator[int]:
    """Yield a ROS_DOMAIN_ID that no participant on this machine uses, reserved while the block lasts.

    A lock file keeps two runs that start together apart; bound discovery ports show everybody else. A link, or another
    user's file, in the place of a lock is passed over: anybody may have put it there.

    Args:
        wanted: use exactly this domain, free or not.

    Raises:
        ChildError: every domain from 1 to 101 is taken.
    """
    if wanted is not None:
        yield wanted
        return
    candidates = list(range(1, LAST_DOMAIN + 1))
    random.SystemRandom().shuffle(candidates)
    for domain in candidates:
        path = Path(tempfile.gettempdir()) / f"xvla_ros_domain_{os.getuid()}_{domain}.lock"
        try:
            lock = open_lock(path)
        except OSError:
            continue
        try:
            if _is_locked(lock) and _is_unused(domain):
                yield domain
                return
        finally:
            os.close(lock)
    raise ChildError(
        f"every ROS_DOMAIN_ID from 1 to {LAST_DOMAIN} is in use on this machine; set ROS_DOMAIN_ID to share one"
    )


def _is_locked(lock: int) -> bool:
    """Say whether this process now holds the lock on an open file of this user."""
    found = os.fstat(lock)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs ``module`` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def _is_unused(domain: int) -> bool:
    for offset in DOMAIN_PORT_OFFSETS:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", DOMAIN_PORT_BASE + DOMAIN_PORT_GAIN * domain + offset))
            except OSError:
                return False
    return True


def _die_with(parent: int) -> Callable[[], None] | None:
    """Return what a new child runs so that the kernel kills it when ``parent`` dies; None where the system cannot."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def ask_kernel() -> None:
        # SIGKILL, not SIGTERM: nobody is left to send a second signal. The arm of a dead policy node stops within the
        # lookahead of its last command.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask_kernel
