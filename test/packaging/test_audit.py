# SPDX-License-Identifier: Apache-2.0
"""What is installed is listed with its licence, and what is under the GPL is named."""

import importlib.util
import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
audit = sys.modules["audit"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)


def test_everything_that_is_installed_is_in_the_table_and_in_the_sbom(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "audit.py"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    sbom = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.5")
    installed = {each.metadata["Name"].lower() for each in distributions()} - {"xvla_ros"}
    assert {each["name"].lower() for each in sbom["components"]} == installed
    assert len((tmp_path / "licences.csv").read_text(encoding="utf-8").splitlines()) == len(installed) + 1


def test_the_gpl_codecs_of_pyav_are_named(tmp_path, capsys):
    pytest.importorskip("av", reason="needs xvla_ros[lerobot]")
    audit.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "a wheel of PyAV bundles FFmpeg with libx264 and libx265" in said


@pytest.mark.parametrize(
    ("licence", "bundled", "problem"),
    [
        ("MIT", (), ""),
        ("LGPL-3.0-or-later", (), ""),
        ("MIT", ("libgmp.so.10 (LGPL-3.0-or-later)",), ""),
        ("GPL-3.0-only", (), "is under the GPL"),
        ("GNU General Public License v3", (), "is under the GPL"),
        ("MIT", ("libx264.so.165 (GPL-2.0-or-later)",), "is under the GPL"),
        ("unknown", (), "its licence is unknown"),
    ],
)
def test_what_is_wrong_with_a_licence(licence, bundled, problem):
    found = audit.Installed("some-package", "1.0", licence, bundled).problem
    assert found.startswith(problem) and bool(found) == bool(problem)
    assert not audit.Installed("av", "1.0", "GPL-3.0-only", ()).problem, "told of in KNOWN"


def test_every_bound_of_a_dependency_has_its_reason_beside_it():
    told, bare = set(), {}
    comment = False  # whether the line before was one
    for number, line in enumerate((ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("[tool."):
            break
        code, hash_sign, _ = line.partition("#")
        bounded = set(re.findall(r"""['"]([\w-]+(?:\[\w+\])?[<>=][^'"]*)['"]""", code))
        if hash_sign or comment:
            told |= bounded
        else:
            bare |= dict.fromkeys(bounded, number)
        comment = line.lstrip().startswith("#")
    assert len(told) > 15
    # every wheel of ROS is pinned, which is said once; what is said of a bound counts for its repetitions
    left = {each: number for each, number in bare.items() if each not in told and not each.startswith("ros-")}
    assert not left, f"pyproject.toml bounds without a reason in a comment: {left}"
