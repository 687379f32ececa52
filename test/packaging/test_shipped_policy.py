# SPDX-License-Identifier: Apache-2.0
"""The example's commands exist, each on what the one before it leaves; ``make policy`` has them. None is run here."""

import re
import shlex
from pathlib import Path

import pytest

from xvla_ros.training.config import read_settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "shipped_policy"


def blocks():
    """Arguments of every command of the README, block by block: the stages on CPUs, evaluations, stages on a GPU."""
    found = re.findall(r"```\n(.*?)```", (EXAMPLE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [[shlex.split(line)[1:] for line in block.splitlines()] for block in found]


@pytest.mark.parametrize("block", [0, 2], ids=["cpu", "gpu"])
def test_every_stage_is_valid_and_goes_on_from_the_one_before(block):
    left = ""
    for command, file, *overrides in blocks()[block]:
        assert command == "train"
        settings = read_settings(file, overrides)
        assert (settings.model.checkpoint or settings.model.vision_from) == left and settings.resume
        left = str(Path(settings.output) / "checkpoint")


def test_what_the_last_stage_leaves_is_evaluated():
    stages, evaluations, _ = blocks()
    last = read_settings(stages[-1][1]).output
    for command, *arguments in evaluations:
        assert command == "evaluate" and "--in-process" in arguments
        assert arguments[arguments.index("--checkpoint") + 1] == f"{last}/checkpoint"
    assert len(evaluations) == 3


def test_make_runs_the_stages_of_the_example():
    stages = re.search(r"^STAGES = (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    assert [f"shipped/{stage}.yaml" for stage in stages] == [file for _, file, *_ in blocks()[0]]
    assert sorted(stages) == sorted(path.stem for path in EXAMPLE.glob("*.yaml"))
