# SPDX-License-Identifier: Apache-2.0
"""The package as others get it: a wheel, a wheel without message generators at hand, and a colcon workspace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from xvla_ros.ros_env import BOOTSTRAP_VARIABLES

ROOT = Path(__file__).parents[2]
LEFT_BEHIND = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "shared"),
    *("build", "dist", "*.egg-info", "*.so", "xvla_out"),
)
IMPORT_MESSAGES = """
import xvla_ros
from rclpy.type_support import check_for_type_support
from xvla_ros.action import RunPolicy
from xvla_ros.msg import ActionChunk, PolicyStatus
from xvla_ros.control import _chain  # the compiled part of the limiter
from xvla_ros.resources import config_dir
for kind in (ActionChunk, PolicyStatus, RunPolicy):
    check_for_type_support(kind)
print(xvla_ros.__file__)
print(config_dir())
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source tree as a clone has it, without what was generated."""
    copy = tmp_path / "src" / "xvla_ros"
    shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
    for generated in ("msg", "action"):
        shutil.rmtree(copy / "xvla_ros" / generated, ignore_errors=True)
    return copy


def run(*command: str | Path, cwd: Path, environment: dict[str, str] | None = None, ends_with: int = 0) -> str:
    """Run ``command`` to its end and return what it said; fail with that where its exit code is another one."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == ends_with, result.stdout[-4000:]
    return result.stdout


def clean_environment() -> dict[str, str]:
    hidden = (*BOOTSTRAP_VARIABLES, "AMENT_PREFIX_PATH", "PYTHONPATH", "XVLA_ROS_MESSAGES")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def new_python(folder: Path, *packages: str) -> Path:
    """A fresh virtual environment's interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if packages:
        run(python, "-m", "pip", "install", "-q", *packages, cwd=folder, environment=clean_environment())
    return python


def borrowing(prefix: Path) -> dict[str, str]:
    """An environment in which ``prefix`` comes first and what it lacks, ROS above all, is taken from ours."""
    site = Path(sysconfig.get_path("purelib"))
    libraries = [prefix / "lib", Path(sys.prefix) / "lib", *site.glob("ros_*.libs")]
    return clean_environment() | {
        "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1",
        "AMENT_PREFIX_PATH": f"{prefix}:{sys.prefix}",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PYTHONPATH": str(site),
    }


def test_a_wheel_brings_messages_profiles_and_executables(tmp_path, source):
    pytest.importorskip("rosidl_generator_py", reason="needs the message generators: pip install '.[messages]'")
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, source]
    run(*build, cwd=tmp_path)
    (wheel,) = wheels.glob("*.whl")
    assert "without" not in wheel.name
    python = new_python(target)
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=tmp_path, environment=clean_environment())

    shown = run(python, "-c", IMPORT_MESSAGES, cwd=tmp_path, environment=borrowing(target)).splitlines()

    assert Path(shown[0]).is_relative_to(target)
    assert Path(shown[1]) == target / "share" / "xvla_ros" / "config"
    for name in ("policy_node", "sim_node", "play_node", "record_node", "evaluate_node", "xvla"):
        assert os.access(target / "lib" / "xvla_ros" / name, os.X_OK)
    for relative in ("launch/xvla.launch.py", "config/dds/fastdds.xml", "config/widowx.yaml", "msg/ActionChunk.msg"):
        assert (target / "share" / "xvla_ros" / relative).is_file()
    assert "so101_bimanual" in run(target / "bin" / "xvla", "robots", cwd=tmp_path, environment=borrowing(target))


def test_the_sdist_holds_all_that_a_wheel_needs_and_the_wheel_runs_away_from_the_checkout(tmp_path, source):
    pytest.importorskip("rosidl_generator_py", reason="needs the message generators: pip install '.[messages]'")
    pytest.importorskip("mujoco", reason="needs the sim extra")
    dist, wheels, target, away = (tmp_path / name for name in ("dist", "wheels", "target", "away"))
    away.mkdir()
    build_sdist = f"import sys; sys.path.insert(0, 'tools'); import build_backend; build_backend.build_sdist('{dist}')"
    run(sys.executable, "-c", build_sdist, cwd=source, environment=clean_environment())
    (sdist,) = dist.iterdir()
    needed = files_that_are_installed(source)
    shutil.rmtree(source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, sdist]
    run(*build, cwd=away, environment=clean_environment())
    (wheel,) = wheels.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert not {name for name in needed if not any(each.endswith(name) for each in held)}

    python = new_python(target)
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=away, environment=clean_environment())
    # the dependencies, torch above all, are those of the environment that runs the test
    site = Path(sysconfig.get_path("purelib", vars={"base": str(target)}))
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    environment = borrowing(target)
    del environment["PYTHONPATH"]

    def xvla(*arguments, ends_with=0):
        return run(target / "bin" / "xvla", *arguments, cwd=away, environment=environment, ends_with=ends_with)

    assert xvla("--version").startswith("xvla_ros ")
    said = xvla("doctor")
    assert str(site / "xvla_ros") in said and "limiter              compiled" in said
    said = xvla("check", "--robot", "so101_bimanual", "--offline", ends_with=3)  # without the graph it is incomplete
    assert "0 errors, 0 warnings" in said
    evaluate = ("evaluate", "--in-process", "--expert", "--episodes", "1", "--output", "expert")
    assert "1 of 1 succeeded" in xvla(*evaluate)
    assert (away / "expert" / "report.html").is_file()
    xvla("demo", "--task", "none", "--duration", "1", "--output", "demo")  # processes over DDS, the policy that ships
    assert (away / "demo" / "film.mp4").is_file() and (away / "demo" / "report.html").is_file()


def files_that_are_installed(source):
    """Files that a wheel of a source tree has to hold: modules, what lies beside them, and ``share``."""
    ours = [*(source / "xvla_ros").rglob("*.py"), *(source / "xvla_ros").rglob("*.html")]
    shared = [path for name in ("config", "examples", "launch", "msg", "policy") for path in (source / name).rglob("*")]
    names = {str(path.relative_to(source)) for path in ours}
    return names | {f"share/xvla_ros/{path.relative_to(source)}" for path in shared if path.is_file()}


def test_without_generators_everything_but_the_messages_is_installed(tmp_path, source):
    python = new_python(tmp_path / "target", "setuptools>=77")
    install = [python, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", source]

    said = run(*install, cwd=tmp_path, environment=clean_environment())

    assert "installed WITHOUT its ROS messages (no message generators found)" in said
    assert "Successfully installed xvla_ros-" in said and "+without.messages" in said  # the line a quiet pip shows too
    read_profiles = "from xvla_ros.resources import config_dir; print(*config_dir().glob('*.yaml'))"
    assert "so101_bimanual.yaml" in run(python, "-c", read_profiles, cwd=tmp_path, environment=clean_environment())
    failed = subprocess.run(
        [python, "-c", "from xvla_ros.msg import ActionChunk"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert "ImportError: the ROS messages of xvla_ros were not built" in failed.stderr
    assert "pip install" in failed.stderr


@pytest.mark.parametrize("options", [[], ["--symlink-install"]], ids=["copied", "symlinked"])
def test_colcon_builds_the_same_package(tmp_path, source, options):
    pytest.importorskip("rosidl_generator_py", reason="needs the message generators: pip install '.[messages]'")
    colcon = new_python(tmp_path / "colcon", "colcon-common-extensions").parent / "colcon"
    for_cmake = [f"-DPython3_EXECUTABLE={sys.executable}", f"-DCMAKE_PREFIX_PATH={sys.prefix}", "-DBUILD_TESTING=OFF"]
    environment = clean_environment() | {
        "AMENT_PREFIX_PATH": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    run(colcon, "build", *options, "--cmake-args", *for_cmake, cwd=tmp_path, environment=environment)

    script = tmp_path / "import_messages.py"
    script.write_text(IMPORT_MESSAGES)
    sourced = f". install/setup.sh && exec {sys.executable} {script}"
    shown = run("sh", "-c", sourced, cwd=tmp_path, environment=environment).splitlines()
    prefix = tmp_path / "install" / "xvla_ros"
    assert Path(shown[-2]).is_relative_to(prefix)
    assert Path(shown[-1]) == prefix / "share" / "xvla_ros" / "config"
    assert os.access(prefix / "lib" / "xvla_ros" / "policy_node", os.X_OK)
    assert (prefix / "share" / "xvla_ros" / "launch" / "xvla.launch.py").is_file()
