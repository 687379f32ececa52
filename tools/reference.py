# SPDX-License-Identifier: Apache-2.0
"""Reference pages written from the code: commands, launch arguments, messages, and the names of the Python package.

``python -m pytest test/packaging/test_reference.py --write-docs`` writes all generated pages of docs/reference.
"""
# ruff: noqa: E501 — a row of a Markdown table is one line

from __future__ import annotations

import ast
import re
from argparse import Action, BooleanOptionalAction
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import xvla_ros
from xvla_ros.commands import COMMANDS
from xvla_ros.commands.options import HIDDEN, parser_of

ROOT = Path(__file__).parents[1]
_WRITTEN = (
    "This page is generated from the code; `python -m pytest test/packaging/test_reference.py --write-docs` writes it."
)

_COMMANDS_HEAD = f"""# Commands

{_WRITTEN}

`xvla COMMAND --help` prints the same. `python -m xvla_ros` is the same as `xvla`, for programs such as `torchrun` that
start several processes.

| exit code | meaning |
|---|---|
| 0 | The command did what it was asked. |
| 1 | Something failed. The error is on stderr. |
| 2 | The command line is wrong. |
| 3 | `xvla check` found no error but could not check everything. |
| 130 | Ctrl-C. What was finished is kept. |
"""

_NOTES = {  # what an option's help has no room for
    "demo": "The demo runs in a ROS domain of its own and prints its number; `xvla view` under that `ROS_DOMAIN_ID` shows it live. "
    "It writes the bag `run.mcap` and makes [`report.json`](reports.md#reportjson), `report.html` and `film.mp4` from it. "
    "With a checkpoint that was trained for the robot, the demo leads episodes of `touch`: each layout has its own instruction, and the simulator decides whether it was followed. "
    "A demo that ends early leaves the film and the report of what was recorded.",
    "run": "Use the [launch file](launch.md) where `launch_ros` is installed; this command does the same without it. "
    "[Several arms](../how-to/run-on-your-robot.md#several-arms-on-one-policy) share one policy with `--robots`.",
    "serve": "[How to set it up](../how-to/gpu-server.md), and the [protocols](serving.md).",
    "view": "[How to use it](../how-to/see-what-it-does.md#rerun).",
    "checkpoints": "[The same table](checkpoints.md#published-checkpoints).",
    "check": "[What it compares](../how-to/run-on-your-robot.md#2-check-it). Exit code 1 means errors, 3 that something could not be checked. "
    "With `--suite` it looks for the [known causes of 0 %](../how-to/evaluate-on-libero.md#at-0-) on a benchmark instead.",
    "new-robot": "[The next steps](../how-to/add-an-arm.md).",
    "demos": "Existing episodes are kept. Exit code 1 means that more than one episode of twenty failed, or with `--suite` more than half. "
    "[How to use it](../how-to/simulate-demonstrations.md), and [for LIBERO](../how-to/evaluate-on-libero.md#demonstrations).",
    "evaluate": "Writes [`report.json`](reports.md#reportjson), `report.html` and films of failures. With `--suite` it runs [LIBERO](../how-to/evaluate-on-libero.md) or "
    "[other simulators](../how-to/other-simulators.md), and continues where it was stopped.",
    "record": "[How to use it](../how-to/record.md). Exit code 1 means that a required topic never came, that no observation could be built, or that the file could not be finished.",
    "pretrain-vision": "The same as `xvla train` with `objective: vision`, with [its own defaults](training.md#pretraining-a-vision-tower). [Why](../explanation/shipped-policy.md).",
    "report": "What a bag does not hold has no place on the page: demonstrations by a person have no chunks and no latency.",
    "replay": "Writes `report.html`, [`metrics.json`](reports.md#metricsjson) and `metrics.csv`. [How to read them](../how-to/evaluate-on-bags.md). "
    "Exit code 1 means that nothing could be replayed, or that live and offline answers differ.",
    "data": "Exit code 1 means that the robot misses something in the data or that no observation can be built, 2 that this is unknown. "
    "[For bags](../how-to/evaluate-on-bags.md), [for LeRobot data sets](../how-to/lerobot-data-sets.md#look-at-one).",
    "export": "[LeRobot data sets](../how-to/lerobot-data-sets.md), [ONNX Runtime and OpenVINO](../how-to/faster-engines.md).",
    "security": "[How to use it](../how-to/network.md#keys-sros-2).",
    "train": "[How to use it](../how-to/train.md), [all settings](training.md). After Ctrl-C the state is saved. A failed evaluation at the end is a warning.",
}  # fmt: skip

