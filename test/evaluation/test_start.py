# SPDX-License-Identifier: Apache-2.0
"""bench/start.py on the small network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xvla_ros.commands import run
from xvla_ros.commands.options import parse
from xvla_ros.model import checkpoint

sys.path.append(str(Path(__file__).parents[2] / "bench"))
from latency_inputs import make_policy
from start import SECOND, TOTAL, WHAT, Start
from start_process import PARTS

PROGRAM = "bench/start.py"


def made_checkpoint(folder: Path) -> Path:
    checkpoint.save(make_policy(views=2), folder)
    return folder


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "made" / "start.json"
    assert run(Start(runs=2, threads=1, json=str(file)), PROGRAM) == 0
    printed = capsys.readouterr().out
    assert "2 starts; the first, " in printed and "peak memory" in printed
    assert all(f"\n{part}" in printed for part in WHAT)
    document = json.loads(file.read_text())
    (counted,) = document["starts_s"]
    assert list(counted) == [*PARTS, TOTAL, SECOND] and counted == document["medians_s"]
    assert counted[TOTAL] == pytest.approx(sum(counted[part] for part in PARTS))
    assert all(seconds > 0 for seconds in counted.values())
    assert document["processors_s"][TOTAL] > 0
    # torch and transformers alone take more than this, and nothing of the process that asked counts
    assert 100e6 < document["peak_bytes"] < 2e9
    assert document["runs"] and document["machine"]["threads"] == 1
    assert str(tmp_path) not in json.dumps(document)


def test_what_cannot_be_started_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_robots = made_checkpoint(tmp_path / "made")
    (without_robots / "xvla_ros.json").unlink()
    for options, said in [
        (Start(runs=1), "runs is 1, expected 2 or more"),
        (Start(checkpoint="not/a/checkpoint"), "not/a/checkpoint"),
        (Start(checkpoint=str(without_robots)), "names no robot"),
    ]:
        assert run(options, PROGRAM) == 1
        error = capsys.readouterr().err
        assert error.startswith("bench/start.py: ") and said in error


def test_error_of_the_process_is_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_checkpoint(tmp_path / "made")
    assert run(Start(checkpoint=str(folder), device="nowhere"), PROGRAM) == 1
    error = capsys.readouterr().err
    assert "nowhere" in error and "Traceback" not in error


def test_wrong_usage_of_the_command() -> None:
    for arguments in (["--runs", "0"], ["--dtype", "int4"]):
        with pytest.raises(SystemExit) as ended:
            parse(Start, PROGRAM, arguments)
        assert ended.value.code == 2


def test_it_is_run_by_its_path() -> None:
    script = Path(__file__).parents[2] / "bench" / "start.py"
    ended = subprocess.run([sys.executable, script, "--runs", "1"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("bench/start.py: runs is 1, expected 2 or more")
