# SPDX-License-Identifier: Apache-2.0
"""A killed run goes on as if it had not been killed."""

from __future__ import annotations

import csv
import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xvla_ros.training.config import TrainingError
from xvla_ros.training.saving import State, last_state, write_state

PROGRAM = Path(__file__).with_name("tiny_run.py")
# Dropout, an average and a phase change within the run: all that could depend on what went before.
RUN = {
    "steps": 20,
    "ema": {"decay": 0.9},
    "schedule": {"prompt_warmup": 6, "ramp": 8},
    "log": {"log_every": 5, "save_every": 10, "progress": False},
}


def with_dropout(run: dict) -> dict:
    from tiny import MODEL

    return {**run, "model": {**MODEL, "dropout": 0.2}}


def killed_run(folder: Path, at: int, run: dict) -> None:
    changes = [f"{key}={value}" for key, value in run.items()]
    command = [sys.executable, str(PROGRAM), str(folder), *changes, "--die-at", str(at)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def test_a_run_killed_and_resumed_ends_bit_for_bit_where_an_unbroken_one_does(tmp_path, begin):
    run = with_dropout(RUN)
    whole = begin("whole", **run)
    whole.run()
    killed_run(tmp_path / "broken", 13, run)
    broken = begin("broken", **run, resume=True)
    assert broken.resume() and broken.step == 10
    broken.run()
    states = [
        load_file(next((tmp_path / name / "state").glob("step-00000020/*.safetensors"))) for name in ("whole", "broken")
    ]
    assert states[0].keys() == states[1].keys()
    assert {name.partition(".")[0] for name in states[0]} == {"weight", "average", "exp_avg", "exp_avg_sq", "step"}
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    exported = [load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "broken")]
    assert all(torch.equal(exported[0][name], exported[1][name]) for name in exported[0])
    curves = [list(csv.DictReader((tmp_path / name / "curve.csv").open())) for name in ("whole", "broken")]
    assert [(row["step"], row["loss"]) for row in curves[0]] == [(row["step"], row["loss"]) for row in curves[1]]


def test_a_run_whose_last_checkpoint_was_not_written_gets_it_when_resumed(begin, monkeypatch, tmp_path):
    def fails(policy, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full, pytest.raises(TrainingError, match="step-00000002 is complete"):
        full.setattr("xvla_ros.training.trainer.replace_checkpoint", fails)
        begin("run", steps=2).run()
    run = tmp_path / "run"
    assert not (run / "checkpoint").exists() and not (run / "train.json").exists()
    written = []
    for _ in range(2):
        again = begin("run", steps=2)
        assert again.resume() and again.run()["steps"] == 2
        written.append((run / "checkpoint" / "model.safetensors").stat())
    assert written[0] == written[1], "a finished run is left as it is"
    assert json.loads((run / "train.json").read_text())["steps"] == 2


def test_a_state_is_whole_or_not_there(tmp_path):
    write_state(tmp_path, State(1, {"weight.a": torch.ones(3)}, {"seconds": 1.0}), keep=2)
    half = tmp_path / ".writing-2"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half of it")
    assert last_state(tmp_path).step == 1
    for step in (2, 3):
        write_state(tmp_path, State(step, {"weight.a": torch.full((3,), float(step))}, {}), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert last_state(tmp_path).tensors["weight.a"].tolist() == [3.0] * 3


def test_a_truncated_state_is_named(tmp_path):
    path = write_state(tmp_path, State(4, {"weight.a": torch.ones(300)}, {}), keep=1) / "state.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TrainingError, match=r"step-00000004.*state\.safetensors.*truncated"):
        last_state(tmp_path)


def test_another_run_is_not_continued(begin):
    begin(steps=2).run()
    other = begin(steps=4, seed=6, optimizer={"learning_rate": 1e-2})
    with pytest.raises(TrainingError) as caught:
        other.resume()
    assert {problem.key for problem in caught.value.problems} == {
        "seed",
        "optimizer.learning_rate",
        "optimizer.vlm_scale",
    }
    longer = begin(steps=4)
    assert longer.resume() and longer.step == 2


def test_changed_data_is_noticed(begin):
    from tiny import ARM, PAIR, TinySource

    begin(steps=2).run()
    with pytest.raises(TrainingError, match="have changed since the run started"):
        begin(steps=2, source=TinySource(PAIR, ARM, seed=9)).resume()


def test_a_run_goes_on_wherever_its_files_are_now(begin, trained, tmp_path):
    import shutil

    on = {"model": {"checkpoint": str(trained)}, "method": "prompt"}
    begin("first", steps=2, **on).run()
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    shutil.copytree(trained, tmp_path / "copy")
    there = {
        "model": {"checkpoint": str(tmp_path / "copy")},
        "method": "prompt",
        "datasets": [{"paths": ["elsewhere"]}],
    }
    moved = begin("moved", steps=4, **there)
    assert moved.resume() and moved.step == 2


@pytest.mark.parametrize("change", ["instruction", "time base"])
def test_changed_words_and_robots_are_noticed(begin, change):
    from dataclasses import replace

    from tiny import ARM, PAIR, TinySource

    begin(steps=2).run()
    source = TinySource(PAIR, ARM)
    if change == "instruction":
        source.instructions = ("touch the red cube", "touch the green cube")
    else:
        source.embodiments["arm"] = replace(ARM, waypoint_dt=0.2)
    with pytest.raises(TrainingError, match="have changed since the run started"):
        begin(steps=2, source=source).resume()


def test_a_run_of_before_went_on_with_repeated_waypoints(begin):
    from xvla_ros.training.saving import STATES, require_same

    trainer = begin(steps=2)
    told = trainer.settings.model_dump(mode="json")
    del told["loss"]
    require_same(told, trainer.settings, STATES)
    with pytest.raises(TrainingError, match=r"loss\.padding"):
        require_same(told, begin("other", steps=2, loss={"padding": "masked"}).settings, STATES)


def test_a_player_and_a_profile_may_lie_elsewhere_when_a_run_goes_on():
    from xvla_ros.training.config import read_settings
    from xvla_ros.training.saving import require_same

    def told(player, robot):
        scenes = f"drawn.scenes=[{{robot: {robot}, task: touch}}]"
        return read_settings("shipped/policy.yaml", [f"drawn.played_by={player}", scenes])

    before = told("runs/first", "arms/mine.yaml").model_dump(mode="json")
    require_same(before, told("elsewhere/first", "mine.yaml"), "state")
    for player, robot, key in (("''", "mine.yaml", "drawn.played_by"), ("a", "other.yaml", "drawn.scenes")):
        with pytest.raises(TrainingError, match=key):
            require_same(before, told(player, robot), "state")
