# SPDX-License-Identifier: Apache-2.0
"""What ``import xvla_ros`` offers: the example of its docstring runs, and the import is fast."""

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import xvla_ros

ROOT = Path(xvla_ros.__file__).parent
GENERATED = {"action", "msg"}


def imported(code: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter has after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT.parent)},
    )  # fmt: skip
    return set(done.stdout.split())


def test_example_of_the_docstring_runs_on_the_shipped_policy():
    outcome = doctest.testmod(xvla_ros)
    assert outcome.attempted > 5 and outcome.failed == 0


def test_every_public_name_is_there_and_is_documented():
    assert all(getattr(xvla_ros, name).__doc__ for name in xvla_ros.__all__)
    assert set(xvla_ros.__all__) <= set(dir(xvla_ros))
    assert not hasattr(xvla_ros, "no_such_name")


def test_importing_the_package_or_a_profile_imports_neither_torch_nor_ros():
    heavy = {"numpy", "pydantic", "rclpy", "torch", "transformers"}
    assert not heavy & imported("import xvla_ros")
    assert not {"rclpy", "torch", "transformers"} & imported("import xvla_ros; xvla_ros.load_robot('so101')")


def test_every_room_says_what_it_is_for():
    rooms = [path for path in ROOT.rglob("__init__.py") if not GENERATED & set(path.parts)]
    assert [str(path) for path in rooms if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []
