# SPDX-License-Identifier: Apache-2.0
"""Runs a command and stops one of its child processes after the other for a moment, as a machine that is busy would.

python tools/pauses.py [--longest SECONDS] [--between SECONDS] [--seed NUMBER] COMMAND…
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from contextlib import suppress

import psutil

IS_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)  # by a test itself; or over


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--longest", type=float, default=0.7, help="s that a process is stopped at most (0.7)")
    parser.add_argument("--between", type=float, default=0.5, help="s at most from one to the next (0.5)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    drawn, command = random.Random(given.seed), subprocess.Popen(given.command)
    while command.poll() is None:
        with suppress(psutil.Error):
            pause(drawn, psutil.Process(command.pid).children(recursive=True), given.longest)
        time.sleep(drawn.uniform(0.0, given.between))
    return command.returncode


def pause(drawn: random.Random, children: list[psutil.Process], longest: float) -> None:
    running = [child for child in children if child.is_running() and child.status() not in IS_STOPPED]
    if not running:
        return
    chosen = drawn.choice(running)
    chosen.suspend()
    try:
        time.sleep(drawn.uniform(0.0, longest))
    finally:
        chosen.resume()


if __name__ == "__main__":
    sys.exit(main())