_COMMANDS_TAIL = """
## Benchmarks in the source folder

Each has `--help`. Their figures are in [the results](../../bench/RESULTS.md).

| command | what it measures |
|---|---|
| `python bench/latency.py` | the time of a chunk, part by part ([what it means](../explanation/speed.md)) |
| `python bench/start.py` | the time from the start of a process to its first chunk ([what it means](../explanation/speed.md#cold-start)) |
| `python bench/scaling.py` | how time and memory grow with arms, views, waypoints, bags and data sets ([what it means](../explanation/speed.md#growth)) |
| `python bench/gpu.py` | latency, memory and narrow types on a GPU, in one run; not run yet |
| `python bench/fleet.py` | how many robots one policy serves |
| `python bench/smoothness.py` | steps in velocity and position where chunks join |
"""

_LAUNCH_HEAD = f"""# Launch files

{_WRITTEN}

Arguments are written `name:=value`; `ros2 launch xvla_ros FILE --show-args` lists them too. An empty default means that
the profile or the node decides.
"""

_MESSAGES_HEAD = f"""# Messages and actions

{_WRITTEN}

[Topics](topics.md) says which node sends them, and when.
"""

_API_HEAD = f"""# Python

{_WRITTEN}

`import xvla_ros` needs no ROS. Each name is loaded when it is first used.
"""


def pages() -> dict[str, str]:
    """Return the pages, by their names in docs/reference."""
    return {"commands.md": commands(), "launch.md": launch_files(), "messages.md": messages(), "api.md": api()}


def commands() -> str:
    """Return the page of all commands and their options."""
    parts = [_COMMANDS_HEAD, "| command | what it does |", "|---|---|"]
    parts += [f"| [`xvla {name}`](#xvla-{name}) | {summary} |" for name, (_, _, summary) in COMMANDS.items()]
    for name, (module, kind, _) in COMMANDS.items():
        parser = parser_of(getattr(import_module(f"xvla_ros.commands.{module}"), kind), f"xvla {name}")
        before, _, rest = (parser.epilog or "").partition("examples:\n")
        examples, _, after = rest.partition("\n\n")
        parts += [f"\n## xvla {name}\n", parser.description or "", ""]
        parts += [
            text.strip() + "\n"
            for text in (before, after and after[0].upper() + after[1:], _NOTES.get(name, ""))
            if text.strip()
        ]
        options = [_option(action) for action in parser._actions[1:] if action.help != HIDDEN]
        parts += ["| option | meaning |", "|---|---|", *options]
        parts += ["\n```", *(line.strip() for line in examples.splitlines()), "```"]
    return "\n".join(parts) + "\n" + _COMMANDS_TAIL


