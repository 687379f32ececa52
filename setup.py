# SPDX-License-Identifier: Apache-2.0
"""Builds the messages with CMake, the same way as colcon does, and the limiter's chain; lays the results out for pip.

What is not in ``pyproject.toml`` is here: the generated Python goes into the package (into the source tree when the
install is editable), libraries and the ``share`` folder go into the prefix of the environment. See
``tools/build_backend.py`` for when messages are built.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "xvla_ros"
GENERATED = ("msg", "action")  # subpackages that the generators write
# pip shows what a build prints only on request, but always the version it installed.
MARK_WITHOUT_MESSAGES = "+without.messages"

WITHOUT_MESSAGES = """\
xvla_ros: installed WITHOUT its ROS messages ({reason}).
xvla_ros: model, training, simulation and offline tools work; the ROS nodes do not.
xvla_ros: for the messages, in an environment without a sourced ROS:  pip install '.[ros]' -C messages=jazzy
"""

STUB = """\
raise ImportError(
    "the ROS messages of xvla_ros were not built ({reason}); "
    "reinstall from the source folder with: pip install '.[ros]' -C messages=jazzy "
    "(or build the package with colcon in a sourced ROS 2 workspace)"
)
"""


def generator_prefix() -> Path | None:
    """Return the prefix the message generators are installed in, None when they are not at hand."""
    spec = importlib.util.find_spec("rosidl_generator_py")
    if spec is None or spec.origin is None:
        return None
    prefix = Path(spec.origin).parents[4]  # PREFIX/lib/python3.X/site-packages/rosidl_generator_py/__init__.py
    needed = ("rosidl_default_generators", "ament_cmake", "std_msgs", "action_msgs")
    if all((prefix / "share" / package / "cmake").is_dir() for package in needed):
        return prefix
    return None


def messages_wanted() -> tuple[Path | None, str]:
    """Return the generators' prefix, or None and the reason why no messages are built."""
    wanted = os.environ.get("XVLA_ROS_MESSAGES", "auto")
    if wanted == "off":
        return None, "switched off by the build option messages=off"
    prefix = generator_prefix()
    if prefix is None and wanted not in ("", "auto"):
        raise SystemExit(f"messages={wanted} was asked for, but the message generators are not installed")
    return prefix, "no message generators found"


def version() -> str:
    """Return the version in package.xml."""
    found = re.search(r"<version>(.+)</version>", (ROOT / "package.xml").read_text())
    if found is None:
        raise SystemExit("package.xml has no <version>")
    return found[1]


def cmake() -> str:
    """Return the cmake of PyPI when its module is installed, else the first on PATH."""
    spec = importlib.util.find_spec("cmake")
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).parent / "data" / "bin" / "cmake"
        if program.exists():
            return str(program)
    found = shutil.which("cmake")
    if found is None:
        raise SystemExit("cmake was not found; install it with: pip install cmake")
    return found


class BuildWithoutMessages(build_py):
    """Puts modules in place of the messages that tell how to get them."""

    reason = ""

    def run(self) -> None:
        super().run()
        package = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib) / PACKAGE
        for extension in package.glob(f"{PACKAGE}_s__rosidl_*.so"):
            extension.unlink()
        for name in GENERATED:
            shutil.rmtree(package / name, ignore_errors=True)
            (package / name).mkdir(parents=True)
            (package / name / "__init__.py").write_text(STUB.format(reason=self.reason))
        sys.stderr.write(WITHOUT_MESSAGES.format(reason=self.reason))


