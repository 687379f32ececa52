# SPDX-License-Identifier: Apache-2.0
"""``xvla doctor``: what a bug report needs to know of this machine, and what looks wrong with it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from xvla_ros.commands.options import Command, Json
from xvla_ros.evaluation.report.provenance import commit
from xvla_ros.resources import PACKAGE, config_dir, memory_bytes, usable_cores
from xvla_ros.ros_env import DDS_PROFILE_VARIABLES, DDS_TRANSPORTS_VARIABLE, prepare

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

SCHEMA_VERSION = 1
GIB = 2**30
LEAST_MEMORY, LEAST_SHARED, LEAST_DISK = 4 * GIB, GIB // 16, 2 * GIB
DOMAINS = (*range(102), *range(215, 233))  # of others, the ports of DDS meet those that Linux gives to programs
VECTORS = ("avx512_vnni", "avx512f", "avx_vnni", "avx2", "avx", "asimd")  # flags of /proc/cpuinfo, the widest first
RANGES = ("SUBNET", "LOCALHOST", "OFF", "SYSTEM_DEFAULT")
VARIABLES = (
    *("ROS_DISTRO", "RMW_IMPLEMENTATION", "ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_STATIC_PEERS"),
    *("ROS_LOCALHOST_ONLY", "ROS_LOG_DIR", "ROS_SECURITY_ENABLE", *DDS_PROFILE_VARIABLES.values()),
    *(DDS_TRANSPORTS_VARIABLE, "AMENT_PREFIX_PATH", "PYTHONPATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("HF_HOME", "HF_HUB_OFFLINE", "MUJOCO_GL"),
)
OPEN = "can be opened"
DEVICES = ("video*", "ttyACM*", "ttyUSB*", "nvidia[0-9]*", "dri/renderD*")  # in /dev


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Print what a bug report needs to know of this machine, and what looks wrong with it.

    Versions, processor, memory, ROS and its settings, devices. Nothing is sent anywhere.

    examples:
      xvla doctor
      xvla doctor --json

    exit code 0: nothing looks wrong; 1: something does, and is named
    """

    json: Json = False

    def run(self) -> int:
        """Look at the machine, and print."""
        found = look()
        wrong = [
            *unmet_requirements(),
            *wrong_machine(found["devices"]),
            *wrong_compute(found["compute"]),
            *wrong_ros(os.environ),
        ]
        if self.json:
            document = {"schema_version": SCHEMA_VERSION, **found, "wrong": wrong}
            print(json.dumps(document, indent=2, ensure_ascii=False))
            return int(bool(wrong))
        for title, entries in found.items():
            print(title)
            for name, value in (entries or {"none": ""}).items():
                print(f"  {name:<20} {value}".rstrip())
        print(f"\nlooks wrong: {len(wrong)}" if wrong else "\nnothing looks wrong")
        for each in wrong:
            print(f"  - {each}")
        return int(bool(wrong))


def look() -> dict[str, dict[str, str]]:
    """Return what is found, section by section: the package, the machine, what computes, ROS, variables, devices."""
    variables = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    devices = {str(path): _access(path) for pattern in DEVICES for path in sorted(Path("/dev").glob(pattern))}
    return {
        "package": _package(),
        "machine": _machine(),
        "compute": _compute(),
        "ros": _ros(),
        "environment variables": variables,
        "devices": devices,
    }


def _package() -> dict[str, str]:
    source = Path(__file__).parents[2]
    return {
        PACKAGE: _version(PACKAGE) + (f", commit {found}" if (found := commit(source)) else ""),
        "code": str(source / PACKAGE),
        "config": str(config_dir()),
        "python": f"{platform.python_version()}, {sys.executable}",
        "extras": ", ".join(sorted(extra for extra, lacks in _extras().items() if not lacks)) or "none",
    }


