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
            checkpoint=str(self.checkpoint), output=folder / "out", steps=100, batch=8, workers=1, precision="bfloat16",
            set=[], like="agibot",
        )  # fmt: skip

    def key(self, cell="prompt:2"):
        (made,) = adaptation.cells_of(cell, self.options.output)
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
    setting.options.checkpoint, setting.options.output = str(setting.checkpoint), tmp_path / "elsewhere"
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
    assert (cell.folder.with_name("prompt_2_was") / "train.json").read_text() == "trained"


def test_cells_are_named_by_method_and_demonstrations(tmp_path):
    found = adaptation.cells_of("prompt:50,full:10", tmp_path)
    assert [(each.method, each.demonstrations, each.folder.name) for each in found] == [
        ("prompt", 50, "prompt_50"),
        ("full", 10, "full_10"),
    ]
    for wrong in ("promt:50", "prompt", "prompt:0", "prompt:ten"):
        with pytest.raises(ValueError, match=f"cell '{wrong}' is none; expected METHOD:DEMONSTRATIONS"):
            adaptation.cells_of(wrong, tmp_path)


def test_the_promise_is_held_against_the_most_demonstrations_that_both_have():
    shares = {("prompt", 10): 0.1, ("full", 10): 0.5, ("prompt", 25): 0.4, ("full", 25): 0.5, ("full", 50): 0.9}
    rows = [{"method": method, "demonstrations": count, "success": share} for (method, count), share in shares.items()]
    (promise,) = adaptation._promises(rows)
    assert promise.name == "full minus prompt, 25 demonstrations" and promise.holds
    assert adaptation._promises(rows[:1]) == []


def test_a_stop_is_passed_on_to_the_command_which_saves(tmp_path):
    saved = tmp_path / "saved"
    child = (
        "import os, signal, sys, pathlib\n"
        "def stop(*_):\n"
        f"    pathlib.Path({str(saved)!r}).touch()\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "while True: signal.pause()\n"
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
