# SPDX-License-Identifier: Apache-2.0
"""Several processes train what one does: the same samples, noise and times, whoever computes them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import ARM, PAIR, TinySource, tiny_settings

from xvla_ros.model import checkpoint
from xvla_ros.training.config import TrainingError
from xvla_ros.training.data.batches import Share
from xvla_ros.training.parallel import share_of
from xvla_ros.training.saving import last_state

PROGRAM = Path(__file__).with_name("tiny_run.py")
STEPS = {"ddp": 50, "fsdp": 20}
# A prompt warm-up too: one process then leaves gradients out that two compute and drop.
RUN = {"schedule": {"prompt_warmup": 8, "ramp": 4, "decay": "constant"}, "ema": {"decay": 0.9}}


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((folder / "curve.csv").open())]


def arguments(folder: Path, steps: int) -> list[str]:
    return [str(folder), f"steps={steps}", *(f"{key}={value}" for key, value in RUN.items())]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes over gloo, each with half of every step: once with copies, once with shards."""
    folder = tmp_path_factory.mktemp("processes")
    runs = []
    for strategy, steps in STEPS.items():
        runs += ["--", *arguments(folder / strategy, steps), f"strategy={strategy}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(PROGRAM)]
    ended = subprocess.run([*launch, *runs[1:]], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the whole of every step, which is the double of each one's in ``pair``."""
    from tiny_run import main

    folder = tmp_path_factory.mktemp("alone")
    output, *changes = arguments(folder, STEPS["ddp"])
    main(output, changes, None)
    return folder


@pytest.mark.parametrize(("strategy", "steps"), STEPS.items())
def test_two_processes_give_the_loss_curve_of_one_with_the_double_batch(pair, alone, strategy, steps):
    one, two = losses(alone)[:steps], losses(pair / strategy)
    assert len(one) == len(two) == steps
    assert max(abs(a - b) / a for a, b in zip(one, two, strict=True)) < 1e-4
    assert min(one) < 0.5 * one[0]


def test_the_checkpoints_answer_alike(pair, alone):
    source = TinySource(PAIR, ARM)
    observations = [source.train[0].observation(), source.train[1].observation()]
    answers = [checkpoint.load(folder / "checkpoint").predict(observations, seed=1) for folder in (alone, pair / "ddp")]
    for one, two in zip(*answers, strict=True):
        np.testing.assert_allclose(two.actions, one.actions, atol=1e-3 * np.abs(one.actions).max())


@pytest.mark.parametrize(("strategy", "steps"), STEPS.items())
def test_one_process_goes_on_with_the_state_of_two(pair, begin, strategy, steps):
    further = begin(pair / strategy, **RUN, steps=steps + 2, strategy=strategy)
    assert further.resume() and further.step == steps
    assert {name.partition(".")[0] for name in last_state(pair / strategy / "state").tensors} == {
        "weight", "average", "exp_avg", "exp_avg_sq", "step",
    }  # fmt: skip
    assert further.run()["steps"] == steps + 2


def test_parts_and_processes_take_every_sample_of_a_step_once():
    shares = [Share(24, accumulation=3, processes=2, process=number) for number in range(2)]
    taken = [index for part in range(3) for share in shares for index in share.indices(5, part)]
    assert taken == list(range(5 * 24, 6 * 24))


def test_accumulated_parts_give_the_step_of_one_batch(begin, tmp_path):
    begin("whole").run()
    begin("parts", batch={"size": 8, "accumulation": 4, "workers": 0}).run()
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert parts == pytest.approx(whole, rel=1e-4)


def test_a_step_that_cannot_be_shared_out_is_refused(tmp_path):
    class ThreeProcesses:
        num_processes, process_index = 3, 0

    with pytest.raises(TrainingError, match=r"batch\.size.*3 processes × 1 parts.*a multiple of 3"):
        share_of(tiny_settings(tmp_path), ThreeProcesses())
