# SPDX-License-Identifier: Apache-2.0
"""Errors: one base, one record of a problem."""

import ast
import pickle
from collections import defaultdict
from pathlib import Path

import pytest

import xvla_ros
from xvla_ros.errors import CheckpointError, Interrupted, Problem, ProfileError, XvlaError, did_you_mean

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


def test_the_closest_name_is_suggested():
    assert did_you_mean("widowks", ["widowx", "so101"]) == " (did you mean 'widowx'?)"
    assert did_you_mean("so", ["widowx", "so101"]) == " (did you mean 'so101'?)"
    assert did_you_mean("panda", ["widowx", "so101"]) == ""
