# SPDX-License-Identifier: Apache-2.0
"""A disk that fills up in a training: it is named, what was written before is whole, and the run goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from pathlib import Path
import tiny_run
from tiny import ARM, PAIR, TinySource, tiny_settings
from xvla_ros.errors import XvlaError
from xvla_ros.model import checkpoint
from xvla_ros.training.parallel import connect
from xvla_ros.training.saving import last_state
from xvla_ros.training.start import load_start, make_policy
from xvla_ros.training.trainer import Trainer

output = Path(sys.argv[1], "run")
filler = Path(sys.argv[1], "filler")

def trainer(**changes):
    settings = tiny_settings(output, log={"log_every": 1, "save_every": 2, "progress": False}, **changes)
    source = TinySource(PAIR, ARM)
    return Trainer(settings, source, make_policy(settings, source, load_start(settings.model)), connect(settings))

def fill(step):
    if step == 2:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                print(error.strerror)

try:
    trainer().run(fill)
except XvlaError as error:
    print(error)
print(last_state(output / "state").step, sorted(path.name for path in (output / "state").iterdir()))
filler.unlink()
checkpoint.load(output / "checkpoint")
going_on = trainer(resume=True)
going_on.resume()
print(going_on.step, going_on.run()["steps"])
"""
MOUNT = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'


def test_a_disk_that_fills_up_while_training_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    small = ["unshare", "-m", "sh", "-c", MOUNT, str(tmp_path)]
    if subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(
        [*small, sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    full, said, state, steps = done.stdout.strip().splitlines()
    assert full == "No space left on device"
    assert said.startswith(f"{tmp_path}/run: cannot be written, step-00000002 is complete: ")
    assert said.endswith("expected free space, then resume=true")
    assert state == "2 ['step-00000002']", "nothing half written is left"
    assert steps == "2 6"
