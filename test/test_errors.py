# SPDX-License-Identifier: Apache-2.0
"""Errors: one base, one record of a problem."""

import ast
import pickle
import re
from collections import defaultdict
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

import xvla_ros
from xvla_ros import resources
from xvla_ros.commands import COMMANDS
from xvla_ros.errors import (
    INSTALL_PAGE,
    PAGES_OF_ROOMS,
    BagError,
    CheckpointError,
    Interrupted,
    Problem,
    ProfileError,
    SetupError,
    XvlaError,
    did_you_mean,
    help_page,
)
from xvla_ros.model.checkpoint.inspection import find_checkpoint
from xvla_ros.model.runtime.engines import read_report
from xvla_ros.recordings.bags import Bag
from xvla_ros.resources import documentation
from xvla_ros.robots import load_profile
from xvla_ros.serving.client import url_of
from xvla_ros.training.config import read_settings

ROOT = Path(xvla_ros.__file__).parent
GENERATED = {"action", "msg"}
BUILTIN = {"Exception", "LookupError", "OSError", "RuntimeError", "ValueError"}


def classes() -> dict[str, list[tuple[str, set[str]]]]:
    """Return class name → (module, names of its bases) of every class of the package."""
    found = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] in GENERATED:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                found[node.name].append((str(path.relative_to(ROOT)), bases))
    return found


def test_every_error_is_an_xvla_error():
    bare = {name for name, places in classes().items() for _, bases in places if bases and bases <= BUILTIN}
    assert bare == {XvlaError.__name__}
    assert not issubclass(Interrupted, Exception), "somebody asked: who catches errors lets it pass"


def test_no_class_name_stands_in_two_modules():
    places = {name: {module for module, _ in found} for name, found in classes().items() if not name.startswith("_")}
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


@pytest.mark.parametrize(("problem", "text"), [
    (Problem("a.yaml", "arm.rate", 3, "2", "3 is not allowed"), "a.yaml: arm.rate: 3 is not allowed; expected 2"),
    (Problem("a.json", "num", 3, "4", "has the wrong value"), "a.json: num: has the wrong value; found 3; expected 4"),
    (Problem("w", "norm", (3, 4), "", "is no weight"), "w: norm: is no weight; found (3, 4)"),
    (Problem("", "robots", {"a": 1}, "names", "holds a mapping"), "robots: holds a mapping; expected names"),
    (Problem("a.yaml", "", None, "a file", "is missing"), "a.yaml: is missing; expected a file"),
])  # fmt: skip
def test_text_of_a_problem_names_what_was_found_and_what_is_expected(problem: Problem, text: str):
    assert str(problem) == text


@pytest.mark.parametrize("error", [
    ProfileError([Problem("a.yaml", "arm", None, "a mapping", "is missing")]),
    CheckpointError("folder", [Problem("config.json", "", None, "a file", "is missing")]),
])  # fmt: skip
def test_errors_come_whole_out_of_another_process(error: XvlaError):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.problems) == (type(error), str(error), error.problems)
    assert isinstance(error, ValueError)


def test_of_many_problems_a_checkpoint_shows_the_first_and_the_count():
    error = CheckpointError("", [Problem("w", str(number), None, "", "is missing") for number in range(23)])
    lines = str(error).splitlines()
    assert lines[0] == "the checkpoint cannot be used:" and lines[-1] == "  … and 3 more" and len(lines) == 22
    assert str(error.at("folder")).startswith("checkpoint folder cannot be used:\n  w: 0: is missing")


def sections(page: Path) -> set[str]:
    """Return the anchors of a page, as the site makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def kinds(error: type[XvlaError] = XvlaError) -> set[type[XvlaError]]:
    return {error} | {each for kind in error.__subclasses__() for each in kinds(kind)}


def test_every_page_that_an_error_leads_to_is_there_with_its_section():
    import xvla_ros.recordings.recording
    import xvla_ros.training.config  # noqa: F401  (which define kinds of their own)

    named = {kind.page for kind in kinds() if kind.page} | {INSTALL_PAGE, *PAGES_OF_ROOMS.values()}
    named |= {f"docs/reference/commands.md#xvla-{command}" for command in COMMANDS}
    assert len(named) > 30
    for page in named:
        file, _, section = page.partition("#")
        assert (ROOT.parent / file).is_file(), page
        assert not section or section in sections(ROOT.parent / file), page


def test_every_room_that_has_a_page_is_there():
    for room in PAGES_OF_ROOMS:
        path = ROOT.parent / room.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), room


@pytest.mark.parametrize(("fails", "page"), [
    (lambda: load_profile("no_such_robot"), "docs/reference/profile.md"),
    (lambda: find_checkpoint("/no/such/folder"), "docs/reference/checkpoints.md#supported-formats"),
    (lambda: list(Bag("/no/such.mcap").messages()), "docs/how-to/evaluate-on-bags.md#which-bags-can-be-used"),
    (lambda: url_of("http://arm"), "docs/how-to/gpu-server.md"),
    (lambda: read_report(Path("/no/such/folder")), "docs/how-to/faster-engines.md"),
    (lambda: read_settings("/no/such.yaml"), "docs/reference/training.md"),
    (lambda: raised(SetupError("needs ROS 2: no module rclpy")), INSTALL_PAGE),
    (lambda: raised(SetupError("install xvla_ros[replay]")), INSTALL_PAGE),
    (lambda: raised(SetupError("a wrong option")), ""),
    (lambda: raised(SetupError("no"), because=BagError("of this")), BagError.page),
])  # fmt: skip
def test_an_error_leads_to_the_page_that_helps(fails: Callable[[], object], page: str):
    with pytest.raises(XvlaError) as caught:
        fails()
    assert help_page(caught.value) == page


def raised(error: Exception, because: Exception | None = None) -> None:
    raise error from because


def test_a_page_is_a_file_of_the_sources_or_the_address_that_pip_knows(monkeypatch, tmp_path):
    page = "docs/how-to/train.md#4-train"
    monkeypatch.chdir(ROOT)
    assert documentation(page) == "../docs/how-to/train.md#4-train"
    monkeypatch.chdir(tmp_path)
    assert documentation(page) == str(ROOT.parent / "docs/how-to/train.md#4-train")
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "site-packages" / "xvla_ros" / "resources.py"))
    told = Message()
    monkeypatch.setattr("importlib.metadata.metadata", lambda name: told)
    assert documentation(page) == "docs/how-to/train.md#4-train in the sources"
    told["Project-URL"] = "Documentation, https://example.org/xvla/"
    assert documentation(page) == "https://example.org/xvla/how-to/train.html#4-train"
    assert documentation("README.md#install") == "https://example.org/xvla/index.html#install"


def test_the_closest_name_is_suggested():
    assert did_you_mean("widowks", ["widowx", "so101"]) == " (did you mean 'widowx'?)"
    assert did_you_mean("so", ["widowx", "so101"]) == " (did you mean 'so101'?)"
    assert did_you_mean("panda", ["widowx", "so101"]) == ""
