# SPDX-License-Identifier: Apache-2.0
"""bench/adaptation.py: which cells it makes, what tells a kept one from another, and that it stops in good order."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import adaptation
from commands import CommandError, Commands, StoppedError

from xvla_ros.robots.family import draw_arm
from xvla_ros.training.config import read_settings

SHIPPED = Path(__file__).parents[2] / "policy"


class Setting:
    """A base checkpoint, two demonstrations and the options of a run."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint, self.demos = folder / "base", folder / "demos"
        shutil.copytree(SHIPPED, self.checkpoint)
        self.demos.mkdir()
        for name in ("demos.json", "episode_000000.mcap", "episode_000001.mcap"):
            (self.demos / name).write_text(name)
        self.options = SimpleNamespace(
            output=folder / "out", steps=100, batch=8, workers=1, precision="bfloat16",
            set=[], like="agibot", episodes=20, delay=0.1, device="cpu",
        )  # fmt: skip

    def key(self, cell="prompt:2"):
        (made,) = adaptation.cells_of(cell, self.options.output, "widowx", str(self.checkpoint))
        return adaptation.training_key(made, self.options, self.demos)

    def train_base_further(self):
        with (self.checkpoint / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path)


CHANGES = {
    "checkpoint": Setting.train_base_further,
    "manifest": lambda setting: (setting.demos / "demos.json").write_text("another seed"),
    "recordings": lambda setting: (setting.demos / "episode_000001.mcap").write_text("recorded anew"),
    "settings.batch.size": lambda setting: setattr(setting.options, "batch", 16),
    "settings.lora.rank": lambda setting: setting.options.set.append("prompt:lora.rank=4"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_key_tells_what_a_training_depends_on(setting, name):
    before = setting.key()
    CHANGES[name](setting)
    assert adaptation.differing(before, setting.key()) == [name]


def test_where_things_lie_is_no_part_of_a_key(setting, tmp_path):
    before = setting.key()
    setting.checkpoint = setting.checkpoint.rename(tmp_path / "moved")
    setting.demos = setting.demos.rename(tmp_path / "others")
    setting.options.output = tmp_path / "elsewhere"
    setting.options.set.append("full:lora.rank=4")
    assert setting.key() == before


def test_from_scratch_only_the_sizes_of_the_base_count(setting):
    before = setting.key("scratch:1")
    setting.train_base_further()
    (setting.demos / "episode_000001.mcap").write_text("not among the first one")
    assert setting.key("scratch:1") == before
    told = json.loads((SHIPPED / "config.json").read_text())
    assert before["settings"]["model"]["network"]["hidden_size"] == told["hidden_size"]
    assert before["settings"]["model"]["dropout"] == 0.0


def test_from_scratch_a_vision_encoder_counts_wherever_it_is(setting, tmp_path):
    def told():
        setting.options.set = [f"scratch:model.vision_from={setting.checkpoint}"]
        return setting.key("scratch:1")

    before = told()
    setting.checkpoint = setting.checkpoint.rename(tmp_path / "moved")
    assert told() == before
    setting.train_base_further()
    assert adaptation.differing(before, told()) == ["checkpoint"]


def test_a_cell_with_another_key_is_put_aside_and_one_with_the_same_is_kept(setting, capsys):
    (cell,) = adaptation.cells_of("prompt:2", setting.options.output)
    adaptation.claim(cell, setting.key())
    cell.training.write_text("trained")
    cell.tell(seconds=60.0)
    adaptation.claim(cell, setting.key())
    assert cell.training.exists() and cell.facts["seconds"] == 60.0 and not capsys.readouterr().out

    setting.options.steps = 200
    adaptation.claim(cell, setting.key())
    assert "another steps, settings.steps" in capsys.readouterr().out
    assert cell.facts == {"schema_version": 1, "training": setting.key(), "seconds": 0.0, "evaluations": {}}
    assert not cell.training.exists()
    assert (cell.folder.with_name("prompt_2_was_1") / "train.json").read_text() == "trained"
    setting.options.steps = 300
    adaptation.claim(cell, setting.key())
    assert cell.folder.with_name("prompt_2_was_2").exists(), "what was put aside before is kept"
    assert cell.folder.with_name("prompt_2_was_1").exists()


def test_a_stopped_evaluation_is_none_of_its_cell(setting):
    (cell,) = adaptation.cells_of("prompt:2", setting.options.output)
    key = adaptation.evaluation_key(cell, "process", setting.options)
    cell.tell(evaluations={"process": key})
    cell.report("process").parent.mkdir(parents=True)
    for episodes in (3, key["episodes"]):
        cell.report("process").write_text(json.dumps({"episodes": episodes}))
        assert adaptation._evaluated(cell, "process", setting.options) == (episodes == key["episodes"])


def test_a_setting_of_an_unknown_method_is_refused():
    adaptation.check_methods(["full:lora.rank=4"])
    with pytest.raises(ValueError, match="--set METHOD:features=true is of no method; expected prompt or full"):
        adaptation.check_methods(["full:features=true", "METHOD:features=true"])


def test_cells_are_named_by_method_and_demonstrations(tmp_path):
    found = adaptation.cells_of("prompt:50,full:10", tmp_path)
    assert [(each.method, each.demonstrations, each.folder.name) for each in found] == [
        ("prompt", 50, "prompt_50"),
        ("full", 10, "full_10"),
    ]
    for wrong in ("promt:50", "prompt", "prompt:0", "prompt:ten"):
        with pytest.raises(ValueError, match=f"cell '{wrong}' is none; expected METHOD:DEMONSTRATIONS"):
            adaptation.cells_of(wrong, tmp_path)


def row(method, count, share, **more):
    return {"robot": "widowx", "method": method, "demonstrations": count, "success": share, **more}


def test_promises_are_the_prompts_goals_and_its_distance_from_everything_with_the_most_demonstrations():
    rows = [row("prompt", 10, 0.6), row("full", 10, 0.5), row("prompt", 25, 0.4), row("full", 25, 0.55),
            row("full", 50, 0.9), row("prompt", 50, 0.7, robot="family_28")]  # fmt: skip
    found = {promise.name: promise.holds for promise in adaptation._promises(rows)}
    assert found == {
        "widowx: prompt, 10 demonstrations": True,
        "widowx: full minus prompt, 25 demonstrations": False,
        "family_28: prompt, 50 demonstrations": False,
    }
    assert adaptation._promises(rows[3:4]) == []


def test_another_robot_and_another_base_have_cells_of_their_own(setting, tmp_path):
    (one,) = adaptation.cells_of("prompt:2", tmp_path, "family_28", str(setting.checkpoint))
    assert one.folder.name == "prompt_2_family_28"
    options = setting.options
    assert adaptation.demos_of("widowx", options).name == "demos"
    assert adaptation.demos_of("family_28", options).name == "demos_family_28"
    told = adaptation.training_of(one, options, setting.demos)
    assert "initialise.family_28=agibot" in told

    assert adaptation.bases_of("one", tmp_path, several=False) == {tmp_path: "one"}
    assert adaptation.bases_of(str(SHIPPED), tmp_path, several=True) == {tmp_path / "base_2": str(SHIPPED)}
    with pytest.raises(ValueError, match="both know 2 robots; expected one base of a number"):
        adaptation.bases_of(f"{SHIPPED},{setting.checkpoint}", tmp_path, several=True)


def test_rows_start_as_they_are_where_no_robot_of_the_base_has_the_action_mode(setting):
    setting.options.like = "mean"
    (cell,) = adaptation.cells_of("prompt:2", setting.options.output, "widowx", str(setting.checkpoint))

    def started():
        return [each for each in adaptation.training_of(cell, setting.options, setting.demos) if "initialise" in each]

    assert started() == []
    file = setting.checkpoint / "xvla_ros.json"
    record = json.loads(file.read_text())
    known = record["robots"]["agibot"]
    embodiment = {**known["embodiment"], "domain_id": 11, "action_mode": "ee6d"}
    record["robots"]["other"] = {**known, "embodiment": embodiment}
    file.write_text(json.dumps(record))
    assert started() == ["initialise.widowx=mean"]


def test_the_second_arm_is_none_that_phase_1_draws_and_no_widowx():
    second = draw_arm(28)
    assert "family_28" in adaptation.ROBOTS and len(second.joints) == 6
    assert max(read_settings("shipped/policy.yaml").drawn.family, 24) < 28
    assert [joint.name for joint in second.joints] != [joint.name for joint in draw_arm(19).joints]


def test_the_figure_of_bases_has_a_line_for_each_robot_and_is_the_same_every_time(tmp_path):
    rows = [
        row("prompt", 50, share, embodiments=number, interval=f"{share - 0.1:.2f} to {share + 0.1:.2f}", robot=robot)
        for robot in ("widowx", "family_28")
        for number, share in ((12, 0.6), (2, 0.2), (6, 0.5))
    ]
    for name in ("one.svg", "other.svg"):
        adaptation.draw_bases(rows, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "other.svg").read_text()
    assert "widowx, prompt, 50 demonstrations" in text and "family_28, prompt, 50 demonstrations" in text
    assert len(text) < 60_000


def test_a_stop_is_passed_on_to_the_command_which_saves(tmp_path):
    saved = tmp_path / "saved"
    child = (
        "import os, signal, sys, pathlib\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.sigwait({signal.SIGTERM})\n"
        f"pathlib.Path({str(saved)!r}).touch()\n"
        "sys.exit(130)\n"
    )
    commands = Commands()
    with pytest.raises(StoppedError, match="was stopped"):
        commands.run([sys.executable, "-c", child])
    assert saved.exists()
    with pytest.raises(StoppedError, match="the time is over"):  # nothing more begins
        commands.run([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_stop_that_comes_while_the_command_begins_is_passed_on_too(monkeypatch):
    class StoppedAtOnce(subprocess.Popen):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", StoppedAtOnce)
    heard: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with pytest.raises(StoppedError, match="was stopped"):
            Commands(minutes=0.2).run([sys.executable, "-c", "import signal\nwhile True: signal.pause()"])
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert heard == []


def test_a_command_is_ended_by_the_clock_and_its_failure_is_none_of_that():
    with pytest.raises(StoppedError, match="was stopped"):
        Commands(minutes=0.01).run([sys.executable, "-c", "import signal\nwhile True: signal.pause()"])
    with pytest.raises(CommandError, match="ended with 3"):
        Commands().run([sys.executable, "-c", "raise SystemExit(3)"])