def _machine() -> dict[str, str]:
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.*)", info, re.MULTILINE)
    flags = set(re.findall(r"\w+", "".join(re.findall(r"^(?:flags|Features)\s*:(.*)", info, re.MULTILINE)[:1])))
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release"), re.MULTILINE)
    return {
        "system": f"{release[1] if release else platform.system()}, {platform.release()}, {platform.machine()}",
        "processor": model[1] if model else platform.processor() or "unknown",
        "vectors": ", ".join(name for name in VECTORS if name in flags) or "unknown",
        "cores": f"{usable_cores()} of {os.cpu_count()}",
        "memory": f"{memory_bytes() / GIB:.1f} GiB",
        "/dev/shm": _free("/dev/shm"),
        "temporary folder": f"{tempfile.gettempdir()}, {_free(tempfile.gettempdir())}",
        "home": f"{Path('~').expanduser()}, {_access(Path('~').expanduser())}",
    }


def _compute() -> dict[str, str]:
    found = {name: _version(name) for name in ("torch", "transformers", "numpy", "onnxruntime", "openvino", "mujoco")}
    try:
        import torch

        found["torch uses"] = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["GPUs of torch"] = ", ".join(names) or "none"
        found["CUDA of torch"] = torch.version.cuda or "none"
    except Exception as error:  # whatever a broken installation raises is what is asked for here
        found["torch uses"] = f"cannot be imported: {error}"
    compiled = find_spec(f"{PACKAGE}.control._chain") is not None
    found["limiter"] = (
        "compiled" if compiled else ("in Python, several times slower: no C++ compiler was found at installation")
    )
    return found


def _ros() -> dict[str, str]:
    prepared = dict(os.environ)
    prepare(prepared)
    modules = ("rclpy", f"{PACKAGE}.msg", "cv_bridge", "launch_ros", "control_msgs")
    chosen = [
        prepared[name] for name in (*DDS_PROFILE_VARIABLES.values(), DDS_TRANSPORTS_VARIABLE) if prepared.get(name)
    ]
    return {name: _imported(name) for name in modules} | {
        "middlewares": ", ".join(_middlewares(prepared)) or "none",
        "DDS profile": ", ".join(chosen) or "none",
    }


def _imported(module: str) -> str:
    try:
        return f"available, {Path(import_module(module).__file__ or '').parent}"
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module.split(".")[0] else f"cannot be imported: {error}"
    except Exception as error:  # whatever a broken installation raises is what is asked for here
        return f"cannot be imported: {error}"


