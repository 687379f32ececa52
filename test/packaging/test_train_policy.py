"""``make policy`` asks for commands that exist, each on what the one before it leaves. They are not run: see docs."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from xvla_ros.training.config_file import read_settings, read_vision_settings

ROOT = Path(__file__).resolve().parents[2]


def commands(scale, folder):
    """Stage and arguments of every command."""
    told = [sys.executable, str(ROOT / "tools" / "train_policy.py"), scale, "--dry-run", "--output", str(folder)]
    lines = subprocess.run(told, check=True, capture_output=True, text=True, cwd=folder).stdout.splitlines()
    found = []
    for line in lines:
        done, stage, xvla, *arguments = shlex.split(line)
        assert (done, xvla) == ("====", "xvla")
        found.append((stage.rstrip(":"), arguments))
    return found


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_stage_is_valid_and_goes_on_from_the_one_before(scale, tmp_path):
    left = None
    for stage, (command, *arguments) in commands(scale, tmp_path):
        if stage == "evaluate":
            given = dict(zip(arguments[::2], arguments[1::2], strict=False))
            assert command == "evaluate" and given["--checkpoint"] == left
            continue
        file, *overrides = arguments
        if command == "pretrain-vision":
            settings = read_vision_settings(file, overrides)
            start = settings.model.vision_from
        else:
            assert command == "train"
            settings = read_settings(file, overrides)
            start = settings.model.checkpoint or settings.model.vision_from
        assert start == (left or "") and settings.resume
        left = str(Path(settings.output) / "checkpoint")
    assert stage == "evaluate"
