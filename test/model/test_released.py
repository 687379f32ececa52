# SPDX-License-Identifier: Apache-2.0
"""The table of published checkpoints, and that its names are taken as checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from xvla_ros.commands import main
from xvla_ros.commands.options import parse
from xvla_ros.errors import CheckpointError
from xvla_ros.model.action_modes import known_modes
from xvla_ros.model.checkpoint.inspection import find_checkpoint
from xvla_ros.model.checkpoint.released import RELEASED, hub_id_of
from xvla_ros.robots import load_robot

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "checkpoints.md"


def test_a_row_says_what_the_profile_says():
    for each in RELEASED:
        assert each.action_mode in known_modes()
        if each.robot:
            policy = load_robot(each.robot).policy
            assert (policy.domain_id, policy.action_mode) == (each.domain_id, each.action_mode), each.hub_id


@pytest.mark.parametrize("name", ["X-VLA-Libero", "x-vla-libero", "2toinf/x-vla-libero"])
def test_a_name_without_its_publisher_is_its_hub_id(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[str] = []

    def download(hub_id: str, **_: object) -> str:
        asked.append(hub_id)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / "config.json").write_text("{}")
    assert find_checkpoint(name).base == tmp_path
    assert asked == ["2toINF/X-VLA-Libero"]


def test_a_name_that_nobody_published_stays_as_it_is():
    assert hub_id_of("my/own") == "my/own"
    with pytest.raises(CheckpointError, match="xvla checkpoints lists"):
        find_checkpoint("./nowhere")


def test_the_command_lists_them_and_their_commands_are_wellformed(capsys: pytest.CaptureFixture[str]):
    from xvla_ros.commands import COMMANDS, import_module

    assert main(["checkpoints"]) == 0
    printed = capsys.readouterr().out
    assert all(each.hub_id in printed for each in RELEASED)
    assert main(["checkpoints", "--json"]) == 0
    for entry in json.loads(capsys.readouterr().out)["checkpoints"]:
        name, *rest = entry["command"].removeprefix("xvla ").split()
        module, kind, _ = COMMANDS[name]
        parse(getattr(import_module(f"xvla_ros.commands.{module}"), kind), f"xvla {name}", rest)


def test_the_page_has_the_same_table():
    rows = re.findall(
        r"^\| `([\w.-]+/[\w.-]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", DOCS.read_text(), re.M
    )
    assert [tuple(cell.strip() for cell in row) for row in rows] == [
        (
            each.hub_id, each.embodiment, f"`{each.robot}`" if each.robot else "—",
            "any" if each.domain_id is None else str(each.domain_id), f"`{each.action_mode}`",
            (each.score or "—") + ", LoRA" * each.adapter,
        )
        for each in RELEASED
    ]  # fmt: skip
