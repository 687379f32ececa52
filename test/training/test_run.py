# SPDX-License-Identifier: Apache-2.0
"""``xvla train`` from a file and a recording to a checkpoint that answers."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from recorded import Session, changed
from tiny import MODEL

from xvla_ros.commands import main
from xvla_ros.commands.training import simulated_tasks
from xvla_ros.errors import SimulationError
from xvla_ros.model import checkpoint
from xvla_ros.training.config import read_settings, settings_from
from xvla_ros.training.data.datasets import open_datasets
from xvla_ros.training.run import FinishedRun
from xvla_ros.training.trainer import Trainer

TASK = "touch the red cube"
WAYPOINTS = 8


@pytest.fixture(scope="module")
def profile():
    return changed("so101_bimanual", ("instruction", TASK), ("policy.waypoint_dt", 0.1))


@pytest.fixture(scope="module")
def bags(profile, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bags")
    for number in range(3):
        Session(profile, begin=number, end=number + 3.0).record().write(folder / f"{number}.mcap")
    return folder


@pytest.fixture
def write(bags, tmp_path):
    """Writes a training file over the bags: write(steps=…) → its path."""

    def made(**changes):
        model = {**MODEL, "chunk_size": WAYPOINTS, "network": {**MODEL["network"], "num_domains": 20}}
        settings = {
            "output": str(tmp_path / "run"), "cache": str(tmp_path / "cache"), "steps": 4, "model": model,
            "datasets": [{"paths": [f"{bags}/*.mcap"], "rate": 5.0, "split": {"fraction": 0.3}}],
            "batch": {"size": 4, "workers": 0}, "log": {"log_every": 2, "progress": False}, **changes,
        }  # fmt: skip
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return made


def test_a_file_and_bags_become_a_checkpoint_that_needs_nothing_else(write, tmp_path, profile, capsys):
    assert main(["train", write(), "optimizer.learning_rate=1e-3", "ema.decay=0.9", "log.tensorboard=true"]) == 0
    said = capsys.readouterr().out
    assert "robot: so101_bimanual  domain: 19  recordings: 3" in said and "held out" in said
    run = tmp_path / "run"
    policy = checkpoint.load(run / "checkpoint")
    record = policy.robots["so101_bimanual"]
    assert record.embodiment.action_mode == "so101_bimanual_bce"
    assert record.profile == profile.to_mapping()
    source = open_datasets(
        read_settings(write()).datasets, waypoints=WAYPOINTS, image_size=(32, 32), cache=tmp_path / "cache"
    )
    chunk = policy.predict([source.train[0].observation()])[0]
    assert chunk.actions.shape == (WAYPOINTS, 12) and np.isfinite(chunk.actions).all()
    summary = json.loads((run / "train.json").read_text())
    assert summary["schema_version"] == 1 and summary["steps"] == 4 and summary["samples"] == 16
    assert summary["held_out_loss"] > 0 and summary["settings"]["optimizer"]["learning_rate"] == 1e-3
    rows = list(csv.DictReader((run / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"] and rows[-1]["held_out"]
    assert {row["phase"] for row in rows} == {"ramp"} and rows[0]["term.gripper_loss"] and rows[0]["rate.vlm"]
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG") and list((run / "tensorboard").iterdir())
    assert "precision: computes in float32" in said
    told = ["optimizer.learning_rate=1e-3", "ema.decay=0.9", "log.tensorboard=true"]
    decided = ["precision=float32", "features=false"]
    assert read_settings(run / "train.yaml") == read_settings(write(), told + decided)


def test_workers_change_nothing(write, tmp_path):
    assert main(["train", write()]) == 0
    assert main(["train", write(), "batch.workers=2", f"output={tmp_path / 'workers'}"]) == 0
    assert not multiprocessing.active_children()
    here, there = ((tmp_path / name / "curve.csv").read_text() for name in ("run", "workers"))
    losses = [[row["loss"] for row in csv.DictReader(text.splitlines())] for text in (here, there)]
    assert losses[0] == losses[1]


def test_a_dry_run_says_what_would_be_trained_and_writes_no_checkpoint(write, tmp_path, capsys):
    assert main(["train", write(), "--dry-run", f"output={tmp_path / 'other'}"]) == 0
    said = capsys.readouterr().out
    assert "full: trains" in said and "samples a second" in said and "time: 4 steps take" in said and "memory: " in said
    assert "evaluating" not in said and not list(tmp_path.glob("*/checkpoint")) and (tmp_path / "other").exists()
    with pytest.raises(SystemExit):
        main(["robots", "output=other"])
    assert "unrecognized arguments: output=other" in capsys.readouterr().err


def test_a_run_asked_to_stop_saves_and_goes_on(write, tmp_path, monkeypatch, capsys):
    steps = Trainer.take_step

    def interrupted(self, *arguments):
        steps(self, *arguments)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "take_step", interrupted)
    assert main(["train", write(steps=6)]) == 130
    assert "continue with resume=true" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["train", write(steps=6)]) == 1
    assert "resume=true to continue it, or another folder" in capsys.readouterr().err
    assert main(["train", write(steps=6), "resume=true"]) == 0
    assert json.loads((tmp_path / "run" / "train.json").read_text())["steps"] == 6


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["datasets.0.paths=[nowhere/*]"], "nowhere/*"),
        (["model.checkpoint=nowhere", "model.network={}", "model.vision={}", "model.text={}"], "nowhere"),
        (["batch.size=0"], "command line: batch.size: 0 is not allowed"),
        (["output=/dev/null/run"], "cannot be created"),
    ],
)
def test_what_is_wrong_is_said_before_any_step(write, tmp_path, capsys, overrides, words):
    assert main(["train", write(), *overrides]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run" / "state").exists()


def test_a_cpu_keeps_what_a_frozen_tower_says_where_that_is_less_work(write, tmp_path, capsys):
    def train(*overrides):
        assert main(["train", "--no-evaluate", write(), "freeze.vision_encoder=true", *overrides]) == 0
        return capsys.readouterr().out, read_settings(tmp_path / "run" / "train.yaml").features

    cases = {
        "only 16 of 45 samples are used": (["steps=4"], False),
        "because augmentation changes the images": (["augmentation.brightness=0.1"], False),
        "the frozen vision encoder runs once for each of 45 samples instead of 48 times": (["steps=12"], True),
    }
    for number, (words, (overrides, kept)) in enumerate(cases.items()):
        said, features = train(*overrides, f"output={tmp_path / 'run'}", "log.save_every=0")
        assert words in said and features is kept
        assert bool(list((tmp_path / "cache").glob("features-*.npy"))) is kept
        if number < len(cases) - 1:
            shutil.rmtree(tmp_path / "run")
    said, features = train("resume=true", "steps=13", "augmentation.hue=0.0")  # it goes on as it began
    assert "features:" not in said and features is True


def test_at_its_end_a_run_says_on_held_out_episodes_whether_it_is_good(write, tmp_path, capsys):
    assert main(["train", write()]) == 0
    said = capsys.readouterr().out
    assert "so101_bimanual, 1 held-out episodes (15 observations): error" in said and "not good: not better" in said
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    (result,) = found["results"]
    assert (result["kind"], result["verdict"], result["unit"]) == ("held_out", "not good", "rad")
    assert result["error"] > result["persistence"] > 0


def test_a_finished_run_is_neither_trained_nor_evaluated_again(write, tmp_path, capsys):
    config = write()
    assert main(["train", config]) == 0
    made = (tmp_path / "run" / "evaluation.json").read_text()
    capsys.readouterr()
    assert main(["train", config, "resume=true"]) == 0
    assert "evaluated before: " in capsys.readouterr().out
    assert (tmp_path / "run" / "evaluation.json").read_text() == made


def test_without_held_out_episodes_a_run_says_what_would_tell(write, tmp_path, capsys):
    assert main(["train", write(), "datasets.0.split.fraction=0"]) == 0
    assert "no episode was held out, so the quality of the policy is unknown" in capsys.readouterr().out
    assert not (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (RuntimeError("no renderer"), 0, "warning: the evaluation failed: RuntimeError: no renderer"),
        (SimulationError("cannot render"), 0, "warning: the evaluation failed: cannot render"),
        (KeyboardInterrupt(), 130, "stopped; the evaluation is not; the training is complete"),
    ],
)
def test_an_evaluation_that_fails_or_is_stopped_costs_no_checkpoint(
    write, tmp_path, capsys, monkeypatch, raised, code, words
):
    def fail(run, episodes):
        raise raised

    monkeypatch.setattr("xvla_ros.commands.training._evaluate_trained", fail)
    assert main(["train", write()]) == code
    said = capsys.readouterr().err
    assert words in said and str(tmp_path / "run" / "checkpoint") in said
    assert checkpoint.load(tmp_path / "run" / "checkpoint").robots


def test_the_evaluation_can_be_turned_off(write, tmp_path, capsys):
    assert main(["train", write(), "--no-evaluate"]) == 0
    assert "evaluating" not in capsys.readouterr().out and not (tmp_path / "run" / "evaluation.json").exists()


def test_recordings_of_a_simulated_task_are_evaluated_in_simulation_and_others_are_not(profile, tmp_path):
    pytest.importorskip("mujoco")
    pytest.importorskip("pinocchio")
    found = []
    for task in ("touch", "juggle", ""):
        bag = Session(profile).record().mark(0.1, "start", instruction=TASK, task=task, seed=1)
        path = bag.mark(2.9, "end", success=True).write(tmp_path / f"bag_{task}.mcap")
        settings = settings_from({"datasets": [{"paths": [str(path)], "rate": 5.0}]})
        source = open_datasets(settings.datasets, waypoints=WAYPOINTS, image_size=(32, 32), cache=tmp_path / "cache")
        found.append(simulated_tasks(FinishedRun(settings, source, tmp_path / "checkpoint", "cpu", 0.0)))
    assert found == [[("so101_bimanual", "touch")], [], []]


def test_shipped_files_are_found_by_name_and_read():
    for name in ("phase1", "adapt_prompt", "adapt_lora", "adapt_full"):
        assert read_settings(f"{name}.yaml").datasets
    assert read_settings("adapt_lora.yaml").lora.rank == 8


def test_commands_of_the_how_to_are_settings_that_exist():
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "train.md").read_text(encoding="utf-8")
    commands = [
        shlex.split(line)
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith(("xvla train", "accelerate"))
    ]
    assert len(commands) >= 5
    for command in commands:
        name, *rest = command[command.index("train") + 1 :]
        overrides = [word for word in rest if "=" in word]
        if name.endswith(".yaml"):
            assert read_settings(name, overrides)


def test_the_stages_for_libero_go_on_from_each_other_on_what_the_how_to_records():
    root = Path(__file__).parents[2]
    words, policy = (
        read_settings(root / "examples" / "libero_object" / f"{name}.yaml") for name in ("words", "policy")
    )
    assert policy.model.checkpoint == f"{words.output}/checkpoint"
    assert (words.flow, policy.flow, policy.freeze.vision_encoder) == (False, True, True)
    text = (root / "docs" / "how-to" / "evaluate-on-libero.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("xvla ")]
    recorded = {f"{line[line.index('--output') + 1]}/*.mcap" for line in commands if line[1] == "demos"}
    assert {path for each in (*words.datasets, *policy.datasets) for path in each.paths} <= recorded
    evaluated = [line[line.index("--checkpoint") + 1] for line in commands if f"{policy.output}/checkpoint" in line]
    assert evaluated == [f"{policy.output}/checkpoint"] * 2


@pytest.mark.slow
def test_a_network_that_learned_one_episode_replays_it_within_one_percent(write, tmp_path, bags):
    network = {**MODEL["network"], "num_domains": 20, "hidden_size": 64}
    changes = {
        "model": {**MODEL, "chunk_size": WAYPOINTS, "network": network}, "steps": 2000, "ema": {"decay": 0.99},
        "optimizer": {"learning_rate": 4e-3, "vlm_scale": 1.0, "clip": 1.0},
        "schedule": {"ramp": 20, "final_scale": 0.0}, "batch": {"size": 16, "workers": 0},
        "datasets": [{"paths": [f"{bags}/0.mcap"], "rate": 10.0}], "log": {"log_every": 200, "progress": False},
    }  # fmt: skip
    assert main(["train", write(**changes)]) == 0
    source = open_datasets(
        read_settings(write(**changes)).datasets, waypoints=WAYPOINTS, image_size=(32, 32), cache=tmp_path / "cache"
    )
    samples = list(source.train)
    policy = checkpoint.load(tmp_path / "run" / "checkpoint")
    found = np.stack([chunk.actions for chunk in policy.predict([each.observation() for each in samples], seed=0)])
    recorded = np.stack([each.actions for each in samples])
    span = recorded.max(axis=(0, 1)) - recorded.min(axis=(0, 1))
    assert (np.abs(found - recorded) / span).max() < 0.01
