# SPDX-License-Identifier: Apache-2.0
"""The command blocks of README, tutorials and how-tos: each is run here, or says why not; what it names exists.

A block of commands is a fence without a language, or of ``bash`` or ``console``; output alone is ``text``. One that
is not run here has ``<!-- not run: REASON -->`` or ``<!-- run by: TEST -->`` on the line before. Its ``xvla`` lines are
parsed all the same, by the parser of the command: options, values and settings of training files. Blocks of a page are
run one after the other in one folder, which holds what ``_prepare`` puts there.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from xvla_ros.commands import COMMANDS, main
from xvla_ros.commands.options import parse, parser_of
from xvla_ros.training.config import read_settings

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

import reference  # noqa: E402

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/shipped_policy/README.md")),
    *sorted((ROOT / "docs" / "tutorial").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    *sorted((ROOT / "docs" / "bring-up").glob("*.md")),
]
FENCE = re.compile(r"^(?:( *)<!-- (.*?) -->\n+)?^( *)```(\w*)\n(.*?)^\3```$", re.MULTILINE | re.DOTALL)
ENDS = {";", "&&", "||", "|", "&"}


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        name: page and line, as pytest shows it.
        why_not: why it is not run here; empty where it is.
        text: its commands as a shell reads them.
    """

    page: Path
    name: str
    why_not: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """Its simple commands, word by word, without variables set before them."""
        found: list[list[str]] = [[]]
        for line in self.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
            lexer.whitespace_split = True
            for word in lexer:
                if word in ENDS:
                    found.append([])
                elif found[-1] or not re.match(r"[A-Z_]+=", word):
                    found[-1].append(word)
            found.append([])
        return [words for words in found if words]


def blocks() -> list[Block]:
    """Return every block of commands of the pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            _, mark, indent, language, body = match.groups()
            if language not in ("", "bash", "console"):
                continue
            lines = [line.removeprefix(indent) for line in body.splitlines()]
            if body.lstrip().startswith("$ "):  # the rest is what they print
                lines = [line[2:] for line in lines if line.startswith("$ ")]
            name = f"{page.relative_to(ROOT).as_posix()}:{text[: match.start(5)].count(chr(10)) + 1}"
            why_not = mark if mark and mark.startswith(("not run: ", "run by: ")) else ""
            found.append(Block(page, name, why_not, "\n".join(lines)))
    return found


BLOCKS = blocks()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_what_a_block_names_exists(block: Block):
    assert block.commands, "a block without a command; output alone is a block of text"
    foreign = [] if block.why_not else [words[0] for words in block.commands if words[0] != "xvla"]
    assert not foreign, f"only xvla is run here, not {foreign}: say why with <!-- not run: REASON --> before the block"
    for words in block.commands:
        _check(words)
    for file in re.findall(r"test/[\w/]+\.py", block.why_not):
        assert (ROOT / file).is_file(), f"{block.name} is said to be run by {file}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_mark_stands_inside_a_block(page: Path):
    """A reader would see it, and paste it into a shell, a rule of udev or a profile."""
    inside = [match[5] for match in FENCE.finditer(page.read_text(encoding="utf-8")) if "<!-- " in match[5]]
    assert not inside, inside


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_named_in_the_text_exist(page: Path):
    for words in re.findall(r"`xvla ([^`]+)`", page.read_text(encoding="utf-8")):
        name, *rest = words.split()
        if name in COMMANDS:
            known = _parser(name)._option_string_actions
            unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - set(known)
            assert not unknown, f"xvla {words}: {unknown}"


@pytest.mark.parametrize(
    "page", sorted({block.page for block in BLOCKS if not block.why_not}), ids=lambda page: page.name
)
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recordings: Path
):
    _prepare(tmp_path, recordings)
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if block.page == page and not block.why_not:
            for words in block.commands:
                assert main(_expanded(words[1:])) in _codes(words), f"{block.name}: {shlex.join(words)}"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two recorded demonstrations of the SO-101 pair."""
    for needed in ("mujoco", "pinocchio"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("recordings") / "touch"
    assert main(["demos", "--episodes", "2", "--image-size", "64", "--output", str(folder)]) == 0
    return folder


def _prepare(folder: Path, recordings: Path) -> None:
    (folder / "recordings").mkdir()
    (folder / "recordings" / "touch").symlink_to(recordings)
    (folder / "run.mcap").symlink_to(recordings / "episode_000000.mcap")
    for name in ("policy", "my_checkpoint"):
        (folder / name).symlink_to(ROOT / "policy")
    profile = "/**: {ros__parameters: {my_arm: {schema_version: 1, like: so101_bimanual}}}\n"
    (folder / "my_arm.yaml").write_text(profile, encoding="utf-8")


def _codes(words: list[str]) -> set[int]:
    """Exit codes with which a command has done its work: the doctor, and checks, name what the machine lacks."""
    return {0, 1} if words[1] == "doctor" else {0, 3} if words[1] == "check" else {0}


def _expanded(words: list[str]) -> list[str]:
    return [str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])]


def _check(words: list[str]) -> None:
    """Fail where a command names something of ours that is not there."""
    if "-m" in words and "xvla_ros" in words:
        words = ["xvla", *words[words.index("xvla_ros") + 1 :]]
    elif words[0] == "srun":
        words = words[1:]
    match words:
        case ["xvla", name, *rest]:
            _check_xvla(name, [word for word in rest if word != "…"])
        case ["ros2", "launch", "xvla_ros", file, *arguments]:
            page = reference.launch_files()
            section = page.partition(f"## {file}\n")[2].partition("\n## ")[0]
            unknown = {word.partition(":=")[0] for word in arguments} - set(re.findall(r"^\| `(\w+)`", section, re.M))
            assert section and not unknown, f"{file}: {unknown}"
        case ["make", *targets]:
            known = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert {word for word in targets if "=" not in word} <= set(known)
        case ["python", script, *_] if script.endswith(".py"):
            assert (ROOT / script).is_file()
        case ["pip", "install", *rest]:
            extras = (
                (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
            )
            assert not [word for word in rest if word.startswith("xvla_ros")], "xvla_ros is not on PyPI"
            for word in rest:
                for extra in re.findall(r"[\w-]+", word[2:]) if word.startswith(".[") else ():
                    assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), extra
        case [*_, "pytest", path] if path.startswith("test/"):
            assert (ROOT / path).exists()


def _parser(name: str):
    module, kind, _ = COMMANDS[name]
    return parser_of(getattr(import_module(f"xvla_ros.commands.{module}"), kind), f"xvla {name}")


def _check_xvla(name: str, words: list[str]) -> None:
    module, kind, _ = COMMANDS[name]
    parse(getattr(import_module(f"xvla_ros.commands.{module}"), kind), f"xvla {name}", words)
    if name == "train" and words and words[0].endswith(".yaml") and not words[0].startswith("my_"):
        file = ROOT / words[0] if words[0].startswith("examples/") else words[0]
        assert read_settings(file, [word for word in words[1:] if not word.startswith("--")])