class BuildMessages(build_ext):
    """Runs CMake into a staging folder and sorts what it installed into package and data files; builds the rest too."""

    prefix: Path

    def finalize_options(self) -> None:
        super().finalize_options()
        self.extensions = [extension for extension in self.extensions if extension.sources]

    def run(self) -> None:
        if self.extensions:
            super().run()
        build = Path(self.build_temp).resolve() / "messages"
        staging = build / "staging"
        shutil.rmtree(build, ignore_errors=True)
        self._run_cmake(build, staging)
        site_packages = next(staging.glob(f"**/{PACKAGE}/msg/__init__.py")).parents[2]
        self._place_package(site_packages / PACKAGE)
        self._place_data(staging, site_packages)

    def _run_cmake(self, build: Path, staging: Path) -> None:
        environment = dict(os.environ, AMENT_PREFIX_PATH=str(self.prefix))
        configure = [
            cmake(),
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DCMAKE_INSTALL_PREFIX={staging}",
            f"-DCMAKE_PREFIX_PATH={self.prefix}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_TESTING=OFF",
            "-DXVLA_ROS_CHAIN=OFF",  # built beside it
        ]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        for command in (
            configure,
            [cmake(), "--build", str(build), "--parallel", jobs],
            [cmake(), "--install", str(build)],
        ):
            if subprocess.run(command, env=environment).returncode:
                raise SystemExit(
                    f"xvla_ros: building the ROS messages failed (above) at: {' '.join(command)}\n"
                    "xvla_ros: to install without them: pip install . -C messages=off"
                )

    def _place_package(self, generated: Path) -> None:
        """Move the generated modules beside ours: into the source tree when editable, else into the wheel."""
        package = ROOT / PACKAGE if self.inplace or self.editable_mode else Path(self.build_lib) / PACKAGE
        package.mkdir(parents=True, exist_ok=True)
        for name in GENERATED:
            shutil.rmtree(package / name, ignore_errors=True)
            shutil.copytree(generated / name, package / name)
        for stale in package.glob(f"{PACKAGE}_s__rosidl_*.so"):
            stale.unlink()
        for extension in generated.glob("*.so"):
            shutil.copy2(extension, package)

    def _place_data(self, staging: Path, site_packages: Path) -> None:
        folders: dict[str, list[str]] = defaultdict(list)
        for file in sorted(staging.rglob("*")):
            if file.is_file() and not file.is_relative_to(site_packages):
                folders[str(file.parent.relative_to(staging))].append(str(file))
        self.distribution.data_files[:] = sorted(folders.items())  # in place: install_data may hold the list already
        if self.editable_mode:
            self.run_command("install_data")  # setuptools leaves data files out of editable installs


def chain() -> list[Extension]:
    """Return the compiled part of the limiter, which may fail to build; nothing where Ruckig is not at hand."""
    spec = importlib.util.find_spec("ruckig")
    prefix = Path(spec.origin).parent if spec is not None and spec.origin is not None else ROOT
    libraries = [str(file) for file in prefix.glob("lib*/libruckig.a")]
    if not libraries:
        return []
    return [
        Extension(
            f"{PACKAGE}.control._chain",
            sources=[f"{PACKAGE}/control/chain.cpp"],
            include_dirs=[str(prefix / "include")],
            extra_objects=libraries,
            # no fused multiply-add: the same numbers as in Python
            extra_compile_args=["-std=c++17", "-O2", "-fvisibility=hidden", "-ffp-contract=off"],
            extra_link_args=["-Wl,--exclude-libs,ALL", "-s"],
            optional=True,
        )
    ]


def shared_files() -> list[tuple[str, list[str]]]:
    """Return what CMakeLists.txt installs in ``share/xvla_ros``, the policy if it is there."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in ("config", "examples", "launch", "msg", "policy"):
        for file in sorted((ROOT / name).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                relative = file.relative_to(ROOT)
                folders[f"share/{PACKAGE}/{relative.parent}"].append(str(relative))
    return sorted(folders.items())


def main() -> None:
    prefix, reason = messages_wanted()
    if prefix is None:
        BuildWithoutMessages.reason = reason
        mark = "" if "sdist" in sys.argv else MARK_WITHOUT_MESSAGES
        setup(
            version=version() + mark,
            cmdclass={"build_py": BuildWithoutMessages},
            ext_modules=chain(),
            data_files=shared_files(),
        )
        return
    BuildMessages.prefix = prefix
    setup(
        version=version(),
        cmdclass={"build_ext": BuildMessages},
        ext_modules=[Extension(f"{PACKAGE}.messages", sources=[]), *chain()],  # the first: a wheel of this platform
        data_files=shared_files(),
    )


main()
