# SPDX-License-Identifier: Apache-2.0
"""The example's commands exist, each on what the one before it leaves; ``make policy`` has them. None is run here.

What ships of a policy is the robots that it is for.
"""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from ship_policy import first_domains

from xvla_ros.model import checkpoint
from xvla_ros.training.config import read_settings
from xvla_ros.training.optim import row_weights
from xvla_ros.types import Observation

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "shipped_policy"


def blocks():
    """Arguments of the commands of the README, block by block: stages on CPUs, evaluations, stages on a GPU, bases."""
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    found = re.findall(r"```\n(.*?)```", text, re.DOTALL)
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
    stages, evaluations, *_ = blocks()
    last = read_settings(stages[-1][1]).output
    for command, *arguments in evaluations:
        assert command == "evaluate" and "--in-process" in arguments
        assert arguments[arguments.index("--checkpoint") + 1] == f"{last}/checkpoint"
    assert len(evaluations) == 3


def test_the_bases_of_the_figure_go_on_from_the_vision_stage_and_know_the_arms_that_they_say():
    stages, _, _, bases, figure = blocks()
    left = read_settings(stages[1][1]).output + "/checkpoint"
    for _, file, *overrides in bases:
        settings = read_settings(file, overrides)
        assert (settings.model.checkpoint or settings.model.vision_from) == left
        assert len(settings.drawn.all_scenes) == 2 + 4
        left = f"{settings.output}/checkpoint"
    assert left in figure[0][figure[0].index("--bases") + 1].split(",")


def test_make_runs_the_stages_of_the_example():
    stages = re.search(r"^STAGES = (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    assert [f"shipped/{stage}.yaml" for stage in stages] == [file for _, file, *_ in blocks()[0]]
    assert sorted(stages) == sorted(path.stem for path in EXAMPLE.glob("*.yaml"))


def test_a_policy_without_its_last_domains_answers_as_before(tmp_path):
    whole = checkpoint.load(ROOT / "policy")
    cut = first_domains(whole, 20)
    checkpoint.save(cut, tmp_path)
    cut = checkpoint.load(tmp_path)
    assert set(cut.robots) == set(whole.robots) and cut.network.config.num_domains == 20
    for robot in cut.robots:
        record = whole.robots[robot]
        rng = np.random.default_rng(0)
        images = {slot: rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for slot in record.embodiment.slots}
        state = rng.random(record.embodiment.action_width or 20, dtype=np.float32)
        seen = Observation(record.embodiment, 0, images, state, "touch the red cube")
        answers = [policy.predict([seen], seed=1)[0].actions for policy in (whole, cut)]
        np.testing.assert_array_equal(*answers)
    assert (tmp_path / "model.safetensors").stat().st_size < (ROOT / "policy" / "model.safetensors").stat().st_size


def test_a_new_arm_begins_with_what_the_arms_left_out_share():
    whole = checkpoint.load(ROOT / "policy", dtype="float32")
    whole.training = replace(whole.training, trained_domains=(9, 19, 25, 26))  # as if two arms of the family
    before = {name: weight.clone() for name, weight in row_weights(whole.network).items()}
    cut = row_weights(first_domains(whole, 20).network)
    for name, rows in before.items():
        assert torch.equal(cut[name][[9, 19]], rows[[9, 19]])
        assert torch.allclose(cut[name][0], (rows[25] + rows[26]) / 2) and len(cut[name]) == 20


def test_a_robot_of_a_domain_that_is_cut_is_left_out():
    whole = checkpoint.load(ROOT / "policy")
    assert list(first_domains(whole, 19).robots) == ["agibot"]
    with pytest.raises(ValueError, match=r"9 of 30 domains were to be kept; the robots have \{.*'agibot': 9"):
        first_domains(whole, 9)
    with pytest.raises(ValueError, match="31 of 30 domains"):
        first_domains(whole, 31)
