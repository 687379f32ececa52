# SPDX-License-Identifier: Apache-2.0
"""A benchmark's own interpreter: started, spoken to in plain arrays over a pipe, and ended."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from xvla_ros.errors import SetupError, SimulationError
from xvla_ros.simulation.suites.pipe import Arrays, receive, send

PIPE = Path(__file__).with_name("pipe.py")
PATIENCE = 10.0  # s until a worker that was told to end is made to
SHOWN = 6  # last lines of what a worker printed


@dataclass(frozen=True)
class Interpreter:
    """Where benchmarks have their packages.

    Attributes:
        name: of what runs there.
        variable: of the environment, names it.
        folder: where the source folder's ``make`` builds it.
        build: how it is had, in words.
    """

    name: str
    variable: str
    folder: str
    build: str

    def find(self, given: str = "") -> Path:
        """Return the one given, the one that the environment names, or that of ``make``.

        Raises:
            SetupError: there is none; it says how to get it.
        """
        named = given or os.environ.get(self.variable, "")
        if named:
            if os.access(named, os.X_OK) and Path(named).is_file():
                return Path(named).absolute()
            raise SetupError(
                f"{named} is not an interpreter that can be run; {self.name} needs its own interpreter: {self.build}"
            )
        for folder in (Path.cwd(), Path(__file__).parents[3]):
            python = folder / self.folder / "bin" / "python"
            if python.is_file():
                return python
        raise SetupError(
            f"{self.name} runs in its own Python interpreter, and there is none in {self.folder}; {self.build}"
        )


class SuiteWorker:
    """A process of another interpreter that answers one request after the other, whichever thread asks.

    Args:
        python: the interpreter.
        script: gives the ``methods()`` that it answers with, see ``pipe``; isolated: neither its folder nor
            ``PYTHONPATH`` is searched for modules.

    Raises:
        SimulationError: there is no such interpreter.
    """

    def __init__(self, python: Path, script: Path) -> None:
        # a file, not a pipe: nobody needs to read it for the worker to go on
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        self._asking = threading.Lock()
        try:
            self._process = subprocess.Popen(
                [str(python), "-I", str(PIPE), str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
            )
        except OSError as error:
            self._printed.close()
            raise SimulationError(f"{python} cannot be started: {error.strerror}") from None

    def ask(
        self, method: str, arrays: Arrays | None = None, **given: Any
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Send a request and wait for its answer.

        Raises:
            SimulationError: the worker says that something went wrong, or it has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            with self._asking:
                send(self._process.stdin, {"method": method, **given}, arrays)
                answer, content = receive(self._process.stdout)
        except (EOFError, OSError):
            code = self._process.wait()
            said = f"the simulator's process ended with exit code {code} during {method!r}; it printed last:"
            raise SimulationError(f"{said}\n{self._last()}") from None
        if "error" in answer:
            raise SimulationError(f"the simulator cannot do {method!r}: {answer['error']}")
        return answer, content

    def close(self) -> None:
        """End the process; a second call does nothing."""
        if self._printed.closed:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._printed.close()

    def _last(self) -> str:
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-SHOWN:]) or "nothing"
