# SPDX-License-Identifier: Apache-2.0
"""The command ``xvla``: its options come from dataclasses, its errors are caught once, and it begins fast."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import pytest

from xvla_ros.commands import COMMANDS, main, run
from xvla_ros.commands.options import Command, Count, Option, Positive, Words, parse, parser_of
from xvla_ros.errors import BagError, SetupError, XvlaError
from xvla_ros.resources import output_folder


@dataclass(frozen=True, kw_only=True)
class Show(Command):
    """Show what options can be.

    examples:
      show me --many 1
    """

    what: Annotated[str, Option(metavar="WHAT", positional=True), "what is shown"]
    more: Annotated[tuple[str, ...], Option(metavar="KEY=VALUE", positional=True), "settings"] = ()
    needed: Annotated[str, "it is needed"]
    words: Annotated[Words, "what to say"] = ""
    rate: Annotated[Positive, "per second, 100 % of it"] = 10.0
    steps: Annotated[Count | None, "steps (default: the profile's)"] = None
    loud: Annotated[bool, "be loud"] = False
    quick: Annotated[bool, "be slow"] = True
    clock: Annotated[bool | None, "by the clock"] = None
    window: Annotated[bool | None, Option(denied=("--headless", "without a window")), "with a window"] = None
    kind: Annotated[Literal["", "a", "b"], "which"] = ""
    many: Annotated[tuple[str, ...], Option("--one"), "several times"] = ()
    live: Annotated[bool, Option(choice="live"), "live"] = False
    recorded: Annotated[str, Option(choice="live"), "recorded"] = ""

    def run(self) -> int:
        return 0


def read(*arguments: str) -> Show:
    return parse(Show, "show", ["me", "--needed", "x", *arguments])


def test_what_is_not_given_is_the_fields_default():
    assert read() == Show(what="me", needed="x")


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--rate", "2.5"], "rate", 2.5),
        (["--steps", "3"], "steps", 3),
        (["--loud"], "loud", True),
        (["--no-quick"], "quick", False),
        (["--clock"], "clock", True),
        (["--no-clock"], "clock", False),
        (["--window"], "window", True),
        (["--headless"], "window", False),
        (["--kind", "b"], "kind", "b"),
        (["--one", "1", "--one", "2"], "many", ("1", "2")),
        (["a=1", "--loud", "b=2"], "more", ("a=1", "b=2")),
        (["--recorded", "file"], "recorded", "file"),
    ],
)
def test_a_field_is_read_by_its_type(arguments: list[str], field: str, value: object):
    assert getattr(read(*arguments), field) == value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "argument --rate: 0 is not a number above 0"),
        (["--rate", "fast"], "argument --rate: invalid float value: 'fast'"),
        (["--steps", "0"], "argument --steps: 0 is not a whole number above 0"),
        (["--words", "x\udcff"], r"argument --words: 'x\udcff' cannot be encoded; expected text in UTF-8"),
        (["--kind", "c"], "argument --kind: invalid choice: 'c' (choose from"),
        (["--window", "--headless"], "argument --headless: not allowed with argument --window"),
        (["--live", "--recorded", "file"], "argument --recorded: not allowed with argument --live"),
        (["--other"], "unrecognized arguments: --other"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        read(*arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve"], ["view", "--web"]])
@pytest.mark.parametrize("port", ["-1", "65536", "99999", "1" * 400])
def test_a_port_that_is_none_is_wrong_usage(command: list[str], port: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--port", port])
    assert ended.value.code == 2
    assert f"argument --port: {port} is not a port: a whole number of 0 … 65535" in capsys.readouterr().err


def test_the_closest_option_and_command_are_named(capsys: pytest.CaptureFixture[str]):
    for arguments, said in (["robots", "--jsno"], "did you mean '--json'?"), (["evaluat"], "did you mean 'evaluate'?"):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [["demos"], ["evaluate", "--in-process"], ["demo"]])
def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for module in ("pinocchio", "mujoco", "av", "jinja2", "matplotlib", *(["rclpy"] if command == ["demo"] else [])):
        pytest.importorskip(module, reason="needs the extras of a simulation")
    (tmp_path / "file").write_text("")
    named = str(tmp_path / "file" / "out")
    assert main([*command, "--output", named]) == 1
    said = capsys.readouterr().err
    assert f"--output {named}: cannot be written: Not a directory; expected a folder" in said


def test_a_folder_that_another_process_writes_into_is_refused(tmp_path: Path):
    holds = (
        "import sys; from xvla_ros.resources import output_folder; output_folder(sys.argv[1]); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(SetupError, match="another process writes into it; expected a folder of your own"):
            output_folder(tmp_path)
        other.communicate("")
    assert output_folder(tmp_path) == output_folder(tmp_path) == tmp_path


def test_a_child_that_outlives_a_killed_process_holds_no_folder(tmp_path: Path):
    """As the loading processes of a training do for some seconds."""
    leaves_child = (
        "import os, sys; from xvla_ros.resources import output_folder; output_folder(sys.argv[1])\n"
        "if os.fork() == 0: print('alive', flush=True); sys.stdin.read(); os._exit(0)\n"
        "os._exit(9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", leaves_child, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.wait(300) == 9
        assert killed.stdout is not None and killed.stdout.readline() == "alive\n"
        assert output_folder(tmp_path) == tmp_path
        killed.communicate("")


def test_a_terminal_that_lacks_a_character_ends_no_command(monkeypatch: pytest.MonkeyPatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(Show, "run", lambda _: print("✓ done") or 0)
    monkeypatch.setitem(COMMANDS, "show", ("shown", "Show", ""))
    monkeypatch.setitem(sys.modules, "xvla_ros.commands.shown", sys.modules[__name__])
    assert main(["show", "me", "--needed", "x"]) == 0
    sys.stdout.flush()
    assert shown.getvalue() == b"? done\n"


def test_what_is_needed_is_named(capsys: pytest.CaptureFixture[str]):
    for arguments, missing in (["me"], "--needed"), (["--needed", "x"], "WHAT"):
        with pytest.raises(SystemExit):
            parse(Show, "show", arguments)
        assert f"the following arguments are required: {missing}\n" in capsys.readouterr().err


def test_help_says_what_the_dataclass_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        parse(Show, "show", ["--help"])
    assert ended.value.code == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "Show what options can be.", "--rate RATE per second, 100 % of it (default 10)", "--loud be loud",
        "--steps STEPS steps (default: the profile's)", "--one ONE several times", "--no-quick be slow",
        "--headless without a window", "--kind {a,b} which", "--needed NEEDED it is needed", "show me --many 1",
    ):  # fmt: skip
        assert line in lines


def test_every_option_is_explained():
    for name, (module, kind, summary) in COMMANDS.items():
        parser = parser_of(getattr(import_module(f"xvla_ros.commands.{module}"), kind), f"xvla {name}")
        assert summary and parser.description and "examples:" in (parser.epilog or "")
        for action in parser._actions[1:]:
            said = action.help or ""
            assert said and not said.startswith(("of ", "as ")), (name, action.dest)


class Fails(Command):
    """Raise what it is given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def run(self) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (XvlaError("no such robot"), 1, "xvla show: no such robot\n  see docs/reference/commands.md#xvla-show\n"),
        (BagError("no such bag"), 1, "xvla show: no such bag\n  see " + BagError.page + "\n"),
        (PermissionError(13, "Permission denied", "out"), 1, "xvla show: [Errno 13] Permission denied: 'out'\n"),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
        (KeyboardInterrupt("nothing is lost"), 130, "\nstopped; nothing is lost\n"),
    ],
)
def test_an_error_is_said_without_a_trace(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert run(Fails(error), "xvla show") == code
    assert capsys.readouterr().err == said


def test_a_mistake_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(Fails(ZeroDivisionError()), "xvla show")


@pytest.mark.parametrize("arguments", [[], ["bench"], ["--nothing"], ["--nothing", "robots"]])
def test_what_is_no_command_is_wrong_usage(arguments: list[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_the_list_of_commands_imports_none_of_them():
    code = "import sys; from xvla_ros.commands import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
    assert all(f"    {name} " in said for name in COMMANDS if len(name) < 15)
    modules = said.split()
    assert not {"numpy", "pydantic", "torch", "yaml", "xvla_ros.robots", "xvla_ros.commands.demo"} & set(modules)


def test_the_version_is_that_of_package_xml(capsys):
    package = (Path(__file__).parents[2] / "package.xml").read_text()
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    said = capsys.readouterr().out.split()
    assert said[0] == "xvla_ros" and f"<version>{said[1].partition('+')[0]}</version>" in package