def _middlewares(environment: Mapping[str, str]) -> list[str]:
    prefixes = [Path(entry) for entry in environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    index = Path("share", "ament_index", "resource_index", "rmw_typesupport")
    found = {path.name for prefix in prefixes for path in (prefix / index).glob("rmw_*")}
    return sorted(found - {"rmw_implementation"})


def _extras() -> dict[str, list[str]]:
    """Return each extra with what it lacks here."""
    from packaging.requirements import Requirement

    lacks: dict[str, list[str]] = {}
    for requirement in map(Requirement, _requirements()):
        found = re.search(r"""extra == ['"]([\w-]+)['"]""", str(requirement.marker or ""))
        if found:
            here = requirement.marker is None or requirement.marker.evaluate({"extra": found[1]})
            missing = lacks.setdefault(found[1], [])
            if here and not _satisfied(requirement.name, requirement.specifier):
                missing.append(requirement.name)
    return lacks


def _requirements() -> list[str]:
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # built by colcon
        return []


def _satisfied(name: str, versions: SpecifierSet) -> bool:
    try:
        return versions.contains(metadata.version(name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def unmet_requirements() -> Iterator[str]:
    """Name what the package requires and what is here in another version, or not at all."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, _requirements()):
        if requirement.marker is None and not _satisfied(requirement.name, requirement.specifier):
            yield (
                f"{requirement.name}: found {_version(requirement.name)}; xvla_ros needs "
                f"{requirement.specifier or 'it'}: pip install '{requirement.name}{requirement.specifier}'"
            )


def wrong_machine(devices: Mapping[str, str]) -> Iterator[str]:
    """Name what of this machine is too small, or cannot be written or opened, given the section ``devices``."""
    if memory_bytes() < LEAST_MEMORY:
        yield f"memory: {memory_bytes() / GIB:.1f} GiB; the 0.9 B model in bfloat16 needs {LEAST_MEMORY / GIB:.0f} GiB"
    shared = Path("/dev/shm")
    if sys.platform == "linux" and not shared.is_dir():
        yield "/dev/shm: is missing, so DDS sends images by UDP and loses some: mount a tmpfs there"
    elif shared.is_dir() and shutil.disk_usage(shared).free < LEAST_SHARED:
        yield f"/dev/shm: {_free(shared)}; images need 64 MiB: docker run --shm-size=1g, or delete files there"
    if shutil.disk_usage(tempfile.gettempdir()).free < LEAST_DISK:
        yield f"{tempfile.gettempdir()}: {_free(tempfile.gettempdir())}; recordings and training need more: set TMPDIR"
    home = Path("~").expanduser()
    if not os.access(home, os.W_OK):
        yield f"home: {home} cannot be written; set ROS_LOG_DIR and HF_HOME to writable folders"
    closed = [path for path, how in devices.items() if how != OPEN]
    if closed:
        yield f"devices: {', '.join(closed)} cannot be opened: sudo usermod -aG video,dialout,render $USER"


def wrong_compute(found: Mapping[str, str]) -> Iterator[str]:
    """Name what keeps the policy from computing, or from computing fast, given the section ``compute``."""
    if "cannot be imported" in found["torch uses"]:
        yield f"torch {found['torch uses']}"
        return
    if found["torch uses"].startswith("DEFAULT"):
        yield (
            "torch uses no vector instructions (DEFAULT), so a chunk takes several times as long; is "
            "ATEN_CPU_CAPABILITY set?"
        )
    if found["GPUs of torch"] == "none" and sorted(Path("/dev").glob("nvidia[0-9]*")):
        cuda = found["CUDA of torch"]
        why = (
            "it was built for CPUs"
            if cuda == "none"
            else (f"it was built for CUDA {cuda}, which the driver may be too old for")
        )
        yield f"torch {found['torch']} does not find this machine's GPU: {why}; https://pytorch.org/get-started/locally"


def wrong_ros(environment: Mapping[str, str]) -> Iterator[str]:
    """Name what of ROS is missing or set to what cannot work."""
    if find_spec("rclpy") is None:
        yield (
            "rclpy: is not installed, so no node can run: source a ROS 2 installation, or pip install '.[ros]' -C "
            "messages=jazzy"
        )
        return
    if "available" not in (messages := _imported(f"{PACKAGE}.msg")):
        yield f"the messages of {PACKAGE}: {messages}"
    elsewhere = [
        entry for entry in environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry.startswith("/opt/ros")
    ]
    if elsewhere and _version("ros-rclpy") != "not installed":
        yield (
            f"two ROS installations: {elsewhere[0]} is sourced, and this environment contains the ROS wheels of PyPI "
            f"(ros-rclpy {_version('ros-rclpy')}); use only one: open a new shell without sourcing, or use an "
            "environment without the wheels"
        )
    prepared = dict(environment)
    prepare(prepared)
    chosen, there = environment.get("RMW_IMPLEMENTATION", ""), _middlewares(prepared)
    if chosen and there and chosen not in there:
        yield f"RMW_IMPLEMENTATION: {chosen} is not installed; installed: {', '.join(there)}"
    domain = environment.get("ROS_DOMAIN_ID", "0") or "0"
    if not domain.isdecimal() or int(domain) not in DOMAINS:
        yield (
            f"ROS_DOMAIN_ID: {domain!r}; expected a whole number from 0 to 101, or on Linux from 215 to 232, the same "
            "on every machine: Linux gives the ports of other numbers to any program"
        )
    reach = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
    if reach and reach not in RANGES:
        yield f"ROS_AUTOMATIC_DISCOVERY_RANGE: {reach!r}; expected one of {', '.join(RANGES)}"
    elif reach == "OFF":
        yield (
            "ROS_AUTOMATIC_DISCOVERY_RANGE: OFF, so nodes do not find each other: set LOCALHOST, or SUBNET for "
            "the local network"
        )
    for name in DDS_PROFILE_VARIABLES.values():
        if (file := environment.get(name)) and not Path(file).is_file():
            yield f"{name}: {file} is not a file, so Fast DDS uses its defaults: unset the variable, or name a profile"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _free(folder: str | Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / GIB:.1f} GiB free"
    except OSError as error:
        return error.strerror or "unknown"


def _access(path: Path) -> str:
    if path.is_dir():
        return "can be written" if os.access(path, os.W_OK) else "cannot be written"
    return OPEN if os.access(path, os.R_OK | os.W_OK) else "cannot be opened"