def launch_files() -> str:
    """Return the page of the launch files' arguments, read from their source: launch is not on PyPI."""
    parts = [_LAUNCH_HEAD]
    described: dict[str, str] = {}
    for file in sorted((ROOT / "launch").glob("*.launch.py"), key=lambda file: file.name != "xvla.launch.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        title, _, text = (ast.get_docstring(tree) or "").replace("``", "`").partition("\n")
        example, _, text = text.strip().partition("\n\n")
        parts += [f"## {file.name}\n", f"{title}\n", f"```\n{example}\n```\n", f"{text}\n" if text else ""]
        parts += ["| argument | default | allowed | meaning |", "|---|---|---|---|"]
        for name, values in _arguments(tree):
            if file.name == "xvla.launch.py":
                described[name] = values["description"]
            meaning = values["description"].replace("as for xvla.launch.py", described.get(name, ""))
            default = (
                f"`{values['default_value']}`"
                if values.get("default_value")
                else "empty"
                if "default_value" in values
                else "required"
            )
            allowed = ", ".join(f"`{value}`" for value in values.get("choices", ()) if value)
            parts.append(f"| `{name}` | {default} | {allowed} | {_cell(meaning)} |")
        parts.append("")
    return re.sub("\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def messages() -> str:
    """Return the page of our messages and actions, read from their files."""
    parts = [_MESSAGES_HEAD]
    for file in [*sorted((ROOT / "msg").glob("*.msg")), *sorted((ROOT / "action").glob("*.action"))]:
        text = file.read_text(encoding="utf-8")
        parts += [f"## {file.stem}\n", f"`xvla_ros/{file.parent.name}/{file.stem}`: {_lead(text)}\n"]
        names = ["goal", "result", "feedback"] if file.suffix == ".action" else [""]
        for name, section in zip(names, text.split("\n---\n"), strict=True):
            parts += [f"**{name.capitalize()}**\n"] if name else []
            parts += ["| field | type | meaning |", "|---|---|---|", *_fields(section), ""]
    return "\n".join(parts).rstrip() + "\n"


def api() -> str:
    """Return the page of the package's public names; the site fills it in from their docstrings."""
    docstring = xvla_ros.__doc__ or ""
    example = [line[8:] for line in docstring.splitlines() if line.startswith(("    >>> ", "    ... "))]
    example.insert(example.index("import xvla_ros") + 1, "")
    parts = [_API_HEAD, "```python", *example, "```", ""]
    parts += ["The reference below is in the documentation site (`make docs`), and as docstrings in the code.", ""]
    for name in sorted(xvla_ros.__all__, key=lambda name: (name[0].isupper(), name)):
        home = f"xvla_ros.{xvla_ros._HOMES[name]}.{name}"
        parts += [f"::: {home}", ""]
    return "\n".join(parts).rstrip() + "\n"


def _option(action: Action) -> str:
    flag = action.option_strings[0] if action.option_strings else ""
    value = "|".join(map(str, action.choices or ())) or str(action.metavar or action.dest.upper())
    shown = flag.replace("--", "--[no-]", 1) if isinstance(action, BooleanOptionalAction) else flag
    shown = f"{shown} {'' if action.nargs == 0 else value}".strip()
    text = (action.help or "").replace("%%", "%") + " (required)" * bool(action.required and action.option_strings)
    return f"| `{_cell(shown)}` | {_cell(text)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _arguments(tree: ast.Module) -> Iterator[tuple[str, dict[str, object]]]:
    booleans = ["true", "1", "false", "0"]
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "DeclareLaunchArgument":
            given = {word.arg: word.value for word in call.keywords}
            values = {name: ast.literal_eval(given[name]) for name in ("default_value", "description") if name in given}
            if "choices" in given:  # the table BOOLEANS of these files, or literals
                plain = "BOOLEANS" in ast.unparse(given["choices"])
                values["choices"] = booleans[::2] if plain else ast.literal_eval(given["choices"])
            yield ast.literal_eval(call.args[0]), values


def _lead(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ")


def _fields(section: str) -> Iterator[str]:
    for line in section.splitlines():
        found = re.match(r"(\S+)\s+(\w+)(=\S*)?\s*(?:#\s*(.*))?$", line)
        if found and not line.startswith("#"):
            kind, name, value, meaning = found.groups()
            shown = f"{name}{value}" if value else name
            yield f"| `{shown}` | {kind} | {_cell(meaning or ('a constant' if value else ''))} |"
