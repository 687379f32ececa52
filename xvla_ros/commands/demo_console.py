"""What a demo says on the console while it runs, and how it hears what its nodes say."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

from xvla_ros.evaluation.report.recording import in_words
from xvla_ros.nodes.progress import read_progress


class DemoProgress:
    """What the watching node, and the leading one where there is one, say about the run."""

    def __init__(self) -> None:
        self.time = 0
        self.start = 0
        self.elapsed = 0.0
        self.chunks = 0
        self.trajectories = 0
        self.done = False
        self.state = ""
        self.reason = ""
        self.detail = ""
        self.episodes: list[dict[str, Any]] = []
        self.failed = ""
        self._moved = time.monotonic()

    def hear(self, line: str) -> bool:
        """Take in one line of the watching node; False where it is an ordinary log line."""
        said = read_progress(line)
        if said is None:
            return False
        if said["time"] > self.time:
            self._moved = time.monotonic()
        for name, value in said.items():
            setattr(self, name, value)
        return True

    def hear_leader(self, line: str) -> bool:
        """Take in one line of the leading node: only why it cannot go on, as the other knows of episodes."""
        said = read_progress(line)
        if said is None:
            return False
        self.failed = said.get("failed", self.failed)
        return True

    @property
    def standing_still(self) -> float:
        """Seconds on the steady clock since ROS time last moved."""
        return time.monotonic() - self._moved

    def policy(self) -> str:
        """What the policy reports, in words."""
        return ", ".join(filter(None, (self.state or "silent", self.reason.replace("_", " "), self.detail)))


class Console:
    """Says what happens on stdout and passes on what the nodes say, on stderr.

    On a terminal the progress is one line that rewrites itself, and other lines go above it; elsewhere it is a line
    every few seconds.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._shown = -1.0
        self._told = 0

    def say(self, text: str) -> None:
        print(f"{self._clear()}{text}", flush=True)

    def echo(self, line: str) -> None:
        width = shutil.get_terminal_size((160, 24)).columns - 3
        text = line if len(line) <= width else line[: width - 1] + "…"
        print(f"{self._clear()}  {text}", file=sys.stderr, flush=True)

    def episodes(self, progress: DemoProgress) -> None:
        """A line for every episode that came to its end since the last call."""
        for each in progress.episodes[self._told :]:
            self._told += 1
            outcome = in_words(each["task"], success=each["success"], wrong=each["wrong"])
            sign = "✓" if each["success"] else "✗"
            self.say(f"  {sign} “{each['instruction']}”: {outcome}, {each['elapsed']:.1f} s (seed {each['seed']})")

    def progress(self, progress: DemoProgress, duration: float) -> None:
        if progress.elapsed - self._shown < (0.2 if self._terminal else 5.0):
            return
        self._shown = progress.elapsed
        share = min(1.0, progress.elapsed / duration)
        bar = "━" * round(20 * share) + "╌" * (20 - round(20 * share))
        counts = f"{progress.chunks} chunks  {progress.trajectories} trajectories"
        text = f"  {bar} {progress.elapsed:5.1f} of {duration:.0f} s  {counts}  {progress.policy()}"
        width = shutil.get_terminal_size((120, 24)).columns - 1
        print(f"{self._clear()}{text[:width]}", end="" if self._terminal else "\n", flush=True)

    def _clear(self) -> str:
        return "\r\x1b[2K" if self._terminal and self._shown >= 0 else ""
