# SPDX-License-Identifier: Apache-2.0
"""Where files lie: the package's own, in the source tree or installed, and those that a process writes alone."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from xvla_ros.errors import SetupError

PACKAGE = "xvla_ros"
SHIPPED = "shipped"  # in the place of a checkpoint: the policy that comes with the package
_OURS = set[Path]()  # folders that this process holds


def usable_cores() -> int:
    """Return the number of processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or less where a control group (v2) limits it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(there, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # there is no such group, or it says "max"
        return there


def without_real_time() -> None:
    """Give every thread of this process ordinary scheduling, as far as the system has it and allows it."""
    if not hasattr(os, "sched_setscheduler"):
        return
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def write_whole(path: Path, text: str) -> None:
    """Write a file in one piece, and its folder where there is none.

    What is no UTF-8, such as the name of a file, stands there with a backslash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    draft.replace(path)


def output_folder(named: str | Path, option: str = "--output") -> Path:
    """Return a writable folder, made where it is not there: before hours are spent on what goes there.

    Until this process ends it is this one's alone: another would write over its results.

    Args:
        named: the folder.
        option: that named it.

    Raises:
        SetupError: it cannot be made, or not be written into, or another process writes into it.
    """
    folder = Path(named)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if (place := folder.resolve()) not in _OURS:
            held = os.open(place, os.O_RDONLY)  # for as long as this process lives
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(held)
                raise
            os.register_at_fork(after_in_child=partial(os.close, held))  # those who outlive this process hold nothing
            _OURS.add(place)
        return folder
    except BlockingIOError:
        raise SetupError(
            f"{option} {named}: another process writes into it; expected a folder of your own, or wait for its end"
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SetupError(
            f"{option} {named}: cannot be written: {reason}; expected a folder that you can write or create"
        ) from None


def open_lock(path: Path, mode: int = 0o600) -> int:
    """Open a file that is there to be locked: no link is followed, nothing is emptied or waited for.

    Raises:
        OSError: it is a link, or another user's.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode)


def config_dir() -> Path:
    """Return the folder of the shipped profiles, scenes and DDS settings.

    A source tree (a clone, an editable install) comes first, so that an edit there takes effect at once; then the
    ``share`` folder of the prefix this package is installed in; then that of the environment and of a sourced ROS.

    Raises:
        FileNotFoundError: the package was copied without its ``config`` folder.
    """
    tried = list(_candidates())
    for folder in tried:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the config folder of {PACKAGE} was not found in any of: {', '.join(map(str, tried))}; "
        "reinstall the package with pip or colcon"
    )


def policy_dir() -> Path | None:
    """Return the folder of the policy that comes with the package, beside ``config``; None where it has none."""
    return next((folder for folder in _candidates("policy") if (folder / "config.json").is_file()), None)


def checkpoint_path(name: str | Path) -> Path:
    """Return the path that is meant by the name of a checkpoint: ``shipped`` is the policy that comes with the package.

    A folder of that name comes first.
    """
    path = Path(name).expanduser()
    return path if path.exists() or str(name) != SHIPPED else policy_dir() or path


def documentation(page: str) -> str:
    """Return where a page of the documentation is: a file of the source tree, else the address that pip knows of it.

    Args:
        page: from the root of the sources, with a section where one is meant: ``docs/how-to/train.md#4-train``.
    """
    file, mark, section = page.partition("#")
    root = Path(__file__).parent.parent
    if (root / file).is_file():
        return (os.path.relpath(root / file) if Path.cwd().is_relative_to(root) else str(root / file)) + mark + section
    from importlib.metadata import PackageNotFoundError, metadata  # read only where it is needed: it takes a while

    with suppress(PackageNotFoundError):
        for entry in metadata(PACKAGE).get_all("Project-URL") or ():
            name, _, address = entry.partition(", ")
            if name.lower() == "documentation":
                of_site = "index.html" if file == "README.md" else file.removeprefix("docs/").replace(".md", ".html")
                return f"{address.rstrip('/')}/{of_site}{mark}{section}"
    return f"{page} in the sources"


def messages_dir() -> Path | None:
    """Return the folder of the package's own message definitions; None where it was installed without."""
    return next((folder for folder in _candidates("msg") if folder.is_dir()), None)


def _candidates(name: str = "config") -> Iterator[Path]:
    package = Path(__file__).parent  # not resolved: colcon --symlink-install links back to the source tree
    if (package.parent / "pyproject.toml").is_file():
        yield package.parent / name
    prefixes = [*package.parents, Path(sys.prefix)]
    prefixes += [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    for prefix in prefixes:
        yield prefix / "share" / PACKAGE / name
